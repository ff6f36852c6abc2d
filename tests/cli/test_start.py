"""What the command line loads before it knows what to do, and the first page of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import rowwise
import torchrec
from rowwise import cli
from rowwise.cli.application import application

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "pyarrow", "pydantic", "torch", "torchrec", "yaml")
OBSERVE = f"""
import json, sys
from rowwise.cli import main
codes = [main(line) for line in json.loads(sys.argv[1])]
print(json.dumps([codes, sorted(set({HEAVY}) & set(sys.modules))]))
"""


def _loaded(*lines: list[str]) -> tuple[list[int], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", OBSERVE, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    return codes, heavy


def _all_commands(group: object, before: tuple[str, ...] = ()) -> list[list[str]]:
    found = [list(before)]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            found += _all_commands(command, (*before, name))
        else:
            found.append([*before, name])
    return found


COMMANDS = _all_commands(typer.main.get_command(application()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "before", "found"),
    [
        ({}, "", "4000"),
        ({"GOMP_SPINCOUNT": "7"}, "", "7"),
        ({"OMP_WAIT_POLICY": "active"}, "", None),
        ({}, "import torch", None),
    ],
    ids=["neither", "count", "policy", "too_late"],
)
def test_threads_wait_awake_for_a_moment_only(
    given: dict[str, str], before: str, found: str | None
) -> None:
    code = f"""
{before}
import os
from rowwise.cli import main
main(["--version"])
import torch
print(repr(os.environ.get("GOMP_SPINCOUNT")))
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment | given | {"OMP_DISPLAY_ENV": "verbose"},
    )
    assert done.stdout.splitlines()[-1] == repr(found)
    if sys.platform == "linux" and found is not None:
        assert f"GOMP_SPINCOUNT = '{found}'" in done.stderr


def test_help_of_every_command_loads_no_pytorch() -> None:
    codes, heavy = _loaded(*([*command, "--help"] for command in COMMANDS))
    assert (set(codes), heavy) == ({0}, [])
    assert len(codes) > 10


@pytest.mark.parametrize(
    ("line", "code"),
    [([], 0), (["--version"], 0), (["-h"], 0), (["trian"], 2), (["report", "x", "--outptu"], 2)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_data_loads_no_pytorch(line: list[str], code: int) -> None:
    assert _loaded(line) == ([code], [])


@pytest.mark.slow
def test_a_command_does_load_it() -> None:
    """What is observed above can be seen: it is there once a command runs."""
    codes, heavy = _loaded(["report", "/nothing"])
    assert codes == [2]
    assert {"torch", "torchrec"} <= set(heavy)


@pytest.mark.parametrize("module", ["rowwise", "torchrec"])
def test_both_packages_run_as_modules(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"rowwise {rowwise.__version__}")


def test_one_version() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    assert rowwise.__version__ == torchrec.__version__
    assert f'\nversion = "{rowwise.__version__}"\n' in declared


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_flags_read_as_flags(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--help" in text
    assert "<bool>" not in text


def test_alone_it_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 12
    for command in ("torchrec demo", "torchrec init ", "torchrec train ", "torchrec predict "):
        assert any(line.startswith(f"  {command}") for line in lines)
    (names,) = (line for line in lines if line.startswith("Commands: "))
    first = {command[0] for command in COMMANDS if command}
    assert set(names.removeprefix("Commands: ").removesuffix(".").split(", ")) == first


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["train", "x", "--resum"], "No such option: --resum. Did you mean '--resume', "),
        (["report", "x", "--outptu", "y"], "No such option: --outptu. Did you mean '--output'?"),
        (["--verison"], "No such option: --verison. Did you mean '--version'?"),
        (["data", "critoe"], "No such command 'critoe'. Did you mean 'criteo'?"),
        (["zzz"], "No such command 'zzz'. See `torchrec --help`."),
        (["train", "x", "--zzz"], "No such option: --zzz. See `torchrec train --help`."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_near_names_are_proposed(
    line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line) == cli.MISTAKE
    assert said in capsys.readouterr().err


def test_what_steers_a_terminal_is_escaped_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["tr\x1bain"]) == cli.MISTAKE
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"tr\x1bain" in error


def test_another_distribution_is_named_without_advice_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("`import torchrec` should find one distribution.")

    monkeypatch.setattr("torchrec.report.write_report", fail)
    assert cli.main(["report", "x"]) == cli.MISTAKE
    assert capsys.readouterr().err == "torchrec: `import torchrec` should find one distribution.\n"
