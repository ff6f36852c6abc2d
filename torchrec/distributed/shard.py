"""Sharding itself: modules replaced by sharded ones, with nothing around them that keeps the rest alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchrec.distributed._private import import_compiler
from torchrec.distributed.agreement import check_alike, description_of
from torchrec.distributed.sharding_plan import (
    ParameterShardingGenerator,
    apply_to_all,
    construct_module_sharding_plan,
    get_default_sharders,
)
from torchrec.distributed.types import (
    ModuleSharder,
    ModuleShardingPlan,
    ShardedModule,
    ShardingEnv,
    ShardingPlan,
)
from torchrec.modules.collection import Collection

__all__ = ["shard", "shard_modules"]

_log = logging.getLogger(__name__)


def shard(
    module: nn.Module,
    plan: ModuleShardingPlan
    | Mapping[str, ParameterShardingGenerator]
    | ParameterShardingGenerator,
    env: ShardingEnv | None = None,
    device: torch.device | None = None,
    sharder: ModuleSharder[Any] | None = None,
) -> nn.Module:
    """Return one collection spread over ranks.

    It gives its weights away; those on ``meta`` get their initial weights part by part. Gradients of
    its tables are the mean over ranks. What is beside it in a model is for its caller to keep alike:
    `DistributedModelParallel` shards a whole model.

    Args:
        module: the collection.
        plan: where its tables go: a plan, or for each table what `row_wise` and its like return, or one
            of these for all.
        env: the ranks. Default: all of `torch.distributed`; where that has not been initialised, this
            process alone.
        device: of this rank's parts. Default: the CPU.
        sharder: who shards it. Default: that of `get_default_sharders` for its type.

    Raises:
        ValueError: if nobody shards it, the plan does not fit, or that of another rank is another.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.distributed.sharding_plan import row_wise
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"], init_fn=nn.init.ones_)
        >>> sharded = shard(EmbeddingBagCollection([table], device="meta"), row_wise())
        >>> sharded(KeyedJaggedTensor.from_lists({"f": [[1, 2], []]})).values().tolist()
        [[2.0, 2.0], [0.0, 0.0]]
    """
    check_unsharded(module)
    env = default_env() if env is None else env
    device = torch.device("cpu") if device is None else device
    sharders = get_default_sharders() if sharder is None else [sharder]
    if not isinstance(plan, ModuleShardingPlan):
        sharder = _sharder_of(module, "", sharders)
        generators = apply_to_all(module, plan, sharder) if callable(plan) else plan
        plan = construct_module_sharding_plan(
            module, generators, sharder, None, env.world_size, device.type
        )
    whole = ShardingPlan({"": plan})
    check_model(module, whole, sharders, env)
    return shard_by_plan(module, whole, sharders, env, device)


def shard_modules(
    module: nn.Module,
    env: ShardingEnv | None = None,
    device: torch.device | None = None,
    plan: ShardingPlan | None = None,
    sharders: list[ModuleSharder[Any]] | None = None,
    init_params: bool = False,
) -> nn.Module:
    """Replace the collections of a model by sharded ones, and leave the rest of it to its caller.

    Nothing keeps the other parameters alike on all ranks: wrap what is returned, or use
    `DistributedModelParallel`, which does.

    Args:
        module: the model, changed; itself replaced if it is a collection.
        env: the ranks. Default: all of `torch.distributed`; where that has not been initialised, this
            process alone.
        device: of this rank's parts. Default: the CPU.
        plan: where the tables go. Default: that of an `EmbeddingShardingPlanner`.
        sharders: who shards which type of module. Default: `get_default_sharders`.
        init_params: give what else is on ``meta`` memory and initial values, and move all to ``device``.
            Default False.

    Returns:
        the model.

    Raises:
        ValueError: for a plan that does not fit the model or the ranks; on all ranks, if their models, plans or
            libraries are not the same.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(10, 2, "t", feature_names=["f"])
        >>> model = nn.Sequential(EmbeddingBagCollection([table], device="meta"))
        >>> type(shard_modules(model)[0]).__name__
        'ShardedEmbeddingBagCollection'
    """
    env = default_env() if env is None else env
    device = torch.device("cpu") if device is None else device
    sharders = get_default_sharders() if sharders is None else list(sharders)
    check_model(module, plan, sharders, env)
    if plan is None:
        plan = default_plan(module, sharders, env, device)
    module = shard_by_plan(module, plan, sharders, env, device)
    if init_params:
        initialise_meta(module, device)
        module.to(device)
    return module


def default_env() -> ShardingEnv:
    """Return the ranks of `torch.distributed`; where it has not been initialised, this process alone."""
    if dist.is_available() and dist.is_initialized() and dist.group.WORLD is not None:
        return ShardingEnv.from_process_group(dist.group.WORLD)
    _log.warning(
        "torch.distributed has not been initialised: the model is one rank's, this process. Start it by "
        "torchrun, and call torch.distributed.init_process_group() first, to have more."
    )
    return ShardingEnv.from_local(world_size=1, rank=0)


def outermost(model: nn.Module, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the modules of a kind with their paths, each once; of one inside another, the outer one.

    Args:
        model: where they are; may be one itself, whose path is ``""``.
        kind: their class.
    """
    found: list[str] = []
    for path, child in model.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        if isinstance(child, kind) and not inside:
            found.append(path)
            yield path, child


