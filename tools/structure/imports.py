"""Who may import whom: the layers, no cycles, and one package that touches the backends.

Every import counts: at the top of a file, inside a function, under ``TYPE_CHECKING`` and by
``importlib.import_module("torchrec...")``; a type hint is a dependency too.
"""

from __future__ import annotations

import ast
import sys
from typing import NamedTuple

from structure.source import COMMAND_LINE, PACKAGE, Module

# A unit imports only units of lower rows; units of one row do not import each other.
LAYERS = (
    (
        "types",
        "errors",
        "fx",
        "streamable",
        "threads",
        "heap",
        "tensor_types",
        "logging",
        "test_utils",
        "_environment",
        "checks",
        "files",
        "process_groups",
    ),
    ("ops", "state_tree"),
    ("sparse", "optim", "metrics"),
    ("modules", "datasets", "pt2"),
    ("models", "quant"),
    ("distributed", "experiment", "bundle", "runs", "compat"),
    ("training", "inference", "report"),
    ("tuning", "serve"),
    ("rowwise",),
    ("cli", "__main__"),
)
# What the command line may load before it knows the command: help and version are said at once.
_AT_ONCE = {"rich", "typer", COMMAND_LINE, *sys.stdlib_module_names}
_LAYER = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}


class Import(NamedTuple):
    """One import."""

    origin: str  # module
    name: str  # what is taken from it, a value or a module; "" for `import origin`
    line: int

    @property
    def path(self) -> str:
        return f"{self.origin}.{self.name}" if self.name else self.origin

    def resolve(self, modules: dict[str, Module]) -> str | None:
        """Return the module of the package that is imported."""
        return next((path for path in (self.path, self.origin) if path in modules), None)


def imports_of(module: Module) -> list[Import]:
    """List the imports of a file."""
    return [
        Import(origin, name, line)
        for node in ast.walk(module.tree)
        for origin, name, line in _targets(node, module)
    ]


def _targets(node: ast.AST, module: Module) -> list[tuple[str, str, int]]:
    if isinstance(node, ast.Import):
        return [(alias.name, "", node.lineno) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        origin = node.module or ""
        if node.level:
            package = module.name.split(".")
            up = node.level - 1 if module.is_package else node.level
            origin = ".".join([*package[: len(package) - up], *filter(None, [node.module])])
        return [(origin, alias.name, node.lineno) for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        return [(node.args[0].value, "", node.lineno)]
    return []


def layer_violations(modules: dict[str, Module]) -> list[str]:
    """Report imports upwards, sideways and of ``torchrec`` itself, and units without a layer."""
    found = [
        f"{PACKAGE}.{unit}: has no layer; add it to LAYERS in tools/structure/imports.py"
        for unit in sorted({module.unit for module in modules.values()} - {"", *_LAYER})
    ]
    for module in modules.values():
        if module.unit not in _LAYER:
            continue
        for imported in imports_of(module):
            resolved = imported.resolve(modules)
            other = modules[resolved].unit if resolved else None
            if other is None or other == module.unit:
                continue
            place = f"{module.path}:{imported.line}: {module.name} (L{_LAYER[module.unit]})"
            if other == "":
                found.append(f"{place} imports the façade {PACKAGE}; import the module that has it")
            elif other in _LAYER and _LAYER[other] >= _LAYER[module.unit]:
                direction = "sideways" if _LAYER[other] == _LAYER[module.unit] else "upwards"
                found.append(f"{place} imports {direction}: {resolved} (L{_LAYER[other]})")
    return found


def cycle_violations(modules: dict[str, Module]) -> list[str]:
    """Report groups of modules that reach each other by their imports."""
    graph = {
        name: {
            resolved
            for imported in imports_of(module)
            if (resolved := imported.resolve(modules)) not in (None, name)
        }
        for name, module in modules.items()
    }
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [f"import cycle: {' <-> '.join(group)}" for group in sorted(groups)]


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    queue = list(graph[start])
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue.extend(graph[name])
    return seen


def triton_violations(modules: dict[str, Module]) -> list[str]:
    """Report imports of Triton outside ``ops``. (The native library is private to it anyway.)"""
    return [
        f"{module.path}:{imported.line}: only {PACKAGE}.ops imports triton"
        for module in modules.values()
        if module.unit != "ops"
        for imported in imports_of(module)
        if imported.path.split(".")[0] == "triton"
    ]


def eager_violations(modules: dict[str, Module]) -> list[str]:
    """Report what files of the command line import before a command runs, beyond what parses it."""
    return [
        f"{module.path}:{node.lineno}: {origin} is imported before a command runs; "
        "import it in the function, or under TYPE_CHECKING"
        for module in modules.values()
        if module.unit == COMMAND_LINE
        for node in module.tree.body
        for origin, _, _ in _targets(node, module)
        if origin.split(".")[0] not in _AT_ONCE
    ]
