"""Options of the quantised form of a collection before there is one: attributes of the float modules.

The API keeps these as attributes of the modules under the names ``MODULE_ATTR_…``, which programs read and write as
well, and which a copy of a model takes along. ``MODULE_ATTR_USE_…`` and ``MODULE_ATTR_CACHE_FEATURES_ORDER`` are
without effect: they are about how scripted modules batch, and change no result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from torchrec.checks import require_integer, require_type

MODULE_ATTR_REGISTER_TBES_BOOL = "__register_tbes_in_named_modules"
MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS = "__quant_state_dict_split_scale_bias"
MODULE_ATTR_ROW_ALIGNMENT_INT = "__register_row_alignment_in_named_modules"
MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT = "__emb_name_to_num_rows_post_pruning"
MODULE_ATTR_REMOVE_STBE_PADDING_BOOL = "__remove_stbe_padding"
MODULE_ATTR_USE_UNFLATTENED_LENGTHS_FOR_BATCHING = "__use_unflattened_lengths_for_batching"
MODULE_ATTR_USE_BATCHING_HINTED_OUTPUT = "__use_batching_hinted_output"
MODULE_ATTR_CACHE_FEATURES_ORDER = "__cache_features_order"


def set_option(module: nn.Module, name: str, value: object) -> None:
    """Set an option of the quantised form of a module."""
    vars(module)[name] = value


def for_each_module_of_type_do(
    module: nn.Module, module_types: Sequence[type[nn.Module]], op: Callable[[nn.Module], None]
) -> None:
    """Call a function for each module within a model that is of one of some types.

    Args:
        module: the model.
        module_types: the types; classes derived from them count.
        op: the function.

    Example:
        >>> found = []
        >>> for_each_module_of_type_do(nn.Sequential(nn.ReLU(), nn.Tanh()), [nn.Tanh], found.append)
        >>> found
        [Tanh()]
    """
    require_type(module, "`module`", nn.Module)
    for child in module.modules():
        if isinstance(child, tuple(module_types)):
            op(child)


def quant_prep_enable_register_tbes(
    module: nn.Module, module_types: Sequence[type[nn.Module]]
) -> None:
    """Have the quantised forms of collections show what looks them up, as their module ``tbes.0``.

    Args:
        module: the model.
        module_types: types of the collections.
    """
    for_each_module_of_type_do(
        module, module_types, lambda m: set_option(m, MODULE_ATTR_REGISTER_TBES_BOOL, True)
    )


def quant_prep_enable_quant_state_dict_split_scale_bias(module: nn.Module) -> None:
    """Have the state of the quantised form of a collection hold scales and biases apart from codes.

    Args:
        module: a collection; of a model, see `quant_prep_enable_quant_state_dict_split_scale_bias_for_types`.
    """
    require_type(module, "`module`", nn.Module)
    set_option(module, MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS, True)


def quant_prep_enable_quant_state_dict_split_scale_bias_for_types(
    module: nn.Module, module_types: Sequence[type[nn.Module]]
) -> None:
    """Have the states of the quantised forms of collections hold scales and biases apart from codes.

    Args:
        module: the model.
        module_types: types of the collections.
    """
    for_each_module_of_type_do(
        module, module_types, quant_prep_enable_quant_state_dict_split_scale_bias
    )


def quant_prep_enable_cache_features_order(
    module: nn.Module, module_types: Sequence[type[nn.Module]]
) -> None:
    """Ask for the order of features to be remembered, which is always done: without further effect.

    Args:
        module: the model.
        module_types: types of the collections.
    """
    for_each_module_of_type_do(
        module, module_types, lambda m: set_option(m, MODULE_ATTR_CACHE_FEATURES_ORDER, True)
    )


def quant_prep_customize_row_alignment(
    module: nn.Module, module_types: Sequence[type[nn.Module]], row_alignment: int
) -> None:
    """Have the rows of the quantised forms of collections padded to another multiple than 16 bytes.

    Args:
        module: the model.
        module_types: types of the collections.
        row_alignment: the multiple, 1 or more.
    """
    require_integer(row_alignment, "`row_alignment`", least=1)
    for_each_module_of_type_do(
        module, module_types, lambda m: set_option(m, MODULE_ATTR_ROW_ALIGNMENT_INT, row_alignment)
    )
