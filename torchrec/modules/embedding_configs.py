"""What a table is: its configuration, and the small types that it is written in."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from torchrec.modules._config_checks import check_table, member
from torchrec.types import DataType, IdPolicy, OptimizerType

if TYPE_CHECKING:
    from torchrec.modules._virtual_tables import (
        CountBasedEvictionPolicy,
        CountTimestampMixedEvictionPolicy,
        FeatureL2NormBasedEvictionPolicy,
        FeatureScoreBasedEvictionPolicy,
        FeatureScoreMapping,
        NoEvictionPolicy,
        TimestampBasedEvictionPolicy,
        VirtualTableEvictionPolicy,
    )

__all__ = [
    "DATA_TYPE_NUM_BITS",
    "BaseEmbeddingConfig",
    "CountBasedEvictionPolicy",
    "CountTimestampMixedEvictionPolicy",
    "DataType",
    "EmbeddingBagConfig",
    "EmbeddingConfig",
    "EmbeddingTableConfig",
    "FeatureL2NormBasedEvictionPolicy",
    "FeatureScoreBasedEvictionPolicy",
    "FeatureScoreMapping",
    "IdPolicy",
    "NoEvictionPolicy",
    "OptimizerType",
    "PoolingMode",
    "PoolingType",
    "QuantConfig",
    "ShardingType",
    "SparseType",
    "TimestampBasedEvictionPolicy",
    "VirtualTableEvictionPolicy",
    "data_type_to_dtype",
    "data_type_to_sparse_type",
    "dtype_to_data_type",
    "pooling_type_to_pooling_mode",
    "pooling_type_to_str",
]

# Imported when first used: tables refuse them all.
_POLICIES = (
    "CountBasedEvictionPolicy",
    "CountTimestampMixedEvictionPolicy",
    "FeatureL2NormBasedEvictionPolicy",
    "FeatureScoreBasedEvictionPolicy",
    "FeatureScoreMapping",
    "NoEvictionPolicy",
    "TimestampBasedEvictionPolicy",
    "VirtualTableEvictionPolicy",
)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in _POLICIES:
        return getattr(importlib.import_module("torchrec.modules._virtual_tables"), name)
    raise AttributeError(f"module 'torchrec.modules.embedding_configs' has no attribute '{name}'")


class PoolingType(Enum):
    """How the embeddings of a bag become one: their sum, their mean, or (``NONE``) the only one."""

    SUM = "SUM"
    MEAN = "MEAN"
    NONE = "NONE"


class PoolingMode(IntEnum):
    """Pooling, in the words of kernels."""

    SUM = 0
    MEAN = 1
    NONE = 2

    def do_pooling(self) -> bool:
        """Say whether the embeddings of a bag become one."""
        return self is not PoolingMode.NONE

    @classmethod
    def from_str(cls, key: str) -> PoolingMode:
        """Return the pooling of a name.

        Args:
            key: ``"sum"``, ``"mean"`` or ``"none"``.

        Raises:
            ValueError: for another.

        Example:
            >>> PoolingMode.from_str("mean")
            <PoolingMode.MEAN: 1>
        """
        known = {mode.name.lower(): mode for mode in cls}
        if key not in known:
            raise ValueError(f"`key` should be one of {', '.join(known)}. Received {key!r}.")
        return known[key]


class SparseType(Enum):
    """The element type of a table, in the words of kernels."""

    FP32 = "fp32"
    FP16 = "fp16"
    FP8 = "fp8"
    NFP8 = "nfp8"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    BF16 = "bf16"
    MX4 = "mx4"

    def __str__(self) -> str:
        return self.value

    def as_dtype(self) -> torch.dtype:
        """Return the dtype of tensors of such elements; uint8 where they are packed in bytes.

        Example:
            >>> SparseType.BF16.as_dtype(), SparseType.INT8.as_dtype()
            (torch.bfloat16, torch.uint8)
        """
        return _SPARSE_DTYPES.get(self, torch.uint8)

    @classmethod
    def from_dtype(cls, dtype: torch.dtype) -> SparseType:
        """Return the element type of a dtype.

        Raises:
            ValueError: if there is none.

        Example:
            >>> SparseType.from_dtype(torch.float16)
            <SparseType.FP16: 'fp16'>
        """
        if dtype in (torch.int8, torch.uint8):
            return cls.INT8
        for sparse_type, known in _SPARSE_DTYPES.items():
            if known == dtype:
                return sparse_type
        known_dtypes = ", ".join(str(known) for known in _SPARSE_DTYPES.values())
        raise ValueError(
            f"`dtype` should be one of {known_dtypes}, torch.int8, torch.uint8. Received {dtype}."
        )

    def bit_rate(self) -> int:
        """Return the bits of an element."""
        return int(self.value.lstrip("bfimnptx"))

    def is_float(self) -> bool:
        """Say whether elements are floating-point numbers."""
        return "f" in self.value


_SPARSE_DTYPES = {
    SparseType.FP32: torch.float32,
    SparseType.FP16: torch.float16,
    SparseType.BF16: torch.bfloat16,
    SparseType.NFP8: torch.float8_e4m3fn,
    SparseType.INT4: torch.quint4x2,
    SparseType.INT2: torch.quint2x4,
}


class ShardingType(Enum):
    """How a table is spread over ranks."""

    DATA_PARALLEL = "data_parallel"
    """Every rank holds the whole table."""
    TABLE_WISE = "table_wise"
    """One rank holds the whole table."""
    COLUMN_WISE = "column_wise"
    """Each rank holds some columns."""
    ROW_WISE = "row_wise"
    """Each rank holds some rows."""
    TABLE_ROW_WISE = "table_row_wise"
    """The ranks of one host hold some rows each."""
    TABLE_COLUMN_WISE = "table_column_wise"
    """The ranks of one host hold some columns each."""
    GRID_SHARD = "grid_shard"
    """Some hosts hold some columns each, of which their ranks hold some rows each."""


class QuantConfig(NamedTuple):
    """How a model is quantised.

    Attributes:
        activation: observer of the activations.
        weight: observer of the weights.
        per_table_weight_dtype: table name -> dtype, where it differs.
        search_clipping: search for the bounds of each row, see `torchrec.ops.quant.search_bounds`.
    """

    activation: torch.ao.quantization.PlaceholderObserver
    weight: torch.ao.quantization.PlaceholderObserver
    per_table_weight_dtype: dict[str, torch.dtype] | None = None
    search_clipping: bool = False


DATA_TYPE_NUM_BITS: Mapping[DataType, int] = {
    DataType.FP32: 32,
    DataType.FP16: 16,
    DataType.BF16: 16,
    DataType.INT8: 8,
    DataType.UINT8: 8,
    DataType.NFP8: 8,
    DataType.INT4: 4,
    DataType.INT2: 2,
}
"""Bits of an element of a table."""

_DTYPES = {
    DataType.FP32: torch.float32,
    DataType.FP16: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.INT64: torch.int64,
    DataType.INT32: torch.int32,
    DataType.INT8: torch.int8,
    DataType.UINT8: torch.uint8,
    DataType.INT4: torch.quint4x2,
    DataType.INT2: torch.quint2x4,
    DataType.NFP8: torch.float8_e4m3fn,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}
_DATA_TYPES[torch.quint8] = DataType.UINT8
_DATA_TYPES[torch.qint8] = DataType.INT8


def data_type_to_dtype(data_type: DataType) -> torch.dtype:
    """Return the PyTorch dtype of a data type.

    Example:
        >>> data_type_to_dtype(DataType.BF16)
        torch.bfloat16
    """
    if not isinstance(data_type, DataType):
        raise ValueError(f"`data_type` should be a DataType. Received {data_type!r}.")
    return _DTYPES[data_type]


def dtype_to_data_type(dtype: torch.dtype) -> DataType:
    """Return the data type of a PyTorch dtype.

    Raises:
        ValueError: if no data type stands for it.

    Example:
        >>> dtype_to_data_type(torch.float16)
        <DataType.FP16: 'FP16'>
    """
    if dtype not in _DATA_TYPES:
        known = ", ".join(sorted(str(d) for d in _DATA_TYPES))
        raise ValueError(f"`dtype` should be one of {known}. Received {dtype}.")
    return _DATA_TYPES[dtype]


def data_type_to_sparse_type(data_type: DataType) -> SparseType:
    """Return the element type of a table, in the words of kernels.

    Raises:
        ValueError: if a table cannot have it.

    Example:
        >>> data_type_to_sparse_type(DataType.INT8)
        <SparseType.INT8: 'int8'>
    """
    if data_type not in DATA_TYPE_NUM_BITS:
        known = ", ".join(map(str, DATA_TYPE_NUM_BITS))
        raise ValueError(f"`data_type` should be one of {known}. Received {data_type}.")
    return SparseType["INT8" if data_type == DataType.UINT8 else data_type.name]


def pooling_type_to_pooling_mode(
    pooling_type: PoolingType, sharding_type: ShardingType | None = None
) -> PoolingMode:
    """Return the pooling in the words of kernels.

    A table whose rows are spread over ranks is summed on each rank, and divided where the sums meet,
    so its mean is a sum for the kernel.

    Args:
        pooling_type: how bags are pooled.
        sharding_type: how the table is spread; None: it is not.

    Example:
        >>> pooling_type_to_pooling_mode(PoolingType.MEAN)
        <PoolingMode.MEAN: 1>
        >>> pooling_type_to_pooling_mode(PoolingType.MEAN, ShardingType.ROW_WISE)
        <PoolingMode.SUM: 0>
    """
    if not isinstance(pooling_type, PoolingType):
        raise ValueError(f"`pooling_type` should be a PoolingType. Received {pooling_type!r}.")
    by_rows = (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE, ShardingType.GRID_SHARD)
    if pooling_type == PoolingType.MEAN and sharding_type in by_rows:
        return PoolingMode.SUM
    return PoolingMode[pooling_type.name]


def pooling_type_to_str(pooling_type: PoolingType) -> str:
    """Return the name of a pooling as `torch.nn.EmbeddingBag` has it.

    Example:
        >>> pooling_type_to_str(PoolingType.MEAN)
        'mean'
    """
    if pooling_type not in (PoolingType.SUM, PoolingType.MEAN):
        raise ValueError(f"`pooling_type` should be SUM or MEAN. Received {pooling_type!r}.")
    return pooling_type.name.lower()


@dataclass
class BaseEmbeddingConfig:
    """A table: its size, the features that look into it, and how it is trained.

    Attributes:
        num_embeddings: E, the rows that ids ``0 <= id < num_embeddings`` choose directly.
        embedding_dim: D, any number from 1.
        name: unique within a collection.
        data_type: element type. Tables of FP32, FP16 and BF16 can be trained; sums are in float32.
        feature_names: features looked up in this table. A feature may be looked up in several
            tables; its output is then named ``feature@table``.
        weight_init_max: upper bound of the uniform initial weights; default ``sqrt(1 / E)``.
        weight_init_min: lower bound; default ``-sqrt(1 / E)``.
        num_embeddings_post_pruning: rows that are left in the quantised form of the table, the first ones
            unless ``pruning_indices_remapping`` says which; the table itself keeps all.
        init_fn: fills the weights instead, in place.
        need_pos: a note for other code, as the next two; nothing here reads it.
        input_dim: range of the ids before any mapping, where it is not ``num_embeddings``.
        total_num_buckets: of the ids, for maps.
        use_virtual_table: not supported; must be False.
        virtual_table_eviction_policy: not supported; must be None.
        enable_embedding_update: not supported; must be False.
        stash_weights: not supported; must be False.
        pruning_indices_remapping: for each row the one that stands for it in the quantised form, -1 for
            none: such ids are as if they were not in the bag. int32 or int64, ``(E,)``.
        optimizer: set: the table is updated in the backward pass by this optimizer, and there is no
            gradient to be seen. Not set: it has an ordinary gradient for an ordinary optimizer.
        lr: learning rate of ``optimizer``. None: that of the optimizer that the parameter is given
            to; the update then happens in that optimizer's ``step()``.
        weight_decay: of ``optimizer``; None: that optimizer's default.
        optimizer_options: further hyper-parameters of ``optimizer``: ``{"eps": 1e-6}`` say.
            ``{"lazy": False}`` updates all rows in every step, as that optimizer does with a dense
            gradient, and not those of the batch alone; ``{"batch_l2": 1e-5}`` adds an L2 penalty of
            the rows that the samples of a batch look up, as a mean over the samples.
        enable_grad: False freezes the table.
        sparse: without ``optimizer``, which leaves no gradient: gradients are sparse, as
            `torch.optim.SparseAdam`, ``SGD`` and ``Adagrad`` take them.
        table_size: a note for other code: into how many shards the table is cut when it is sharded.
        hash_size: rows behind the ``num_embeddings`` known ones, into which all other ids are
            hashed. The parameter then has ``num_embeddings + hash_size`` rows.
        dtype: ``data_type`` as a PyTorch dtype.
        id_policy: what becomes of an id outside ``[0, num_embeddings)`` where there is no
            ``hash_size``; see `IdPolicy`.
    """

    num_embeddings: int
    embedding_dim: int
    name: str = ""
    data_type: DataType = DataType.FP32
    feature_names: list[str] = field(default_factory=list)
    weight_init_max: float | None = None
    weight_init_min: float | None = None
    num_embeddings_post_pruning: int | None = None
    init_fn: Callable[[Tensor], Tensor | None] | None = None
    need_pos: bool = False
    input_dim: int | None = None
    total_num_buckets: int | None = None
    use_virtual_table: bool = False
    virtual_table_eviction_policy: VirtualTableEvictionPolicy | None = None
    enable_embedding_update: bool = False
    stash_weights: bool = False
    pruning_indices_remapping: Tensor | None = field(default=None, kw_only=True)
    optimizer: OptimizerType | None = field(default=None, kw_only=True)
    lr: float | None = field(default=None, kw_only=True)
    weight_decay: float | None = field(default=None, kw_only=True)
    optimizer_options: Mapping[str, float | bool | str | tuple[float, float]] = field(
        default_factory=dict, kw_only=True
    )
    enable_grad: bool = field(default=True, kw_only=True)
    sparse: bool = field(default=False, kw_only=True)
    table_size: int | None = field(default=None, kw_only=True)
    hash_size: int | None = field(default=None, kw_only=True)
    dtype: torch.dtype | None = field(default=None, kw_only=True)
    id_policy: IdPolicy = field(default=IdPolicy.ERROR, kw_only=True)

    def __post_init__(self) -> None:
        """Check every field, and bring those with two spellings into one."""
        if self.dtype is not None:
            if not isinstance(self.dtype, torch.dtype):
                raise TypeError(
                    f"`dtype` of table '{self.name}' should be a torch.dtype. "
                    f"Received {self.dtype!r}."
                )
            asked = dtype_to_data_type(self.dtype)
            if self.data_type not in (DataType.FP32, asked):
                raise ValueError(
                    f"`dtype` and `data_type` of table '{self.name}' should agree. "
                    f"Received {self.dtype} and {self.data_type}."
                )
            self.data_type = asked
        self.dtype = data_type_to_dtype(self.data_type)
        self.id_policy = member(self, "id_policy", IdPolicy)
        if self.optimizer is not None:
            self.optimizer = member(self, "optimizer", OptimizerType)
        check_table(self)

    @property
    def num_rows(self) -> int:
        """Rows of the parameter: the known ones, and those behind them for other ids."""
        if self.hash_size is not None:
            return self.num_embeddings + self.hash_size
        return self.num_embeddings + (self.id_policy == IdPolicy.UNKNOWN)

    def get_weight_init_max(self) -> float:
        """Return the upper bound of the initial weights."""
        if self.weight_init_max is not None:
            return self.weight_init_max
        return math.sqrt(1 / self.num_embeddings)

    def get_weight_init_min(self) -> float:
        """Return the lower bound of the initial weights."""
        if self.weight_init_min is not None:
            return self.weight_init_min
        return -math.sqrt(1 / self.num_embeddings)

    def num_features(self) -> int:
        """Return how many features are looked up in this table."""
        return len(self.feature_names)


@dataclass
class EmbeddingBagConfig(BaseEmbeddingConfig):
    """A table of an `EmbeddingBagCollection`: the embeddings of a bag are pooled into one.

    Attributes:
        pooling: how. ``NONE`` takes the only embedding of bags of exactly one id.

    All other attributes: see `BaseEmbeddingConfig`.

    Example:
        >>> EmbeddingBagConfig(4096, 64, "product_table", feature_names=["product"]).num_rows
        4096
        >>> EmbeddingBagConfig(
        ...     name="user_table", num_embeddings=1000, embedding_dim=64, feature_names=["user"],
        ...     pooling=PoolingType.MEAN, optimizer=OptimizerType.ADAM, lr=0.001, hash_size=100,
        ... ).num_rows
        1100
    """

    pooling: PoolingType = PoolingType.SUM

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pooling = member(self, "pooling", PoolingType)


@dataclass
class EmbeddingConfig(BaseEmbeddingConfig):
    """A table of an `EmbeddingCollection`: one embedding an id, not pooled.

    All attributes: see `BaseEmbeddingConfig`.

    Example:
        >>> EmbeddingConfig(4096, 64, "product_table", feature_names=["product"]).embedding_dim
        64
    """


@dataclass
class EmbeddingTableConfig(BaseEmbeddingConfig):
    """A table as sharding sees it.

    Attributes:
        pooling: how bags are pooled.
        is_weighted: whether ids come with weights.
        has_feature_processor: whether a feature processor makes these weights.
        embedding_names: names of the outputs of its features.

    All other attributes: see `BaseEmbeddingConfig`.
    """

    pooling: PoolingType = PoolingType.SUM
    is_weighted: bool = False
    has_feature_processor: bool = False
    embedding_names: list[str] = field(default_factory=list)


def initialise(table: BaseEmbeddingConfig, weight: Tensor) -> None:
    """Fill the weights of a table, or rows of it, with their initial values, as its configuration says.

    Args:
        table: the configuration.
        weight: ``(rows, D)``, written to; left alone on the meta device.
    """
    if weight.is_meta:
        return
    with torch.no_grad():
        if table.init_fn is None:
            weight.uniform_(table.get_weight_init_min(), table.get_weight_init_max())
            return
        filled = table.init_fn(weight)
        if filled is not None and filled is not weight:
            weight.copy_(filled)
