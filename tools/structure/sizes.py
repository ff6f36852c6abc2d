"""How long files, functions and classes may be.

Files count every line. Functions and classes count their lines without docstrings: what a reader
must hold in the head is the code, and nobody should save on documentation.
"""

from __future__ import annotations

import ast
from pathlib import Path

from structure.source import COMMAND_LINE, PACKAGE, Module

FILE, LONG_FILE, FUNCTION, CLASS = 600, 800, 80, 400
_FOLDERS = (PACKAGE, COMMAND_LINE, "tests", "tools", "benchmarks", "examples", "csrc")
_SUFFIXES = (".py", ".cpp", ".h", ".cmake")


def file_violations(root: Path) -> list[str]:
    """Report files of over 600 lines; kernels and tests of over 800."""
    found = []
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in _SUFFIXES:
                continue
            limit = LONG_FILE if folder in ("tests", "csrc") or path.name == "triton.py" else FILE
            lines = len(path.read_text().splitlines())
            if lines > limit:
                found.append(f"{path}: {lines} lines, limit {limit}")
    return found


def definition_violations(modules: dict[str, Module]) -> list[str]:
    """Report functions of over 80 lines and classes of over 400."""
    found = []
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
                lines = _lines(node)
                if lines > limit:
                    place = f"{module.path}:{node.lineno}"
                    found.append(f"{place}: {node.name} has {lines} lines, limit {limit}")
    return found


def _lines(definition: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    lines = _span(definition)
    for node in ast.walk(definition):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0]
            if ast.get_docstring(node, clean=False) is not None:
                lines -= _span(first)
    return lines


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
