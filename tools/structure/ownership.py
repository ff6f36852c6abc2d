"""Who owns what: private names, other people's objects, process-wide hooks, and promises to the type checker.

A name with one underscore in front belongs to the file that defines it, and a module with one to its
folder. State that two files share is passed between them, or has an owner with public methods. The
private names of libraries stand in files called ``_private.py``, at most one in each unit of the
package, which know nothing of the rest: what a new version of a library may break is in one place.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

from structure.imports import imports_of
from structure.source import COMMAND_LINE, PACKAGE, Module

# Underscores that Python itself makes public: the methods of named tuples.
_NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
_BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
_COLLECTION = re.compile(r"(\w+\.)*\w*Embedding(Bag)?Collection(Interface)?")
_HOOK = re.compile(r"register_(module|optimizer)_\w*hook")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_") and name not in _NAMED_TUPLE


def _is_self(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


def _is_library_file(module: Module) -> bool:
    return module.path.name == "_private.py"


def private_attribute_violations(modules: dict[str, Module]) -> list[str]:
    """Report attributes ``x._name``, x not being self, of a name that no class of the same file defines.

    ``getattr(x, "_name")`` and its kin count as well, and so do the private names of libraries.
    """
    found = []
    for module in modules.values():
        if _is_library_file(module):
            continue
        own = _names_defined(module.tree)
        inner: set[ast.AST] = set()  # of torch._C._name the whole is reported, not torch._C as well
        for node, name in _attributes_of_others(module.tree):
            if _is_private(name) and name not in own and node not in inner:
                inner.update(ast.walk(node))
                place = f"{module.path}:{node.lineno}"
                found.append(f"{place}: {ast.unparse(node)} reaches into what another file owns")
    return found


def _names_defined(tree: ast.Module) -> set[str]:
    """Collect what the classes of a file define, in their bodies or by an assignment to self."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.update(name for statement in node.body for name in _bound(statement))
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and _is_self(node.value)
        ):
            names.add(node.attr)
    return names


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
        if isinstance(statement, ast.Assign) and ast.unparse(target) == "__slots__":
            slots = ast.walk(statement.value)
            yield from (str(node.value) for node in slots if isinstance(node, ast.Constant))


def _attributes_of_others(tree: ast.Module) -> Iterator[tuple[ast.Attribute | ast.Call, str]]:
    """Find every attribute that is not one of self, spelled out or named by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_self(node.value):
            yield node, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _BY_NAME
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
            and not _is_self(node.args[0])
        ):
            yield node, str(node.args[1].value)


def private_import_violations(modules: dict[str, Module]) -> list[str]:
    """Report imports of private names: of another file, of a module outside its folder, of a library.

    ``_private.py`` may import the private names of libraries, and nothing of the package.
    """
    found = []
    for module in modules.values():
        for imported in imports_of(module):
            reason = _refusal(imported.path, module, modules)
            if reason:
                found.append(f"{module.path}:{imported.line}: {imported.path} {reason}")
    files = Counter(module.unit for module in modules.values() if _is_library_file(module))
    for unit, count in files.items():
        if count > 1:
            found.append(f"{PACKAGE}.{unit}: has {count} files _private.py, limit 1")
    return found


def _refusal(path: str, module: Module, modules: dict[str, Module]) -> str:
    """Say why ``module`` may not import ``path``; "" if it may."""
    parts = path.split(".")
    is_ours = parts[0] in (PACKAGE, COMMAND_LINE)
    if _is_library_file(module):
        return "should not be known to _private.py, which is about libraries" if is_ours else ""
    private = next((i for i, part in enumerate(parts) if _is_private(part)), None)
    if private is None:
        return ""
    if not is_ours:
        return "is private to its library: only a file _private.py may know it"
    owner = ".".join(parts[:private])
    if not (owner in modules and modules[owner].is_package):
        return f"is private to the file of {owner}"
    folder = module.name if module.is_package else module.name.rpartition(".")[0]
    return "" if f"{folder}.".startswith(f"{owner}.") else f"is private to the folder of {owner}"


def foreign_attribute_violations(modules: dict[str, Module]) -> list[str]:
    """Report attributes set on other people's objects, as far as that can be seen.

    These are ``setattr`` and ``delattr`` on anything but self, and assignments to attributes of what
    was imported. (A private attribute of others is reported anyway.)
    """
    found = []
    for module in modules.values():
        bound = _imported_names(module.tree)
        for node in ast.walk(module.tree):
            if _sets_on_others(node, bound):
                place = f"{module.path}:{getattr(node, 'lineno', 0)}"
                found.append(f"{place}: {ast.unparse(node)} changes what another file owns")
    return found


def _sets_on_others(node: ast.AST, imported: set[str]) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        return node.func.id in ("setattr", "delattr") and not _is_self(node.args[0])
    if not isinstance(node, ast.Attribute):
        return False
    root: ast.expr = node
    while isinstance(root, ast.Attribute):
        root = root.value
    stored = isinstance(node.ctx, ast.Store | ast.Del)
    return stored and isinstance(root, ast.Name) and root.id in imported


def _imported_names(tree: ast.Module) -> set[str]:
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def hook_violations(modules: dict[str, Module]) -> list[str]:
    """Report hooks on every module or optimizer of the process, which also run for what is not ours.

    One file may register one, and is named after it: ``step_hook.py``.
    """
    return [
        f"{module.path}:{node.lineno}: {name} is for the whole process; give the state an owner"
        for module in modules.values()
        if module.path.name != "step_hook.py"
        for node in ast.walk(module.tree)
        for name in _names(node)
        if isinstance(node, ast.ImportFrom | ast.Attribute) and _HOOK.fullmatch(name)
    ]


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names]
    return [node.attr] if isinstance(node, ast.Attribute) else []


def cast_violations(modules: dict[str, Module]) -> list[str]:
    """Report ``typing.cast``: what the type checker cannot see should be said by a type, or checked."""
    return [
        f"{module.path}:{node.lineno}: typing.cast promises what a type should say"
        for module in modules.values()
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.ImportFrom) and node.module == "typing" and "cast" in _names(node))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) == "typing.cast")
    ]


def collection_violations(modules: dict[str, Module]) -> list[str]:
    """Report lists of concrete collections: the next one would be missing; speak to the protocol.

    A list is a tuple, list or union of three or more classes with names like EmbeddingBagCollection.
    Two may be what somebody chooses between, pooled or in sequence.
    """
    found = []
    for module in modules.values():
        inner: set[ast.AST] = set()
        for node in ast.walk(module.tree):
            members = _members(node)
            inner.update(members)
            names = [ast.unparse(member) for member in members]
            listed = [name for name in names if _COLLECTION.fullmatch(name)]
            if len(listed) > 2 and node not in inner:
                place = f"{module.path}:{members[0].lineno}"
                found.append(f"{place}: {', '.join(listed)} are a list of concrete collections")
    return found


def _members(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return node.elts
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [node.left, *_members(node.left), node.right, *_members(node.right)]
    return []
