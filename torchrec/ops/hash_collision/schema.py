"""The operators of slot maps in the dispatcher: schemas and shapes. None has a gradient."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.hash_collision import reference

kernels: ModuleType | None = None
if _library.native is not None:
    kernels = importlib.import_module("torchrec.ops.hash_collision.native")

_PROBING = (
    "int first_bucket, int num_buckets, int ids_per_bucket, bool local_ids, int reserved,"
    " int max_probe, bool fallback"
)


def _fake_find(identities: Tensor, bounds: Tensor, totals: Tensor, ids: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(ids, memory_format=torch.contiguous_format)


def _fake_assign(*arguments: Any) -> tuple[Tensor, Tensor]:
    ids = arguments[4]
    evicted = ids.new_empty(torch.library.get_ctx().new_dynamic_size())
    return torch.empty_like(ids, memory_format=torch.contiguous_format), evicted


hash_slots_find_: Any = _library.define(
    "hash_slots_find_(Tensor identities, Tensor bounds, Tensor(a!) totals, Tensor ids,"
    f" {_PROBING}) -> Tensor",
    reference=reference.find_,
    fake=_fake_find,
    native_kernel=kernels.find_ if kernels else None,
    decided_by=("identities", "ids"),
)
hash_slots_assign_: Any = _library.define(
    "hash_slots_assign_(Tensor(a!) identities, Tensor(b!)? metadata, Tensor bounds,"
    " Tensor(c!) totals, Tensor ids, Tensor? scores, Tensor? admitted,"
    f" {_PROBING}, int threshold, bool oldest) -> (Tensor slots, Tensor evicted)",
    reference=reference.assign_,
    fake=_fake_assign,
    native_kernel=kernels.assign_ if kernels else None,
    decided_by=("identities", "ids"),
)
