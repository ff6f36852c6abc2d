"""From an experiment to a model: its tables, with how they are trained, and what is on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from torchrec.experiment._managed import ManagedTables
from torchrec.experiment.models import MODELS, DenseOnly
from torchrec.experiment.schema import ModelSection, TrainingSection
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.types import IdPolicy, OptimizerType

if TYPE_CHECKING:
    from torchrec.datasets.transform import FeatureTransform, TableSpec

__all__ = ["build_model", "build_tables"]


def build_model(
    model: ModelSection, training: TrainingSection, transform: FeatureTransform
) -> nn.Module:
    """Return the model that an experiment describes.

    Its tables have fused optimizers: they are trained in the backward pass, all other parameters
    by an optimizer of the caller.

    Args:
        model: which model, and its sizes.
        training: optimizer, learning rate and weight decay of the tables.
        transform: what makes the features, fitted.

    Returns:
        A module from dense features ``(B, len(transform.dense_names))`` and sparse features, a
        ``KeyedJaggedTensor``, to logits ``(B, 1)``.

    Raises:
        ValueError: there is no feature at all, the tables have several dimensions, or the
            transform is not fitted.
    """
    num_dense = len(transform.dense_names)
    if not transform.tables:
        if not num_dense:
            raise ValueError("`features` should have one or more features. Received none.")
        return DenseOnly(model, num_dense)
    collection = EmbeddingBagCollection(
        tables=build_tables(model, training, transform.tables), is_weighted=transform.is_weighted
    )
    if any(spec.ids == "managed" for spec in transform.tables):
        # What models ask of a collection, this has as well.
        collection = cast(EmbeddingBagCollection, ManagedTables(collection, transform.tables))
    return MODELS[model.name](model, collection, num_dense)


def build_tables(
    model: ModelSection, training: TrainingSection, specs: Sequence[TableSpec]
) -> list[EmbeddingBagConfig]:
    """Return the configuration of each table, with its fused optimizer.

    Args:
        model: its dimension is that of all tables that have none of their own.
        training: optimizer, learning rate and weight decay of the tables.
        specs: the tables that the features ask for.

    Raises:
        ValueError: the tables have several dimensions, or rows that are not known.
    """
    dims = {spec.name: spec.dim or model.dim for spec in specs}
    if len(set(dims.values())) > 1:
        raise ValueError(
            f"`dim` should be the same for all tables of model '{model.name}'. Received {dims}."
        )
    return [_table(spec, dims[spec.name], training) for spec in specs]


def _table(spec: TableSpec, dim: int, training: TrainingSection) -> EmbeddingBagConfig:
    if spec.rows is None:
        raise ValueError(
            f"`rows` of table '{spec.name}' should be known: fit the transform to the training "
            "data first. Received None."
        )
    return EmbeddingBagConfig(
        num_embeddings=spec.rows,
        embedding_dim=dim,
        name=spec.name,
        feature_names=list(spec.features),
        pooling=PoolingType[spec.pooling.upper()],
        id_policy=IdPolicy.HASH if spec.ids == "hash" else spec.out_of_range,
        optimizer=OptimizerType(training.embedding_optimizer),
        lr=training.embedding_learning_rate or training.learning_rate,
        weight_decay=training.embedding_weight_decay,
    )
