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
