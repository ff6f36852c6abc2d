"""No function of a higher instruction set can be the one that runs on a lower one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build" / "dev" / "CMakeFiles"
SETS = ("avx2", "avx512")


def shared_symbols(object_file: Path) -> list[str]:
    """List the functions of an object file that the linker may replace by others' copies."""
    printed = subprocess.check_output(["nm", "--demangle", str(object_file)], text=True)
    lines = [line.split(maxsplit=2) for line in printed.splitlines()]
    return [line[2] for line in lines if len(line) == 3 and line[1] in "Wu"]


@pytest.mark.parametrize("isa", SETS)
def test_copies_share_nothing(isa: str) -> None:
    objects = sorted(BUILD.glob(f"rowwise_*_{isa}.dir/**/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("the kernels of this instruction set are not built here")
    for path in objects:
        others = [name for name in shared_symbols(path) if f"rowwise::{isa}::" not in name]
        assert others == [], path
