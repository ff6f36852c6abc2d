"""Who trains a parameter otherwise than by an optimizer's ``step()``: one map, and no attribute on parameters."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class UpdateTime(NamedTuple):
    """When a backward pass has updated a parameter.

    Attributes:
        step: how many steps optimizers had taken.
        backward_pass: number of the pass.
    """

    step: int
    backward_pass: int


class Owner(ABC):
    """Knows how a parameter is trained: rule, hyper-parameters, state.

    The tables of embedding collections have one each, and so has every parameter that was given to
    `apply_optimizer_in_backward`.
    """

    @property
    @abstractmethod
    def in_backward(self) -> bool:
        """Whether the backward pass updates the parameter, so that no optimizer should."""

    @property
    @abstractmethod
    def applied(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        """Class and arguments of the optimizer that `apply_optimizer_in_backward` gave it, if any."""

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer over this one parameter, where there is one; learning-rate schedulers take it."""

    @abstractmethod
    def check(
        self, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any]
    ) -> None:
        """Raise if the backward pass cannot do what this optimizer would."""

    @abstractmethod
    def apply(
        self, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any]
    ) -> None:
        """Update the parameter in the backward pass from now on, as this optimizer would."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What the parameter is, for errors."""

    @property
    @abstractmethod
    def updated(self) -> UpdateTime | None:
        """When a backward pass last updated the parameter; None: none has."""

    @abstractmethod
    def before_step(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
        """Do what is to be done before an optimizer steps that holds the parameter in ``group``."""


# By the number of the tensor, as tensors compare by value. Neither is kept alive from here: the
# module that has the parameter keeps the owner, and an entry goes when its parameter does.
_owners: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Owner]]] = {}


def owner_of(param: Tensor) -> Owner | None:
    """Return who trains a parameter otherwise than by an optimizer's ``step()``; None: nobody.

    Args:
        param: a parameter.

    Example:
        >>> from torchrec.optim import apply_optimizer_in_backward
        >>> layer = torch.nn.Linear(2, 1)
        >>> apply_optimizer_in_backward(torch.optim.SGD, [layer.weight], {"lr": 0.1})
        >>> owner_of(layer.weight).optimizer.param_groups[0]["lr"]
        0.1
        >>> owner_of(layer.bias) is None
        True
    """
    entry = _owners.get(id(param))
    if entry is None or entry[0]() is not param:
        return None
    return entry[1]()


def all_owners() -> list[Owner]:
    """Return who there is that trains parameters otherwise, each once, in the order of the parameters."""
    owners = (owner() for _, owner in list(_owners.values()))
    return list(dict.fromkeys(owner for owner in owners if owner is not None))


def set_owner(param: Tensor, owner: Owner | None) -> None:
    """Say who trains a parameter from now on.

    Args:
        param: a parameter.
        owner: who; somebody has to keep it alive. None: an optimizer like any other.
    """
    number = id(param)
    if owner is None:
        _owners.pop(number, None)
        return

    def forget(_: object) -> None:
        # The number may be another tensor's by now.
        entry = _owners.get(number)
        if entry is not None and entry[0]() is None:
            del _owners[number]

    _owners[number] = weakref.ref(param, forget), weakref.ref(owner)
