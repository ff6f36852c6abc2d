"""Sharded collections and their sharders: what all kinds of them have in common."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from torchrec.distributed.types import (
    ModuleSharder,
    QuantizedCommCodecs,
    ShardedModule,
)
from torchrec.modules.embedding_configs import ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = [
    "BaseEmbeddingSharder",
    "EmbeddingComputeKernel",
    "KJTList",
    "ListOfKJTList",
    "ShardedEmbeddingModule",
    "fused_kernels",
]

M = TypeVar("M", bound=nn.Module)
CompIn = TypeVar("CompIn", bound=Multistreamable)
DistOut = TypeVar("DistOut")
Out = TypeVar("Out")
ShrdCtx = TypeVar("ShrdCtx", bound=Multistreamable)


class EmbeddingComputeKernel(Enum):
    """How a table is kept and trained; here there are two: with a gradient, and updated in the backward pass."""

    DENSE = "dense"
    FUSED = "fused"
    FUSED_UVM = "fused_uvm"
    FUSED_UVM_CACHING = "fused_uvm_caching"
    QUANT = "quant"
    QUANT_UVM = "quant_uvm"
    QUANT_UVM_CACHING = "quant_uvm_caching"
    KEY_VALUE = "key_value"
    CUSTOMIZED_KERNEL = "customized_kernel"
    SSD_VIRTUAL_TABLE = "ssd_virtual_table"
    DRAM_VIRTUAL_TABLE = "dram_virtual_table"
    DRAM_SSD_VIRTUAL_TABLE = "dram_ssd_virtual_table"
    FUSED_TRITON = "fused_triton"


class KJTList(Multistreamable):
    """Several batches of features.

    Args:
        features: the batches.
    """

    def __init__(self, features: list[KeyedJaggedTensor]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: int) -> KeyedJaggedTensor:
        return self.features[key]

    def __setitem__(self, key: int, item: KeyedJaggedTensor) -> None:
        self.features[key] = item

    def __iter__(self) -> Iterator[KeyedJaggedTensor]:
        return iter(self.features)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every batch alive until the work queued on ``stream`` is done."""
        for feature in self.features:
            feature.record_stream(stream)


class ListOfKJTList(Multistreamable):
    """Several lists of batches.

    Args:
        features: the lists.
    """

    def __init__(self, features: list[KJTList]) -> None:
        self.features_list = features

    def __len__(self) -> int:
        return len(self.features_list)

    def __getitem__(self, key: int) -> KJTList:
        return self.features_list[key]

    def __setitem__(self, key: int, item: KJTList) -> None:
        self.features_list[key] = item

    def __iter__(self) -> Iterator[KJTList]:
        return iter(self.features_list)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of every batch alive until the work queued on ``stream`` is done."""
        for feature in self.features_list:
            feature.record_stream(stream)


class ShardedEmbeddingModule(
    ShardedModule[CompIn, DistOut, Out, ShrdCtx], Generic[CompIn, DistOut, Out, ShrdCtx]
):
    """A sharded module that looks tables up."""

    def extra_repr(self) -> str:
        """Return what tables there are."""
        return f"({type(self).__name__})"


class BaseEmbeddingSharder(ModuleSharder[M]):
    """Spreads the tables of a collection over ranks.

    Args:
        fused_params: how tables without an optimizer of their own are trained: ``"optimizer"``, ``"learning_rate"``,
            and hyper-parameters, ``{"optimizer": "exact_sgd", "learning_rate": 0.1}`` say. Default: as they are.
        qcomm_codecs_registry: what is exchanged, by name of a `CommOp` -> how it is written on the way.
            Default: as it is.
        sharded_module_order_overwrite: not supported; must be None.
        exact: have row-wise shards give what one process would give, to the last bit, at the price of
            more to send where bags are long. Default False.
    """

    def __init__(
        self,
        fused_params: dict[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        sharded_module_order_overwrite: list[str] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(qcomm_codecs_registry)
        if sharded_module_order_overwrite is not None:
            raise ValueError(
                "`sharded_module_order_overwrite` should be None: keys come in the order of the unsharded "
                f"collection. Received {sharded_module_order_overwrite}."
            )
        self._fused_params = fused_params
        self._exact = exact

    @property
    def fused_params(self) -> dict[str, Any] | None:
        """How tables without an optimizer of their own are trained."""
        return self._fused_params

    def shardable_parameters(self, module: M) -> dict[str, nn.Parameter]:
        """Return the weights of the tables by the names of the tables.

        Args:
            module: the collection.
        """
        return {
            name.split(".")[-2]: param
            for name, param in module.named_parameters()
            if name.endswith(".weight")
        }

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return in which ways tables can be spread: in all of them, on every device.

        Args:
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        return [kind.value for kind in ShardingType]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return with which kernels, the best one first.

        Args:
            sharding_type: value of a `ShardingType`.
            compute_device_type: ``"cpu"`` or ``"cuda"``.
        """
        if sharding_type == ShardingType.DATA_PARALLEL.value:
            return [EmbeddingComputeKernel.DENSE.value]
        return [EmbeddingComputeKernel.FUSED.value, EmbeddingComputeKernel.DENSE.value]


def fused_kernels(sharding_type: str) -> list[str]:
    """Return with which kernels tables that the backward pass updates can be placed.

    Args:
        sharding_type: value of a `ShardingType`: of data-parallel tables every rank has a copy with a gradient.
    """
    replicated = sharding_type == ShardingType.DATA_PARALLEL.value
    return [(EmbeddingComputeKernel.DENSE if replicated else EmbeddingComputeKernel.FUSED).value]
