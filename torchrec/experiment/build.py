"""From an experiment to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from torchrec.models import registry
from torchrec.models.registry import TableOptimizer

if TYPE_CHECKING:
    from torchrec.datasets.transform import FeatureTransform
    from torchrec.experiment.schema import ModelSection, TrainingSection

__all__ = ["build_model", "table_optimizer"]


def build_model(
    model: ModelSection,
    training: TrainingSection,
    transform: FeatureTransform,
    table_device: str | None = None,
) -> nn.Module:
    """Return the model that an experiment describes.

    Its tables have fused optimizers: they are trained in the backward pass, all other parameters
    by an optimizer of the caller.

    Args:
        model: which model, and its options.
        training: optimizer, learning rate and weight decay of the tables.
        transform: what makes the features, fitted.
        table_device: of the tables. Default: PyTorch's default device.

    Returns:
        As `torchrec.models.registry.build_model` does.

    Raises:
        ValueError: likewise.
    """
    return registry.build_model(
        model, transform, table_optimizer(training), table_device=table_device
    )


def table_optimizer(training: TrainingSection) -> TableOptimizer:
    """Return how an experiment trains its tables.

    Args:
        training: its section.
    """
    return TableOptimizer(
        optimizer=training.embedding_optimizer,
        lr=training.embedding_learning_rate or training.learning_rate,
        weight_decay=training.embedding_weight_decay,
        updates=training.embedding_updates,
        batch_l2=training.embedding_l2,
    )
