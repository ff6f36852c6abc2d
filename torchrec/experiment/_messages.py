"""One line for what the validator of experiment files finds, in the words of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from torchrec.checks import did_you_mean
from torchrec.datasets.features import MISPLACED
from torchrec.experiment._keys import choices, expected, keys_of, members_of, node_at, tag_key
from torchrec.models.registry import UNKNOWN_OPTION

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# What is reported where several things are wrong: a key that should have been another one is the
# reason why that other one is missing.
_ORDER = {"extra_forbidden": 0, "missing": 1, "union_tag_not_found": 1}


class Mistake(NamedTuple):
    """What is wrong with a file.

    Attributes:
        message: one line.
        key: what it is about.
        is_misplaced: whether the key is one of another kind of section, as of another model.
    """

    message: str
    key: str
    is_misplaced: bool = False


def first_mistake(errors: list[ErrorDetails]) -> Mistake:
    """Return the first of several errors of the validator."""
    return _mistake(min(errors, key=lambda error: _ORDER.get(error["type"], 2)))


def _mistake(error: ErrorDetails) -> Mistake:
    node, key = node_at(error["loc"])
    parent, parent_key = node_at(error["loc"][:-1])
    value = error["input"]
    if error["type"] == UNKNOWN_OPTION:
        option = f"{key}.{error['ctx']['option']}"
        return Mistake(f"`{option}` {error['ctx']['reason']}", option, True)
    if error["type"] == MISPLACED:
        return Mistake(f"`{key}`: {error['msg']}", f"{key}.{error['ctx']['option']}", True)
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
        return Mistake(reason if not key or key in reason else f"`{key}`: {reason}", key)
    if error["type"] == "extra_forbidden" and parent is not None:
        names = list(keys_of(parent))
        of = f"of `{parent_key}`" if parent_key else "of the file"
        near = did_you_mean(str(error["loc"][-1]), names, quote="`") or "."
        message = f"`{key}` is not a key {of}{near} Its keys: {', '.join(names)}."
        return Mistake(message, key, True)
    assert node is not None
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        members = members_of(node)
        tag = tag_key(next(iter(members.values())))
        key, node = f"{key}.{tag}", {"enum": list(members)}
        if error["type"] == "union_tag_not_found":
            return Mistake(f"`{key}` should be given: {expected(node)}.", key)
        value = value[tag]
    described = node.get("description", expected(node))
    if error["type"] == "missing":
        return Mistake(f"`{key}` should be given: {described}.", key)
    if error["type"] in ("too_short", "string_too_short"):
        return Mistake(f"`{key}` should not be empty: {described}.", key)
    near = did_you_mean(str(value), choices(node), quote="`") or "."
    return Mistake(f"`{key}` should be {expected(node)}. Received {shown(value)}{near}", key)


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


def check_column(key: str, column: str, names: list[str]) -> None:
    """Refuse a column that is not among those of the data.

    Args:
        key: of the experiment, which names the column.
        column: its name.
        names: of the columns that there are.

    Raises:
        ValueError: it is none of them; the message gives the nearest.
    """
    if column not in names:
        near = did_you_mean(column, names, quote="`")
        raise ValueError(
            f"`{key}` should name a column of the data. Received '{column}'"
            f"{near or '.'} Columns: {listed(names)}."
        )
