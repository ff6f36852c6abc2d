"""Several tasks, sampled negatives and training on: from experiment files to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchrec.bundle import lineage, load_bundle
from torchrec.datasets.loader import Loader
from torchrec.experiment.files import check_experiment
from torchrec.inference import load
from torchrec.training.evaluation import evaluate
from torchrec.training.run import run_experiment
from torchrec.training.run_data import RunData
from torchrec.training.run_tasks import tasks_of

pytestmark = pytest.mark.once

TASKS = {
    "click": {"label": "click"},
    "buy": {"label": "buy", "given": "click", "class_weights": [1, 2]},
    "watch": {"label": "seconds / 10", "kind": "regression", "loss": "huber", "weight": 0.5},
    "stars": {"label": "stars - 1", "kind": "ordinal", "classes": 3},
    "late": {"label": "stars > 2", "kind": "ordinal", "classes": 2},
    "order": {"label": "click", "loss": "pairwise", "group": "user"},
}


def write_log(path: Path, rows: int = 1200, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 20, rows), rng.integers(0, 9, rows)
    x = rng.normal(size=rows)
    click = (rng.random(rows) < 1 / (1 + np.exp(-2 * x))).astype(np.int64)
    columns = {
        "user": user,
        "item": [f"i{one}" for one in item],
        "x": x,
        "click": click,
        "buy": click * (x > 0.5),
        "seconds": np.maximum(0, 10 * x + rng.normal(size=rows)),
        "stars": np.clip(np.round(2 + x), 1, 3).astype(np.int64),
        "w": rng.random(rows) + 0.5,
    }
    pq.write_table(pa.table(columns), path)


def described(folder: Path, **changes) -> dict:
    return {
        "data": {"train": str(folder / "log.parquet"), "weight": "w"},
        "tasks": TASKS,
        "features": {
            "user": {"type": "sparse", "ids": "plain", "rows": 20},
            "item": {"type": "sparse", "ids": "vocabulary"},
            "x": {"type": "dense"},
        },
        "model": {
            "name": "mmoe",
            "dim": 4,
            "layers": [8],
            "tower_layers": [4],
            "experts": 2,
            "activation": "tanh",
        },
        "training": {"epochs": 4, "batch_size": 128, "learning_rate": 0.02, "threads": 1},
        **changes,
    }


def test_tasks_go_from_the_file_to_predictions(tmp_path) -> None:
    write_log(tmp_path / "log.parquet")
    stopping = {"early_stopping": {"metric": ["click.auc", "watch.mse"]}}
    values = described(tmp_path)
    values["training"] |= stopping
    experiment = check_experiment(values, "file")
    result = run_experiment(experiment, tmp_path / "run", observers=[])
    assert result.test is not None
    assert result.test["click.auc"] > 0.8
    assert {name.partition(".")[0] for name in result.test} == set(TASKS)
    assert {"watch.mse", "stars.accuracy", "stars.logloss", "order.auc"} <= set(result.test)
    assert result.test["buy.weight"] < result.test["click.weight"]
    assert result.baselines == {}
    predictor = load(tmp_path / "run")
    data = RunData(experiment, with_test=True)
    assert data.test is not None
    again = evaluate(predictor.model, tasks_of(experiment), data.test, lambda batch: batch)
    assert again.report["click.auc"] == pytest.approx(result.test["click.auc"], abs=1e-6)
    found = predictor.predict_tasks(pq.read_table(tmp_path / "log.parquet"))
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        "click": (1200,),
        "buy": (1200,),
        "watch": (1200,),
        "stars": (1200, 3),
        "late": (1200, 2),
        "order": (1200,),
    }
    assert (
        np.corrcoef(found["watch"], pq.read_table(tmp_path / "log.parquet")["seconds"])[0, 1] > 0.8
    )


def test_seen_again_negatives_are_the_same_and_evaluation_has_all(tmp_path) -> None:
    write_log(tmp_path / "log.parquet")
    values = described(tmp_path, model={"name": "lr"})
    del values["tasks"]
    values["data"] = {"train": str(tmp_path / "log.parquet"), "label": "click"}
    whole, some = (
        RunData(check_experiment(values | {"data": values["data"] | extra}, "file"))
        for extra in ({}, {"negatives": 0.25})
    )
    counts = [
        [_positives(one.train), _positives(one.valid), _positives(one.test)]
        for one in (whole, some)
    ]
    (positives, negatives), (kept, sampled) = counts[0][0], counts[1][0]
    assert kept == positives
    assert 0.15 * negatives < sampled < 0.35 * negatives
    assert counts[0][1:] == counts[1][1:]
    assert _positives(some.train) == counts[1][0]


def _positives(loader: Loader | None) -> tuple[int, int]:
    assert loader is not None
    labels = torch.cat([batch.labels for batch in loader])
    return int(labels.sum()), int((1 - labels).sum())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_probabilities_of_sampled_negatives_are_those_of_all_rows(tmp_path, share) -> None:
    rng = np.random.default_rng(1)
    rows = (
        1_000_000  # of which a share of 0.1 keeps so many negatives that chance moves it by 0.3 %
    )
    x, segment, bias = rng.normal(size=rows), rng.integers(0, 20, rows), rng.normal(size=20) * 0.7
    click = rng.random(rows) < 1 / (1 + np.exp(-(x + bias[segment] - 3)))
    pq.write_table(pa.table({"x": x, "segment": segment, "click": click}), tmp_path / "log.parquet")
    values = {
        "data": {"train": str(tmp_path / "log.parquet"), "label": "click", "negatives": share},
        "features": {
            "x": {"type": "dense"},
            "segment": {"type": "sparse", "ids": "plain", "rows": 20},
        },
        "model": {"name": "lr"},
        "training": {
            "epochs": 2,
            "learning_rate": 0.02,
            "batch_size": 1024,
            "schedule": {"decay": "linear"},
            "baselines": False,
            "threads": 1,
        },
    }
    run_experiment(check_experiment(values, "file"), tmp_path / "run", observers=[])
    predicted = load(tmp_path / "run").predict(pq.read_table(tmp_path / "log.parquet"))
    assert predicted.double().mean().item() / click.mean() == pytest.approx(1, abs=0.01)


def test_training_goes_on_with_new_ids(tmp_path) -> None:
    values = described(tmp_path)
    write_log(tmp_path / "log.parquet", rows=400)
    run_experiment(check_experiment(values, "file"), tmp_path / "first", observers=[])
    first = load_bundle(tmp_path / "first" / "model")
    table = pq.read_table(tmp_path / "log.parquet")
    more = pa.array([f"i{int(one.as_py()[1:]) + 5}" for one in table["item"]])
    pq.write_table(table.set_column(1, "item", more), tmp_path / "log.parquet")
    values["continue_from"] = str(tmp_path / "first")
    values["training"] |= {"epochs": 1, "learning_rate": 1e-12, "embedding_learning_rate": 1e-12}
    run_experiment(check_experiment(values, "file"), tmp_path / "second", observers=[])
    second = load_bundle(tmp_path / "second" / "model")

    # What was known has its rows and its scale; at a rate of nothing, its weights.
    probe = table.slice(0, 50)
    one, two = first.transform(probe), second.transform(probe)
    assert torch.equal(one.dense_features, two.dense_features)
    assert torch.equal(one.sparse_features.values(), two.sparse_features.values())
    with torch.no_grad():
        outputs = [
            b.model(x.dense_features, x.sparse_features) for b, x in ((first, one), (second, two))
        ]
    torch.testing.assert_close(*outputs)
    name = next(key for key in first.model.state_dict() if "embedding_bags.item.weight" in key)
    before, after = (bundle.model.state_dict()[name] for bundle in (first, second))
    assert (len(before), len(after)) == (10, 15)
    torch.testing.assert_close(after[:9], before[:9])
    torch.testing.assert_close(after[9:], before[9:].expand(6, -1))

    # Lineage: nearest first.
    values["continue_from"] = str(tmp_path / "second" / "model")
    run_experiment(check_experiment(values, "file"), tmp_path / "third", observers=[])
    third = load_bundle(tmp_path / "third" / "model")
    assert [Path(each.folder).parent.name for each in third.ancestors] == ["second", "first"]
    assert lineage(tmp_path / "second" / "model") == list(third.ancestors)
    index = json.loads((tmp_path / "third" / "model" / "bundle.json").read_text())
    assert len(index["ancestors"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"name": "ple", "dim": 4}},
            "`model.name` should be that of .* 'mmoe'. Received 'ple'",
        ),
        (
            {"model": {"name": "mmoe", "dim": 8}},
            "`model` and `tasks` should be those of the model in",
        ),
        (
            {"features": {"x": {"type": "dense"}}},
            "`features` should be those .* Received other ones: user",
        ),
        ({"continue_from": "nowhere"}, "`continue_from` should be a run that has ended"),
    ],
)
def test_what_training_does_not_go_on_from(tmp_path, trained, changes, message) -> None:
    write_log(tmp_path / "log.parquet", rows=300)
    values = described(tmp_path, continue_from=str(trained / "run")) | changes
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_experiment(check_experiment(values, "file"), tmp_path / "run", observers=[])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_log(folder / "log.parquet", rows=300)
    run_experiment(check_experiment(described(folder), "file"), folder / "run", observers=[])
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": {}},
            r"`data.label` should be given, .* or `tasks` in its place. Received neither",
        ),
        (
            {"tasks": TASKS, "model": {"name": "dlrm"}},
            "model 'dlrm' predicts, one task of one number",
        ),
        ({"tasks": {"a.b": {"label": "x"}}}, "names without dots. Received 'a.b'"),
        (
            {"tasks": {"a": {"label": "x", "kind": "regression", "loss": "focal"}}},
            "should be one of squared",
        ),
        ({"tasks": {"a": {"label": "x", "given": "b"}}}, "`tasks.a.given` should be another task"),
        (
            {"training": {"early_stopping": {"metric": "auc"}}},
            r"one of click.auc, .* Received 'auc'",
        ),
        (
            {"training": {"baselines": True}},
            "`training.baselines` should be given for one `data.label`",
        ),
        ({"features": None}, "`features` should be given with `tasks`"),
    ],
)
def test_experiments_that_are_refused(tmp_path, changes, message) -> None:
    write_log(tmp_path / "log.parquet", rows=50)
    with pytest.raises(ValueError, match=message):
        run_experiment(
            check_experiment(described(tmp_path) | changes, "file"), tmp_path / "run", observers=[]
        )
