"""Says which update rule an optimizer class stands for, to run it in a look-up's backward."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.optim import optimizers
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.types import OptimizerType, optimizer_value

_CLASSES: Mapping[OptimizerType, type[torch.optim.Optimizer]] = {
    OptimizerType.SGD: optimizers.SGD,
    OptimizerType.ADAGRAD: optimizers.Adagrad,
    OptimizerType.ADAM: optimizers.Adam,
    OptimizerType.ADAMW: optimizers.AdamW,
    OptimizerType.PARTIAL_ROWWISE_ADAM: optimizers.PartialRowWiseAdam,
    OptimizerType.LAMB: optimizers.LAMB,
    OptimizerType.PARTIAL_ROWWISE_LAMB: optimizers.PartialRowWiseLAMB,
    OptimizerType.LARS_SGD: optimizers.LarsSGD,
    OptimizerType.ROWWISE_ADAGRAD: RowWiseAdagrad,
}
_TYPES: Mapping[type[torch.optim.Optimizer], OptimizerType] = {
    **{optimizer_class: kind for kind, optimizer_class in _CLASSES.items()},
    torch.optim.SGD: OptimizerType.SGD,
    torch.optim.Adagrad: OptimizerType.ADAGRAD,
    torch.optim.Adam: OptimizerType.ADAM,
    torch.optim.AdamW: OptimizerType.ADAMW,
    torch.optim.SparseAdam: OptimizerType.ADAM,
}

# How torch computes, not what: these make no difference to a fused update.
_MANNER = {"foreach", "fused", "capturable", "differentiable"}

# What the fused updates do not do, unless it is switched off.
_UNFUSED = {"maximize", "amsgrad", "lr_decay"}


def optimizer_class_of(given: object) -> type[torch.optim.Optimizer]:
    """Return the class of an optimizer that may be given by its name.

    Args:
        given: a class, or what `OptimizerType` takes: a member, or a name.

    Raises:
        ValueError: for a name that no optimizer has.

    Example:
        >>> optimizer_class_of("exact_sgd").__name__
        'SGD'
    """
    if isinstance(given, type):
        return given
    value = optimizer_value(given)
    for kind, optimizer_class in _CLASSES.items():
        if kind.value == value:
            return optimizer_class
    known = ", ".join(f"'{kind.value}'" for kind in _CLASSES)
    raise ValueError(
        f"`optimizer_class` should be a class, or the name of an optimizer: {known}. "
        f"Received {given!r}."
    )


def fused_rule(
    optimizer_class: type[torch.optim.Optimizer] | OptimizerType | str,
    optimizer_kwargs: Mapping[str, object],
) -> tuple[OptimizerType, Hyper]:
    """Return the rule and the hyper-parameters that an optimizer class stands for.

    The classes of `torchrec.optim`, and SGD, Adagrad, Adam, AdamW, SparseAdam of `torch.optim`.

    Args:
        optimizer_class: the class, or its name, see `optimizer_class_of`.
        optimizer_kwargs: the arguments that it would be made with.

    Raises:
        ValueError: if there is no fused update for the class, or not with these arguments.
        TypeError: if an argument is unknown.

    Example:
        >>> kind, hyper = fused_rule(torch.optim.Adam, {"lr": 0.1})
        >>> kind, hyper.lr, hyper.betas
        (<OptimizerType.ADAM: 'adam'>, 0.1, (0.9, 0.999))
    """
    optimizer_class = optimizer_class_of(optimizer_class)
    kind = _TYPES.get(optimizer_class)
    if kind is None:
        known = ", ".join(sorted({cls.__name__ for cls in _TYPES}))
        raise ValueError(
            f"`optimizer_class` should be one that can be fused: {known}. "
            f"Received {optimizer_class.__name__}."
        )
    rule = RULES[kind]
    options = {}
    for name, value in optimizer_kwargs.items():
        if name in rule.table_options:
            options[name] = value
        elif name in _UNFUSED:
            if value:
                raise ValueError(
                    f"`{name}` should be off for the fused update of {optimizer_class.__name__}. "
                    f"Received {value}."
                )
        elif name not in _MANNER:
            raise TypeError(
                f"The fused update of `{optimizer_class.__name__}` takes "
                f"{', '.join(rule.table_options)}. Received '{name}'."
            )
    return kind, rule.hyper(options)
