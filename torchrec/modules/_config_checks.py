"""Checks of a table's configuration, made when it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from torchrec.checks import require_integer, require_type
from torchrec.types import IdPolicy, OptimizerType

E = TypeVar("E", bound=Enum)


class TableFields(Protocol):
    """What the checks read of a table's configuration; the rest by name."""

    name: str
    feature_names: list[str]
    hash_size: int | None
    id_policy: IdPolicy
    optimizer: OptimizerType | None
    optimizer_options: Mapping[str, float | bool | str | tuple[float, float]]
    init_fn: Callable[[Tensor], Tensor | None] | None
    num_embeddings_post_pruning: int | None
    pruning_indices_remapping: Tensor | None

    @property
    def num_rows(self) -> int:
        """Return the rows of the parameter."""

    def get_weight_init_min(self) -> float:
        """Return the least value that a row starts with."""

    def get_weight_init_max(self) -> float:
        """Return the greatest value that a row starts with."""


def member(config: TableFields, name: str, kind: type[E]) -> E:
    """Return the field ``name`` as a member of an enumeration, which may be given by its value.

    Args:
        config: a table.
        name: of the field.
        kind: the enumeration.

    Raises:
        ValueError: for anything else.
    """
    given = getattr(config, name)
    try:
        return kind(given)
    except ValueError:
        known = ", ".join(f"'{m.value}'" for m in kind)
        raise ValueError(
            f"`{name}` of table '{config.name}' should be one of {known}. Received {given!r}."
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_number(config: TableFields, name: str, value: object) -> None:
    if not _is_number(value):
        raise TypeError(
            f"`{name}` of table '{config.name}' should be a number. Received {value!r}."
        )


def _check_count(config: TableFields, name: str, least: int) -> None:
    value = getattr(config, name)
    if value is None and name in ("hash_size", "table_size"):
        return
    require_integer(value, f"`{name}` of table '{config.name}'", least=least)


def _check_names(config: TableFields) -> None:
    if not isinstance(config.name, str):
        raise TypeError(f"`name` of a table should be a string. Received {config.name!r}.")
    if not isinstance(config.feature_names, list | tuple):
        raise TypeError(
            f"`feature_names` of table '{config.name}' should be a list of names. "
            f"Received {config.feature_names!r}."
        )
    seen = set()
    for feature in config.feature_names:
        if not isinstance(feature, str) or not feature:
            raise TypeError(
                f"`feature_names` of table '{config.name}' should hold names. Received {feature!r}."
            )
        if feature in seen:
            raise ValueError(
                f"`feature_names` of table '{config.name}' should differ. Received '{feature}' twice."
            )
        seen.add(feature)


def _check_training(config: TableFields) -> None:
    for name in ("lr", "weight_decay"):
        value = getattr(config, name)
        if value is None:
            continue
        _check_number(config, name, value)
        if not value >= 0:
            raise ValueError(
                f"`{name}` of table '{config.name}' should be at least 0. Received {value}."
            )
        if math.isinf(value):
            raise ValueError(
                f"`{name}` of table '{config.name}' should be finite. Received {value}."
            )
    _check_options(config)
    asked = [n for n in ("lr", "weight_decay") if getattr(config, n) is not None]
    asked += list(config.optimizer_options)
    if config.optimizer is None and asked:
        raise ValueError(
            f"`{asked[0]}` of table '{config.name}' should come with an `optimizer`: "
            "without one, the optimizer that is given the parameter says how it is trained."
        )


def _check_options(config: TableFields) -> None:
    if not isinstance(config.optimizer_options, Mapping):
        raise TypeError(
            f"`optimizer_options` of table '{config.name}' should map names to values. "
            f"Received {config.optimizer_options!r}."
        )
    for name, value in config.optimizer_options.items():
        if name == "betas":
            if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
                raise TypeError(
                    f"`betas` of table '{config.name}' should be two numbers. Received {value!r}."
                )
        elif name not in ("weight_decay_mode", "nesterov", "lazy") and value is not None:
            _check_number(config, str(name), value)


def _check_start(config: TableFields) -> None:
    if config.init_fn is not None and not callable(config.init_fn):
        raise TypeError(
            f"`init_fn` of table '{config.name}' should be a function of a tensor. "
            f"Received {config.init_fn!r}."
        )
    for name in ("weight_init_min", "weight_init_max"):
        if getattr(config, name) is not None:
            _check_number(config, name, getattr(config, name))
    low, high = config.get_weight_init_min(), config.get_weight_init_max()
    if not low <= high:
        raise ValueError(
            f"`weight_init_min` of table '{config.name}' should be at most `weight_init_max` "
            f"({high}). Received {low}."
        )


# Fields of the API for what this library does not do: their defaults are all that they may be.
_UNSUPPORTED: Mapping[str, object] = {
    "use_virtual_table": False,
    "virtual_table_eviction_policy": None,
    "enable_embedding_update": False,
    "stash_weights": False,
}


def _check_effect(config: TableFields) -> None:
    """Refuse what would be ignored."""
    for name, default in _UNSUPPORTED.items():
        value = getattr(config, name)
        if value is not default:
            raise ValueError(
                f"`{name}` of table '{config.name}' should be {default}: it is not supported. "
                f"Received {value!r}."
            )
    for name in ("weight_init_min", "weight_init_max"):
        if config.init_fn is not None and getattr(config, name) is not None:
            raise ValueError(
                f"`{name}` of table '{config.name}' should be None, as its `init_fn` fills the "
                f"weights. Received {getattr(config, name)}."
            )


def _check_pruning(config: TableFields) -> None:
    """Refuse a pruned form that the table cannot have."""
    left, remapping = config.num_embeddings_post_pruning, config.pruning_indices_remapping
    if left is not None:
        require_integer(
            left, f"`num_embeddings_post_pruning` of table '{config.name}'", 1, config.num_rows
        )
    if remapping is None:
        return
    name = f"`pruning_indices_remapping` of table '{config.name}'"
    require_type(remapping, name, Tensor)
    if left is None:
        raise ValueError(f"{name} should come with `num_embeddings_post_pruning`. Received none.")
    if remapping.shape != (config.num_rows,) or remapping.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} should be int32 or int64, one number a row ({config.num_rows}). "
            f"Received {remapping.dtype} of shape {list(remapping.shape)}."
        )
    kept = remapping[remapping >= 0]
    if bool((remapping < -1).any()) or bool((kept >= left).any()) or len(kept.unique()) < len(kept):
        raise ValueError(
            f"{name} should be -1, or a row of its own below `num_embeddings_post_pruning` ({left})."
        )


def check_table(config: TableFields) -> None:
    """Raise for what no table can be.

    Args:
        config: a table.

    Raises:
        TypeError: for a field of the wrong type.
        ValueError: for a value out of its range, or two fields that contradict each other.
    """
    _check_names(config)
    _check_count(config, "num_embeddings", 1)
    _check_count(config, "embedding_dim", 1)
    _check_count(config, "hash_size", 1)
    _check_count(config, "table_size", 1)
    _check_training(config)
    _check_start(config)
    for name in ("enable_grad", "sparse"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(
                f"`{name}` of table '{config.name}' should be True or False. "
                f"Received {getattr(config, name)!r}."
            )
    if config.hash_size is not None and config.id_policy != IdPolicy.ERROR:
        raise ValueError(
            f"Table '{config.name}' should have `hash_size` or `id_policy`, not both: ids out of "
            f"range are hashed into the `hash_size` rows. Received {config.hash_size} and "
            f"'{config.id_policy.value}'."
        )
    _check_effect(config)
    _check_pruning(config)
