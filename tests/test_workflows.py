"""What CI is told to run is what the package promises, and is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text()


def jobs(name: str) -> dict[str, dict]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]


def commands(workflow: dict[str, dict]) -> list[str]:
    return [step["run"] for job in workflow.values() for step in job["steps"] if "run" in step]


def test_the_tests_run_on_what_is_promised() -> None:
    matrix = jobs("tests.yml")["tests"]["strategy"]["matrix"]
    assert matrix["system"] == ["ubuntu", "macos", "windows"]
    assert f'requires-python = ">={matrix["python"][0]}"' in PROJECT
    wheels = re.findall(r"cp3(\d+)-\*", PROJECT)
    assert [f"3.{minor}" for minor in wheels] == matrix["python"]
    installs = {one["torch"]: one["install"] for one in matrix["include"]}
    assert list(installs) == matrix["torch"] == ["oldest", "newest", "nightly"]
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', PROJECT)
    assert installs["oldest"].startswith(f"torch=={oldest}.*")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_target_and_tool_is_there(path: Path) -> None:
    workflow = jobs(path.name)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(workflow):
        for target in re.findall(r"^make ([a-z-]+)", command):
            assert target in targets
        for tool in re.findall(r"^python (tools/\S+)", command):
            assert (ROOT / tool).is_file()
    for job in workflow.values():
        for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
            assert target in targets


def test_all_three_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "tests", "wheels"]
