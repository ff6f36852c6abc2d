"""Rows of a table, read and written by id."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.modules._tables import Tables


def _check_rows(tables: Tables, table: str, ids: Tensor) -> Tensor:
    if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise ValueError(
            f"`ids` of table '{table}' should be integers of shape (N,). "
            f"Received {ids.dtype} of shape {tuple(ids.shape)}."
        )
    rows = tables.configs[tables.number(table)].num_rows
    bad = ((ids < 0) | (ids >= rows)).nonzero()
    if len(bad):
        raise IndexError(
            f"`ids` of table '{table}' should be in [0, {rows}). Received {int(ids[bad[0]])}."
        )
    return ids.long()


def load_rows(tables: Tables, table: str, ids: Tensor, vectors: Tensor, reset_state: bool) -> None:
    """Write rows of a table; see ``EmbeddingBagCollection.load_rows``."""
    number = tables.number(table)
    weight = tables.weights()[number]
    ids = _check_rows(tables, table, ids).to(weight.device)
    expected = (len(ids), weight.shape[1])
    if tuple(vectors.shape) != expected:
        raise ValueError(
            f"`vectors` of table '{table}' should have the shape {expected}. "
            f"Received {tuple(vectors.shape)}."
        )
    if len(ids.unique()) != len(ids):
        raise ValueError(f"`ids` of table '{table}' should be distinct.")
    with torch.no_grad():
        weight.index_copy_(0, ids, vectors.to(weight))
    if reset_state:
        tables.reset_states(number, ids)


def export_rows(tables: Tables, table: str, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Read rows of a table; see ``EmbeddingBagCollection.export_rows``."""
    weight = tables.weights()[tables.number(table)].detach()
    if ids is None:
        return torch.arange(len(weight), device=weight.device), weight.clone()
    ids = _check_rows(tables, table, ids).to(weight.device)
    return ids, weight.index_select(0, ids)
