"""What a sharded module is, who makes one, and who plans it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from torchrec.distributed._awaitable import Awaitable, LazyAwaitable
from torchrec.distributed._codecs import QuantizedCommCodecs
from torchrec.distributed._environment import ShardingEnv
from torchrec.distributed._input_source import current_source
from torchrec.distributed._kinds import ParameterStorage, StorageUsageType
from torchrec.distributed._plan import (
    EmbeddingModuleShardingPlan,
    ModuleShardingPlan,
    ShardingPlan,
)
from torchrec.distributed._private import map_leaves, not_compiled
from torchrec.modules.embedding_configs import ShardingType
from torchrec.streamable import Multistreamable
from torchrec.types import ModuleNoCopyMixin

M = TypeVar("M", bound=nn.Module)
CompIn = TypeVar("CompIn", bound=Multistreamable)
DistOut = TypeVar("DistOut")
Out = TypeVar("Out")
ShrdCtx = TypeVar("ShrdCtx", bound=Multistreamable)

# Kernels whose tables lie in the memory of the host, whatever the device that computes.
_HOST_KERNELS = {"fused_uvm", "fused_uvm_caching", "quant_uvm", "quant_uvm_caching", "key_value"}


class NullShardedModuleContext(Multistreamable):
    """What a step of a sharded module keeps, where that is nothing."""

    def record_stream(self, stream: torch.Stream) -> None:
        """Do nothing: there are no tensors."""


class ShardedModule(ABC, nn.Module, Generic[CompIn, DistOut, Out, ShrdCtx], ModuleNoCopyMixin):
    """A module whose parameters are spread over ranks.

    A forward pass is four steps, which a pipeline may run apart, for batches ahead of time: `create_context`,
    `input_dist` sends ids to who has their rows, `compute` looks them up there, `output_dist` sends the vectors back.

    Args:
        qcomm_codecs_registry: what is exchanged, by name of a `CommOp` -> how it is written on the way.
            Default: as it is.
    """

    def __init__(self, qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None) -> None:
        super().__init__()
        self._qcomm_codecs_registry = dict(qcomm_codecs_registry or {})

    @property
    def qcomm_codecs_registry(self) -> dict[str, QuantizedCommCodecs]:
        """How what is exchanged is written on the way, by name of a `CommOp`."""
        return self._qcomm_codecs_registry

    @abstractmethod
    def create_context(self) -> ShrdCtx:
        """Return what the steps of one forward pass hand on to each other."""

    @abstractmethod
    def input_dist(self, ctx: ShrdCtx, *input: Any, **kwargs: Any) -> Awaitable[Awaitable[CompIn]]:
        """Send the input to the ranks that have the parameters: first how much, then what."""

    def input_dist_ahead(
        self, ctx: ShrdCtx, *input: Any, **kwargs: Any
    ) -> Awaitable[Awaitable[CompIn]]:
        """Send the input of a step while another one trains: nothing that follows from parameters.

        Default: what `input_dist` does.
        """
        return self.input_dist(ctx, *input, **kwargs)

    @abstractmethod
    def compute(self, ctx: ShrdCtx, dist_input: CompIn) -> DistOut:
        """Compute from the parameters of this rank."""

    @abstractmethod
    def output_dist(self, ctx: ShrdCtx, output: DistOut) -> LazyAwaitable[Out]:
        """Send what was computed back to the ranks that asked for it."""

    def compute_and_output_dist(self, ctx: ShrdCtx, input: CompIn) -> LazyAwaitable[Out]:
        """Do both at once, where sending one part may begin before the next is computed."""
        return self.output_dist(ctx, self.compute(ctx, input))

    @property
    def input_dist_trains(self) -> bool:
        """Whether what `input_dist` sends follows from parameters too, so that it is not sent ahead. Default False."""
        return False

    @property
    def compute_trains(self) -> bool:
        """Whether `compute` sends what follows from parameters, so that it waits for its step. Default False."""
        return False

    def preprocess_input(
        self, args: list[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], Mapping[str, Any]]:
        """Return the input of `input_dist`, from the input of `forward`. Default: the same."""
        return args, kwargs

    def prefetch(
        self,
        dist_input: CompIn,
        forward_stream: torch.Stream | None = None,
        ctx: ShrdCtx | None = None,
    ) -> None:
        """Fetch what `compute` will need ahead of time. Default: nothing."""

    def forward(self, *input: Any, **kwargs: Any) -> LazyAwaitable[Out]:
        """Run the four steps.

        Returns:
            what the module would have returned, which is waited for when it is first used.
        """
        if torch.compiler.is_compiling():
            waited: LazyAwaitable[Out] = self._forward_eagerly(*input, **kwargs)
            return waited
        source = current_source()
        if source is not None:
            found: LazyAwaitable[Out] = source.forward(self, input, kwargs)
            return found
        ctx = self.create_context()
        dist_input = self.input_dist(ctx, *input, **kwargs).wait().wait()
        return self.compute_and_output_dist(ctx, dist_input)

    @not_compiled
    def _forward_eagerly(self, *input: Any, **kwargs: Any) -> Any:
        """Run the four steps between two graphs, and wait: graphs know no values that are on their way.

        Sizes of what is sent are numbers of one step, so that a graph would break at each of them.
        """
        return map_leaves(
            lambda leaf: leaf.wait() if isinstance(leaf, Awaitable) else leaf,
            self.forward(*input, **kwargs),
        )

    def update(self, ctx: ShrdCtx, dist_input: CompIn) -> None:
        """Write rows. Default: refused."""
        raise NotImplementedError(f"{type(self).__name__} does not write rows.")

    def write_dist(self, ctx: ShrdCtx, *input: Any, **kwargs: Any) -> Awaitable[Awaitable[CompIn]]:
        """Send rows that are to be written to the ranks that have them. Default: refused."""
        raise NotImplementedError(f"{type(self).__name__} does not write rows.")

    def write(self, *input: Any, **kwargs: Any) -> None:
        """Write rows, wherever they are."""
        ctx = self.create_context()
        self.update(ctx, self.write_dist(ctx, *input, **kwargs).wait().wait())

    def sharded_parameter_names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the parameters that are spread over ranks, which no data-parallel wrapper should take.

        Args:
            prefix: written before each. Default none.
        """
        for name, _ in self.named_parameters(prefix):
            yield name

    @property
    @abstractmethod
    def unsharded_module_type(self) -> type[nn.Module]:
        """What it was before it was sharded."""


