"""Small shared types: data types, and the mix-ins that say how a module is copied and cached."""

from __future__ import annotations

import copy
from enum import Enum, IntEnum
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound="CopyMixIn")


class DataType(Enum):
    """The element type of a table, under a name that also covers packed types that PyTorch has no dtype for."""

    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    INT64 = "INT64"
    INT32 = "INT32"
    INT8 = "INT8"
    UINT8 = "UINT8"
    INT4 = "INT4"
    INT2 = "INT2"
    NFP8 = "NFP8"

    def __str__(self) -> str:
        return self.value


class OptimizerType(Enum):
    """The optimizer of a table, run inside the backward pass of its look-up.

    "Row-wise" keeps one second moment a row instead of one a weight; LAMB and LARS take each row as a layer.

    Wherever an optimizer is named, a string does as well, in whichever case: one of these, or what other
    libraries call their kernels; and so does a member of another enumeration with such a name or value.

    Example:
        >>> OptimizerType("ADAM"), OptimizerType("EXACT_ROWWISE_ADAGRAD")
        (<OptimizerType.ADAM: 'adam'>, <OptimizerType.ROWWISE_ADAGRAD: 'rowwise_adagrad'>)
    """

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"
    ADAGRAD = "adagrad"
    ROWWISE_ADAGRAD = "rowwise_adagrad"
    PARTIAL_ROWWISE_ADAM = "partial_rowwise_adam"
    LAMB = "lamb"
    PARTIAL_ROWWISE_LAMB = "partial_rowwise_lamb"
    LARS_SGD = "lars_sgd"

    @classmethod
    def _missing_(cls, value: object) -> OptimizerType | None:
        names = (value.name, value.value) if isinstance(value, Enum) else (value,)
        for name in names:
            spelling = name.lower() if isinstance(name, str) else ""
            spelling = _KERNEL_NAMES.get(spelling, spelling)
            for member in cls:
                if member.value == spelling:
                    return member
        return None


# "Exact": gradients of one row are summed before it is updated, as all rules here do.
_KERNEL_NAMES = {
    "exact_sgd": "sgd",
    "exact_adagrad": "adagrad",
    "exact_rowwise_adagrad": "rowwise_adagrad",
    "exact_row_wise_adagrad": "rowwise_adagrad",
    "row_wise_adagrad": "rowwise_adagrad",
    "partial_row_wise_adam": "partial_rowwise_adam",
    "partial_row_wise_lamb": "partial_rowwise_lamb",
}


def optimizer_value(given: object) -> object:
    """Return the value of the `OptimizerType` that is meant; of what means none, what was given.

    Example:
        >>> optimizer_value("EXACT_SGD"), optimizer_value("plain")
        ('sgd', 'plain')
    """
    try:
        return OptimizerType(given).value
    except ValueError:
        return given


class IdPolicy(Enum):
    """What becomes of an id outside ``[0, num_embeddings)``. Never silently row 0."""

    ERROR = "error"
    """The look-up raises, and names feature, table, sample and id."""
    HASH = "hash"
    """It is hashed into the rows of the table, where it meets other ids."""
    UNKNOWN = "unknown"
    """It chooses a further row behind the others, which all such ids share."""
    CLAMP = "clamp"
    """It chooses the first or the last row, whichever is nearer."""
    IGNORE = "ignore"
    """It contributes nothing, as if it were not in its bag."""


class BoundsCheckMode(IntEnum):
    """What becomes of an id outside its table. Here, the ``id_policy`` of a table says it."""

    FATAL = 0
    WARNING = 1
    IGNORE = 2
    NONE = 3
    V2_IGNORE = 4
    V2_WARNING = 5
    V2_FATAL = 6


class CacheAlgorithm(Enum):
    """Which rows leave the cache of a table in managed memory. There is none here."""

    LRU = 0
    LFU = 1


class CacheMixin:
    """A module that keeps values derived from its inputs and can be told to forget them."""

    def clear_cache(self) -> None:
        """Forget every cached value."""
        raise NotImplementedError


class CopyMixIn:
    """A module that decides itself how it is copied to a device."""

    def copy(self, device: torch.device) -> nn.Module:
        """Return this module for use on ``device``."""
        raise NotImplementedError


class ModuleCopyMixin(CopyMixIn):
    """A module that is copied, with its parameters, when a model is copied to a device."""

    def copy(self, device: torch.device) -> nn.Module:
        """Return a deep copy of this module on ``device``."""
        if not isinstance(self, nn.Module):
            raise TypeError(
                f"ModuleCopyMixin should be mixed into an nn.Module. Received {type(self).__name__}."
            )
        return copy.deepcopy(self).to(device)


class ModuleNoCopyMixin(CopyMixIn):
    """A module that stays where it is when the model around it is copied to a device."""

    def copy(self, device: torch.device) -> nn.Module:
        """Return this module itself."""
        if not isinstance(self, nn.Module):
            raise TypeError(
                f"ModuleNoCopyMixin should be mixed into an nn.Module. Received {type(self).__name__}."
            )
        return self
