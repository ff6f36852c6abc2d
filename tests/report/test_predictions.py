"""What a page shows of a model that was really trained: each number against a plain computation."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from torchrec.datasets.features import MultiHotFeature, VectorFeature
from torchrec.datasets.synthetic import ClickLog, write_click_log
from torchrec.experiment.tasks import TaskSection
from torchrec.metrics import auc_estimate
from torchrec.metrics.estimators import log_losses, sigmoid
from torchrec.report import watch_report, write_report
from torchrec.report.id_counts import count_ids, norms_of
from torchrec.report.importance import permutation_importance
from torchrec.report.kinds.click import average_precision, calibration_of, ranked
from torchrec.report.predictions import (
    Predictions,
    best_possible,
    load_trained,
    predict_part,
    sample,
    shared_files,
)
from torchrec.report.slices import values_of
from torchrec.report.task_predictions import TaskPredictions
from torchrec.runs import RunFolder

pytestmark = pytest.mark.once

Floats = NDArray[np.float64]
ROWS = 6_000


@pytest.fixture(scope="module")
def predictions(run: RunFolder) -> Predictions:
    return predict_part(load_trained(run))


@pytest.fixture(scope="module")
def task(predictions: Predictions) -> TaskPredictions:
    (found,) = predictions.tasks
    return found


def test_they_are_those_of_the_run(
    run: RunFolder, predictions: Predictions, task: TaskPredictions
) -> None:
    test = run.read_result().test
    assert test is not None
    assert (predictions.part, predictions.rows, len(task.labels)) == ("test", 2_000, 2_000)
    auc = auc_estimate(task.scores, task.labels).value
    assert auc == pytest.approx(test["auc"], abs=1e-6)
    assert log_losses(task.scores, task.labels).mean() == pytest.approx(test["logloss"], abs=1e-6)
    ratio = sigmoid(task.scores).sum() / task.labels.sum()
    assert ratio == pytest.approx(test["calibration"], abs=1e-6)


def test_of_many_rows_some_are_taken_evenly(run: RunFolder) -> None:
    few = predict_part(load_trained(run), most=300)
    assert few.rows == 2_000
    everything = predict_part(load_trained(run))
    (some,), (every,) = few.tasks, everything.tasks
    assert len(some.labels) == 250  # every eighth
    np.testing.assert_array_equal(some.labels, every.labels[::8])
    np.testing.assert_allclose(some.scores, every.scores[::8], rtol=1e-5, atol=1e-6)
    assert "250 of the 2,000 rows of the test data" in few.sentence()


@pytest.mark.parametrize("most", [1, 7, 100, 5_000])
@pytest.mark.parametrize("sizes", [[1], [100, 1, 64, 3], [10, 0, 990]])
def test_samples_are_every_second_fourth_eighth_row(sizes: list[int], most: int) -> None:
    ends = np.cumsum([0, *sizes])
    tables = [pa.table({"n": np.arange(a, b)}) for a, b in itertools.pairwise(ends)]
    rows, seen = sample(iter(tables), most)
    assert seen == ends[-1]
    stride = 1
    while len(range(0, seen, stride)) > most:
        stride *= 2
    assert rows["n"].to_pylist() == list(range(0, seen, stride))


def test_slices_are_the_rows_of_a_value(predictions: Predictions, task: TaskPredictions) -> None:
    country = values_of(
        "country", predictions.trained.transform.features["country"], predictions.table
    )
    assert country is not None
    found = dict(country.largest(9))
    expected = np.array(predictions.table["country"].to_pylist(), dtype=object)
    assert set(found) == {"de", "fr", "(none)"}
    np.testing.assert_array_equal(found["de"], np.flatnonzero(expected == "de"))
    np.testing.assert_array_equal(
        found["(none)"], [n for n, value in enumerate(expected) if value is None]
    )
    german = task.at(found["de"])
    np.testing.assert_array_equal(german.rows, found["de"])
    labels, logits = task.labels[expected == "de"], task.scores[expected == "de"]
    assert german.mean(german.labels) == labels.mean()
    assert german.interval("auc").value == pytest.approx(
        auc_estimate(logits, labels).value, abs=1e-9
    )
    calibration = calibration_of(german)
    assert calibration.low < calibration.value < calibration.high


def test_a_row_with_several_values_is_in_each_of_their_slices(predictions: Predictions) -> None:
    tags = values_of("tags", predictions.trained.transform.features["tags"], predictions.table)
    assert tags is not None
    lists = predictions.table["tags"].to_pylist()
    for name, rows in tags.largest(3):
        assert rows.tolist() == [n for n, values in enumerate(lists) if name in values]


def test_numbers_are_no_categories(predictions: Predictions) -> None:
    features = predictions.trained.transform.features
    assert values_of("price", features["price"], predictions.table) is None
    few = predictions.table.set_column(3, "price", pa.array([1.0, 2.0] * 1_000))
    assert values_of("price", features["price"], few) is not None


def _task(logits: Floats, labels: Floats) -> TaskPredictions:
    return TaskPredictions("", TaskSection(label="y"), np.arange(len(labels)), labels, logits)


def test_a_calibration_of_chance_is_held_by_its_interval() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        logits = random.normal(size=200)
        found = calibration_of(_task(logits, (random.random(200) < sigmoid(logits)).astype(float)))
        held += found.low <= 1.0 <= found.high
    assert 0.91 <= held / 300 <= 0.99
    assert np.isnan(calibration_of(_task(np.array([0.5]), np.array([0.0]))).value)


def test_ids_are_counted_in_the_training_data(run: RunFolder, predictions: Predictions) -> None:
    (users,) = count_ids(predictions.trained, ["user", "country", "tags"])  # the others are few
    train_table = pq.read_table(run.path.parent / "train.parquet")
    names, counts = np.unique(train_table["user"].to_pylist(), return_counts=True)
    assert users.rows == ROWS
    assert users.of(pa.array(names)).tolist() == counts.tolist()
    assert users.of(pa.array(["u1", "nobody", None])).tolist()[1:] == [0, 0]


def test_norms_are_those_of_the_rows_that_ids_have(predictions: Predictions) -> None:
    trained = predictions.trained
    (users,) = count_ids(trained, ["user"])
    ids = pa.array(["u1", "u2", "u3"])
    found = norms_of(trained, users, ids, predictions.table.slice(0, 1))
    from torchrec.modules.collection import collections_in

    stores = [collection.table_store() for _, collection in collections_in(trained.model)]
    norms = np.concatenate(
        [
            store.export_rows(config.name)[1].double().norm(dim=1).numpy()
            for store in stores
            for config in store.table_configs()
            if config.name == "user"
        ]
    )
    assert len(set(found.tolist())) == 3
    for norm in found:
        assert np.abs(norms - norm).min() < 1e-6


def test_importance_is_what_shuffling_costs(
    predictions: Predictions, task: TaskPredictions
) -> None:
    (found,) = permutation_importance(predictions).tasks
    assert found.metrics == ("auc", "logloss")
    by_name = {one.name: one.lost for one in found.columns}
    assert list(by_name) == ["user", "country", "tags", "price", "noise"]
    assert by_name["user"]["auc"].low > 0.05
    assert by_name["price"]["logloss"].low > 0.02
    assert by_name["noise"]["auc"].low < 0.01
    # Against plain shuffles, as many as make chance small on either side.
    random, table = np.random.default_rng(1), predictions.table
    lost = []
    for _ in range(20):
        column = table["user"].take(random.permutation(2_000))
        place = table.schema.get_field_index("user")
        shuffled = table.set_column(place, table.schema.field(place), column)
        (logits,) = predictions.trained.scores(shuffled).values()
        lost.append(
            auc_estimate(task.scores, task.labels).value - auc_estimate(logits, task.labels).value
        )
    (more,) = permutation_importance(predictions, repeats=20).tasks
    (user,) = [one.lost["auc"] for one in more.columns if one.name == "user"]
    assert user.value == pytest.approx(np.mean(lost), abs=0.01)
    assert user.high > np.mean(lost) > user.low


def test_the_budget_bounds_the_rows(predictions: Predictions) -> None:
    found = permutation_importance(predictions, budget=5 * 2 * 1_200, repeats=2)
    assert found.rows == 1_200
    assert permutation_importance(predictions, budget=1, repeats=1).rows == 1_000


def test_curves_of_ranking_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, roc_curve

    random = np.random.default_rng(0)
    scores, labels = np.round(random.normal(size=500), 1), (random.random(500) < 0.3).astype(float)
    positives, negatives = ranked(scores, labels, np.ones(500))
    assert average_precision(positives, negatives) == pytest.approx(
        average_precision_score(labels, scores)
    )
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(negatives / negatives[-1], x)
    np.testing.assert_allclose(positives / positives[-1], y)


def test_the_page_has_all_cards(run: RunFolder) -> None:
    text = write_report(run.path).read_text("utf-8")
    for title in (
        "ROC",
        "Precision and recall",
        "Gain",
        "Importance",
        "Calibration by slice",
        "Norms by id frequency",
        "Metrics by feature value",
        "Seen and unseen ids",
        "all 2,000 rows of the test data",
        "user: never",
        "6,000 rows",
        "PyTorch",
        "UTC",
    ):
        assert title in text
    assert "What needs predictions" not in text


def test_without_its_data_the_page_says_so(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    test = run.path.parent / "test.parquet"
    hidden = test.rename(test.with_suffix(".hidden"))
    try:
        text = write_report(tmp_path / "run").read_text("utf-8")
    finally:
        hidden.rename(test)
    assert "What needs predictions is left out." in text
    assert "test.parquet" in text
    assert "<h3>ROC" not in text
    assert "<h3>Importance" not in text
    assert "<h3>AUC" in text
    assert "<figure" in text


def test_without_predictions_nothing_is_said_of_them(run: RunFolder, tmp_path: Path) -> None:
    path = write_report(run.path, tmp_path / "page.html", predictions=False)
    text = path.read_text("utf-8")
    assert "left out" not in text
    assert "<h3>ROC" not in text
    assert "<h3>Calibration" in text  # of the end of the run


def test_generated_data_tell_what_is_best_possible(
    predictions: Predictions, tmp_path: Path
) -> None:
    assert best_possible(None) == {}
    experiment = predictions.trained.experiment
    assert best_possible(experiment) == {}
    files = {
        path.stem: (path, limits)
        for path, limits in write_click_log(ClickLog(rows=2_000), tmp_path).items()
    }
    parts = {part: [str(files[part][0])] for part in ("valid", "test")}

    def of(**data: object) -> dict[str, dict[str, float]]:
        changed = experiment.data.model_copy(update={"test": [], **data})
        return best_possible(experiment.model_copy(update={"data": changed}))

    assert of(**parts) == {
        part: {"auc": limits.auc, "ne": limits.ne, "logloss": limits.logloss}
        for part, (_, limits) in files.items()
        if part in parts
    }
    assert of(test=parts["test"]).keys() == {"test"}
    # Of other rows or labels nobody knows, nor of files that are gone.
    assert of(**parts, label="price") == {}
    assert of(**parts, drop="price > 3") == {}
    assert of(test=parts["valid"] + parts["test"]) == {}
    assert of(test=[str(tmp_path / "gone.parquet")]) == {}


def test_files_that_were_trained_on_are_told(run: RunFolder, tmp_path: Path) -> None:
    experiment = load_trained(run).experiment
    assert shared_files(None) == shared_files(experiment) == []
    train, data = Path(experiment.data.train[0]), experiment.data
    (tmp_path / "link.parquet").symlink_to(train)
    for paths in ([str(train)], [*data.test, str(train.parent / "tr*.parquet")], [str(tmp_path)]):
        changed = data.model_copy(update={"test": paths})
        assert shared_files(experiment.model_copy(update={"data": changed})) == [
            "The test data have files of the training data, which the model may know by heart: "
            f"{train.resolve()}."
        ]
    gone = data.model_copy(update={"test": [str(tmp_path / "gone.parquet")]})
    assert shared_files(experiment.model_copy(update={"data": gone})) == []


def test_a_page_is_written_again_until_the_end(run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "young")
    folder.path.mkdir()
    thread = threading.Thread(
        target=watch_report, args=(folder.path,), kwargs={"every": 0.05, "predictions": False}
    )
    thread.start()
    _wait_for(folder.page, "Nothing has been measured yet.")
    assert 'http-equiv="refresh" content="0.05"' in folder.page.read_text("utf-8")
    _put_whole(run.experiment, folder.experiment)
    _put_whole(run.metrics, folder.metrics)
    _wait_for(folder.page, "<h3>AUC")
    assert 'http-equiv="refresh"' in folder.page.read_text("utf-8")
    _put_whole(run.result, folder.result)
    thread.join(timeout=60)
    assert not thread.is_alive()
    text = folder.page.read_text("utf-8")
    assert 'http-equiv="refresh"' not in text
    assert "On the test data" in text


def _put_whole(source: Path, target: Path) -> None:
    """As a run writes its files: whoever looks on never sees a half."""
    os.replace(shutil.copy(source, target.with_suffix(".new")), target)


def _wait_for(path: Path, text: str) -> None:
    for _ in range(600):
        if path.is_file() and text in path.read_text("utf-8"):
            return
        time.sleep(0.05)
    raise AssertionError(f"'{text}' did not come")


def test_what_watching_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"that trains\. Received no such folder"):
        watch_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"`every` should be a number .* above 0\. Received 0"):
        watch_report(tmp_path, every=0)


def test_an_interrupt_leaves_a_page_that_rests(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(run.metrics, tmp_path / "metrics.jsonl")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchrec.report.watch.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        watch_report(tmp_path)
    assert 'http-equiv="refresh"' not in (tmp_path / "report.html").read_text("utf-8")


def test_values_of_lists_in_lists_and_of_vectors() -> None:
    table = pa.table({"baskets": [[[1, 2], [1]], None, [[2]]], "image": [[0.5], [1.5], None]})
    found = values_of("baskets", MultiHotFeature(), table)
    assert found is not None
    names = found.names.to_pylist()
    pairs = [(names[code], row) for code, row in zip(found.codes, found.rows, strict=True)]
    assert pairs == [(1, 0), (2, 0), (1, 0), (2, 2)]
    assert values_of("image", VectorFeature(size=1), table) is None