class ModuleSharder(ABC, Generic[M]):
    """Makes sharded modules of modules of one type.

    Args:
        qcomm_codecs_registry: what is exchanged, by name of a `CommOp` -> how it is written on the way.
            Default: as it is.
    """

    def __init__(self, qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None) -> None:
        self._qcomm_codecs_registry = qcomm_codecs_registry

    @abstractmethod
    def shard(
        self,
        module: M,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedModule[Any, Any, Any, Any]:
        """Return a module spread over ranks as a plan says.

        Args:
            module: it gives its parameters away and should not be used afterwards.
            params: where they go.
            env: the ranks.
            device: where this rank has its part. Default: where they are.
            module_fqn: its path in the model, for errors.
        """

    @property
    @abstractmethod
    def module_type(self) -> type[M]:
        """What it shards."""

    @property
    def plan_type(self) -> type[ModuleShardingPlan]:
        """What its plans are. Default: plans of tables."""
        return EmbeddingModuleShardingPlan

    @property
    def qcomm_codecs_registry(self) -> dict[str, QuantizedCommCodecs] | None:
        """How what is exchanged is written on the way, by name of a `CommOp`."""
        return self._qcomm_codecs_registry

    def shardable_parameters(self, module: M) -> dict[str, nn.Parameter]:
        """Return the parameters that can be spread over ranks, by name. Default: all."""
        return dict(module.named_parameters())

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return in which ways they can be spread, values of `ShardingType`. Default: a copy on every rank.

        Args:
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return [ShardingType.DATA_PARALLEL.value]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return with which kernels, the best one first. Default: ``"dense"``.

        Args:
            sharding_type: value of a `ShardingType`.
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return ["dense"]

    def storage_usage(
        self, tensor: Tensor, compute_device_type: str, compute_kernel: str
    ) -> dict[str, int]:
        """Return how many bytes of which memory a parameter takes, without the state of its optimizer.

        Args:
            tensor: the parameter.
            compute_device_type: ``"cpu"`` or ``"cuda"``.
            compute_kernel: one of `compute_kernels`.
        """
        return compute_storage_usage(
            tensor, compute_device_type, compute_kernel, StorageUsageType.DEFAULT
        )


class ShardingPlanner(ABC):
    """Decides where the tables of a model are to be."""

    @abstractmethod
    def plan(self, module: nn.Module, sharders: list[ModuleSharder[Any]]) -> ShardingPlan:
        """Return a plan.

        Args:
            module: the model; its tables may be on ``meta``.
            sharders: who will shard it.
        """

    @abstractmethod
    def collective_plan(
        self, module: nn.Module, sharders: list[ModuleSharder[Any]]
    ) -> ShardingPlan:
        """Return a plan that all ranks agree on; every rank calls it."""


def compute_storage_usage(
    tensor: Tensor,
    compute_device_type: str,
    compute_kernel: str,
    storage_usage_type: StorageUsageType,
) -> dict[str, int]:
    """Return how many bytes of which memory a table takes, without the state of its optimizer.

    Args:
        tensor: the table.
        compute_device_type: ``"cpu"`` or ``"cuda"``.
        compute_kernel: ``"fused"``, ``"dense"``, ...
        storage_usage_type: whose kernels it is for; the default ones are all in the memory of the device.

    Example:
        >>> table = torch.empty(10, 4, device="meta")
        >>> compute_storage_usage(table, "cpu", "fused", StorageUsageType.BASE)
        {'ddr': 160}
    """
    on_host = compute_device_type == "cpu" or (
        storage_usage_type is not StorageUsageType.DEFAULT and compute_kernel in _HOST_KERNELS
    )
    memory = ParameterStorage.DDR if on_host else ParameterStorage.HBM
    return {memory.value: tensor.element_size() * tensor.nelement()}


def rank_device(device_type: str, rank: int) -> torch.device:
    """Return the device of a rank on its host.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        rank: among all ranks; hosts have as many devices of that type as this one.

    Example:
        >>> rank_device("cpu", 3)
        device(type='cpu')
    """
    if device_type != "cuda":
        return torch.device(device_type)
    return torch.device("cuda", rank % max(torch.cuda.device_count(), 1))
