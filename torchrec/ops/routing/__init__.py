"""What ranks send one another: rows sorted by the shard that they lie in, and numbers packed and unpacked."""

from __future__ import annotations

from torch import Tensor

from torchrec.ops.routing import schema
from torchrec.ops.routing.native import new_vector
from torchrec.ops.routing.reference import ADDS, DIVIDES

__all__ = [
    "ADDS",
    "DIVIDES",
    "copy_blocks_",
    "new_vector",
    "route_rows",
]


def route_rows(
    rows: Tensor, lengths: Tensor, counts: list[int], bands: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the rows of each slot by the band of its table that they lie in, all slots in one call.

    A *slot* is a feature looked up in a table; a *band* is a range of rows of that table which lies
    in one place. Within a band the order stays, so bags stay together. Rows in no band, such as
    ``NO_ROW``, are left out.

    Args:
        rows: int64 ``(N,)``: slot after slot, bag after bag within a slot.
        lengths: of the bags, int32 or int64 ``(slots, B)``.
        counts: rows of each slot.
        bands: (slot, first row, end, base) one behind the other, in order of the slots, without overlap
            within a slot.

    Returns:
        - the rows sorted by slot, then band, each as its distance from the first of its band plus
          ``base``: int32 ``(N,)``, -1 behind those that lie in a band;
        - for each of ``rows`` its place among those of its slot that were sorted, -1 if left out:
          int32 ``(N,)``;
        - the lengths of the bags in each band, int32 ``(bands, B)``;
        - how many rows each band got, int64 ``(bands,)``.

    Example:
        >>> import torch
        >>> rows, lengths = torch.tensor([7, 2, 9, 0]), torch.tensor([[3, 1]])
        >>> values, places, lengths, counts = route_rows(rows, lengths, [4], [0, 0, 5, 0, 0, 5, 10, 0])
        >>> values.tolist(), places.tolist(), lengths.tolist(), counts.tolist()
        ([2, 0, 2, 4], [2, 0, 3, 1], [[1, 1], [2, 0]], [2, 2])
    """
    routed: tuple[Tensor, Tensor, Tensor, Tensor] = schema.route_rows(rows, lengths, counts, bands)
    return routed


def copy_blocks_(
    outputs: list[Tensor], inputs: list[Tensor], blocks: list[int], divisor: int = 1
) -> None:
    """Copy rectangles of some tensors into others, all in one call. Not differentiable.

    Args:
        outputs: written to, ``(size,)`` each.
        inputs: of their dtype, any shape; a block sees the elements in their order.
        blocks: nine numbers each, one block behind the other: input, its first element there, elements
            from row to row; the same three of the output; rows, columns; and ``DIVIDES``, ``ADDS``, the
            sum of both, or 0. A block that adds, adds to what is there, or what a block of as many rows
            before it has written in the same place; others write what nobody else does.
        divisor: what the blocks that say so are divided by. Default 1.

    Raises:
        ValueError: for a block that does not lie inside of its tensors, tensors of several dtypes.

    Example:
        >>> import torch
        >>> matrix, more = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
        >>> second_column = [0, 1, 2, 0, 0, 1, 2, 1, DIVIDES]
        >>> output = torch.zeros(2)
        >>> copy_blocks_([output], [matrix, more], [*second_column, 1, 0, 1, 0, 0, 1, 2, 1, ADDS], 2)
        >>> output
        tensor([11., 22.])
    """
    schema.copy_blocks_(outputs, inputs, blocks, divisor)
