"""Models from experiments: as the registry builds them, with tables trained as the experiment says."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from torchrec.datasets.features import SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.build import build_model, table_optimizer
from torchrec.experiment.schema import ModelSection, TrainingSection
from torchrec.models import registry
from torchrec.models.registry import TableOptimizer
from torchrec.training.optimizers import fused_optimizers

pytestmark = pytest.mark.once


def test_tables_are_trained_as_the_experiment_says() -> None:
    training = TrainingSection(
        learning_rate=0.1,
        embedding_learning_rate=0.3,
        embedding_optimizer="rowwise_adagrad",
        embedding_weight_decay=0.01,
    )
    assert table_optimizer(training) == TableOptimizer(
        optimizer="rowwise_adagrad", lr=0.3, weight_decay=0.01
    )


def test_tables_learn_as_fast_as_the_rest_unless_told() -> None:
    assert table_optimizer(TrainingSection(learning_rate=0.1)).lr == 0.1


def test_the_model_is_that_of_the_registry() -> None:
    clicks = pa.table({"user": ["ann", "ben"], "click": [0, 1]})
    transform = FeatureTransform({"user": SparseFeature(rows=9)}, "click").fit([clicks])
    section, training = ModelSection(name="deepfm", dim=4), TrainingSection()
    torch.manual_seed(3)
    built = build_model(section, training, transform)
    torch.manual_seed(3)
    expected = registry.build_model(section, transform, table_optimizer(training))
    for name, value in expected.state_dict().items():
        assert torch.equal(built.state_dict()[name], value)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"embedding_updates": "dense"}, {"lazy": False}),
        ({"embedding_l2": 0.5}, {"batch_l2": 0.5}),
        (
            {"embedding_optimizer": "adamw", "embedding_updates": "dense", "embedding_l2": 0.25},
            {"lazy": False, "batch_l2": 0.25},
        ),
    ],
    ids=str,
)
def test_kinds_of_updates_reach_the_tables(
    changes: dict[str, object], options: dict[str, object]
) -> None:
    clicks = pa.table({"user": ["ann", "ben"], "click": [0, 1]})
    transform = FeatureTransform({"user": SparseFeature(rows=9)}, "click").fit([clicks])
    training = TrainingSection.model_validate(changes)
    model = build_model(ModelSection(name="deepfm", dim=4), training, transform)
    (group,) = [
        group for _, optimizer in fused_optimizers(model) for group in optimizer.param_groups
    ]
    expected = {"lazy": True, "batch_l2": 0.0, **options}
    assert {name: group[name] for name in expected} == expected
    decoupled = changes.get("embedding_optimizer") == "adamw"
    assert group["weight_decay_mode"] == ("decoupled" if decoupled else "l2")
