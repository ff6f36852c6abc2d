"""Groups of ranks that each hold all tables: which ranks, and how the copies are made alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from torchrec.distributed.types import (
    DMPCollectionConfig,
    ShardedModule,
    ShardingEnv2D,
    ShardingPlan,
    ShardingStrategy,
)
from torchrec.distributed.wire import Wire
from torchrec.modules.mc_modules import ManagedCollisionModule
from torchrec.optim.owners import owner_of
from torchrec.optim.table_update import TableUpdate

__all__ = ["Replicas", "new_environment", "plans_by_group", "refuse_maps"]

_CHUNK = 1 << 22  # elements exchanged at a time: what a rank needs beside its parts


def new_environment(
    config: DMPCollectionConfig, world_size: int, global_pg: dist.ProcessGroup
) -> ShardingEnv2D:
    """Make the process groups of tables that are sharded within groups of ranks, and copied between them.

    Every rank calls it. Ranks of one group are a stride apart, so that the copies of a part are on
    neighbours, on one host; or they are neighbours themselves, with copies on other hosts.

    Args:
        config: how many ranks a group has, and which.
        world_size: how many there are.
        global_pg: all of them.

    Raises:
        ValueError: if groups of this size do not make up all ranks, or for what is not supported.
    """
    size, ranks = config.sharding_group_size, dist.get_process_group_ranks(global_pg)
    if world_size != len(ranks):
        raise ValueError(
            f"`world_size` should be that of `global_pg`, {len(ranks)}. Received {world_size}."
        )
    if size < 1 or world_size % size:
        raise ValueError(
            f"`sharding_group_size` should divide the {world_size} ranks. Received {size}."
        )
    nodes = config.node_group_size
    if nodes is not None and (nodes < 1 or size % nodes):
        raise ValueError(
            f"`node_group_size` should divide a sharding group of {size} ranks. Received {nodes}."
        )
    if config.sharding_strategy is ShardingStrategy.FULLY_SHARDED:
        raise ValueError(
            "`sharding_strategy` should keep a copy of the tables in each group: tables over all ranks are what "
            "DistributedModelParallel has. Received ShardingStrategy.FULLY_SHARDED."
        )
    grid = torch.tensor(ranks)
    grid = grid.view(-1, size) if config.use_inter_host_allreduce else grid.view(size, -1).t()
    mesh = DeviceMesh("cpu", grid.contiguous(), mesh_dim_names=("replicate", "shard"))
    return ShardingEnv2D(
        mesh.get_group("shard"),
        mesh.get_group("replicate"),
        global_pg,
        mesh,
        nodes,
        config.use_inter_host_allreduce,
        config.sharding_strategy,
    )


def plans_by_group(
    module: nn.Module, plan: ShardingPlan, configs: Sequence[DMPCollectionConfig]
) -> list[ShardingPlan]:
    """Return what is planned for each kind of group: first what no configuration of its own is for.

    Args:
        module: the model.
        plan: of all tables, or of those that no configuration names.
        configs: what is grouped otherwise.

    Raises:
        ValueError: if a configuration plans what is in no module of its type.
    """
    apart: dict[str, object] = {}
    for config in configs:
        for path in config.plan.plan:
            if not any(isinstance(around, config.module) for around in _around(module, path)):
                raise ValueError(
                    f"`submodule_configs` should plan what is in a {config.module.__name__}. "
                    f"Received '{path}', which is in none."
                )
            if path in apart:
                raise ValueError(
                    f"`submodule_configs` should plan each module once. Received '{path}' twice."
                )
            apart[path] = config
    rest = {path: tables for path, tables in plan.plan.items() if path not in apart}
    return [ShardingPlan(rest), *(config.plan for config in configs)]


def _around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """Yield the model, the module at a path, if there is one, and those between."""
    yield from (
        module
        for name, module in model.named_modules(remove_duplicate=False)
        if not name or f"{path}.".startswith(f"{name}.")
    )


def refuse_maps(model: nn.Module) -> None:
    """Refuse maps of ids: each group would give rows to other ids, whose average means nothing.

    Args:
        model: to be copied between groups.

    Raises:
        ValueError: naming the map.
    """
    for path, module in model.named_modules():
        if isinstance(module, ManagedCollisionModule):
            raise ValueError(
                "Tables that are copied between groups of ranks should be looked up by ids that are rows: each "
                f"group would learn another map. Received a {type(module).__name__} at '{path}'."
            )


class Replicas:
    """Tables that are sharded within groups of ranks, and copied between these.

    Args:
        plan: of these tables.
        env: the groups.
    """

    def __init__(self, plan: ShardingPlan, env: ShardingEnv2D) -> None:
        self.plan, self.env = plan, env
        self._wire = Wire(env.replica_pg)

    def start_alike(self, model: nn.Module) -> None:
        """Give all groups the weights that the first one has.

        Args:
            model: sharded.
        """
        for chunk in _chunks(weight.data for weight in self._weights(model)):
            whole = chunk.contiguous()
            chunk.copy_(self._wire.broadcast(whole, 0, "first weights"))

    def average(
        self,
        model: nn.Module,
        with_states: bool,
        reduce_hook: Callable[[list[Tensor]], None] | None,
    ) -> None:
        """Make the copies alike: each weight the mean of its copies, and each state.

        Args:
            model: sharded.
            with_states: whether states of optimizers as well, and the highest step count.
            reduce_hook: called with weights, and with states, instead of taking the mean.
        """
        weights = list(self._weights(model))
        self._reduce([weight.data for weight in weights], reduce_hook)
        if not with_states:
            return
        owners = [owner for owner in map(owner_of, weights) if isinstance(owner, TableUpdate)]
        for owner in owners:
            owner.place()
        self._reduce([state for owner in owners for state in owner.states.values()], reduce_hook)
        if owners:
            steps = torch.stack([owner.step for owner in owners])
            self._wire.reduce(steps, "`sync` of the steps of optimizers", dist.ReduceOp.MAX)
            for owner, step in zip(owners, steps, strict=True):
                owner.step.copy_(step)

    def _weights(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Yield this rank's parts, in an order that the ranks with the same parts share."""
        for path in self.plan.plan:
            module = model.get_submodule(path)
            if isinstance(module, ShardedModule):
                params = dict(module.named_parameters())
                for name in module.sharded_parameter_names():
                    yield params[name]

    def _reduce(
        self, tensors: list[Tensor], reduce_hook: Callable[[list[Tensor]], None] | None
    ) -> None:
        if reduce_hook is not None:
            reduce_hook(tensors)
            return
        copies = self.env.num_sharding_groups()
        for chunk in _chunks(tensors):
            total = chunk.float().contiguous()  # one rounding, of weights of fewer bits too
            chunk.copy_(self._wire.reduce(total, "`sync` of tables").div_(copies))


def _chunks(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        if tensor.numel():
            yield from tensor.split(max(1, _CHUNK // max(1, tensor[0].numel())))
