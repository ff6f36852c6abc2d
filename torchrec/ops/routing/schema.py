"""The routing operators in the dispatcher: schemas and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import define
from torchrec.ops.routing import native, reference


def _fake_route(
    rows: Tensor, lengths: Tensor, counts: list[int], bands: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = rows.shape[0]
    shape = len(bands) // 4, lengths.shape[1]
    return (
        rows.new_empty(size, dtype=torch.int32),
        rows.new_empty(size, dtype=torch.int32),
        rows.new_empty(shape, dtype=torch.int32),
        rows.new_empty(shape[0], dtype=torch.int64),
    )


route_rows: Any = define(
    "route_rows(Tensor rows, Tensor lengths, SymInt[] counts, int[] bands)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.route_rows,
    fake=_fake_route,
    native_kernel=native.route_rows,
)


def _fake_copy(
    inputs: list[Tensor], sizes: list[int], blocks: list[int], divisor: int
) -> list[Tensor]:
    return [inputs[0].new_empty(size) for size in sizes]


copy_blocks: Any = define(
    "copy_blocks(Tensor[] inputs, SymInt[] sizes, SymInt[] blocks, int divisor) -> Tensor[]",
    reference=reference.copy_blocks,
    fake=_fake_copy,
    native_kernel=native.copy_blocks,
)
