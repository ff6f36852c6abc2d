"""The printed forms of the sparse types."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor


def bags_text(values: Tensor, offsets: Sequence[int]) -> str:
    """Write values cut at ``offsets`` as a list of lists: ``[[1, 2], [], [3]]``."""
    flat = values.tolist()
    return str([flat[a:b] for a, b in pairwise(offsets)])


def jagged_text(values: Tensor, weights: Tensor | None, offsets: Sequence[int]) -> str:
    """Write one jagged tensor as ``str(JaggedTensor)`` shows it."""
    if weights is None:
        return f"JaggedTensor({{\n    {bags_text(values, offsets)}\n}})"
    return (
        "JaggedTensor({\n"
        f'    "values": {bags_text(values, offsets)},\n'
        f'    "weights": {bags_text(weights, offsets)}\n'
        "})"
    )


def keyed_jagged_text(
    keys: Sequence[str],
    values: Tensor,
    weights: Tensor | None,
    offsets: Sequence[int],
    bag_offsets: Sequence[int],
) -> str:
    """Write one bag list a key, as ``str(KeyedJaggedTensor)`` shows it.

    Args:
        keys: the F keys.
        values: the values of all keys.
        weights: their weights, or None.
        offsets: where each bag starts in ``values``, and the end of the last.
        bag_offsets: where the bags of each key start in ``offsets``, and the end of the last.
    """
    if not keys:
        return "KeyedJaggedTensor()"
    lines = []
    for key, first, last in zip(keys, bag_offsets, bag_offsets[1:], strict=False):
        own = offsets[first : last + 1]
        if weights is None:
            lines.append(f'    "{key}": {bags_text(values, own)}')
        else:
            lines.append(
                f'    "{key}": {{\n'
                f'        "values": {bags_text(values, own)},\n'
                f'        "weights": {bags_text(weights, own)}\n'
                "    }"
            )
    return "KeyedJaggedTensor({\n" + ",\n".join(lines) + "\n})"


def keyed_text(keys: Sequence[str], tensors: Sequence[Tensor]) -> str:
    """Write one tensor a key, as ``str(KeyedTensor)`` shows it."""
    if not keys:
        return "KeyedTensor()"
    lines = [f'    "{key}": {t.tolist()}' for key, t in zip(keys, tensors, strict=True)]
    return "KeyedTensor({\n" + ",\n".join(lines) + "\n})"
