"""Models from a folder of somebody's own: described, built, trained, saved, loaded, served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import torchrec.inference
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.bundle import load_bundle
from torchrec.datasets.features import MultiHotFeature, SequenceFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment._reference import reference
from torchrec.experiment.files import load_experiment
from torchrec.models.registry import ModelSection, TableOptimizer, build_model
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.usefixtures("toys")
ROWS = 600
ADAM = TableOptimizer(optimizer="adam", lr=0.05)
FILE = """
data: {train: log.parquet, label: click, split: {valid: 0.2, test: 0.2}}
features:
  price: {type: dense}
  user: {type: sparse, ids: hash, rows: 50, dim: 2}
  tags: {type: multi_hot, ids: vocabulary}
  seen: {type: sequence, ids: plain, rows: 8, dim: 6}
  bought: {type: sequence, ids: plain, rows: 8, table: seen}
model: {name: recent, dim: 4, scale: 2}
training: {epochs: 4, batch_size: 50, learning_rate: 0.05, embedding_optimizer: adagrad, threads: 1}
"""


def log(rows: int = ROWS) -> pa.Table:
    """Samples of which the last id that was seen tells the label."""
    random = np.random.default_rng(0)
    seen = [random.integers(0, 8, random.integers(0, 4)).tolist() for _ in range(rows)]
    return pa.table(
        {
            "price": random.normal(size=rows),
            "user": random.integers(0, 99, rows),
            "tags": [["a", "b", "c"][: random.integers(0, 4)] for _ in range(rows)],
            "seen": seen,
            "bought": [ids[:1] for ids in seen],
            "click": [int(bool(ids) and ids[-1] % 2 == 0) for ids in seen],
        }
    )


def fitted(features: dict[str, object]) -> FeatureTransform:
    return FeatureTransform(features, "click").fit([log(50)])


def test_it_is_trained_saved_and_served_from_an_experiment_file(tmp_path: Path) -> None:
    pq.write_table(log(), tmp_path / "log.parquet")
    (tmp_path / "own.yaml").write_text(FILE)
    experiment = load_experiment(tmp_path / "own.yaml")
    result = run_experiment(experiment, tmp_path / "run", observers=[])
    assert result.test is not None
    assert result.test["auc"] > 0.95
    assert load_experiment(tmp_path / "run" / "experiment.yaml").model == experiment.model

    bundle = load_bundle(tmp_path / "run" / "model")
    assert bundle.section == ModelSection(name="recent", dim=4, scale=2.0)
    dims = {
        name.split(".")[-2]: tuple(weight.shape)
        for name, weight in bundle.model.named_parameters()
        if "embedding" in name
    }
    assert dims == {"user": (50, 2), "tags": (4, 4), "seen": (8, 6)}
    batch = bundle.transform(log())
    again = load_bundle(tmp_path / "run" / "model", trainable=True).model.eval()
    expected = again(batch.dense_features, batch.sparse_features).detach()
    assert torch.equal(bundle.model(batch.dense_features, batch.sparse_features), expected)
    predictor = torchrec.inference.load(tmp_path / "run")
    assert torch.equal(predictor.predict(log()), expected.flatten().sigmoid())
    assert predictor.counts()[1].keys() == {"user", "tags", "seen"}


def test_the_reference_and_the_messages_know_it(tmp_path: Path) -> None:
    text = reference()
    assert "#### recent\n\nA line over pooled features and what came last." in text
    assert "| `scale` | a number above 0 | `1.0` | of the logits |" in text
    (tmp_path / "own.yaml").write_text(FILE)
    with pytest.raises(ValueError, match=r"`model.scale` should be a number above 0. Received 0"):
        load_experiment(tmp_path / "own.yaml", ["model.scale=0"])
    with pytest.raises(
        ValueError, match=r"`model.layers` is not an option of model 'recent', but of"
    ):
        load_experiment(tmp_path / "own.yaml", ["model.layers=[3]"])
    with pytest.raises(
        ValueError,
        match=r"should be 'deepfm', .*, 'lr', 'mmoe', 'ordered', 'ple', 'recent' or 'shared_bottom'",
    ):
        load_experiment(tmp_path / "own.yaml", ["model.name=recnt"])


def test_pooled_and_sequences() -> None:
    transform = fitted(
        {"user": SparseFeature(rows=9), "seen": SequenceFeature(ids="plain", rows=8)}
    )
    model = build_model(ModelSection(name="recent"), transform, ADAM)
    assert isinstance(model.pooled, EmbeddingBagCollection)
    assert isinstance(model.sequences, EmbeddingCollection)
    assert [c.name for c in model.pooled.embedding_bag_configs()] == ["user"]
    (config,) = model.sequences.embedding_configs()
    assert (config.name, config.num_embeddings, config.lr) == ("seen", 8, 0.05)


@pytest.mark.parametrize("kind", ["pooled", "sequences"])
def test_one_of_both_may_be_missing(kind: str) -> None:
    features = {"user": SparseFeature(rows=9), "seen": SequenceFeature(ids="plain", rows=8)}
    name = {"pooled": "user", "sequences": "seen"}[kind]
    transform = fitted({name: features[name]})
    model = build_model(ModelSection(name="recent"), transform)
    assert (model.pooled is None, model.sequences is None) == (kind != "pooled", kind == "pooled")
    batch = transform(log(20))
    assert model(batch.dense_features, batch.sparse_features).shape == (20, 1)


def test_everything_id_by_id() -> None:
    features = {
        "user": SparseFeature(rows=9),
        "seen": SequenceFeature(ids="plain", rows=8),
        "tags": MultiHotFeature(ids="vocabulary"),
    }
    transform = fitted(features)
    model = build_model(ModelSection(name="ordered", dim=3), transform)
    configs = model.sequences.embedding_configs()
    assert [(c.name, c.embedding_dim) for c in configs] == [("user", 3), ("seen", 3), ("tags", 3)]
    batch = transform(log(20))
    assert model(batch.dense_features, batch.sparse_features).shape == (20, 1)


def test_a_table_is_read_in_one_way() -> None:
    features = {
        "user": SparseFeature(ids="plain", rows=99, table="users"),
        "seen": SequenceFeature(ids="plain", rows=99, table="users"),
    }
    with pytest.raises(
        ValueError, match=r"Table 'users' should be read by features of type sequence"
    ):
        build_model(ModelSection(name="recent"), fitted(features))
    build_model(ModelSection(name="ordered"), fitted(features))
    build_model(ModelSection(name="deepfm"), fitted(features))


def test_tables_of_several_dimensions_are_for_models_that_take_them() -> None:
    features = {"user": SparseFeature(rows=9, dim=2), "tags": MultiHotFeature(rows=5, dim=3)}
    model = build_model(ModelSection(name="recent"), fitted(features))
    assert [c.embedding_dim for c in model.pooled.embedding_bag_configs()] == [2, 3]
    for name in ("ordered", "dlrm"):
        with pytest.raises(
            ValueError, match=rf"same for all tables of model '{name}'\. Received {{'u"
        ):
            build_model(ModelSection(name=name), fitted(features))


def test_managed_ids_are_pooled() -> None:
    transform = fitted({"seen": SequenceFeature(ids="managed", rows=8)})
    with pytest.raises(
        ValueError, match=r"`ids` of table 'seen' should be plain, hash or vocabulary"
    ):
        build_model(ModelSection(name="recent"), transform)