def default_plan(
    module: nn.Module, sharders: list[ModuleSharder[Any]], env: ShardingEnv, device: torch.device
) -> ShardingPlan:
    """Return the plan of an `EmbeddingShardingPlanner`, the same on all ranks.

    Args:
        module: the model.
        sharders: who will shard which type.
        env: the ranks.
        device: of this rank's parts.
    """
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology

    topology = Topology(world_size=env.world_size, compute_device=device.type)
    planner = EmbeddingShardingPlanner(topology=topology)
    if env.process_group is None:
        return planner.plan(module, sharders)
    return planner.collective_plan(module, sharders, env.process_group)


def check_model(
    module: nn.Module,
    plan: ShardingPlan | None,
    sharders: list[ModuleSharder[Any]],
    env: ShardingEnv,
) -> None:
    """Refuse a model that has been sharded, and ranks that would not shard the same model in the same way.

    Args:
        module: the model.
        plan: where its tables go; None: that is decided later.
        sharders: who will shard which type.
        env: the ranks, which all call this.

    Raises:
        ValueError: on all ranks.
    """

    def describe() -> dict[str, str]:
        check_unsharded(module)
        return description_of(module, plan, sharders)

    check_alike(env, describe)


def check_unsharded(module: nn.Module) -> None:
    """Refuse a model that has been sharded, or a part of which has.

    Args:
        module: the model.

    Raises:
        ValueError: naming the part.
    """
    for path, child in module.named_modules():
        if isinstance(child, (ShardedModule, DistributedDataParallel)):
            raise ValueError(
                "`module` should not be sharded yet. Received one with a "
                f"{type(child).__name__} at '{path}'."
            )


def shard_by_plan(
    module: nn.Module,
    plan: ShardingPlan,
    sharders: list[ModuleSharder[Any]],
    env: ShardingEnv,
    device: torch.device,
) -> nn.Module:
    """Replace the modules that a plan names by sharded ones, and return the model.

    Args:
        module: the model, changed; itself replaced if the plan names it, by ``""``.
        plan: where the tables go.
        sharders: who shards which type.
        env: the ranks.
        device: of this rank's parts.

    Raises:
        ValueError: if there is no module of such a path, or nobody to shard it.
    """
    if env.process_group is not None:
        import_compiler()
    for path, tables in plan.plan.items():
        try:
            target = module.get_submodule(path)
        except AttributeError:
            raise ValueError(
                f"The plan should name modules of the model. Received '{path}', which it does not have."
            ) from None
        _check_stands_alone(module, path)
        _check_untied(module, target, path)
        sharder = _sharder_of(target, path, sharders)
        if not isinstance(tables, sharder.plan_type):
            raise TypeError(
                f"The plan of module '{path}' should be an {sharder.plan_type.__name__}. "
                f"Received {type(tables).__name__}."
            )
        # Before its tables are given away: a module may be in a model more than once.
        paths = [p for p, m in module.named_modules(remove_duplicate=False) if m is target]
        mine: Any = tables  # of the type that this sharder takes
        sharded = sharder.shard(target, mine, env, device, path)
        if not path:
            return sharded
        for place in paths:
            parent, _, name = place.rpartition(".")
            module.get_submodule(parent).register_module(name, sharded)
    return module


def _sharder_of(
    module: nn.Module, path: str, sharders: list[ModuleSharder[Any]]
) -> ModuleSharder[Any]:
    by_type = {sharder.module_type: sharder for sharder in sharders}
    sharder = by_type.get(type(module))
    if sharder is None:
        name = f"Module '{path}'" if path else "The module"
        raise ValueError(
            f"{name} should be of a type that some sharder shards: "
            f"{sorted(kind.__name__ for kind in by_type)}. Received {type(module).__name__}."
        )
    return sharder


def _check_untied(model: nn.Module, target: nn.Module, path: str) -> None:
    """Refuse to shard tables whose weights another module uses as well, which would keep the whole."""
    inside = set(target.modules())
    tables = {id(param) for param in target.parameters()}
    for other, module in model.named_modules():
        if module in inside:
            continue
        for name, param in module.named_parameters(recurse=False):
            if id(param) in tables:
                raise ValueError(
                    f"Module '{path}' should have its weights for itself, to be sharded. "
                    f"Received one that is '{other}.{name}' as well: give all features of a table to one "
                    "collection (`feature_names`), and a layer a weight of its own."
                )


def _check_stands_alone(model: nn.Module, path: str) -> None:
    """Refuse to shard a collection apart from what is around it: a map of ids, which goes with its tables, say."""
    parent = path
    while parent:
        parent = parent.rpartition(".")[0]
        around = model.get_submodule(parent)
        inside: object = around.table_store() if isinstance(around, Collection) else None
        if inside is model.get_submodule(path):
            raise ValueError(
                f"Module '{path}' should be sharded together with the {type(around).__name__} around it, at "
                f"'{parent}'. Received a plan for the inside alone."
            )


def initialise_meta(module: nn.Module, device: torch.device) -> None:
    """Give the parameters and buffers that are on ``meta`` memory, and initial values.

    Args:
        module: what has them.
        device: where.

    Raises:
        ValueError: for a module that has no ``reset_parameters``.
    """
    for path, child in module.named_modules():
        own = [*child.parameters(recurse=False), *child.buffers(recurse=False)]
        if not any(tensor.is_meta for tensor in own):
            continue
        reset = getattr(child, "reset_parameters", None)
        if reset is None:
            raise ValueError(
                f"Module '{path}' should have `reset_parameters`, to get initial values, as it is on "
                f"'meta'. Received a {type(child).__name__}, which has not."
            )
        child.to_empty(device=device, recurse=False)
        reset()
