"""From the weights of tables to quantised ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    QuantConfig,
    dtype_to_data_type,
)
from torchrec.modules.table_collection import TableCollection
from torchrec.ops.quant import RowFormat, quantize_rows, search_bounds
from torchrec.ops.quant.formats import HEAD
from torchrec.quant.preparation import (
    MODULE_ATTR_CACHE_FEATURES_ORDER,
    MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT,
    MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS,
    MODULE_ATTR_REGISTER_TBES_BOOL,
    MODULE_ATTR_REMOVE_STBE_PADDING_BOOL,
    MODULE_ATTR_ROW_ALIGNMENT_INT,
)
from torchrec.quant.tables import QuantizedWeights, format_of, rows_left
from torchrec.types import DataType

C = TypeVar("C", bound=BaseEmbeddingConfig)
DEFAULT_ROW_ALIGNMENT = 16


def quantize_state_dict(
    module: nn.Module,
    table_name_to_quantized_weights: dict[str, QuantizedWeights],
    table_name_to_data_type: Mapping[str, DataType],
    table_name_to_num_embeddings_post_pruning: Mapping[str, int] | None = None,
) -> torch.device:
    """Quantise the weights in the state of a module, by the names of their tables.

    Args:
        module: whose state has weights as ``….<table>.weight``.
        table_name_to_quantized_weights: written to: codes (or the bytes of floats), uint8, and the scale and bias
            of each row, uint8 ``(E, 4)``, None for floats.
        table_name_to_data_type: the tables, and what their numbers become.
        table_name_to_num_embeddings_post_pruning: how many rows, the first ones, are left. Default: all.

    Returns:
        The device of the weights.

    Raises:
        ValueError: for weights that are not finite, naming table and row; or a table that the state lacks.
    """
    found: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        names = key.split(".")
        if len(names) > 1 and names[-1] == "weight" and names[-2] in table_name_to_data_type:
            found[names[-2]] = value
    device = torch.device("cpu")
    left = table_name_to_num_embeddings_post_pruning or {}
    for table, data_type in table_name_to_data_type.items():
        if table not in found:
            raise ValueError(
                f"`module` should have a weight of table '{table}'. Received {list(found)}."
            )
        weight = found[table]
        device = weight.device
        rows_format = format_of(data_type, table)
        rows = quantize_rows(weight[: left.get(table)], rows_format, 1, name=table)
        begin = HEAD if rows_format.has_codes else 0
        table_name_to_quantized_weights[table] = (
            rows[:, begin:].contiguous(),
            rows[:, :begin].contiguous() if begin else None,
        )
    return device


@dataclass(frozen=True)
class QuantSettings:
    """What a float collection is to become, by its ``qconfig`` and the options of `torchrec.quant.preparation`.

    Attributes:
        data_type: of the tables.
        by_table: of those that differ.
        output_dtype: of look-ups.
        search_clipping: whether the bounds of each row are searched for.
        register_tbes, split, row_alignment, cache_features_order: as the constructors of collections have them.
        rows_left: of pruned tables, by name.
    """

    data_type: DataType
    by_table: Mapping[str, torch.dtype]
    output_dtype: torch.dtype
    search_clipping: bool
    register_tbes: bool
    split: bool
    row_alignment: int
    cache_features_order: bool
    rows_left: Mapping[str, int]


def settings_of(module: nn.Module) -> QuantSettings:
    """Return what a float collection is to become.

    Raises:
        ValueError: it has no ``qconfig``, or asks for rows without padding by the name that the API has for that.
    """
    if getattr(module, MODULE_ATTR_REMOVE_STBE_PADDING_BOOL, False):
        raise ValueError(
            f"`module` should not have '{MODULE_ATTR_REMOVE_STBE_PADDING_BOOL}': rows are without padding by "
            "`quant_prep_customize_row_alignment` with 1. Received True."
        )
    config = getattr(module, "qconfig", None)
    if config is None:
        raise ValueError(
            "`module` should have a `qconfig`, a QuantConfig, which says what to quantise to; "
            "`torchrec.inference.modules.quantize_embeddings` gives it one. Received none."
        )
    return QuantSettings(
        data_type=dtype_to_data_type(config.weight().dtype),
        by_table=getattr(config, "per_table_weight_dtype", None) or {},
        output_dtype=config.activation().dtype,
        search_clipping=getattr(config, "search_clipping", False),
        register_tbes=getattr(module, MODULE_ATTR_REGISTER_TBES_BOOL, False),
        split=getattr(module, MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS, False),
        row_alignment=getattr(module, MODULE_ATTR_ROW_ALIGNMENT_INT, DEFAULT_ROW_ALIGNMENT),
        cache_features_order=getattr(module, MODULE_ATTR_CACHE_FEATURES_ORDER, False),
        rows_left=getattr(module, MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT, {}),
    )


def new_config(data_type: torch.dtype, output_dtype: torch.dtype, **options: object) -> QuantConfig:
    """Return what says that tables become of a data type.

    Args:
        data_type: of tables.
        output_dtype: of look-ups.
        **options: further fields of `QuantConfig`.
    """
    observer = torch.ao.quantization.PlaceholderObserver
    return QuantConfig(
        activation=observer.with_args(dtype=output_dtype),
        weight=observer.with_args(dtype=data_type),
        **options,  # type: ignore[arg-type]
    )


def quantized_config(config: C, settings: QuantSettings) -> C:
    """Return the configuration of the quantised form of a table."""
    data_type = settings.data_type
    if config.name in settings.by_table:
        data_type = dtype_to_data_type(settings.by_table[config.name])
    format_of(data_type, config.name)  # refuses others
    left = settings.rows_left.get(config.name, config.num_embeddings_post_pruning)
    return replace(
        config,
        data_type=data_type,
        dtype=None,
        num_embeddings_post_pruning=left,
        optimizer=None,
        optimizer_options={},
        lr=None,
        weight_decay=None,
    )


def quantized_weights(
    module: TableCollection, configs: list[C], settings: QuantSettings
) -> dict[str, QuantizedWeights] | None:
    """Return the rows of the tables of a float collection as the quantised one has them; None if it has no memory.

    Args:
        module: the float collection.
        configs: of the quantised one.
        settings: what it is to become.
    """
    found: dict[str, QuantizedWeights] = {}
    for config in configs:
        (shard,) = module.table_shards(config.name)
        if shard.weight.is_meta:
            return None
        weight = _pruned(shard.weight.detach(), config)
        rows_format = format_of(config.data_type, config.name)
        bounds = _bounds(weight, rows_format) if settings.search_clipping else None
        rows = quantize_rows(weight, rows_format, settings.row_alignment, bounds, config.name)
        found[config.name] = rows, None
    return found


def _bounds(weight: Tensor, rows_format: RowFormat) -> Tensor | None:
    return search_bounds(weight, rows_format) if rows_format.has_codes else None


def _pruned(weight: Tensor, config: BaseEmbeddingConfig) -> Tensor:
    """Return the rows that are left of a table, in their places."""
    remapping = config.pruning_indices_remapping
    if remapping is None:
        return weight[: rows_left(config)]
    remapping = remapping.to(weight.device).long()
    kept = remapping >= 0
    rows = weight.new_zeros((rows_left(config), weight.shape[1]))
    return rows.index_copy_(0, remapping[kept], weight[: len(remapping)][kept])
