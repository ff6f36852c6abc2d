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
    size = rows.numel()
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
    outputs: list[Tensor], inputs: list[Tensor], blocks: list[int], divisor: int
) -> None:
    return None


copy_blocks_: Any = define(
    "copy_blocks_(Tensor(a!)[] outputs, Tensor[] inputs, SymInt[] blocks, int divisor) -> ()",
    reference=reference.copy_blocks_,
    fake=_fake_copy,
    native_kernel=native.copy_blocks_,
)
