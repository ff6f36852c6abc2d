"""A model whose tables are sharded over ranks, and whose other parameters every rank has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from torchrec.distributed.agreement import check_alike
from torchrec.distributed.batch_norm import warn_of_share_statistics
from torchrec.distributed.collection import tables_in
from torchrec.distributed.data_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    sharded_names,
)
from torchrec.distributed.forward_passes import ForwardPasses
from torchrec.distributed.model_tracker import (
    DeltaTrackerConfig,
    ModelDeltaTracker,
    ModelDeltaTrackerTrec,
    ModelTrackerConfigs,
)
from torchrec.distributed.replicas import Replicas, new_environment, plans_by_group, refuse_maps
from torchrec.distributed.resharding import (
    described_changes,
    moved_in_all,
    resharded_modules,
)
from torchrec.distributed.shard import (
    check_model,
    default_env,
    default_plan,
    initialise_meta,
    outermost,
    shard_by_plan,
)
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.skeleton import skeleton_of
from torchrec.distributed.types import (
    DMPCollectionConfig,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ShardedModule,
    ShardingEnv,
    ShardingEnv2D,
    ShardingPlan,
    ShardingStrategy,
)
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

__all__ = [
    "DMPCollection",
    "DMPCollectionConfig",
    "DataParallelWrapper",
    "DefaultDataParallelWrapper",
    "DistributedModelParallel",
    "ShardedModule",
    "get_default_sharders",
    "get_unwrapped_module",
]


def get_unwrapped_module(module: nn.Module) -> nn.Module:
    """Return the model inside of what wraps it.

    Args:
        module: a model, perhaps wrapped.
    """
    while isinstance(module, (DistributedModelParallel, DistributedDataParallel)):
        module = (
            module._dmp_wrapped_module
            if isinstance(module, DistributedModelParallel)
            else module.module
        )
    return module


class DistributedModelParallel(nn.Module, FusedOptimizerModule):
    """Trains a model on many ranks: its tables sharded as a plan says, the rest copied to every rank.

    The model is changed: its collections are replaced by sharded ones, with the weights that they
    had; those on ``meta`` get their initial weights part by part. It is called, and trained, as
    before; each rank gives it its own batches. Gradients are the mean over ranks, of tables too.

    Args:
        module: the model.
        env: the ranks. Default: all of `torch.distributed`; where that has not been initialised, this
            process alone.
        device: of this rank's part. Default: the CPU.
        plan: where the tables go. Default: that of an `EmbeddingShardingPlanner`.
        sharders: who shards which type of module. Default: `get_default_sharders`.
        init_data_parallel: wrap the parameters that are not sharded now; else `init_data_parallel` does.
        init_parameters: give what is on ``meta`` memory and initial values.
        data_parallel_wrapper: how these are kept alike. Default: `DefaultDataParallelWrapper`.
        model_tracker_configs: what is tracked from the start; see `init_torchrec_delta_tracker` for rows. Default:
            nothing.

    Raises:
        ValueError: for a plan that does not fit the model or the ranks, naming module, table and rank; on all
            ranks, if their models, plans or libraries are not the same.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"], init_fn=nn.init.ones_)
        >>> model = DistributedModelParallel(EmbeddingBagCollection(tables=[table], device="meta"))
        >>> model(KeyedJaggedTensor.from_lists({"f": [[1, 2], []]})).values().tolist()
        [[2.0, 2.0], [0.0, 0.0]]
        >>> list(model.state_dict())
        ['embedding_bags.t.weight']
    """

    def __init__(
        self,
        module: nn.Module,
        env: ShardingEnv | None = None,
        device: torch.device | None = None,
        plan: ShardingPlan | None = None,
        sharders: list[ModuleSharder[Any]] | None = None,
        init_data_parallel: bool = True,
        init_parameters: bool = True,
        data_parallel_wrapper: DataParallelWrapper | None = None,
        model_tracker_configs: ModelTrackerConfigs | None = None,
    ) -> None:
        super().__init__()
        self._env = default_env() if env is None else env
        self.device = torch.device("cpu") if device is None else device
        self._sharders = get_default_sharders() if sharders is None else list(sharders)
        check_model(module, plan, self._sharders, self._all_ranks())
        if plan is None:
            plan = default_plan(module, self._sharders, self._env, self.device)
        self._plan = plan
        self._data_parallel_wrapper = data_parallel_wrapper or DefaultDataParallelWrapper()
        self._is_data_parallel, self._wrap_when_called = False, False
        self._delta_tracker: ModelDeltaTracker | None = None
        # Not before the model is called: it may be wrapped until then.
        self._passes: ForwardPasses | None = None
        modules = dict(module.named_modules(remove_duplicate=False))
        # Not as children of this module: they have no part in it until `unshard` asks for them.
        self._unsharded = {
            path: skeleton_of(modules[path]) for path in self._plan.plan if path in modules
        }
        self._dmp_wrapped_module = self._shard(module)
        if init_parameters:
            initialise_meta(self._dmp_wrapped_module, self.device)
            self._dmp_wrapped_module.to(self.device)
        if init_data_parallel:
            self.init_data_parallel()

    def _shard(self, module: nn.Module) -> nn.Module:
        return shard_by_plan(module, self._plan, self._sharders, self._env, self.device)

    def _all_ranks(self) -> ShardingEnv:
        """Return the ranks that have the layers, where those that share the tables are not all."""
        if isinstance(self._env, ShardingEnv2D):
            return ShardingEnv.from_process_group(self._env.global_pg)
        return self._env

    @property
    def module(self) -> nn.Module:
        """The model, without what wraps it."""
        return get_unwrapped_module(self)

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """What the ranks exchange through; None: there is one."""
        return self._env.process_group

    @property
    def rank(self) -> int:
        """Which of the ranks this is."""
        return self._env.rank

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self._env.world_size

    @property
    def plan(self) -> ShardingPlan:
        """Where the tables are."""
        return self._plan

    @property
    def fused_optimizer(self) -> KeyedOptimizer:
        """The optimizer of all tables that are updated in the backward pass, under their names."""
        return CombinedOptimizer(
            [
                (path, child.fused_optimizer)
                for path, child in outermost(self.module, FusedOptimizerModule)
            ]
        )

    def unsharded_modules(self) -> dict[str, nn.Module]:
        """Return what the sharded modules were before, on ``meta``, by path."""
        return self._unsharded

    def init_data_parallel(self) -> None:
        """Have the parameters that are not sharded stay alike on all ranks. A second call does nothing."""
        if not self._is_data_parallel:
            self._is_data_parallel, self._passes = True, None
            if self._all_ranks().world_size > 1 and self.rank == 0:
                warn_of_share_statistics(self.module)
            self._data_parallel_wrapper.wrap(self, self._all_ranks(), self.device)

    def copy(self, device: torch.device) -> DistributedModelParallel:
        """Return a copy of the model on a device, with tables and states of its own.

        Args:
            device: where.
        """
        copied = copy.deepcopy(self).to(device)
        copied.device = device
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> DistributedModelParallel:
        """Copy the model, and wrap the copy anew: what adds gradients up is tied to the very parameters.

        Wrapping is for all ranks together, a copy for any: so it waits for the first call of the copy.
        """
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        shared = {"_env", "_plan", "_sharders", "_data_parallel_wrapper", "_replicas"}
        for name, value in self.__dict__.items():
            if name not in ("_modules", "_passes", *shared):
                value = copy.deepcopy(value, memo)
            twin.__dict__[name] = value
        inner = copy.deepcopy(self.module, memo)
        twin.__dict__["_modules"] = {"_dmp_wrapped_module": inner}
        twin._is_data_parallel, twin._wrap_when_called = False, self._is_data_parallel
        twin._passes = None
        return twin

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Args:
            args: as it takes them.
            kwargs: as it takes them.
        """
        if self._wrap_when_called:
            self.init_data_parallel()
        if self.world_size == 1 or torch.compiler.is_compiling():
            return self._dmp_wrapped_module(*args, **kwargs)
        if self._passes is None:
            self._passes = ForwardPasses(
                self.module,
                tables_in(self.module),
                adds_up=self._dmp_wrapped_module is not self.module,
            )
        return self._passes.run(lambda: self._dmp_wrapped_module(*args, **kwargs))

    def state_dict(  # type: ignore[override]
        self,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """Return the state of the model under the names that it has unsharded.

        Of a sharded table it is the whole, of which this rank has some parts: nothing is sent.

        Args:
            destination: written to, and returned. Default: a new one.
            prefix: of the names.
            keep_vars: keep values attached to the graph.
        """
        state = {} if destination is None else destination
        return self.module.state_dict(destination=state, prefix=prefix, keep_vars=keep_vars)

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], prefix: str = "", strict: bool = True
    ) -> Any:
        """Load the state of the model; of sharded tables, this rank's parts.

        Args:
            state_dict: as `state_dict` gives it, or that of the unsharded model.
            prefix: of its names.
            strict: whether the names have to be those of the model.
        """
        if prefix:
            state_dict = {
                name.removeprefix(prefix): value
                for name, value in state_dict.items()
                if name.startswith(prefix)
            }
        return self.module.load_state_dict(state_dict, strict=strict)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters under the names that they have unsharded; of a table, this rank's part.

        Args:
            prefix: written before each.
            recurse: whether those of modules inside count.
            remove_duplicate: whether one with two names comes once.
        """
        yield from self.module.named_parameters(prefix, recurse, remove_duplicate)

    def bare_named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that are not sharded.

        Args:
            prefix: written before each.
            recurse: whether those of modules inside count.
        """
        sharded = set(sharded_names(self.module))
        for name, param in self.module.named_parameters(recurse=recurse):
            if name not in sharded:
                yield f"{prefix}.{name}" if prefix else name, param

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers under the names that they have unsharded.

        Args:
            prefix: written before each.
            recurse: whether those of modules inside count.
            remove_duplicate: whether one with two names comes once.
        """
        yield from self.module.named_buffers(prefix, recurse, remove_duplicate)

    def write(self, *input: Any, **kwargs: Any) -> None:
        """Call the model's own ``write``, which writes into the pools that it has.

        Args:
            input: as it takes them.
            kwargs: as it takes them.

        Raises:
            TypeError: if the model has none.
        """
        write = getattr(self.module, "write", None)
        if write is None:
            raise TypeError(
                f"The model should have a method `write`. Received a {type(self.module).__name__}."
            )
        write(*input, **kwargs)

    def reshard(
        self,
        changed_shard_to_params: dict[str, tuple[float, EmbeddingModuleShardingPlan]],
        sharded_module_fqn: str | None = None,
    ) -> float:
        """Bring tables to other ranks between two steps, with their states; all ranks call this.

        The model trains on as it would have, under the new plan. Parameters of tables that move are new ones, in a
        `fused_optimizer` that was asked for before as well: it goes on, and so do schedulers of its rates.

        Args:
            changed_shard_to_params: of each module by its path, how much is said to move, and where its tables go;
                those that are left out stay where they are.
            sharded_module_fqn: the only one of these modules to change. Default: all of them.

        Returns:
            how much is said to move, all of them together.

        Raises:
            ValueError: on all ranks, with nothing changed: if they are given different plans, for a module or table
                that there is not, a plan that does not fit, copies that come or go, a table that moves and that the
                backward pass does not update, while gradients are accumulated, and while a tracker has states of rows
                that not all consumers have asked for.
            NotImplementedError: of groups of ranks that each have all tables.
        """
        if isinstance(self._env, ShardingEnv2D):
            raise NotImplementedError(
                "Tables should stay where they are in groups of ranks that each have all of them. "
                f"Received changes of {sorted(changed_shard_to_params)}."
            )
        chosen = dict(changed_shard_to_params)
        if sharded_module_fqn is not None:
            chosen = {path: each for path, each in chosen.items() if path == sharded_module_fqn}
        plans = {path: plan for path, (_, plan) in chosen.items()}
        check_alike(self._env, lambda: described_changes(self.module, plans))
        modules = resharded_modules(self.module, plans)
        for path, tables in moved_in_all(modules, plans, self._env).items():
            modules[path].replace_tables(tables)
            self._plan = ShardingPlan(
                {**self._plan.plan, path: EmbeddingModuleShardingPlan(tables.sharding)}
            )
        self._passes = None  # it knows the former tables
        return sum(volume for volume, _ in chosen.values())

    def get_delta_tracker(self) -> ModelDeltaTracker | None:
        """Return what tells which rows were looked up; None: nothing does."""
        return self._delta_tracker

    def init_torchrec_delta_tracker(
        self, delta_tracker_config: DeltaTrackerConfig
    ) -> ModelDeltaTracker:
        """Track from now on which rows are looked up, instead of what was tracked before.

        Args:
            delta_tracker_config: what is told of them, and whom.
        """
        config = delta_tracker_config
        self._delta_tracker = ModelDeltaTrackerTrec(
            self.module,
            config.consumers,
            config.delete_on_read,
            config.auto_compact,
            config.tracking_mode,
            config.fqns_to_skip,
        )
        return self._delta_tracker

    def sparse_grad_parameter_names(
        self, destination: list[str] | None = None, prefix: str = ""
    ) -> list[str]:
        """Return the names of the parameters whose gradients are sparse.

        Args:
            destination: added to, and returned. Default: a new list.
            prefix: written before each.
        """
        found = [] if destination is None else destination
        for path, child in self.module.named_modules():
            if isinstance(child, (nn.Embedding, nn.EmbeddingBag)) and child.sparse:
                found.append(f"{prefix}{path}.weight")
        return found


class DMPCollection(DistributedModelParallel):
    """Trains a model on groups of ranks, in each of which all tables are sharded: 2D parallelism.

    Exchanges stay within a group, whose tables take the mean gradient of its ranks. `sync` makes the
    copies of the groups alike: call it every step, or every so many. Layers are kept alike on all
    ranks, in every step.

    Args:
        module: the model.
        device: of this rank's part.
        plan: where the tables go, by the ranks of a group: from 0 to ``sharding_group_size - 1``.
        world_size: how many ranks there are.
        sharding_group_size: how many ranks a group has.
        global_pg: all ranks.
        sharding_strategy: ``DEFAULT`` or ``PER_MODULE``, which give the same: copies are averaged part by
            part. ``FULLY_SHARDED`` is not supported.
        node_group_size: how many ranks of a group are on one host. Default: all that the host has.
        sharders: see `DistributedModelParallel`.
        init_data_parallel: see `DistributedModelParallel`.
        init_parameters: see `DistributedModelParallel`.
        data_parallel_wrapper: see `DistributedModelParallel`.
        use_inter_host_allreduce: let the ranks of a group be neighbours, and copies be on other hosts.
            Default: a group's ranks are ``world_size / sharding_group_size`` apart, and copies on neighbours.
        custom_all_reduce: see `set_all_reduce_hook`.
        submodule_configs: tables that are grouped otherwise.
        rs_awaitable_hook_module: of ``FULLY_SHARDED``; must be None.
        use_sharded_relay: of accelerators; must be False.

    Raises:
        ValueError: if groups of this size do not make up all ranks, or for what is not supported.

    Example:
        >>> def main():  # on each of 4 ranks
        ...     plan = EmbeddingShardingPlanner(topology=Topology(world_size=2)).plan(model, sharders)
        ...     sharded = DMPCollection(model, device, plan, 4, 2, dist.group.WORLD)
        ...     for batch in batches:
        ...         sharded(batch).backward()
        ...         sharded.sync()
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        plan: ShardingPlan,
        world_size: int,
        sharding_group_size: int,
        global_pg: dist.ProcessGroup,
        sharding_strategy: ShardingStrategy = ShardingStrategy.DEFAULT,
        node_group_size: int | None = None,
        sharders: list[ModuleSharder[Any]] | None = None,
        init_data_parallel: bool = True,
        init_parameters: bool = True,
        data_parallel_wrapper: DataParallelWrapper | None = None,
        use_inter_host_allreduce: bool = False,
        custom_all_reduce: Callable[[list[Tensor]], None] | None = None,
        submodule_configs: list[DMPCollectionConfig] | None = None,
        rs_awaitable_hook_module: str | None = None,
        use_sharded_relay: bool = False,
    ) -> None:
        if rs_awaitable_hook_module is not None or use_sharded_relay:
            raise ValueError(
                "`rs_awaitable_hook_module` should be None and `use_sharded_relay` False: copies are averaged by "
                f"`sync`. Received {rs_awaitable_hook_module!r} and {use_sharded_relay}."
            )
        refuse_maps(module)
        apart = list(submodule_configs or [])
        plans = plans_by_group(module, plan, apart)
        common = DMPCollectionConfig(
            nn.Module,
            plans[0],
            sharding_group_size,
            node_group_size,
            use_inter_host_allreduce,
            sharding_strategy,
        )
        envs = [new_environment(config, world_size, global_pg) for config in (common, *apart)]
        self._replicas = [Replicas(*each) for each in zip(plans, envs, strict=True)]
        self._reduce_hook = custom_all_reduce
        super().__init__(
            module,
            envs[0],
            device,
            ShardingPlan({path: tables for each in plans for path, tables in each.plan.items()}),
            sharders,
            init_data_parallel,
            init_parameters,
            data_parallel_wrapper,
        )

    def _shard(self, module: nn.Module) -> nn.Module:
        for each in self._replicas:
            module = shard_by_plan(module, each.plan, self._sharders, each.env, self.device)
        for each in self._replicas:
            each.start_alike(module)
        return module

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """The ranks, copies by shards."""
        return self._replicas[0].env.device_mesh

    def sync(self, include_optimizer_state: bool = True) -> None:
        """Make the tables of all groups alike: each weight becomes the mean of its copies. All ranks call it.

        Args:
            include_optimizer_state: whether the state of tables that the backward pass updates as well, with the
                highest of the step counts. Default True.
        """
        for each in self._replicas:
            each.average(self.module, include_optimizer_state, self._reduce_hook)

    def set_all_reduce_hook(self, reduce_hook: Callable[[list[Tensor]], None]) -> None:
        """Have `sync` call this instead of taking means.

        Args:
            reduce_hook: is given this rank's parts, and then their states, and writes into them.
        """
        self._reduce_hook = reduce_hook

    def ensure_reduce_scatter_complete(self) -> None:
        """Return at once: `sync` leaves nothing on its way."""
