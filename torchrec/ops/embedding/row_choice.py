"""Which row an id takes: decided here, and for the kernels in ``csrc/embedding/row_choice.h``.

Ids in ``[0, num_embeddings)`` are rows themselves; what becomes of others is the policy of their table. Every look-up,
gradient and update chooses by these functions, and so does the operator ``choose_rows``, which returns the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops._private import assert_later
from torchrec.ops.embedding.failure import names_of_slot, raise_bad_id
from torchrec.ops.embedding.spec import NO_ROW, PolicyCode, TableSpec

# The multipliers of the mix as signed numbers, and the low 31 bits: what is left of a number shifted right by 33
# as if it were unsigned, zeros coming in from the left.
_FIRST, _SECOND = 0xFF51AFD7ED558CCD - 2**64, 0xC4CEB9FE1A85EC53 - 2**64
_LOW = 2**31 - 1


def hash_ids(ids: Tensor, span: int) -> Tensor:
    """Map any int64 to ``[0, span)``, evenly, and the same in every process and on every platform.

    A bijective mix of all 64 bits (the finaliser of MurmurHash3, Appleby 2011), modulo ``span``.

    Args:
        ids: int32 or int64, any shape.
        span: at least 1.

    Returns:
        int64, the shape of ``ids``.

    Example:
        >>> hash_ids(torch.tensor([0, 1, -1, 10_000_000_000]), 100).tolist()
        [0, 2, 44, 13]
    """
    x = ids.long()
    x = (x ^ (x >> 33 & _LOW)) * _FIRST
    x = (x ^ (x >> 33 & _LOW)) * _SECOND
    x = x ^ (x >> 33 & _LOW)
    return (x >> 1 & 2**63 - 1) % span


def choose(table: TableSpec, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of the whole table that each id chooses, and which ids are out of range.

    ``NO_ROW`` stands where no row stands for the id.
    """
    ids = ids.long()
    if table.policy == PolicyCode.ROWS:
        return torch.where((ids >= 0) & (ids < table.rows), ids, NO_ROW), torch.zeros_like(ids) != 0
    end = table.num_embeddings
    unknown = (ids < 0) | (ids >= end)
    other = torch.full_like(ids, NO_ROW)
    if table.policy == PolicyCode.HASH and end > 0:
        other = hash_ids(ids, end)
    elif table.policy == PolicyCode.OVERFLOW and table.rows > end:
        other = end + hash_ids(ids, table.rows - end)
    elif table.policy == PolicyCode.CLAMP and end > 0:
        other = ids.clamp(0, end - 1)
    return torch.where(unknown, other, ids), unknown


class Chosen:
    """The rows that ids choose.

    Attributes:
        has_row: whether a row stands for the id; a mean counts these.
        here: whether the weight at hand holds that row, see ``TableSpec.first_row``.
        rows: of those ids, counted from the first of the weight.
    """

    def __init__(self, table: TableSpec, ids: Tensor) -> None:
        rows, self.unknown = choose(table, ids)
        self.has_row = rows != NO_ROW
        rows = rows - table.first_row
        self.here = self.has_row & (rows >= 0) & (rows < table.num_shard_rows)
        self.rows = rows[self.here]


def check_ids(
    table: TableSpec, number: int, ids: Tensor, samples: Tensor | None, names: str
) -> None:
    """Raise for the first id that has no row, but should; on an accelerator, without waiting."""
    if table.policy not in (PolicyCode.ERROR, PolicyCode.ROWS) or ids.numel() == 0:
        return
    end = table.num_embeddings if table.policy == PolicyCode.ERROR else table.rows
    bad = (ids < 0) | (ids >= end)
    if table.policy == PolicyCode.ROWS:
        bad &= ids != NO_ROW
    if ids.device.type != "cpu":
        name, feature = names_of_slot(names, number)
        assert_later(
            ~bad.any(),
            f"Ids of feature '{feature}' should be in [0, {end}), the rows of table '{name}'.",
        )
    elif bad.any():
        first = int(bad.int().argmax())
        sample = first if samples is None else int(samples[first])
        raise_bad_id(names, number, sample, int(ids[first]), end)
