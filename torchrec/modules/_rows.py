"""Rows of a table: read, written, and started anew."""

from __future__ import annotations

import zlib
from functools import partial

import torch
from torch import Tensor, nn

from torchrec.modules._tables import Tables
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, initialise
from torchrec.ops.embedding import hash_ids

# These fill each element without a look at the shape: some rows start as those of a whole table do.
_BY_ELEMENT = {
    nn.init.constant_,
    nn.init.normal_,
    nn.init.ones_,
    nn.init.trunc_normal_,
    nn.init.uniform_,
    nn.init.zeros_,
}


def _check_rows(config: BaseEmbeddingConfig, ids: Tensor) -> Tensor:
    if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise ValueError(
            f"`ids` of table '{config.name}' should be integers of shape (N,). "
            f"Received {ids.dtype} of shape {tuple(ids.shape)}."
        )
    bad = ((ids < 0) | (ids >= config.num_rows)).nonzero()
    if len(bad):
        raise IndexError(
            f"`ids` of table '{config.name}' should be in [0, {config.num_rows}). "
            f"Received {int(ids[bad[0]])}."
        )
    return ids.long()


def load_rows(tables: Tables, table: str, ids: Tensor, vectors: Tensor, reset_state: bool) -> None:
    """Write rows of a table; see ``EmbeddingBagCollection.load_rows``."""
    config, weight, update = tables.table(table)
    ids = _check_rows(config, ids).to(weight.device)
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
        update.reset_state(ids)


def export_rows(tables: Tables, table: str, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Read rows of a table; see ``EmbeddingBagCollection.export_rows``."""
    config, weight, _ = tables.table(table)
    weight = weight.detach()
    if ids is None:
        return torch.arange(len(weight), device=weight.device), weight.clone()
    ids = _check_rows(config, ids).to(weight.device)
    return ids, weight.index_select(0, ids)


def reset_rows(tables: Tables, table: str, rows: Tensor) -> None:
    """Make rows as they were before any training; see ``EmbeddingBagCollection.reset_rows``."""
    config, weight, update = tables.table(table)
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise TypeError(
            f"`rows` of table '{table}' should be int64 of shape (N,). "
            f"Received {rows.dtype} of shape {tuple(rows.shape)}."
        )
    rows = rows.to(weight.device)
    outside = (rows < 0) | (rows >= len(weight))
    if bool(outside.any()):
        raise IndexError(
            f"`rows` of table '{table}' should be in [0, {len(weight)}). "
            f"Received {int(rows[outside][0])}."
        )
    if not rows.numel():
        return
    with torch.no_grad():
        weight.index_copy_(0, rows, _initial(config, weight, rows))
    update.forget_rows(rows)


def _initial(config: BaseEmbeddingConfig, weight: Tensor, rows: Tensor) -> Tensor:
    """Return first values of rows, drawn from a generator of their own.

    They depend on the table and on which rows these are, so a run that is taken up draws the same.
    """
    # A sum, so that the order of the rows does not count; of hashes, so that other rows have another sum.
    seed = zlib.crc32(config.name.encode()) ^ int(hash_ids(rows, 2**62).sum() & (2**62 - 1))
    on_cpu = weight.device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [weight.device], device_type=weight.device.type):
        # Not torch.manual_seed, which would reach the generators of all devices.
        generator = torch.default_generator
        if not on_cpu:
            generator = torch.get_device_module(weight.device).default_generators[
                weight.device.index
            ]
        generator.manual_seed(seed)
        init_fn = config.init_fn
        if isinstance(init_fn, partial):
            init_fn = init_fn.func
        if init_fn is None or init_fn in _BY_ELEMENT:
            fresh = weight.new_empty((len(rows), weight.shape[1]))
            initialise(config, fresh)
            return fresh
        # Its spread may depend on the shape, or its values on the row: it needs the whole table.
        whole = torch.empty_like(weight)
        initialise(config, whole)
        return whole.index_select(0, rows)
