"""Copies of models, sharded or not."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from torchrec.distributed.shard import initialise_meta
from torchrec.types import CopyMixIn


class CopyableMixin(CopyMixIn, nn.Module):
    """A module that is copied, with its parameters, when a model is copied to a device.

    Example:
        >>> class Layer(CopyableMixin):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inside = nn.Linear(2, 1)
        >>> Layer().copy(torch.device("meta")).inside.weight.is_meta
        True
    """

    def copy(self, device: torch.device) -> nn.Module:
        """Return a deep copy of this module on a device.

        Args:
            device: where.
        """
        return copy.deepcopy(self).to(device)


class sharded_model_copy(AbstractContextManager["sharded_model_copy"]):  # noqa: N801 (named by the API)
    """Within it, ``copy.deepcopy`` of a sharded model gives one whose parts are on a device.

    They are on the CPU here, and so is what `copy.deepcopy` makes of them, within it or not. Process
    groups are shared by all copies.

    Args:
        device: None or the CPU. For another, copy, and move the copy: `DistributedModelParallel.copy`.

    Raises:
        ValueError: for another device.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with sharded_model_copy(device="cpu"):
        ...     twin = copy.deepcopy(model)
    """

    def __init__(self, device: str | int | torch.device | None) -> None:
        if device is not None and torch.device(device).type != "cpu":
            raise ValueError(
                "`device` should be None or the CPU, where sharded tables are: copy the model, and move the "
                f"copy, as `DistributedModelParallel.copy` does. Received {device!r}."
            )
        self.device = device

    def __exit__(self, *_: object) -> None:
        """Do nothing: nothing was changed."""


def copy_to_device(
    module: nn.Module, current_device: torch.device, to_device: torch.device
) -> nn.Module:
    """Return a copy of a module, in which what was on one device is on another.

    Modules that say how they are copied (`torchrec.types.CopyMixIn`) do it themselves: sharded ones
    stay where they are, and are shared by both.

    Args:
        module: stays as it is.
        current_device: parameters and buffers that are on another stay there.
        to_device: where the others go.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> twin = copy_to_device(model, torch.device("cpu"), torch.device("meta"))
        >>> twin.weight.is_meta, model.weight.is_meta
        (True, False)
    """
    memo: dict[int, Any] = {}
    _copy_apart(module, current_device, to_device, memo)
    return copy.deepcopy(module, memo)


def _copy_apart(
    module: nn.Module, current_device: torch.device, to_device: torch.device, memo: dict[int, Any]
) -> None:
    """Enter into ``memo`` what `copy.deepcopy` should take for some parts, each once however often it is used."""
    if isinstance(module, CopyMixIn):
        memo[id(module)] = module.copy(to_device)
        return
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    for tensor in own:
        if tensor.device == current_device and id(tensor) not in memo:
            moved = tensor.detach().to(to_device, copy=True)
            if isinstance(tensor, nn.Parameter):
                moved = nn.Parameter(moved, tensor.requires_grad)
            memo[id(tensor)] = moved
    for child in module.children():
        _copy_apart(child, current_device, to_device, memo)


def init_parameters(module: nn.Module, device: torch.device) -> None:
    """Give the parameters and buffers of a module that are on ``meta`` memory, and initial values.

    Args:
        module: changed; what has memory stays as it is.
        device: where.

    Raises:
        ValueError: for a module that has no ``reset_parameters``.

    Example:
        >>> model = nn.Linear(2, 1, device="meta")
        >>> init_parameters(model, torch.device("cpu"))
        >>> model.weight.device
        device(type='cpu')
    """
    initialise_meta(module, device)
