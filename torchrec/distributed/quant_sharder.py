"""What sharders of quantised collections have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from torchrec.checks import require_type
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, M
from torchrec.distributed.fused_params import (
    FUSED_PARAM_BOUNDS_CHECK_MODE,
    FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP,
    FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS,
    FUSED_PARAM_REGISTER_TBE_BOOL,
)
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.distributed.quant_state import ShardedQuantEmbeddingModuleState
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingEnv
from torchrec.modules.embedding_configs import ShardingType
from torchrec.quant.collections import QuantizedCollection
from torchrec.types import BoundsCheckMode

__all__ = ["BaseQuantEmbeddingSharder"]

_QUANT_PARAMS: dict[str, tuple[object, ...]] = {
    FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS: (False, True),
    FUSED_PARAM_REGISTER_TBE_BOOL: (True,),
    FUSED_PARAM_BOUNDS_CHECK_MODE: (None, BoundsCheckMode.NONE),
    FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP: (False,),
}


class BaseQuantEmbeddingSharder(ModuleSharder[M]):
    """Spreads the tables of a quantised collection over devices of one process.

    Args:
        fused_params: ``FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS``: whether the state has scales and biases apart
            from codes. The others of `torchrec.inference.modules.DEFAULT_FUSED_PARAMS` should be as there: parts are
            shown in any case, and what becomes of stray ids is the policy of their table.

    Raises:
        ValueError: for other ``fused_params``.

    Attributes:
        whole: the collection that it spreads.
        in_parts: what that becomes.
    """

    whole: ClassVar[type[nn.Module]]
    in_parts: ClassVar[Callable[..., ShardedQuantEmbeddingModuleState[Any]]]

    def __init__(self, fused_params: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (fused_params or {}).items():
            if name not in _QUANT_PARAMS or value not in _QUANT_PARAMS[name]:
                raise ValueError(
                    f"`fused_params` of quantised tables should be of {_QUANT_PARAMS}. Received {name!r}: {value!r}."
                )
        self._fused_params = fused_params

    @property
    def fused_params(self) -> dict[str, Any] | None:
        """What was given."""
        return self._fused_params

    @property
    def module_type(self) -> type[M]:
        """What it shards."""
        return self.whole  # type: ignore[return-value]

    def shard(
        self,
        module: M,
        params: EmbeddingModuleShardingPlan,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedQuantEmbeddingModuleState[Any]:
        """Return the collection in parts."""
        return self.in_parts(module, params, env, self.fused_params, device, module_fqn=module_fqn)

    def shardable_parameters(self, module: M) -> dict[str, nn.Parameter]:
        """Return for each table what stands for it in plans, on ``meta``: numbers ``(E, D)`` of as many bytes each.

        Numbers of less than a byte count as one.

        Args:
            module: the collection.
        """
        if not isinstance(module, QuantizedCollection):
            raise TypeError(
                f"`module` should be a quantised collection. Received a {type(module).__name__}."
            )
        found = {}
        for name, table in module.quantized_tables().items():
            dtype = torch.uint8 if table.format.has_codes else table.format.dtype
            numbers = torch.empty(table.weight.shape[0], table.dim, dtype=dtype, device="meta")
            found[name] = nn.Parameter(numbers, requires_grad=False)
        return found

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return in which ways tables can be spread: in all but copies, as one process looks a table up once.

        Args:
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return [kind.value for kind in ShardingType if kind is not ShardingType.DATA_PARALLEL]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return with which kernels: ``"quant"``.

        Args:
            sharding_type: value of a `ShardingType`.
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return [EmbeddingComputeKernel.QUANT.value]


class ManagedQuantEmbeddingSharder(BaseQuantEmbeddingSharder[M]):
    """Spreads the tables of a quantised collection with maps of ids, which stay whole.

    Args:
        e_sharder: of the tables: its options hold.
        mc_sharder: of the maps; without effect, as they are not divided.

    Attributes:
        of_tables: what `e_sharder` should be.
    """

    of_tables: ClassVar[type[BaseQuantEmbeddingSharder[Any]]]

    def __init__(
        self,
        e_sharder: BaseQuantEmbeddingSharder[Any],
        mc_sharder: ManagedCollisionCollectionSharder | None = None,
    ) -> None:
        require_type(e_sharder, "`e_sharder`", self.of_tables)
        super().__init__(e_sharder.fused_params)
