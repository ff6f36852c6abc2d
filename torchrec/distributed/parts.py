"""Tensors in parts: which rows and columns are at hand, and from these those that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from torchrec.distributed._private import offsets_of
from torchrec.distributed.placement import Block

__all__ = ["Part", "block_parts", "common", "cut", "fill_parts", "load_block", "part_at"]


class Part(NamedTuple):
    """Some rows and columns of a tensor.

    Attributes:
        rows: of the whole.
        columns: of the whole.
        tensor: ``(rows, columns)``.
    """

    rows: range
    columns: range
    tensor: Tensor


def part_at(offsets: Sequence[int], tensor: Tensor) -> Part:
    """Return the part that begins at some row and column; of a vector, at some row of its one column."""
    if tensor.dim() == 1:
        offsets, tensor = (*offsets, 0), tensor.unsqueeze(1)
    rows, columns = (range(a, a + n) for a, n in zip(offsets, tensor.shape, strict=True))
    return Part(rows, columns, tensor)


def block_parts(block: Block, tensor: Tensor) -> Iterator[Part]:
    """Yield the parts of a block, each of them rows and columns without a gap, as views of it."""
    row = 0
    for rows in block.rows:
        column = 0
        for columns in block.columns:
            there = tensor[row : row + len(rows), column : column + len(columns)]
            yield Part(rows, columns, there)
            column += len(columns)
        row += len(rows)


def _parts_of(value: Tensor) -> list[Part]:
    """Return the parts of a tensor that are on this rank, whatever says where they are."""
    local: Any = value.to_local() if isinstance(value, DTensor) else value
    local_shards = getattr(local, "local_shards", None)
    if local_shards is None:
        offsets = offsets_of(value) if isinstance(value, DTensor) else (0,) * value.dim()
        return [part_at(offsets, local)]
    if hasattr(local, "local_offsets"):  # a `LocalShardsWrapper`
        return [
            part_at(offsets, tensor)
            for offsets, tensor in zip(local.local_offsets(), local_shards(), strict=True)
        ]
    return [part_at(shard.metadata.shard_offsets, shard.tensor) for shard in local_shards()]


def fill_parts(name: str, targets: Sequence[Part], value: object, whole: tuple[int, ...]) -> None:
    """Write some parts of a tensor, all of them or none.

    Args:
        name: of the tensor, for errors: ``"Table 't'"`` say.
        targets: the parts, written to.
        value: the tensor: the whole of it, or parts that have all that the targets need. One number a
            row may be a vector.
        whole: the shape of the tensor.

    Raises:
        ValueError: if the shape is another, or the parts at hand do not have all of the targets.
    """
    shapes = [whole, whole[:1]] if whole[1:] == (1,) else [whole]
    if not isinstance(value, Tensor) or tuple(value.shape) not in shapes:
        found = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(f"{name} should have the shape {whole}. Received {found!r}.")
    copies = []
    missing = sum(target.tensor.numel() for target in targets)
    sources = _parts_of(value) if targets else []
    for target in targets:
        for source in sources:
            rows, columns = (
                common(target.rows, source.rows),
                common(target.columns, source.columns),
            )
            if rows and columns:
                copies.append((cut(target, rows, columns), cut(source, rows, columns)))
                missing -= len(rows) * len(columns)
    if missing:
        raise ValueError(
            f"{name} should have all rows and columns of this rank's part in what is loaded: "
            "to load what was saved under another plan, use torch.distributed.checkpoint. "
            f"Received {missing} values too few."
        )
    for there, here in copies:
        # A state dict has the very memory of its model: what was read into it is there already.
        if (there.data_ptr(), there.stride()) != (here.data_ptr(), here.stride()):
            there.copy_(here)


def load_block(
    name: str, block: Block, tensor: Tensor, value: object, whole: tuple[int, int]
) -> None:
    """Write a saved table into a rank's block of it.

    Args:
        name: of the table, for errors.
        block: the rows and columns of the block.
        tensor: the block, written to.
        value: see `fill_parts`.
        whole: rows and columns of the table.

    Raises:
        ValueError: as `fill_parts` does.
    """
    with torch.no_grad():
        fill_parts(f"Table '{name}'", list(block_parts(block, tensor)), value, whole)


def cut(part: Part, rows: range, columns: range) -> Tensor:
    """Return some rows and columns of a part, which it has, as a view of it."""
    row, column = rows.start - part.rows.start, columns.start - part.columns.start
    return part.tensor[row : row + len(rows), column : column + len(columns)]


def common(one: range, other: range) -> range:
    """Return what two ranges have in common."""
    return range(max(one.start, other.start), min(one.stop, other.stop))
