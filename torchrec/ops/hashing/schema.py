"""The hashing operators in the dispatcher: schemas and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import define, shortcut
from torchrec.ops.hashing import native, reference


def _fake_hash_strings(data: Tensor, offsets: Tensor, seed: int) -> Tensor:
    return data.new_empty(offsets.size(0) - 1, dtype=torch.int64)


hash_strings: Any = define(
    "hash_strings(Tensor data, Tensor offsets, int seed) -> Tensor",
    reference=reference.hash_strings,
    fake=_fake_hash_strings,
    native_kernel=native.hash_strings,
)
hash_ids: Any = shortcut(native.hash_ids, composed=reference.hash_ids, tensors=(0,))
