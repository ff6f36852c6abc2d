"""Metrics within groups: asked for in the experiment file, measured by evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training.test_run import experiment, run
from torchrec.datasets.transform import group_ids
from torchrec.datasets.transform.labels import Label
from torchrec.experiment.schema import Experiment
from torchrec.inference import load
from torchrec.metrics import GroupedMetrics
from torchrec.metrics.grouped import NO_GROUP
from torchrec.training import Task

pytestmark = pytest.mark.once

METRICS = ["gauc(user)", "ndcg@3(user)", "hit@1(city)"]


def with_metrics(path: Path, metrics: list[str], **sections: dict[str, Any]) -> Experiment:
    values = experiment(path).model_dump()
    for name, changes in sections.items():
        values[name] = {**(values[name] or {}), **changes}
    return Experiment.model_validate({**values, "metrics": metrics})


def test_a_run_measures_them_and_stops_by_one(clicks: Path, tmp_path: Path) -> None:
    """Neither column need be a feature; rows without a city are of no group."""
    test = tmp_path / "test.parquet"
    pq.write_table(pq.read_table(clicks).slice(0, 400), test)
    asked = with_metrics(
        clicks,
        METRICS,
        data={"test": [str(test)], "split": {"test": 0.0}},
        features={"price": {"type": "dense"}, "tags": {"type": "multi_hot", "rows": 20}},
        training={"epochs": 3, "early_stopping": {"metric": "gauc(user)", "patience": 1}},
    )
    result = run(asked, tmp_path / "run")
    assert result.test is not None
    table = pq.read_table(test)
    expected = GroupedMetrics(METRICS)
    predictor = load(tmp_path / "run")
    groups = {name: group_ids(table, name) for name in expected.columns}
    labels = torch.from_numpy(Label("click").read(table))
    expected.update(predictor.logits(table), labels, groups=groups)
    numbers = expected.compute()
    assert {name: result.test[name] for name in METRICS} == pytest.approx(dict(numbers))
    assert result.test["groups(city)"] == 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    valid = [line for line in map(json.loads, lines) if line["split"] == "valid"]
    assert max(valid, key=lambda line: line["gauc(user)"])["step"] == result.best_step


@pytest.mark.parametrize(
    ("metrics", "stopping", "message"),
    [
        (["auc"], "auc", "`auc` is measured in any case"),
        (
            ["gauc(user)", "gauc( user )"],
            "auc",
            r"`metrics` should differ. Received gauc\(user\), gauc",
        ),
        (["ndcg(user)"], "auc", r"as ndcg@10\(user\)"),
        (
            ["gauc(user)"],
            "mrr(user)",
            r"one of auc, ne, logloss, gauc\(user\), or a list of them. Received 'mrr\(user\)'",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    metrics: list[str], stopping: str, message: str, clicks: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        with_metrics(clicks, metrics, training={"early_stopping": {"metric": stopping}})


def of_tasks(path: Path, stopping: str, **kinds: dict[str, Any]) -> Experiment:
    tasks = {name: {"label": "click", **task} for name, task in kinds.items()}
    values = experiment(path).model_dump()
    training = {**values["training"], "early_stopping": {"metric": stopping}}
    data = {**values["data"], "label": None}
    changes = {"data": data, "tasks": tasks, "training": training, "metrics": ["gauc(user)"]}
    return Experiment.model_validate({**values, **changes})


def test_early_stopping_goes_by_that_of_one_of_several_tasks(clicks: Path) -> None:
    regression = {"kind": "regression"}
    asked = of_tasks(clicks, "a.gauc(user)", a={}, b=regression)
    assert asked.training.early_stopping is not None
    assert asked.training.early_stopping.metrics == ("a.gauc(user)",)
    with pytest.raises(ValueError, match=r"a.gauc\(user\), .*Received 'gauc\(user\)'"):
        of_tasks(clicks, "gauc(user)", a={}, b=regression)
    assert of_tasks(clicks, "gauc(user)", a={}).tasks is not None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["gauc(user)", "mrr", "hit@10"], ["gauc(user)", "mrr(user)", "hit@10(user)"]),
        (["hit @ 10", " gauc( user )"], ["hit@10(user)", "gauc(user)"]),
        (["gauc(user)", "hit@1(city)", "mrr"], r"as mrr\(user\)\. Received 'mrr'"),
        (["hit@10"], r"as hit@10\(user\)\. Received 'hit@10'"),
        (["gauc(user)", "auc"], "`auc` is measured in any case"),
        (["gauc(user)", "ndgc@3"], "ndgc"),
    ],
)
def test_a_metric_without_a_column_takes_that_of_the_others(
    given: list[str], expected: list[str] | str
) -> None:
    def read() -> Experiment:
        return Experiment.model_validate(
            {"data": {"train": "/log.csv", "label": "click"}, "metrics": given}
        )

    if isinstance(expected, list):
        assert read().metrics == expected
    else:
        with pytest.raises(ValueError, match=expected):
            read()


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_a_task_of_classes_has_none(kind: str, clicks: Path) -> None:
    with pytest.raises(ValueError, match=rf"Received gauc\(user\) with task 'b' of kind {kind}"):
        of_tasks(clicks, "a.auc", a={}, b={"kind": kind, "classes": 3})


def test_each_task_has_its_own_or_those_of_the_experiment(clicks: Path, tmp_path: Path) -> None:
    asked = of_tasks(clicks, "click.auc", click={}, price={"kind": "regression"})
    values = asked.model_dump()
    values["metrics"] = ["hit@1(city)"]
    values["tasks"]["click"]["metrics"] = ["gauc(user)", "mrr(user)"]
    values["tasks"]["price"]["metrics"] = None
    values["features"] = {"user": {"type": "sparse"}}
    values["model"] = {"name": "shared_bottom", "layers": [4], "tower_layers": []}
    values["training"]["early_stopping"]["metric"] = "click.mrr(user)"
    values["training"]["epochs"] = 1
    asked = Experiment.model_validate(values)
    assert asked.group_metrics == ["gauc(user)", "mrr(user)", "hit@1(city)"]
    result = run(asked, tmp_path / "run")
    assert result.test is not None
    measured = [name for name in result.test if "(" in name and not name.startswith("groups")]
    assert {name for name in measured if ".groups" not in name} == {
        "click.gauc(user)",
        "click.mrr(user)",
        "price.hit@1(city)",
    }
    values["tasks"]["price"]["metrics"] = []
    assert Experiment.model_validate(values).group_metrics == ["gauc(user)", "mrr(user)"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["mrr(user)", "mrr( user )"], r"`tasks.click.metrics` should differ"),
        (["auc"], "`auc` is measured in any case"),
    ],
)
def test_metrics_of_a_task_that_cannot_be_measured_are_refused(
    own: list[str], message: str, clicks: Path
) -> None:
    values = of_tasks(clicks, "auc", click={}).model_dump()
    values["tasks"]["click"]["metrics"] = own
    with pytest.raises(ValueError, match=message):
        Experiment.model_validate(values)


def test_labels_below_0_are_refused_before_training(clicks: Path, tmp_path: Path) -> None:
    values = of_tasks(clicks, "click.auc", click={}, price={"kind": "regression"}).model_dump()
    values["tasks"]["price"]["label"] = "price - 1000"
    values["model"] = {"name": "shared_bottom", "layers": [4], "tower_layers": []}
    values["features"] = {"user": {"type": "sparse"}}
    message = (
        r"`tasks.price.label` 'price - 1000' should not be below 0 to be measured by gauc\(user\)"
    )
    with pytest.raises(ValueError, match=message):
        run(Experiment.model_validate(values), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_column_that_is_not_there_is_named(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'usr'"):
        run(with_metrics(clicks, ["gauc(usr)"]), tmp_path / "run")


def test_groups_are_ids_of_values() -> None:
    columns = {
        "text": pa.array(["a", None, "b", "a"]),
        "number": pa.array([3.0, None, 4.0, 3.0]),
        "list": pa.array([[1], [2], [], []]),
    }
    table = pa.table({**columns, "dictionary": columns["text"].dictionary_encode()})
    for name in ("text", "number", "dictionary"):
        ids = group_ids(table, name).tolist()
        assert ids[0] == ids[3] != ids[2]
        assert ids[1] == NO_GROUP
    with pytest.raises(ValueError, match=r"should be one a row. Received column 'list'"):
        group_ids(table, "list")
    with pytest.raises(ValueError, match=r"'txt' .* The nearest is 'text'"):
        group_ids(table, "txt")


def test_a_task_of_metrics_that_are_none_is_refused() -> None:
    with pytest.raises(ValueError, match="should be among gauc"):
        Task(group_metrics=("auc",))
