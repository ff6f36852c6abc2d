"""Says which update rule an optimizer class stands for, to run it in a look-up's backward."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.optim import optimizers
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.types import OptimizerType

_TYPES: Mapping[type[torch.optim.Optimizer], OptimizerType] = {
    optimizers.SGD: OptimizerType.SGD,
    optimizers.Adagrad: OptimizerType.ADAGRAD,
    optimizers.Adam: OptimizerType.ADAM,
    optimizers.AdamW: OptimizerType.ADAMW,
    optimizers.PartialRowWiseAdam: OptimizerType.PARTIAL_ROWWISE_ADAM,
    optimizers.LAMB: OptimizerType.LAMB,
    optimizers.PartialRowWiseLAMB: OptimizerType.PARTIAL_ROWWISE_LAMB,
    optimizers.LarsSGD: OptimizerType.LARS_SGD,
    RowWiseAdagrad: OptimizerType.ROWWISE_ADAGRAD,
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


def fused_rule(
    optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, object]
) -> tuple[OptimizerType, Hyper]:
    """Return the rule and the hyper-parameters that an optimizer class stands for.

    The classes of `torchrec.optim`, and SGD, Adagrad, Adam, AdamW, SparseAdam of `torch.optim`.

    Args:
        optimizer_class: the class.
        optimizer_kwargs: the arguments that it would be made with.

    Raises:
        ValueError: if there is no fused update for the class, or not with these arguments.
        TypeError: if an argument is unknown.

    Example:
        >>> kind, hyper = fused_rule(torch.optim.Adam, {"lr": 0.1})
        >>> kind, hyper.lr, hyper.betas
        (<OptimizerType.ADAM: 'adam'>, 0.1, (0.9, 0.999))
    """
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
        if name in rule.options:
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
                f"{', '.join(rule.options)}. Received '{name}'."
            )
    return kind, rule.hyper(options)
