"""States of metrics of all ranks, in one collective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_ALIGNMENT = 8
_MAX_DIMS = 6
_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)

_Layout = tuple[torch.dtype, tuple[int, ...]]


def world_size(group: dist.ProcessGroup | None) -> int:
    """Return how many ranks there are; 1 where nothing is distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def gather(
    tensors: Sequence[Tensor], group: dist.ProcessGroup | None, *, same_shapes: bool
) -> list[list[Tensor]]:
    """Return the tensors of each rank, in the order of ranks.

    All bytes travel as one tensor. Where shapes can differ between ranks, these travel ahead.

    Args:
        tensors: as many on each rank.
        group: the ranks; None: all.
        same_shapes: whether they have the same shapes and dtypes on all ranks.
    """
    ranks = world_size(group)
    if ranks == 1 or not tensors:
        return [list(tensors)] * ranks
    own = [(x.dtype, tuple(x.shape)) for x in tensors]
    layouts = [own] * ranks if same_shapes else _all_layouts(own, tensors[0].device, group, ranks)
    length = max(sum(map(_padded, layout)) for layout in layouts)
    sent = torch.zeros(length, dtype=torch.uint8, device=tensors[0].device)
    start = 0
    for x, layout in zip(tensors, own, strict=True):
        data = x.contiguous().reshape(-1).view(torch.uint8)
        sent[start : start + len(data)] = data
        start += _padded(layout)
    received = _from_all_ranks(sent, group, ranks)
    return [_unpack(data, layout) for data, layout in zip(received, layouts, strict=True)]


def _from_all_ranks(sent: Tensor, group: dist.ProcessGroup | None, ranks: int) -> list[Tensor]:
    from torchrec.process_groups import all_gather  # which PyTorch may be built without

    received = [torch.empty_like(sent) for _ in range(ranks)]
    all_gather(received, sent, "computing metrics", group)
    return received


def _all_layouts(
    own: list[_Layout], device: torch.device, group: dist.ProcessGroup | None, ranks: int
) -> list[list[_Layout]]:
    rows = [
        [_DTYPES.index(dtype), len(shape), *shape, *[0] * (_MAX_DIMS - len(shape))]
        for dtype, shape in own
    ]
    sent = torch.tensor(rows, device=device)
    received = _from_all_ranks(sent, group, ranks)
    return [
        [(_DTYPES[dtype], tuple(shape[:ndim])) for dtype, ndim, *shape in of_rank]
        for of_rank in torch.stack(received).tolist()
    ]


def _bytes(layout: _Layout) -> int:
    dtype, shape = layout
    return torch.Size(shape).numel() * dtype.itemsize


def _padded(layout: _Layout) -> int:
    # Each part begins where any dtype can be read.
    return -(-_bytes(layout) // _ALIGNMENT) * _ALIGNMENT


def _unpack(data: Tensor, layouts: list[_Layout]) -> list[Tensor]:
    parts: list[Tensor] = []
    start = 0
    for layout in layouts:
        dtype, shape = layout
        parts.append(data[start : start + _bytes(layout)].view(dtype).reshape(shape))
        start += _padded(layout)
    return parts


def largest(value: float, device: torch.device, group: dist.ProcessGroup | None) -> float:
    """Return the largest of the numbers of all ranks."""
    if world_size(group) == 1:
        return value
    from torchrec.process_groups import all_reduce

    found = torch.tensor(value, dtype=torch.float64, device=device)
    all_reduce(found, "timing the steps between metrics", group, dist.ReduceOp.MAX)
    return found.item()
