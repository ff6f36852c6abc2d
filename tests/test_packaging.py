"""The wheel: with kernels where they build, without them where they do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.so")
REPORT = """
import sys
sys.path.insert(0, sys.argv[1])
import torchrec
from torchrec import ops
assert torchrec.__file__.startswith(sys.argv[1]), torchrec.__file__
print(*sorted({table["cpu"].name for table in ops.backends().values()}))
print(*{table["cpu"].why for table in ops.backends().values()}, sep="; ")
"""


def build_wheel(folder: Path, **environment: str) -> list[str]:
    """Build the wheel, unpack it into ``folder / "site"`` and return the names of its files."""
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")],
        env={**os.environ, **environment},
        check=True,
    )
    (wheel,) = folder.glob("rowwise-*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
        return [wheel.name, *content.namelist()]


def report(folder: Path) -> tuple[str, str]:
    names, why = subprocess.check_output(
        [sys.executable, "-c", REPORT, str(folder / "site")], cwd=folder, text=True
    ).splitlines()
    return names, why


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_wheel_with_kernels(tmp_path: Path) -> None:
    tag, *files = build_wheel(tmp_path)
    assert "-none-any" not in tag
    assert sum(name.startswith("torchrec/ops/_native.") for name in files) == 1
    assert "native" in report(tmp_path)[0].split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"CXX": "/nonexistent/c++"}, {"CMAKE_ARGS": "-DROWWISE_VECTOR_EXTENSIONS=OFF"}],
    ids=["no compiler", "a compiler without vector extensions"],
)
def test_wheel_without_kernels(tmp_path: Path, environment: dict[str, str]) -> None:
    tag, *files = build_wheel(tmp_path, **environment)
    assert tag.endswith("-py3-none-any.whl")
    assert not any("_native" in name for name in files)
    assert "torchrec/py.typed" in files
    assert {name.split("/")[0].split("-")[0] for name in files} == {"torchrec", "rowwise"}
    names, why = report(tmp_path)
    assert names == "reference"
    assert "without" in why
    assert "compiler" in why
