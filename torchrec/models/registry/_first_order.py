"""Tables of dimension 1: a weight an id, alone or beside the vectors of other tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from torchrec.datasets.initial_weights import Pretrained
from torchrec.datasets.transform import TableSpec
from torchrec.modules.embedding_configs import EmbeddingBagConfig


def linear_name(table: str) -> str:
    """Return the name of the table of weights that lies beside a table of vectors.

    Example:
        >>> linear_name("user")
        'user_linear'
    """
    return f"{table}_linear"


def weights_alone(specs: Sequence[TableSpec]) -> list[TableSpec]:
    """Return tables of weights in the place of tables of vectors."""
    return [dataclasses.replace(without_vectors(spec), dim=1) for spec in specs]


def without_vectors(spec: TableSpec) -> TableSpec:
    """Return a table that does not begin with vectors of another model."""
    return dataclasses.replace(spec, init=None) if isinstance(spec.init, Pretrained) else spec


def weights_beside(configs: Sequence[EmbeddingBagConfig]) -> list[EmbeddingBagConfig]:
    """Return tables of weights for the ids of tables of vectors, with as many rows.

    They start at zero: nothing is known of an id that has not come.

    Args:
        configs: of the tables of vectors.

    Raises:
        ValueError: a name that a table of weights would have is taken.
    """
    names = {config.name for config in configs}
    for config in configs:
        if linear_name(config.name) in names:
            raise ValueError(
                f"Tables should have other names than '{linear_name(config.name)}', in which the model "
                f"has the linear terms of table '{config.name}': rename it with `table`."
            )
    return [
        dataclasses.replace(
            config, name=linear_name(config.name), embedding_dim=1, init_fn=nn.init.zeros_
        )
        for config in configs
    ]
