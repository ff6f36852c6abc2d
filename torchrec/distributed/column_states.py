"""States of one number a row, as the kernels of the API keep them where columns of a table are split.

There each part of the columns has a number for each row, by what it has learnt itself: a vector of all rows for the
first part, then for the second one, and so on. Here a row has one number: the mean of theirs, which is the mean square
of the whole row where columns are divided evenly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.distributed._private import ShardedTensor, ShardMetadata, placement_of
from torchrec.distributed.parts import Part, fill_parts
from torchrec.distributed.wire import Wire
from torchrec.process_groups.lost_ranks import lost_ranks_named

__all__ = ["mean_of_columns", "repeated", "whole_on_holders"]


def repeated(shards: Sequence[ShardMetadata], rows: int, count: int) -> list[ShardMetadata]:
    """Return where parts of one number a row are in a vector of all rows for each of some parts of columns.

    Args:
        shards: where they are among the rows.
        rows: of the whole.
        count: of the parts of columns.
    """
    return [
        ShardMetadata([k * rows + known.shard_offsets[0]], [known.shard_sizes[0]], known.placement)
        for known in shards
        for k in range(count)
    ]


def mean_of_columns(name: str, rows: range, of: int, value: Tensor) -> Tensor:
    """Return the numbers of some rows, ``(n, 1)``, of numbers for each part of the columns.

    Args:
        name: of what it is, for errors.
        rows: which.
        of: how many the whole has.
        value: ``(of * k,)``, of k parts of the columns.
    """
    count = value.shape[0] // of
    found = torch.zeros((count, len(rows), 1), dtype=value.dtype)
    targets = [
        Part(range(k * of + rows.start, k * of + rows.stop), range(1), found[k])
        for k in range(count)
    ]
    fill_parts(name, targets, value, (count * of, 1))
    return found.mean(0)


def whole_on_holders(value: ShardedTensor, wire: Wire) -> Tensor:
    """Return the whole of a vector on each rank that has some of it; these call it, and no others.

    Args:
        value: the vector.
        wire: the ranks.
    """
    known = value.metadata().shards_metadata
    own = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in value.local_shards()}
    holders = sorted({rank for rank, _ in map(placement_of, known) if rank is not None})
    whole = torch.zeros(value.shape, dtype=value.dtype)
    works = []
    wire.meet(holders, "bringing together the numbers of rows whose columns lie apart")
    with lost_ranks_named(wire.group) as group:
        for each in known:
            there = placement_of(each)[0]
            part = whole.narrow(0, each.shard_offsets[0], each.shard_sizes[0])
            if there != wire.rank:
                works.append(dist.irecv(part, group=group, group_src=there))
                continue
            part.copy_(own[tuple(each.shard_offsets)])
            works += [
                dist.isend(part, group=group, group_dst=rank) for rank in holders if rank != there
            ]
        for work in works:
            if work is not None:
                work.wait()
    return whole
