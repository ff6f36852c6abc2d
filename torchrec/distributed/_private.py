"""Private names of PyTorch that sharding needs: what a new version may break is in this file alone.

``tests/distributed/test_private.py`` holds what each should do.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any, TypeVar
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo as not_compiled
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec, ShardingSpec
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T", bound=Tensor)
D = TypeVar("D", bound=DTensor)

# The argument of `DistributedDataParallel` that says whether buffers are sent in each forward pass; named anew in 2.13.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)

# Operators that tensors of our own answer: a cast or move, and what a `DTensor` gathers by.
TO_COPY = torch.ops.aten._to_copy.default
ALL_GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default
WAIT = torch.ops._c10d_functional.wait_tensor.default

__all__ = [
    "ALL_GATHER",
    "SYNC_BUFFERS",
    "TO_COPY",
    "WAIT",
    "EnumerableShardingSpec",
    "LiveBytes",
    "PreparedDataParallel",
    "Shard",
    "ShardMetadata",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "ShardingSpec",
    "TensorProperties",
    "import_compiler",
    "keeps_sizes",
    "leave_to_others",
    "map_leaves",
    "not_compiled",
    "offsets_of",
    "parameters_by_name",
    "placement_of",
    "same_dtensor_as",
    "shell_of",
    "version_of",
]


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor, or one that it shares memory with, was changed in place.

    Those of `torch.inference_mode` do not count: 0.
    """
    return 0 if tensor.is_inference() else tensor._version


def placement_of(metadata: ShardMetadata) -> tuple[int | None, str]:
    """Return the rank and the device of a placement, ``"rank:1/cpu"`` say; None: it names no rank."""
    placement = metadata.placement
    if placement is None:
        return None, ""
    rank = placement.rank()
    return rank, str(placement.device())


def shell_of(cls: type[T], like: Tensor, size: torch.Size) -> T:
    """Return an object of a subclass of `torch.Tensor` that has no memory of its own.

    Args:
        cls: the subclass.
        like: a tensor of its type, on its device.
        size: of the whole.
    """
    shell: T = Tensor._make_wrapper_subclass(cls, size, dtype=like.dtype, device=like.device)
    return shell


def offsets_of(tensor: DTensor) -> tuple[int, ...]:
    """Return where in the whole the part of a `DTensor` that is on this rank begins."""
    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple(offsets)


def same_dtensor_as(cls: type[D], plain: DTensor) -> D:
    """Return what a `DTensor` is as one of a subclass, with the same local tensor.

    Args:
        cls: the subclass.
        plain: what it is.
    """
    return cls(plain._local_tensor, plain._spec, requires_grad=plain.requires_grad)


def keeps_sizes(function: object) -> bool:
    """Whether an operator does with the parts of a tensor what it does with the whole: copies and casts."""
    aten = torch.ops.aten
    copies = (aten.clone.default, aten.empty_like.default, aten.zeros_like.default, TO_COPY)
    return any(function is operator for operator in copies)


def parameters_by_name(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return the dictionary in which a module keeps its own parameters: what is read faster."""
    return module._parameters


@dataclass
class _Hook:
    """What adds up gradients: called with each bucket of them.

    Attributes:
        call: does it.
        is_given: whether a program has asked for it.
    """

    call: Callable[[Any], Any]
    is_given: bool = False


class PreparedDataParallel(DistributedDataParallel):
    """Looks, as it ends a forward pass, for tensors in what something has prepared.

    Args:
        module: the model.
        prepare: is given what the model returns, and returns what this does.
        hook: adds up gradients, until `register_comm_hook` gives another. Default: PyTorch does.
        options: of `DistributedDataParallel`.
    """

    # From before it is made: with mixed precision, it registers one of its own meanwhile.
    _hook: _Hook | None = None

    def __init__(
        self,
        module: nn.Module,
        prepare: Callable[[Any], Any],
        hook: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module, **options)
        self._prepare = prepare
        if hook is not None and not self._comm_hooks:
            # Once, as PyTorch takes one alone, and keeps it for good: not this module, which would never be freed.
            chosen = self._hook = _Hook(hook)
            super().register_comm_hook(None, lambda _, bucket: chosen.call(bucket))

    def register_comm_hook(self, state: object, hook: Callable[..., Any]) -> None:
        """Have a function add up the gradients.

        Args:
            state: its first argument.
            hook: the function; a bucket of gradients is its second argument.
        """
        if self._hook is None or self._hook.is_given:
            super().register_comm_hook(state, hook)
        else:
            self._check_comm_hook(hook)  # type: ignore[no-untyped-call]
            self._hook.call, self._hook.is_given = partial(hook, state), True

    def join_hook(self, **kwargs: Any) -> Any:
        """See `torch.distributed.algorithms.Joinable`.

        Args:
            kwargs: ``divide_by_initial_world_size``, whether means are over all ranks. Default True.

        Raises:
            ValueError: if means are to be over the ranks that have data: a hook is not told how many these are.
        """
        adds_up = self._hook is not None and not self._hook.is_given
        if adds_up and not kwargs.get("divide_by_initial_world_size", True):
            raise ValueError(
                "`divide_by_initial_world_size` should be True where gradients are added up by a hook. Received "
                "False. PyTorch adds them up itself with "
                "`DefaultDataParallelWrapper(ddp_kwargs={'gradient_as_bucket_view': False})`."
            )
        return super().join_hook(**kwargs)  # type: ignore[no-untyped-call]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Call the model.

        Args:
            inputs: as it takes them.
            kwargs: as it takes them.

        Raises:
            RuntimeError: after a backward pass that has not come to all layers.
        """
        try:
            return super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            raise RuntimeError(
                "The backward pass before should have come to all layers that `DistributedDataParallel` adds up "
                "the gradients of. Received one that has failed, or a loss that leaves layers out. After a failure, "
                "make the model anew and load its last checkpoint; for such losses, give "
                "`DefaultDataParallelWrapper(static_graph=False, find_unused_parameters=True)`."
            ) from error

    def _post_forward(self, output: Any) -> Any:
        return super()._post_forward(self._prepare(output))  # type: ignore[no-untyped-call]


def leave_to_others(module: nn.Module, names: Iterable[str]) -> None:
    """Have a `DistributedDataParallel` around a module not touch some of its parameters.

    Args:
        module: that will be wrapped.
        names: of the parameters, without those of the wrapper.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made, and die, while it is entered.

    Attributes:
        num_bytes: of those that there are.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = self.peak = 0
        self._known: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):  # made before, or counted
            self._known.add(storage)
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage not in self._known:
                self._known.add(storage)
                self._count(storage.nbytes())
                finalize(storage, self._count, -storage.nbytes())
        return found

    def _count(self, more: int) -> None:
        self.num_bytes += more
        self.peak = max(self.peak, self.num_bytes)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [
        leaf.untyped_storage() for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)
    ]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Return containers of containers, as `DistributedDataParallel` looks into them, with other leaves.

    Args:
        function: from a leaf to what stands there instead.
        value: the containers.
    """
    return _pytree.tree_map(function, value)


def import_compiler() -> None:
    """Import what `DistributedDataParallel`, or the first optimizer, would, and free what that leaves behind.

    `torch.fx.wrap`, called in there, leaves its frame in a cycle: with the frames of all callers, hence with
    their models, whose process group then outlives Python.
    """
    if "torch._dynamo" not in sys.modules:
        import_module("torch._dynamo")
        gc.collect()
