"""From a sharded model back to one that one process has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.batch_norm import revert_sync_batchnorm
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.shard import outermost
from torchrec.distributed.state import ShardedTable
from torchrec.distributed.table_dtensor import TableDTensor
from torchrec.modules.collision.divided_state import padded
from torchrec.modules.mc_modules import MCHManagedCollisionModule
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer

__all__ = ["loadable_state_dict", "unshard"]


def unshard(model: DistributedModelParallel, rank: int | None = None) -> nn.Module | None:
    """Return the model that was sharded, with the weights it has now, and the state of its tables' optimizers.

    All ranks call this. The sharded model stays as it is, and shares nothing with what is returned.
    A table that was placed ``data_parallel``, without an optimizer of its own, has weights, and a state
    as new: its state is with the optimizer that trained it.

    Args:
        model: the sharded model.
        rank: which rank gets the whole; the others only send. Default: each one.

    Returns:
        the model; None on other ranks than ``rank``.

    Raises:
        ValueError: for a rank that there is not, a module whose state is not that of the unsharded one, or a
            `torch.nn.EmbeddingBag` that the backward pass updates.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"], init_fn=nn.init.ones_)
        >>> model = DistributedModelParallel(nn.Sequential(EmbeddingBagCollection([table], device="meta")))
        >>> plain = unshard(model)
        >>> type(plain[0]).__name__, plain.state_dict()["0.embedding_bags.t.weight"].sum().item()
        ('EmbeddingBagCollection', 20.0)
    """
    if rank is not None and not 0 <= rank < model.world_size:
        raise ValueError(
            f"`rank` should be from 0 to {model.world_size - 1}, or None. Received {rank}."
        )
    _check_states(model)
    tables = {
        name: value.table if isinstance(value, TableDTensor) else value
        for name, value in model.state_dict().items()
    }
    weights = {name: _whole(value, rank, model) for name, value in tables.items()}
    optimizer = model.fused_optimizer.state_dict()
    states = {
        name: {
            key: _step(value, tables[name]) if key == "step" else _whole(value, rank, model)
            for key, value in values.items()
        }
        for name, values in optimizer["state"].items()
    }
    if rank not in (None, model.rank):
        return None
    plain = _plain_of(model)
    for path in model.unsharded_modules():
        _load_weights(plain, path, weights)
    fused = CombinedOptimizer(
        [(path, child.fused_optimizer) for path, child in outermost(plain, FusedOptimizerModule)]
    )
    fresh = fused.state_dict()
    trained = {tuple(group["params"]): group for group in optimizer["param_groups"]}
    groups = [trained.get(tuple(group["params"]), group) for group in fresh["param_groups"]]
    fused.load_state_dict({"state": {**fresh["state"], **states}, "param_groups": groups})
    return plain


def loadable_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the state of a model of one process, in the sizes that ranks save maps of ids in.

    `torch.distributed.checkpoint` reads into tensors of the sizes that were saved. What a map of one process shows
    depends on how many ids wait for a row; ranks save one for each row, there or not. Tensors are read into the memory
    of the model but for those of maps, so that the state is to be loaded afterwards.

    Args:
        model: not sharded.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
        >>> from torchrec.modules.mc_modules import LRU_EvictionPolicy, ManagedCollisionCollection
        >>> tables = [EmbeddingBagConfig(10, 2, "t", feature_names=["f"])]
        >>> map_of_ids = MCHManagedCollisionModule(10, torch.device("cpu"), LRU_EvictionPolicy(), 2)
        >>> maps = ManagedCollisionCollection({"t": map_of_ids}, tables)
        >>> model = ManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection(tables), maps)
        >>> name = "_managed_collision_collection._managed_collision_modules.t._rows.history_ids"
        >>> model.state_dict()[name].shape, loadable_state_dict(model)[name].shape
        (torch.Size([0]), torch.Size([9, 2]))
    """
    state: dict[str, Any] = dict(model.state_dict())
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MCHManagedCollisionModule):
            count = module.output_size() - (module.sizes().mch_size is None)
            own = padded(module.state_dict(), count, path.rpartition(".")[2])
            state.update({f"{path}.{name}" if path else name: value for name, value in own.items()})
    return state


def _check_states(model: DistributedModelParallel) -> None:
    """Refuse tables whose optimizer has nobody to go back to, on all ranks."""
    updated = model.fused_optimizer.params
    for path, module in model.unsharded_modules().items():
        name = f"{path}.weight" if path else "weight"
        if isinstance(module, nn.EmbeddingBag) and name in updated:
            raise ValueError(
                f"The EmbeddingBag '{path}' should be trained by an optimizer around the model to be brought back: it "
                "cannot keep the state of one in the backward pass, as collections can. Received one that is "
                "updated there."
            )


def _whole(value: Any, rank: int | None, model: DistributedModelParallel) -> Any:
    """Return a copy of a whole, where it is wanted."""
    if not isinstance(value, ShardedTable):
        return copy.deepcopy(value)
    if rank is None:
        return value.full_tensor()
    whole = torch.empty(value.shape, dtype=value.dtype) if model.rank == rank else None
    value.gather(rank, whole)
    return whole


def _step(step: Tensor, table: Any) -> Tensor:
    """Return the step count of a table, from a rank that has some of it."""
    return table.shared_number(step) if isinstance(table, ShardedTable) else step.clone()


def _plain_of(model: DistributedModelParallel) -> nn.Module:
    """Return a copy of the model with what its modules were before they were sharded, on ``meta``."""
    sharded, plain = model.module, copy.deepcopy(model.unsharded_modules())
    # What `copy.deepcopy` finds in its memo it takes instead of a copy.
    memo: dict[int, Any] = {
        id(sharded.get_submodule(path)): module for path, module in plain.items()
    }
    return plain[""] if "" in plain else revert_sync_batchnorm(copy.deepcopy(sharded, memo))


def _load_weights(plain: nn.Module, path: str, weights: Mapping[str, Any]) -> None:
    """Give a module on ``meta`` its weights."""
    prefix = f"{path}." if path else ""
    own = {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}
    module = plain.get_submodule(path)
    if own.keys() != module.state_dict().keys():
        differing = sorted(own.keys() ^ module.state_dict().keys())
        raise ValueError(
            f"Module '{path}' should have the same state sharded and not. Received '{differing[0]}' of one."
        )
    module.load_state_dict(own, assign=True)
