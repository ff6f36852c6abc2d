"""What ``fused_params`` of sharders mean: an optimizer, and what is no hyper-parameter, in the words of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torchrec.optim.fusable import optimizer_class_of

__all__ = [
    "FUSED_PARAM_BOUNDS_CHECK_MODE",
    "FUSED_PARAM_EMBEDDING_TABLE_INDEX_TYPE",
    "FUSED_PARAM_EMBEDDING_TABLE_OFFSET_TYPE",
    "FUSED_PARAM_IS_SSD_TABLE",
    "FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP",
    "FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS",
    "FUSED_PARAM_REGISTER_TBE_BOOL",
    "FUSED_PARAM_SSD_TABLE_LIST",
    "FUSED_PARAM_TBE_ROW_ALIGNMENT",
    "optimizer_of",
]

FUSED_PARAM_REGISTER_TBE_BOOL = "__register_tbes_in_named_modules"
FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS = "__register_quant_state_dict_split_scale_bias"
FUSED_PARAM_TBE_ROW_ALIGNMENT = "__register_tbe_row_alignment"
FUSED_PARAM_BOUNDS_CHECK_MODE = "__register_tbe_bounds_check_mode"
FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP = "__register_lengths_to_offsets_lookup"
FUSED_PARAM_IS_SSD_TABLE = "__register_is_ssd_table"
FUSED_PARAM_SSD_TABLE_LIST = "__register_ssd_table_list"
FUSED_PARAM_EMBEDDING_TABLE_INDEX_TYPE = "embedding_table_index_type"
FUSED_PARAM_EMBEDDING_TABLE_OFFSET_TYPE = "embedding_table_offset_type"


def optimizer_of(
    fused_params: Mapping[str, Any],
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return the class and arguments of the optimizer that ``fused_params`` name.

    Args:
        fused_params: ``"optimizer"`` (default SGD), ``"learning_rate"``, ``"beta1"`` and ``"beta2"``, and other
            hyper-parameters under their names.

    Example:
        >>> optimizer_of({"optimizer": "adam", "learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9})
        (<class 'torchrec.optim.optimizers.Adam'>, {'lr': 0.1, 'betas': (0.8, 0.9)})
    """
    options = dict(fused_params)
    optimizer = optimizer_class_of(options.pop("optimizer", "exact_sgd"))
    if "learning_rate" in options:
        options["lr"] = options.pop("learning_rate")
    if "beta1" in options or "beta2" in options:
        options["betas"] = options.pop("beta1", 0.9), options.pop("beta2", 0.999)
    return optimizer, options
