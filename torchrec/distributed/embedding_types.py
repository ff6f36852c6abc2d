"""Sharded collections and their sharders: what all kinds of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement

from torchrec.distributed.types import (
    ModuleSharder,
    QuantizedCommCodecs,
    ShardedModule,
    ShardedTensorMetadata,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import EmbeddingTableConfig, PoolingType, ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable
from torchrec.types import DataType

__all__ = [
    "BaseEmbeddingLookup",
    "BaseEmbeddingSharder",
    "DTensorMetadata",
    "EmbeddingAttributes",
    "EmbeddingComputeKernel",
    "FeatureSharding",
    "FeatureShardingMixIn",
    "GroupedEmbeddingConfig",
    "KJTList",
    "ListOfKJTList",
    "ModuleShardingMixIn",
    "ShardedConfig",
    "ShardedEmbeddingModule",
    "ShardedEmbeddingTable",
    "ShardedMetaConfig",
]

M = TypeVar("M", bound=nn.Module)
CompIn = TypeVar("CompIn", bound=Multistreamable)
DistOut = TypeVar("DistOut")
Out = TypeVar("Out")
ShrdCtx = TypeVar("ShrdCtx", bound=Multistreamable)
F = TypeVar("F", bound=Multistreamable)
L = TypeVar("L")


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


class FeatureShardingMixIn:
    """Says which ranks look which features up."""

    def feature_names(self) -> list[str]:
        """Return the features, once for each table that they are looked up in."""
        raise NotImplementedError(f"{type(self).__name__} should say which features there are.")

    def feature_names_per_rank(self) -> list[list[str]]:
        """Return for each rank the features that it has rows for."""
        raise NotImplementedError(f"{type(self).__name__} should say which rank has which rows.")

    def features_per_rank(self) -> list[int]:
        """Return for each rank how many features it has rows for."""
        return [len(names) for names in self.feature_names_per_rank()]


@dataclass(frozen=True)
class FeatureSharding(FeatureShardingMixIn):
    """Which ranks look up the features of the tables of one sharding type.

    Attributes:
        features: once for each of these tables that they are looked up in.
        of_ranks: for each rank, those that it has rows for.
    """

    features: list[str]
    of_ranks: list[list[str]]

    def feature_names(self) -> list[str]:
        """Return the features, once for each table that they are looked up in."""
        return self.features

    def feature_names_per_rank(self) -> list[list[str]]:
        """Return for each rank the features that it has rows for."""
        return self.of_ranks


class ModuleShardingMixIn:
    """Says which ranks look which features of a module up."""

    @property
    def shardings(self) -> Mapping[str, FeatureShardingMixIn]:
        """Sharding type -> which ranks look up the features of such tables."""
        raise NotImplementedError(f"{type(self).__name__} should say how its tables are sharded.")


@dataclass
class ShardedConfig:
    """How much of a table a rank has.

    Attributes:
        local_rows: rows.
        local_cols: columns.
    """

    local_rows: int = 0
    local_cols: int = 0


@dataclass
class DTensorMetadata:
    """How a table is laid out as a `torch.distributed.tensor.DTensor`.

    Attributes:
        mesh: the ranks.
        placements: in each dimension of the mesh.
        size: of the whole.
        stride: of the whole.
    """

    mesh: DeviceMesh | None = None
    placements: tuple[Placement, ...] | None = None
    size: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None


@dataclass
class ShardedMetaConfig(ShardedConfig):
    """Where the part of a table is that a rank has.

    Attributes:
        local_metadata: offsets, sizes and placement of the part.
        global_metadata: those of all parts.
        dtensor_metadata: of the table as a DTensor.
    """

    local_metadata: ShardMetadata | None = None
    global_metadata: ShardedTensorMetadata | None = None
    dtensor_metadata: DTensorMetadata | None = None


@dataclass
class EmbeddingAttributes:
    """How a table is kept.

    Attributes:
        compute_kernel: updated in the backward pass, or with a gradient.
    """

    compute_kernel: EmbeddingComputeKernel = EmbeddingComputeKernel.DENSE


@dataclass
class ShardedEmbeddingTable(ShardedMetaConfig, EmbeddingAttributes, EmbeddingTableConfig):
    """The part of a table that a rank has, as a table.

    Attributes:
        fused_params: how the backward pass updates it, see `BaseEmbeddingSharder`.

    All other attributes: see the classes that it is made of.

    Example:
        >>> table = ShardedEmbeddingTable(
        ...     num_embeddings=10, embedding_dim=4, name="t", feature_names=["f"], local_rows=5, local_cols=4
        ... )
        >>> table.local_rows, table.compute_kernel.value
        (5, 'dense')
    """

    fused_params: dict[str, Any] | None = None


@dataclass
class GroupedEmbeddingConfig:
    """Parts of tables that a rank looks up together.

    Attributes:
        data_type: of their weights.
        pooling: how bags are pooled.
        is_weighted: whether ids come with weights.
        has_feature_processor: whether a feature processor makes these weights.
        compute_kernel: how they are kept.
        embedding_tables: the parts.
        fused_params: how the backward pass updates them, see `BaseEmbeddingSharder`.
        enable_embedding_update: whether rows can be written.

    Example:
        >>> parts = [
        ...     ShardedEmbeddingTable(
        ...         num_embeddings=10, embedding_dim=4, name=name, feature_names=features, local_rows=10, local_cols=2
        ...     )
        ...     for name, features in (("t", ["f", "g"]), ("u", ["f"]))
        ... ]
        >>> kernel = EmbeddingComputeKernel.DENSE
        >>> config = GroupedEmbeddingConfig(DataType.FP32, PoolingType.SUM, False, False, kernel, parts)
        >>> config.feature_names(), config.embedding_dims(), config.dim_sum()
        (['f', 'g', 'f'], [2, 2, 2], 6)
    """

    data_type: DataType
    pooling: PoolingType
    is_weighted: bool
    has_feature_processor: bool
    compute_kernel: EmbeddingComputeKernel
    embedding_tables: list[ShardedEmbeddingTable]
    fused_params: dict[str, Any] | None = field(default=None)
    enable_embedding_update: bool = False

    def feature_hash_sizes(self) -> list[int]:
        """Return, for each look-up of a feature in a table, the rows of the whole table."""
        return [table.num_embeddings for table in self._looked_up()]

    def num_features(self) -> int:
        """Return how many look-ups there are."""
        return len(self._looked_up())

    def dim_sum(self) -> int:
        """Return how many columns all look-ups give."""
        return sum(self.embedding_dims())

    def table_names(self) -> list[str]:
        """Return the names of the tables."""
        return [table.name for table in self.embedding_tables]

    def feature_names(self) -> list[str]:
        """Return the feature of each look-up."""
        return [name for table in self.embedding_tables for name in table.feature_names]

    def embedding_dims(self) -> list[int]:
        """Return how many columns each look-up gives: those that are here."""
        return [table.local_cols for table in self._looked_up()]

    def embedding_names(self) -> list[str]:
        """Return the name of the output of each look-up."""
        return [name for table in self.embedding_tables for name in table.embedding_names]

    def embedding_shard_metadata(self) -> list[ShardMetadata | None]:
        """Return, for each look-up, where the part is that it looks at."""
        return [table.local_metadata for table in self._looked_up()]

    def is_using_virtual_table(self) -> bool:
        """Return whether the tables have no bound on their rows."""
        return any(table.use_virtual_table for table in self.embedding_tables)

    def _looked_up(self) -> list[ShardedEmbeddingTable]:
        return [table for table in self.embedding_tables for _ in table.feature_names]


class BaseEmbeddingLookup(ABC, nn.Module, Generic[F, L]):
    """Looks up the parts of tables that a rank has."""

    @abstractmethod
    def forward(self, sparse_features: F) -> L:
        """Look up.

        Args:
            sparse_features: rows of these parts.
        """


class ShardedEmbeddingModule(
    ShardedModule[CompIn, DistOut, Out, ShrdCtx],
    ModuleShardingMixIn,
    Generic[CompIn, DistOut, Out, ShrdCtx],
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

    @property
    def exact(self) -> bool:
        """Whether row-wise shards give what one process would give, to the last bit."""
        return self._exact

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
