"""One line for what the validator of experiment files finds, in the words of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from torchrec.experiment._keys import choices, did_you_mean, expected, keys_of, members_of, node_at

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# What is reported where several things are wrong: a key that should have been another one is the
# reason why that other one is missing.
_ORDER = {"extra_forbidden": 0, "missing": 1, "union_tag_not_found": 1}


def first_message(errors: list[ErrorDetails]) -> tuple[str, str]:
    """Return the line for the first of several errors, and the key that it is about."""
    return _message(min(errors, key=lambda error: _ORDER.get(error["type"], 2)))


def _message(error: ErrorDetails) -> tuple[str, str]:
    """Return the line for an error of the validator, and the key that it is about."""
    node, key = node_at(error["loc"])
    parent, parent_key = node_at(error["loc"][:-1])
    value = error["input"]
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
        return (reason if not key or key in reason else f"`{key}`: {reason}"), key
    if error["type"] == "extra_forbidden" and parent is not None:
        names = list(keys_of(parent))
        of = f"of `{parent_key}`" if parent_key else "of the file"
        near = did_you_mean(str(error["loc"][-1]), names) or "."
        return f"`{key}` is not a key {of}{near} Its keys: {', '.join(names)}.", key
    assert node is not None
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        key, node = f"{key}.type", {"enum": list(members_of(node))}
        if error["type"] == "union_tag_not_found":
            return f"`{key}` should be given: {expected(node)}.", key
        value = value["type"]
    if error["type"] == "missing":
        return f"`{key}` should be given: {node.get('description', expected(node))}.", key
    if error["type"] in ("too_short", "string_too_short"):
        return f"`{key}` should not be empty: {node.get('description', expected(node))}.", key
    near = did_you_mean(str(value), choices(node)) or "."
    return f"`{key}` should be {expected(node)}. Received {shown(value)}{near}", key


def shown(value: object) -> str:
    """Return a value as the file could have it, cut to what fits on a line."""
    if isinstance(value, dict):
        return f"a section ({listed(list(value))})" if value else "an empty section"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: list[str], most: int = 40) -> str:
    """Return names with commas, the first of them where there are many."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
