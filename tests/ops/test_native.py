"""The native library: its copies for different instruction sets, and the choice between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torchrec.ops._library import native

pytestmark = pytest.mark.once

BUILD = Path(__file__).parents[2] / "build" / "dev" / "CMakeFiles"
SETS = ("avx2", "avx512")


def shared_symbols(object_file: Path) -> list[str]:
    """List the functions of an object file that the linker may replace by others' copies."""
    printed = subprocess.check_output(["nm", "--demangle", str(object_file)], text=True)
    lines = [line.split(maxsplit=2) for line in printed.splitlines()]
    return [line[2] for line in lines if len(line) == 3 and line[1] in "Wu"]


@pytest.mark.parametrize("isa", SETS)
def test_copies_share_nothing(isa: str) -> None:
    """No function of a higher instruction set can be the one that runs on a lower one."""
    objects = sorted(BUILD.glob(f"rowwise_*_{isa}.dir/**/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("the kernels of this instruction set are not built here")
    for path in objects:
        others = [name for name in shared_symbols(path) if f"rowwise::{isa}::" not in name]
        assert others == [], path


@pytest.mark.skipif(native is None, reason="the kernels are not in use")
def test_unknown_instruction_set_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torchrec.ops"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ROWWISE_ISA": "sse"},
        capture_output=True,
        text=True,
    )
    message = "ROWWISE_ISA should be 'baseline', 'avx2' or 'avx512'. Received 'sse'."
    assert f"ValueError: {message}" in done.stderr
