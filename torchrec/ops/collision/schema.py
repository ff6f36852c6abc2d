"""The operators of id maps in the dispatcher: schemas and shapes. None has a gradient."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.collision import reference

kernels: ModuleType | None = None
if _library.native is not None:
    kernels = importlib.import_module("torchrec.ops.collision.native")


def _fake_find(ids: Tensor, index: Tensor, wanted: Tensor, missing: int) -> Tensor:
    return torch.empty_like(wanted, memory_format=torch.contiguous_format)


def _fake_count(*arguments: Any) -> Tensor:
    batch = arguments[-3]
    return torch.empty_like(batch, memory_format=torch.contiguous_format)


def _fake_replace(
    ids: Tensor, occupied: Tensor, index: Tensor, scores: Tensor, candidates: Tensor, _: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    replaced, evicted = context.new_dynamic_size(), context.new_dynamic_size()
    return ids.new_empty(replaced), ids.new_empty(replaced), ids.new_empty(evicted)


def _fake_nothing(*_: Any) -> None:
    return None


id_map_find: Any = _library.define(
    "id_map_find(Tensor ids, Tensor index, Tensor wanted, int missing) -> Tensor",
    reference=reference.find,
    fake=_fake_find,
    native_kernel=kernels.find if kernels else None,
    decided_by=("ids", "wanted"),
)
id_map_count_: Any = _library.define(
    "id_map_count_(Tensor ids, Tensor index, Tensor(a!)? counts, Tensor(b!)? last,"
    " Tensor(c!) history_ids, Tensor(d!) history_counts, Tensor(e!) history_last,"
    " Tensor(f!) history_index, Tensor(g!) history_size, Tensor(h!) totals,"
    " Tensor batch, int now, int missing) -> Tensor",
    reference=reference.count_,
    fake=_fake_count,
    native_kernel=kernels.count_ if kernels else None,
    decided_by=("ids", "batch"),
)
id_map_replace_: Any = _library.define(
    "id_map_replace_(Tensor(a!) ids, Tensor(b!) occupied, Tensor(c!) index, Tensor scores,"
    " Tensor candidates, Tensor candidate_scores) -> (Tensor rows, Tensor chosen, Tensor evicted)",
    reference=reference.replace_,
    fake=_fake_replace,
    native_kernel=kernels.replace_ if kernels else None,
    decided_by=("ids", "scores", "candidates", "candidate_scores"),
)
id_map_insert_: Any = _library.define(
    "id_map_insert_(Tensor(a!) ids, Tensor(b!) occupied, Tensor(c!) index, Tensor new, Tensor rows)"
    " -> ()",
    reference=reference.insert_,
    fake=_fake_nothing,
    native_kernel=kernels.insert_ if kernels else None,
)
id_map_erase_: Any = _library.define(
    "id_map_erase_(Tensor ids, Tensor(a!) occupied, Tensor(b!) index, Tensor rows) -> ()",
    reference=reference.erase_,
    fake=_fake_nothing,
    native_kernel=kernels.erase_ if kernels else None,
)
id_map_rebuild_: Any = _library.define(
    "id_map_rebuild_(Tensor ids, Tensor rows, Tensor(a!) index) -> ()",
    reference=reference.rebuild_,
    fake=_fake_nothing,
    native_kernel=kernels.rebuild_ if kernels else None,
)
