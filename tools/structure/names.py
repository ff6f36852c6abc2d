"""Names that say nothing, and headers that the kernels must not know."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from structure.api import Api
from structure.source import COMMAND_LINE, PACKAGE, Module

_EMPTY = {"util", "utils", "common", "helper", "helpers", "base", "misc"}
_FOLDERS = (PACKAGE, COMMAND_LINE, "tests", "tools", "benchmarks", "examples", "csrc")


def name_violations(root: Path, modules: dict[str, Module], api: Api) -> list[str]:
    """Report files and folders named ``utils`` and the like; the API's own may only re-export."""
    found = []
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if "__pycache__" in path.parts or path.stem.strip("_") not in _EMPTY:
                continue
            module = modules.get(".".join(path.relative_to(root).with_suffix("").parts))
            if module is None or module.name not in api.modules:
                found.append(f"{path}: a name should say what is in it")
            elif any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in module.tree.body):
                found.append(f"{path}: a path of the API with such a name should only re-export")
    return found


# The files of ``csrc`` that know Python; the headers are included by the first alone.
_OF_BINDINGS = ("bindings.cpp", "call.h", "tensor.h")


def include_violations(root: Path) -> list[str]:
    """Report includes of PyTorch in ``csrc``, and of Python outside the bindings."""
    found = []
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix not in (".cpp", ".h"):
            continue
        for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE):
            top = header.split("/")[0]
            if top in ("torch", "ATen", "c10", "caffe2"):
                found.append(f"{path}: kernels take raw pointers and do not include <{header}>")
            if top in ("Python.h", "nanobind") and path.name not in _OF_BINDINGS:
                found.append(f"{path}: only bindings.cpp includes <{header}>")
    return found
