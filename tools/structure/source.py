"""The package as parsed files."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

PACKAGE, COMMAND_LINE = "torchrec", "rowwise"


@dataclass(frozen=True)
class Module:
    """One Python file of the package."""

    name: str  # dotted; a package has the name of its folder
    path: Path
    is_package: bool
    tree: ast.Module

    @property
    def unit(self) -> str:
        """What directly below ``torchrec`` this file belongs to; "" for the root itself.

        The package of the command line beside it is one unit.
        """
        if self.name.split(".")[0] == COMMAND_LINE:
            return COMMAND_LINE
        return self.name.split(".")[1] if "." in self.name else ""


def read_tree(root: Path) -> dict[str, Module]:
    """Parse every Python file of the package under ``root``, by dotted name."""
    modules = {}
    for path in sorted([*(root / PACKAGE).rglob("*.py"), *(root / COMMAND_LINE).rglob("*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = Module(name, path, is_package, ast.parse(path.read_text(), str(path)))
    return modules
