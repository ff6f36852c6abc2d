"""How the parameters that every rank has a copy of are kept alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from torchrec.distributed._private import (
    SYNC_BUFFERS,
    PreparedDataParallel,
    leave_to_others,
    map_leaves,
)
from torchrec.distributed.channel import channel_of
from torchrec.distributed.gradient_sums import Bucket, GradientSums, added_up
from torchrec.distributed.types import Awaitable, ShardedModule, ShardingEnv

__all__ = ["DataParallelWrapper", "DefaultDataParallelWrapper", "sharded_names"]

Hook = Callable[[Bucket], Any]

_PRECISIONS = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}


class WrappedModel(Protocol):
    """A `DistributedModelParallel`, as who wraps the model in it sees it."""

    _dmp_wrapped_module: nn.Module


class DataParallelWrapper(ABC):
    """Has the parameters that every rank has a copy of stay alike on all of them."""

    @abstractmethod
    def wrap(self, dmp: WrappedModel, env: ShardingEnv, device: torch.device) -> None:
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

    def wrap(self, dmp: WrappedModel, env: ShardingEnv, device: torch.device) -> None:
        """Wrap the model, if it has parameters whose gradients are to be added up."""
        module = dmp._dmp_wrapped_module
        ignored = {*self._ignored, *sharded_names(module)}
        together = [p for name, p in module.named_parameters() if name not in ignored]
        group = env.process_group
        if group is None or group.size() == 1 or not any(p.requires_grad for p in together):
            return
        leave_to_others(module, ignored)
        # It looks in the output for tensors whose backward pass ends a step: in a lazy one it would find none.
        dmp._dmp_wrapped_module = PreparedDataParallel(
            module,
            _waited,
            self._hook(group, device),
            device_ids=None if device.type == "cpu" else [device],
            process_group=group,
            **self._options,
        )

    def _hook(self, group: dist.ProcessGroup, device: torch.device) -> Hook | None:
        """Return what adds gradients up; None: PyTorch itself."""
        if device.type == "cpu" and self._options["gradient_as_bucket_view"]:
            return GradientSums(group, channel_of(group).another(), self._dtype)
        return None if self._dtype is None else partial(added_up, group, self._dtype)


def _waited(output: Any) -> Any:
    return map_leaves(lambda leaf: leaf.wait() if isinstance(leaf, Awaitable) else leaf, output)


def sharded_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that are spread over ranks.

    Args:
        module: a model.
    """
    for path, child in module.named_modules():
        if isinstance(child, ShardedModule):
            yield from child.sharded_parameter_names(path)
