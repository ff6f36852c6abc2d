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
from torchrec.ops.hashing.reference import hash_ids


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
