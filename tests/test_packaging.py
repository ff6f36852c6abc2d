"""The wheel: with kernels where they build, without them where they do not; and the sources as one file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

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


def build_wheel(folder: Path, **environment: str) -> Path:
    """Build the wheel from the sources as one file, which comes to lie beside it."""
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(
        [*command, str(folder / "source")], env={**os.environ, **environment}, check=True
    )
    (wheel,) = folder.glob("rowwise-*.whl")
    return wheel


def unpack(wheel: Path) -> list[str]:
    """Unpack it into the folder ``site`` beside and return the names of its files."""
    with zipfile.ZipFile(wheel) as content:
        content.extractall(wheel.parent / "site")
        return content.namelist()


def report(folder: Path) -> tuple[str, str]:
    names, why = subprocess.check_output(
        [sys.executable, "-c", REPORT, str(folder / "site")], cwd=folder, text=True
    ).splitlines()
    return names, why


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_wheel_with_kernels(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    files = unpack(wheel)
    assert "-none-any" not in wheel.name
    assert sum(name.startswith("torchrec/ops/_native.") for name in files) == 1
    assert "native" in report(tmp_path)[0].split()

    (sources,) = tmp_path.glob("rowwise-*.tar.gz")
    with tarfile.open(sources) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/bindings.cpp", "rowwise/cli/__init__.py", "tests/test_packaging.py"} <= names
    assert not any(name.endswith(".so") for name in names)

    if sys.platform == "linux":
        check_repaired(wheel, tmp_path / "repaired")


def check_repaired(wheel: Path, folder: Path) -> None:
    """Check what `make wheel` makes of a wheel: one that says on which systems it runs.

    It has an OpenMP runtime for where there is none. What counts is that of PyTorch, which is loaded
    first: one pool of threads.
    """
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel)]
    subprocess.run(command, check=True)
    (repaired,) = folder.iterdir()
    assert "-manylinux_" in repaired.name
    assert sum(name.startswith("rowwise.libs/libgomp") for name in unpack(repaired)) <= 1
    names, why = report(folder)
    assert "native" in names.split()
    assert "OpenMP" in why


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"CXX": "/nonexistent/c++"}, {"CMAKE_ARGS": "-DROWWISE_VECTOR_EXTENSIONS=OFF"}],
    ids=["no compiler", "a compiler without vector extensions"],
)
def test_wheel_without_kernels(tmp_path: Path, environment: dict[str, str]) -> None:
    wheel = build_wheel(tmp_path, **environment)
    files = unpack(wheel)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any("_native" in name for name in files)
    assert "torchrec/py.typed" in files
    assert {name.split("/")[0].split("-")[0] for name in files} == {"torchrec", "rowwise"}
    names, why = report(tmp_path)
    assert names == "reference"
    assert "without" in why
    assert "compiler" in why
