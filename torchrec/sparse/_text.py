"""The printed forms of the sparse types, which end with a line of their own, and their bags as lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from torchrec.sparse._bags import KeyedBags


def _on_meta(kind: str, values: Tensor, keys: Sequence[str] = ()) -> str:
    """Write what there is to say of a type without numbers."""
    names = f"{list(keys)}, " if keys else ""
    return f"{kind}({names}values of shape {list(values.shape)} on the meta device)"


def bags_text(values: Tensor, offsets: Sequence[int]) -> str:
    """Write values cut at ``offsets`` as a list of lists: ``[[1, 2], [], [3]]``."""
    flat = values.tolist()
    return str([flat[a:b] for a, b in pairwise(offsets)])


def jagged_text(values: Tensor, weights: Tensor | None, bag_offsets: Tensor) -> str:
    """Write one jagged tensor as ``str(JaggedTensor)`` shows it."""
    if values.is_meta:
        return _on_meta("JaggedTensor", values)
    offsets = bag_offsets.tolist()
    if weights is None:
        return f"JaggedTensor({{\n    {bags_text(values, offsets)}\n}})\n"
    return (
        "JaggedTensor({\n"
        f'    "values": {bags_text(values, offsets)},\n'
        f'    "weights": {bags_text(weights, offsets)}\n'
        "})\n"
    )


def bags_to_lists(bags: KeyedBags, entries: Tensor) -> dict[str, list[list[Any]]]:
    """Return the entries (values or weights) of each key and sample as lists."""
    return dict(zip(bags.keys, _lists_per_key(bags, entries), strict=True))


def _lists_per_key(bags: KeyedBags, entries: Tensor) -> list[list[list[Any]]]:
    """Return the entries by position of the key: a key may come several times."""
    flat, offsets = entries.tolist(), bags.offsets().tolist()
    each = [flat[a:b] for a, b in pairwise(offsets)]
    return [each[first:last] for first, last in pairwise(bags.lengths_offset_per_key())]


def keyed_jagged_text(bags: KeyedBags) -> str:
    """Write one list of bags a key, as ``str(KeyedJaggedTensor)`` shows it."""
    if not bags.keys:
        return "KeyedJaggedTensor()\n"
    if bags.values.is_meta:
        return _on_meta("KeyedJaggedTensor", bags.values, bags.keys)
    values = _lists_per_key(bags, bags.values)
    if bags.weights is None:
        lines = [f'    "{key}": {lists}' for key, lists in zip(bags.keys, values, strict=True)]
    else:
        weights = _lists_per_key(bags, bags.weights)
        lines = [
            f'    "{key}": {{\n        "values": {ids},\n        "weights": {factors}\n    }}'
            for key, ids, factors in zip(bags.keys, values, weights, strict=True)
        ]
    return "KeyedJaggedTensor({\n" + ",\n".join(lines) + "\n})\n"


def keyed_text(keys: Sequence[str], values: Tensor, tensors: Sequence[Tensor]) -> str:
    """Write one tensor a key, as ``str(KeyedTensor)`` shows it."""
    if not keys:
        return "KeyedTensor()\n"
    if values.is_meta:
        return _on_meta("KeyedTensor", values, keys)
    lines = [f'    "{key}": {t.tolist()}' for key, t in zip(keys, tensors, strict=True)]
    return "KeyedTensor({\n" + ",\n".join(lines) + "\n})\n"
