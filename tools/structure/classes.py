"""How many parameters a constructor may have, and how deep classes may inherit."""

from __future__ import annotations

import ast

from structure.api import Api
from structure.imports import imports_of
from structure.source import Module

PARAMETERS, DEPTH = 10, 2


def constructor_violations(modules: dict[str, Module], api: Api) -> list[str]:
    """Report constructors with more than 10 parameters beyond those that the API prescribes.

    Fields of a dataclass are not parameters: a configuration is data, and is written by keyword.
    """
    found = []
    for module in modules.values():
        for cls in _classes(module):
            for node in cls.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    ours = _parameters(node) - api.parameters.get(cls.name, frozenset())
                    if len(ours) > PARAMETERS:
                        place = f"{module.path}:{node.lineno}: {cls.name}.__init__"
                        found.append(f"{place} has {len(ours)} parameters, limit {PARAMETERS}")
    return found


def depth_violations(modules: dict[str, Module], api: Api) -> list[str]:
    """Report classes more than two of our own classes deep.

    Steps to a base that the API prescribes do not count, whether it prescribes it of the class or of one that
    derives from it: what stands between the two is ours, and its own step counts. A class that inherits from none
    of ours has depth 1, whatever else it inherits from.
    """
    found = []
    definitions = {(m.name, cls.name): (m, cls) for m in modules.values() for cls in _classes(m)}

    def depth(key: tuple[str, str], of_derived: frozenset[str] = frozenset()) -> int:
        module, cls = definitions[key]
        prescribed = of_derived | api.bases.get(cls.name, frozenset())
        depths = [1]
        for base in cls.bases:
            parent = _definition(base, module, modules, definitions)
            if parent is not None:
                depths.append(depth(parent, prescribed) + (parent[1] not in prescribed))
        return max(depths)

    for key, (module, cls) in definitions.items():
        if depth(key) > DEPTH:
            place = f"{module.path}:{cls.lineno}: {cls.name}"
            found.append(f"{place} inherits {depth(key)} deep, limit {DEPTH}")
    return found


def _classes(module: Module) -> list[ast.ClassDef]:
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]


def _parameters(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {argument.arg for argument in every} - {"self"}


def _definition(
    base: ast.expr,
    module: Module,
    modules: dict[str, Module],
    definitions: dict[tuple[str, str], tuple[Module, ast.ClassDef]],
) -> tuple[str, str] | None:
    """Find where the class that ``base`` names in ``module`` is defined, through re-exports."""
    name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).split(".")[-1]
    seen: set[str] = set()
    while module.name not in seen:
        seen.add(module.name)
        if (module.name, name) in definitions:
            return module.name, name
        for imported in imports_of(module):
            if imported.name == name and imported.origin in modules:
                module = modules[imported.origin]
                break
    return None
