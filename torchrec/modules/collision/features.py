"""Features on their way through a map: checked, and given other values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchrec.checks import require_integer, require_type
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


def require_counts(map_name: str, **counts: tuple[object, int]) -> None:
    """Raise unless arguments of a map are integers, each with the least that it may be.

    Args:
        map_name: of the map.
        counts: name -> argument, least.
    """
    for name, (value, least) in counts.items():
        require_count(name, value, map_name, least)


def ids_of(ids: Tensor, feature: str, map_name: str) -> Tensor:
    """Return ids as int64.

    Args:
        ids: of any integer dtype.
        feature: whose they are.
        map_name: of the map that they are for.

    Raises:
        TypeError: if they are no tensor of integers.
    """
    if not isinstance(ids, Tensor):
        require_type(ids, f"Ids of feature '{feature}' of table '{map_name}'", Tensor)
    if ids.dtype is torch.int64:
        return ids
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise TypeError(
            f"Ids of feature '{feature}' of table '{map_name}' should be integers. "
            f"Received {ids.dtype}."
        )
    return ids.long()


def values_of(features: Mapping[str, JaggedTensor], map_name: str) -> dict[str, Tensor]:
    """Return the values of features by name.

    Args:
        features: by name.
        map_name: of the map that they are for.

    Raises:
        TypeError: for features of another form, such as a KeyedJaggedTensor.
    """
    what = f"`features` of map '{map_name}'"
    require_type(features, what, Mapping)
    for name, jt in features.items():
        require_type(jt, f"Feature '{name}' among {what}", JaggedTensor)
    return {name: jt.values() for name, jt in features.items()}


def joined_ids(ids: Mapping[str, Tensor], device: torch.device, map_name: str) -> Tensor:
    """Return the ids of all features as int64, one behind the other.

    Args:
        ids: by feature, of any integer dtype.
        device: of the map.
        map_name: of the map.

    Raises:
        TypeError: for ids that are not integers.
        ValueError: for ids on another device.
    """
    parts = []
    for name, part in ids.items():
        if part.device != device:
            raise ValueError(
                f"Ids of feature '{name}' of table '{map_name}' should be on the device of the map, "
                f"{device}. Received {part.device}."
            )
        parts.append(part if part.dtype is torch.int64 else ids_of(part, name, map_name))
    if len(parts) == 1:
        return parts[0]
    return torch.cat([torch.empty(0, dtype=torch.int64, device=device), *parts])


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


def without_missing(jt: JaggedTensor) -> JaggedTensor:
    """Return a jagged tensor without the values below 0; its bags are that much shorter.

    Example:
        >>> jt = JaggedTensor(torch.tensor([5, -1, 7]), lengths=torch.tensor([2, 0, 1]))
        >>> without_missing(jt).lengths()
        tensor([1, 0, 1])
    """
    keep = jt.values() >= 0
    weights = jt.weights_or_none()
    return JaggedTensor(
        jt.values()[keep],
        None if weights is None else weights[keep],
        count_kept(keep, jt.lengths(), jt.offsets()),
    )


def count_kept(keep: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
    """Return how many values of each bag are kept, in the dtype of ``lengths``.

    Args:
        keep: bool ``(N,)``.
        lengths: of the bags.
        offsets: of the bags, one more.
    """
    sums = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
    return (sums[offsets[1:].long()] - sums[offsets[:-1].long()]).to(lengths.dtype)
