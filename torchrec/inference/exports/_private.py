"""What PyTorch has under a private name only: `tests/inference/exports/test_formats.py` runs all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def compile_for_this_processor(program: ExportedProgram, path: Path) -> None:
    """Write a program as a package of machine code and weights."""
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))


def load_compiled(path: Path) -> Any:
    """Read a package that `compile_for_this_processor` wrote; what is returned is called with the inputs."""
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path))
