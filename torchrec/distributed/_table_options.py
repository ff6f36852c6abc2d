"""Options of tables: how they are trained and kept, as plans and programs write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchrec.distributed._plan import ParameterSharding
from torchrec.distributed._private import EnumerableShardingSpec
from torchrec.modules.embedding_configs import data_type_to_sparse_type
from torchrec.modules.feature_processor_ import FeatureProcessorsCollection
from torchrec.optim.fusable import fused_rule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.types import DataType, OptimizerType


def optimizer_type_to_emb_opt_type(
    optimizer_class: type[torch.optim.Optimizer],
) -> OptimizerType | None:
    """Return which update in the backward pass an optimizer class stands for.

    Args:
        optimizer_class: of `torchrec.optim`, or SGD, Adagrad, Adam, AdamW, SparseAdam of `torch.optim`.

    Raises:
        ValueError: for a class that no update stands for.

    Example:
        >>> optimizer_type_to_emb_opt_type(torch.optim.Adam)
        <OptimizerType.ADAM: 'adam'>
    """
    return fused_rule(optimizer_class, {})[0]


def merge_fused_params(
    fused_params: dict[str, Any] | None = None, param_fused_params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options of a table: those of all tables, unless it has its own.

    Args:
        fused_params: of all.
        param_fused_params: its own.

    Example:
        >>> merge_fused_params({"learning_rate": 0.1, "eps": 1e-8}, {"learning_rate": 0.2})
        {'learning_rate': 0.2, 'eps': 1e-08}
    """
    return {**(fused_params or {}), **(param_fused_params or {})}


def add_params_from_parameter_sharding(
    fused_params: dict[str, Any] | None, parameter_sharding: ParameterSharding
) -> dict[str, Any]:
    """Return options of tables, with those that the plan of one has.

    Args:
        fused_params: the options; stay as they are.
        parameter_sharding: of the table.

    Raises:
        ValueError: for options of caches and key-value stores, of which there are none.

    Example:
        >>> sharding = ParameterSharding("table_wise", "fused", [0], output_dtype=DataType.FP16)
        >>> add_params_from_parameter_sharding({"learning_rate": 0.1}, sharding)
        {'learning_rate': 0.1, 'output_dtype': <DataType.FP16: 'FP16'>}
    """
    for name in ("cache_params", "key_value_params"):
        if getattr(parameter_sharding, name) is not None:
            raise ValueError(
                f"`{name}` should be None: tables are in the memory of their rank. "
                f"Received {getattr(parameter_sharding, name)}."
            )
    names = ("enforce_hbm", "stochastic_rounding", "bounds_check_mode", "output_dtype")
    given = {name: getattr(parameter_sharding, name) for name in names}
    return merge_fused_params(
        fused_params, {name: value for name, value in given.items() if value is not None}
    )


def convert_to_fbgemm_types(fused_params: dict[str, Any]) -> dict[str, Any]:
    """Return options of tables with types of data as kernels name them.

    Args:
        fused_params: stay as they are.

    Example:
        >>> convert_to_fbgemm_types({"output_dtype": DataType.FP16, "eps": 1e-8})
        {'output_dtype': <SparseType.FP16: 'fp16'>, 'eps': 1e-08}
    """
    return {
        name: data_type_to_sparse_type(value) if isinstance(value, DataType) else value
        for name, value in fused_params.items()
    }


def create_global_tensor_shape_stride_from_metadata(
    parameter_sharding: ParameterSharding, devices_per_node: int | None = None
) -> tuple[torch.Size, tuple[int, int]]:
    """Return shape and strides of the table that the shards of a plan are of.

    Args:
        parameter_sharding: the plan of a table.
        devices_per_node: not needed: the shards say where they begin.

    Raises:
        ValueError: if the plan lists no shards, as that of a table which every rank has whole.

    Example:
        >>> from torchrec.distributed.types import EnumerableShardingSpec, ShardMetadata
        >>> shards = [
        ...     ShardMetadata([0, 0], [10, 4], "rank:0/cpu"),
        ...     ShardMetadata([0, 4], [10, 3], "rank:1/cpu"),
        ... ]
        >>> sharding = ParameterSharding("column_wise", "fused", [0, 1], EnumerableShardingSpec(shards))
        >>> create_global_tensor_shape_stride_from_metadata(sharding)
        (torch.Size([10, 7]), (7, 1))
    """
    spec = parameter_sharding.sharding_spec
    if not isinstance(spec, EnumerableShardingSpec):
        raise ValueError(
            "`parameter_sharding` should list the shards of the table. "
            f"Received {parameter_sharding.sharding_type} with {spec!r}."
        )
    ends = [
        [start + size for start, size in zip(shard.shard_offsets, shard.shard_sizes, strict=True)]
        for shard in spec.shards
    ]
    rows, columns = (max(end[axis] for end in ends) for axis in (0, 1))
    return torch.Size((rows, columns)), (columns, 1)


def modify_input_for_feature_processor(
    features: KeyedJaggedTensor,
    feature_processors: nn.ModuleDict | FeatureProcessorsCollection,
    is_collection: bool,
) -> None:
    """Refuse to write the weights of ids into a batch: what comes in stays as it is.

    Args:
        features: of a batch.
        feature_processors: return a batch with weights when they are called.
        is_collection: whether they take all features at once.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "A batch should stay as it is: call the feature processors, and go on with the features that they return."
    )
