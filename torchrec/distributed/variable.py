"""Features with batches of their own: bags travel and are pooled once, and samples get theirs where they are.

Each feature has as many bags as differ, and an index says which of them a sample has. What a rank has pooled of them
goes back as rows do, so many for each lane, as they need not be as many as the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchrec.distributed.exchange import Asked, Routed
from torchrec.distributed.route import Route
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["OwnBatches", "as_rows", "by_lane", "own_batches", "padded"]


@dataclass(frozen=True)
class OwnBatches:
    """The bags of each slot.

    Attributes:
        bags: how many.
        lengths: of them, zeros behind, ``(slots, most bags)``.
        inverse: which of them each sample has, ``(slots, B)``.
    """

    bags: list[int]
    lengths: Tensor
    inverse: Tensor


def padded(lengths: Sequence[Tensor]) -> Tensor:
    """Return lines of different lengths as one tensor, with zeros behind them."""
    most = max(map(len, lengths), default=0)
    found = torch.zeros((len(lengths), most), dtype=lengths[0].dtype if lengths else torch.int32)
    for line, mine in zip(found, lengths, strict=True):
        line[: len(mine)] = mine
    return found


def own_batches(features: KeyedJaggedTensor, keys: Sequence[int]) -> OwnBatches | None:
    """Return the bags of some keys; None: some are of no sample, so that they should not be looked up.

    Args:
        features: with inverse indices.
        keys: their positions.
    """
    strides, starts = features.stride_per_key(), features.lengths_offset_per_key()
    bags = [strides[key] for key in keys]
    names, inverse = features.inverse_indices()
    rows = {name: i for i, name in enumerate(names)}
    mine = inverse[[rows[features.keys()[key]] for key in keys]].long()
    lengths = features.lengths()
    lines = padded([lengths[starts[key] : starts[key] + strides[key]] for key in keys])
    used = torch.zeros_like(lines, dtype=torch.bool).scatter_(1, mine, True)
    if used.sum(1).tolist() != bags:
        return None
    return OwnBatches(bags, lines, mine)


def as_rows(asked: Asked, routed: Routed, route: Route, rank: int) -> tuple[Asked, Routed]:
    """Describe the vectors of a step as rows, one a bag in lanes that are pooled.

    Args:
        asked: by all ranks.
        routed: by this one.
        route: which ranks take part in what.
        rank: this one.
    """
    assert asked.bags is not None
    by_rows, mine = asked.by_rows, asked.bags[rank]
    lanes = route.lanes_of_rank[rank]
    counts = [
        [
            count if by_rows[lane.slot] else bags[lane.slot]
            for lane, count in zip(lanes, of, strict=True)
        ]
        for of, bags in zip(asked.counts, asked.bags, strict=True)
    ]
    own = [
        count if by_rows[lane.slot] else mine[lane.slot]
        for lane, count in zip(route.lanes, routed.counts, strict=True)
    ]
    every = (True,) * len(by_rows)
    return replace(asked, by_rows=every, counts=counts), replace(routed, counts=own)


def by_lane(
    asked: Asked, route: Route, rank: int, pooled: Tensor, rows: Sequence[Tensor]
) -> list[Tensor]:
    """Return what was looked up here lane by lane, behind nothing that is pooled with one bag a sample.

    Args:
        asked: by all ranks.
        route: which ranks take part in what.
        rank: this one.
        pooled: bags of the lanes that are pooled, lane beside lane, with others below where they have fewer.
        rows: of each of the other lanes.
    """
    assert asked.bags is not None
    found, column, others = [pooled.new_zeros((sum(asked.batches), 0))], 0, iter(rows)
    for lane in route.lanes_of_rank[rank]:
        if asked.by_rows[lane.slot]:
            found.append(next(others))
            continue
        width, bags = route.width_of(lane, rank), sum(of[lane.slot] for of in asked.bags)
        found.append(pooled[:bags, column : column + width].contiguous())
        column += width
    return found
