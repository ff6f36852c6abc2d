"""Weights of ids, put in the order in which tables are looked up, and in which rows are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.distributed.route import Lane
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["weights_by_lane", "weights_by_slot"]


def weights_by_slot(features: KeyedJaggedTensor, keys: Sequence[int]) -> Tensor:
    """Return the weights of the ids of each slot, one slot behind the other.

    Args:
        features: of a batch.
        keys: position of the key of each slot.

    Raises:
        ValueError: if there are none.

    Example:
        >>> features = KeyedJaggedTensor.from_lists(
        ...     {"a": [[3], [4]], "b": [[5], []]}, weights={"a": [[0.1], [0.2]], "b": [[0.3], []]}
        ... )
        >>> weights_by_slot(features, [1, 0])
        tensor([0.3000, 0.1000, 0.2000])
    """
    weights = features.weights_or_none()
    if weights is None:
        raise ValueError("`features` should have weights, as `is_weighted` says.")
    if list(keys) == list(range(len(features.keys()))):
        return weights
    starts, sizes = features.offset_per_key(), features.length_per_key()
    return torch.cat([weights[starts[key] : starts[key] + sizes[key]] for key in keys])


def weights_by_lane(
    weights: Tensor,
    places: Tensor,
    counts: Sequence[int],
    in_lanes: Sequence[int],
    lanes_of_slot: Sequence[Sequence[Lane]],
) -> Tensor:
    """Return the weights of ids in the order in which their rows are sent.

    Args:
        weights: of the ids of each slot, one slot behind the other.
        places: of each id among those of its slot that were sent; negative if it was not.
        counts: ids of each slot.
        in_lanes: rows of each lane.
        lanes_of_slot: the lanes.
    """
    order = places.new_empty(sum(in_lanes), dtype=torch.int64)
    start = first = 0
    for s, count in enumerate(counts):
        place = places[start : start + count].long()
        sent = (place >= 0).nonzero()[:, 0]
        order[first + place[sent]] = sent + start
        start += count
        first += sum(in_lanes[lane.number] for lane in lanes_of_slot[s])
    return weights.float().index_select(0, order)
