"""Features on their way through a map: checked, and given other values."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.checks import require_integer
from torchrec.sparse.jagged_tensor import JaggedTensor


def require_count(
    name: str, value: object, map_name: str, least: int, most: int | None = None
) -> None:
    """Raise unless an argument of a map is an integer from ``least`` to ``most``.

    Args:
        name: of the argument.
        value: the argument.
        map_name: of the map.
        least: the least that it may be.
        most: the most. Default: no bound.

    Raises:
        TypeError: for anything but an integer.
        ValueError: for one out of range.
    """
    require_integer(value, f"`{name}` of map '{map_name}'", least, most)


def ids_of(ids: Tensor, feature: str, map_name: str) -> Tensor:
    """Return ids as int64.

    Args:
        ids: of any integer dtype.
        feature: whose they are.
        map_name: of the map that they are for.

    Raises:
        TypeError: if they are not integers.
    """
    if ids.dtype is torch.int64:
        return ids
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise TypeError(
            f"Ids of feature '{feature}' of table '{map_name}' should be integers. "
            f"Received {ids.dtype}."
        )
    return ids.long()


def with_values(jt: JaggedTensor, values: Tensor) -> JaggedTensor:
    """Return a jagged tensor with other values in the same bags."""
    return JaggedTensor(values, jt.weights_or_none(), jt.lengths_or_none(), jt.offsets_or_none())


def split_values(features: dict[str, JaggedTensor], values: Tensor) -> dict[str, JaggedTensor]:
    """Return features with other values, given one behind the other."""
    parts = values.split([jt.values().numel() for jt in features.values()])
    return {
        name: with_values(jt, part)
        for (name, jt), part in zip(features.items(), parts, strict=True)
    }
