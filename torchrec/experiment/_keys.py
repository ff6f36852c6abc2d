"""What the experiment file may hold, in words: its keys, what each should be, the nearest name.

Read from the JSON schema of `Experiment`, so that messages, comments and documents cannot differ
from what is checked.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torchrec.experiment.schema import Experiment
from torchrec.models import registry

Node: TypeAlias = dict[str, object]

# What the members of a union are told apart by: features have a type, models a name, initial weights
# a rule.
_TAGS = ("type", "name", "rule")


@functools.cache
def _schema(models: tuple[str, ...]) -> Node:
    """Return the schema, made anew when there are more models."""
    return Experiment.model_json_schema()


def root() -> Node:
    """Return the node of the whole file."""
    return _schema(tuple(registry.names()))


def node_at(path: Sequence[str | int]) -> tuple[Node | None, str]:
    """Return the node at a path of the validator, and the path as the file has it.

    Args:
        path: keys from the top; the name of a union's member, which the validator puts in and the
            file does not have, is stepped into and left out of the name.

    Returns:
        The node, None for a key that does not exist; and the name, as in ``features.user.dim``.
    """
    node: Node | None = root()
    named: list[str] = []
    for step in path:
        children = [] if node is None else _alternatives(node)
        members = {} if node is None else members_of(node)
        if len(members) > 1 and step in members:
            node = members[str(step)]
            continue
        named.append(str(step))
        if len(members) > 1 and step == tag_key(children[0]):
            first = _child(children[0], step) or {}
            node = {"enum": list(members), "description": first.get("description")}
            continue
        node = next((found for child in children if (found := _child(child, step))), None)
        if node is None and any(_is_scalar(child) for child in children):
            named.pop()  # the member of a union of scalars that did not match
            return {"anyOf": children}, ".".join(named)
    return node, ".".join(named)


def keys_of(node: Node) -> dict[str, Node]:
    """Return the keys of a section, in order; empty for what is none, or one of several."""
    alternatives = _alternatives(node)
    properties = alternatives[0].get("properties", {}) if len(alternatives) == 1 else {}
    assert isinstance(properties, dict)
    return properties


def members_of(node: Node) -> dict[str, Node]:
    """Return the nodes that a union chooses from, by what tells them apart."""
    return {
        str(keys_of(child)[key]["const"]): child
        for child in _alternatives(node)
        if (key := tag_key(child)) is not None
    }


def tag_key(node: Node) -> str | None:
    """Return the key that tells a union's member apart, as ``type``; None if it is no such member."""
    keys = keys_of(node)
    return next((key for key in _TAGS if "const" in keys.get(key, {})), None)


def expected(node: Node) -> str:
    """Return what a value should be, as in "a whole number above 0"."""
    members = members_of(node)
    if len(members) > 1:
        key = tag_key(next(iter(members.values())))
        return f"a section with a `{key}`: {_choice(members)}"
    words = list(dict.fromkeys(_words(child) for child in _alternatives(node)))
    return " or ".join(words)


def choices(node: Node) -> list[str]:
    """Return the words that a value may be."""
    found = []
    for child in _alternatives(node):
        values = child.get("enum", [child["const"]] if "const" in child else [])
        assert isinstance(values, list)
        found += [str(value) for value in values]
    return found


def takes_null(node: Node) -> bool:
    """Return whether null is a value, as in "none: no limit"."""
    members = node.get("anyOf")
    return isinstance(members, list) and any(one.get("type") == "null" for one in members)


def _resolve(node: Node) -> Node:
    reference = node.get("$ref")
    if reference is None:
        return node
    definitions = root()["$defs"]
    assert isinstance(definitions, dict)
    target: Node = definitions[str(reference).rsplit("/", 1)[1]]
    return target


def _alternatives(node: Node) -> list[Node]:
    """Return the members of a union, without null; the node alone if it is none."""
    node = _resolve(node)
    members = node.get("anyOf") or node.get("oneOf")
    if not isinstance(members, list):
        return [node]
    flat = [child for member in members for child in _alternatives(member)]
    return [child for child in flat if child.get("type") != "null"]


def _child(node: Node, step: str | int) -> Node | None:
    inner = (
        node.get("items")
        if isinstance(step, int)
        else keys_of(node).get(step, node.get("additionalProperties"))
    )
    return inner if isinstance(inner, dict) else None


def _is_scalar(node: Node) -> bool:
    return node.get("type") not in ("object", "array")


def _choice(words: Iterable[str]) -> str:
    *most, last = [f"'{word}'" for word in words]
    return f"{', '.join(most)} or {last}" if most else last


def _words(node: Node) -> str:
    """Return what one member of a union, or a node that is none, should be."""
    named = choices(node)
    if named:
        return _choice(named)
    kind = node.get("type")
    if kind == "array":
        items = node["items"]
        assert isinstance(items, dict)
        return f"a list, each {expected(items)}"
    if kind == "object":
        keys = keys_of(node)
        return f"a section with keys such as `{next(iter(keys))}`" if keys else "a section"
    plain = {"string": "text", "boolean": "true or false", "integer": "a whole number"}
    return plain.get(str(kind), "a number") + _bounds(node)


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _bounds(node: Node) -> str:
    limits = (
        ("exclusiveMinimum", "above"),
        ("minimum", "at least"),
        ("exclusiveMaximum", "below"),
        ("maximum", "at most"),
    )
    words = [f"{word} {_number(node[key])}" for key, word in limits if key in node]
    return " " + " and ".join(words) if words else ""
