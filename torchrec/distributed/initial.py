"""First weights of the parts of a table, the same whatever parts it is cut into."""

from __future__ import annotations

import zlib
from functools import partial

import torch
from torch import Tensor

from torchrec.distributed.placement import Block
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, initialise
from torchrec.modules.table_collection import initial_rows

__all__ = ["fill_block", "reset_values"]

# These fill each element without a look at the shape: a part starts as that of the whole table does.
_BY_ELEMENT = {
    None,
    torch.nn.init.constant_,
    torch.nn.init.normal_,
    torch.nn.init.ones_,
    torch.nn.init.trunc_normal_,
    torch.nn.init.uniform_,
    torch.nn.init.zeros_,
}
_CHUNK = 1 << 20  # elements drawn at a time: what a rank needs beside its block


def fill_block(config: BaseEmbeddingConfig, block: Block, weight: Tensor, seed: int) -> None:
    """Fill a rank's block of a table with the initial weights of its rows and columns.

    Weights are drawn for some rows at a time, from a generator that depends on the table, on these
    rows and on ``seed`` alone: so every rank draws what any other would, under any plan.

    Args:
        config: of the table. An ``init_fn`` that may look at the shape, or at the rows, is called for
            the whole table, which then has to fit in the memory of the rank.
        block: the rows and columns.
        weight: ``(rows, columns)`` of the block, written to.
        seed: the same on all ranks.
    """
    rows, dim = config.num_rows, config.embedding_dim
    init_fn = config.init_fn.func if isinstance(config.init_fn, partial) else config.init_fn
    size = max(1, _CHUNK // dim) if init_fn in _BY_ELEMENT else rows
    start = 0
    for mine in block.rows:
        for first in range(mine.start // size * size, mine.stop, size):
            count = min(size, rows - first)
            drawn = weight.new_empty((count, dim))
            with torch.random.fork_rng([], device_type="cpu"):
                torch.default_generator.manual_seed(
                    zlib.crc32(f"{config.name}/{first}".encode()) ^ seed & (2**62 - 1)
                )
                initialise(config, drawn)
            chosen = range(max(mine.start, first), min(mine.stop, first + count))
            there = weight[start : start + len(chosen)]
            here, at = drawn[chosen.start - first : chosen.stop - first], 0
            for columns in block.columns:
                there[:, at : at + len(columns)] = here[:, columns.start : columns.stop]
                at += len(columns)
            start += len(chosen)


def reset_values(
    config: BaseEmbeddingConfig, block: Block, rows: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return what some rows of a table start anew with, as far as a rank's block has them.

    They are those that the whole table would get.

    Args:
        config: of the table.
        block: the rows and columns.
        rows: of the table, int64 ``(N,)``, distinct: all that are reset together.
        dtype: of the table.

    Returns:
        rows of the block, int64 ``(M,)``, and their values, ``(M, columns of the block)``.
    """
    fresh = initial_rows(config, rows, dtype)
    fresh = torch.cat([fresh[:, c.start : c.stop] for c in block.columns], dim=1)
    places, chosen = [], []
    for mine in block.rows:
        here = ((rows >= mine.start) & (rows < mine.stop)).nonzero()[:, 0]
        places.append(rows[here] - mine.start + block.row_of(mine))
        chosen.append(here)
    return torch.cat(places), fresh[torch.cat(chosen)]
