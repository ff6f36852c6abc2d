"""Checks of a table's configuration, made when it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrec.types import IdPolicy

if TYPE_CHECKING:
    from torchrec.modules.embedding_configs import BaseEmbeddingConfig


def _check_count(config: BaseEmbeddingConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if value is None and name in ("hash_size", "table_size"):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"`{name}` of table '{config.name}' should be an integer. Received {value!r}."
        )
    if value < least:
        raise ValueError(
            f"`{name}` of table '{config.name}' should be at least {least}. Received {value}."
        )


def _check_names(config: BaseEmbeddingConfig) -> None:
    if not isinstance(config.name, str):
        raise TypeError(f"`name` of a table should be a string. Received {config.name!r}.")
    if isinstance(config.feature_names, str):
        raise TypeError(
            f"`feature_names` of table '{config.name}' should be a list of names. "
            f"Received the string {config.feature_names!r}."
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


def _check_training(config: BaseEmbeddingConfig) -> None:
    for name in ("lr", "weight_decay"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise ValueError(
                f"`{name}` of table '{config.name}' should be at least 0. Received {value}."
            )
    asked = [n for n in ("lr", "weight_decay") if getattr(config, n) is not None]
    asked += list(config.optimizer_options)
    if config.optimizer is None and asked:
        raise ValueError(
            f"`{asked[0]}` of table '{config.name}' should come with an `optimizer`: "
            "without one, the optimizer that is given the parameter says how it is trained."
        )


def check_table(config: BaseEmbeddingConfig) -> None:
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
    if config.hash_size is not None and config.id_policy != IdPolicy.ERROR:
        raise ValueError(
            f"Table '{config.name}' should have `hash_size` or `id_policy`, not both: ids out of "
            f"range are hashed into the `hash_size` rows. Received {config.hash_size} and "
            f"'{config.id_policy.value}'."
        )
    low, high = config.weight_init_min, config.weight_init_max
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"`weight_init_min` of table '{config.name}' should be at most `weight_init_max` "
            f"({high}). Received {low}."
        )
    if config.use_virtual_table:
        raise ValueError(
            f"`use_virtual_table` of table '{config.name}' should be False: virtual tables are not "
            "supported."
        )
