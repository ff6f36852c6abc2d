"""From an experiment to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from torchrec.datasets.transform import FeatureTransform
from torchrec.models import registry
from torchrec.models.registry import TableOptimizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torchrec.datasets.features import AnyFeature
    from torchrec.experiment.schema import Experiment, ModelSection, TrainingSection

__all__ = ["build_model", "new_transform", "table_optimizer"]


def new_transform(experiment: Experiment, features: Mapping[str, AnyFeature]) -> FeatureTransform:
    """Return a transform for the features of an experiment, with its label or targets, not fitted.

    Args:
        experiment: says what is predicted, and how much the samples count.
        features: of the experiment, or inferred.

    Raises:
        ValueError: features contradict one another, or read a label.
    """
    tasks = experiment.tasks or {}
    groups = [task.group for task in tasks.values() if task.group is not None]
    return FeatureTransform(
        features,
        experiment.data.label,
        {name: task.target for name, task in tasks.items()},
        experiment.data.weight,
        list(dict.fromkeys(groups)),
    )


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
