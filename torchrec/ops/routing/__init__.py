"""Which shard a row lies in: rows of many features, sorted by where they are to be sent."""

from __future__ import annotations

from torch import Tensor

from torchrec.ops.routing import schema

__all__ = ["route_rows"]


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
