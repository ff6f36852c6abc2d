"""A model whose tables are sharded over ranks, and whose other parameters every rank has."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchrec.distributed._private import (
    SYNC_BUFFERS,
    import_compiler,
    leave_to_others,
    map_leaves,
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
    Awaitable,
    ModuleSharder,
    ShardedModule,
    ShardingEnv,
    ShardingPlan,
)
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

__all__ = [
    "DataParallelWrapper",
    "DefaultDataParallelWrapper",
    "DistributedModelParallel",
    "ShardedModule",
    "get_default_sharders",
    "get_unwrapped_module",
]


_PRECISIONS = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}


class DataParallelWrapper(ABC):
    """Has the parameters that every rank has a copy of stay alike on all of them."""

    @abstractmethod
    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Put what wraps the model in place of ``dmp._dmp_wrapped_module``.

        Args:
            dmp: the model.
            env: the ranks.
            device: of this rank.
        """


class DefaultDataParallelWrapper(DataParallelWrapper):
    """Wraps a model in `torch.nn.parallel.DistributedDataParallel`.

    Args:
        bucket_cap_mb: gradients are added up in buckets of this size, in MB. Default 25.
        static_graph: whether the same parameters are used in every step. Default True.
        find_unused_parameters: look in every step which ones are not. Default False.
        allreduce_comm_precision: ``"fp16"`` or ``"bf16"``: add gradients up in this type. Default: their own.
        params_to_ignore: names of parameters to leave alone, beside those that are sharded.
        ddp_kwargs: further arguments of DistributedDataParallel.
    """

    def __init__(
        self,
        bucket_cap_mb: int = 25,
        static_graph: bool = True,
        find_unused_parameters: bool = False,
        allreduce_comm_precision: str | None = None,
        params_to_ignore: list[str] | None = None,
        ddp_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if allreduce_comm_precision not in _PRECISIONS:
            raise ValueError(
                "`allreduce_comm_precision` should be 'fp16', 'bf16' or None. "
                f"Received {allreduce_comm_precision!r}."
            )
        self._dtype = _PRECISIONS[allreduce_comm_precision]
        self._ignored = list(params_to_ignore or [])
        self._options: dict[str, Any] = {
            "bucket_cap_mb": bucket_cap_mb,
            "static_graph": static_graph,
            "find_unused_parameters": find_unused_parameters,
            "gradient_as_bucket_view": True,
            SYNC_BUFFERS: False,
            **(ddp_kwargs or {}),
        }

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Wrap the model, if it has parameters whose gradients are to be added up."""
        module = dmp._dmp_wrapped_module
        ignored = {*self._ignored, *sharded_names(module)}
        together = [p for name, p in module.named_parameters() if name not in ignored]
        if env.world_size == 1 or not any(param.requires_grad for param in together):
            return
        leave_to_others(module, ignored)
        # It looks in the output for tensors whose backward pass ends a step: in a lazy one it would find none.
        module.register_forward_hook(_waited)
        wrapped = DistributedDataParallel(
            module,
            device_ids=None if device.type == "cpu" else [device],
            process_group=env.process_group,
            **self._options,
        )
        dtype = self._dtype
        if dtype is not None:
            wrapped.register_comm_hook(
                env.process_group, lambda group, bucket: _added_up(group, bucket.buffer(), dtype)
            )
        dmp._dmp_wrapped_module = wrapped


def _added_up(group: dist.ProcessGroup, buffer: Tensor, dtype: torch.dtype) -> Any:
    """Add gradients up in another type; PyTorch's own hook for bfloat16 does it on GPUs alone."""
    narrow = buffer.to(dtype).div_(group.size())
    work = dist.all_reduce(narrow, group=group, async_op=True)
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))


def _waited(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return map_leaves(lambda leaf: leaf.wait() if isinstance(leaf, Awaitable) else leaf, output)


def sharded_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that are spread over ranks.

    Args:
        module: a model.
    """
    for path, child in module.named_modules():
        if isinstance(child, ShardedModule):
            yield from child.sharded_parameter_names(path)


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
        model_tracker_configs: not supported; must be None.

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
        model_tracker_configs: object | None = None,
    ) -> None:
        super().__init__()
        if model_tracker_configs is not None:
            raise ValueError(
                "`model_tracker_configs` should be None: there is no tracker. "
                f"Received {model_tracker_configs!r}."
            )
        self._env = default_env() if env is None else env
        if self._env.process_group is not None:
            import_compiler()
        self.device = torch.device("cpu") if device is None else device
        self._sharders = get_default_sharders() if sharders is None else list(sharders)
        check_model(module, plan, self._sharders, self._env)
        if plan is None:
            plan = default_plan(module, self._sharders, self._env, self.device)
        self._plan = plan
        self._data_parallel_wrapper = data_parallel_wrapper or DefaultDataParallelWrapper()
        self._is_data_parallel, self._wrap_when_called = False, False
        modules = dict(module.named_modules(remove_duplicate=False))
        # Not as children of this module: they have no part in it until `unshard` asks for them.
        self._unsharded = {
            path: skeleton_of(modules[path]) for path in plan.plan if path in modules
        }
        self._dmp_wrapped_module = shard_by_plan(
            module, plan, self._sharders, self._env, self.device
        )
        if init_parameters:
            initialise_meta(self._dmp_wrapped_module, self.device)
            self._dmp_wrapped_module.to(self.device)
        if init_data_parallel:
            self.init_data_parallel()

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
            self._is_data_parallel = True
            self._data_parallel_wrapper.wrap(self, self._env, self.device)

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
        shared = {"_env", "_plan", "_sharders", "_data_parallel_wrapper"}
        for name, value in self.__dict__.items():
            if name not in ("_modules", *shared):
                value = copy.deepcopy(value, memo)
            twin.__dict__[name] = value
        inner = copy.deepcopy(self.module, memo)
        twin.__dict__["_modules"] = {"_dmp_wrapped_module": inner}
        twin._is_data_parallel, twin._wrap_when_called = False, self._is_data_parallel
        return twin

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model.

        Args:
            args: as it takes them.
            kwargs: as it takes them.
        """
        if self._wrap_when_called:
            self.init_data_parallel()
        return self._dmp_wrapped_module(*args, **kwargs)

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
