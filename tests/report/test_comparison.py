"""Runs beside one another: which differences are told, and which are not."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from torchrec.datasets.source import TableSource
from torchrec.experiment.rows import SampledNegativesSection
from torchrec.metrics import MetricDifference, auc_estimate
from torchrec.metrics.estimators import log_losses
from torchrec.report import Comparison, compare_runs, write_comparison
from torchrec.report.comparison import differing_keys, short_names, unpaired
from torchrec.report.predictions import Predictions, Trained, load_trained, predict_part
from torchrec.report.task_predictions import TaskPredictions
from torchrec.report.verdicts import holm
from torchrec.runs import RunFolder

pytestmark = pytest.mark.once


def predicted(run: RunFolder) -> TaskPredictions:
    (found,) = predict_part(load_trained(run)).tasks
    return found


def difference(found: Comparison, metric: str) -> MetricDifference:
    """Return that of the second run to the first, in the only task."""
    (task,) = found.tasks
    one = task.differences[metric][0]
    assert one is not None
    return one


def test_a_better_run_is_told_with_its_interval(run: RunFolder, poor_run: RunFolder) -> None:
    found = compare_runs([poor_run.path, run.path])
    (verdict,) = found.verdicts
    one, two = (auc_estimate(task.scores, task.labels) for task in map(predicted, (poor_run, run)))
    expected, gap = one.difference(two).difference, difference(found, "auc").difference
    for end in ("value", "low", "high"):
        assert getattr(gap, end) == pytest.approx(getattr(expected, end), abs=1e-9)
    assert verdict.sentence.startswith(
        f"first is better than poor by {gap.value:.4f} AUC [{gap.low:.4f}, {gap.high:.4f}], p < .001; "
        "its log loss is lower by 0."
    )
    (turned,) = compare_runs([run.path, poor_run.path]).verdicts
    assert turned.sentence.startswith(
        f"poor is worse than first by {gap.value:.4f} AUC [{gap.low:.4f}, {gap.high:.4f}], p < .001; "
        "its log loss is higher by 0."
    )


def test_rows_that_both_predict_are_paired(run: RunFolder, like_run: RunFolder) -> None:
    """What two models have in common cancels out: far less is left than their intervals say."""
    found = compare_runs([run.path, like_run.path])
    gap, alone = difference(found, "auc").difference, found.tasks[0].metrics["auc"][0]
    assert alone is not None
    paired = gap.high - gap.low
    assert paired < (alone.high - alone.low) / 2
    assert found.differing == [("training.batch_size", ["256", "240"])]
    assert not any("not tested on the rows" in note for note in found.notes)


def test_the_log_loss_of_paired_rows_is_that_of_their_differences(
    run: RunFolder, like_run: RunFolder
) -> None:
    found = difference(compare_runs([run.path, like_run.path]), "logloss")
    one, two = (log_losses(task.scores, task.labels) for task in map(predicted, (run, like_run)))
    gaps = two - one
    reach = 1.959964 * gaps.std(ddof=1) / math.sqrt(len(gaps))
    assert found.difference.value == pytest.approx(gaps.mean())
    assert found.difference.high == pytest.approx(gaps.mean() + reach)
    z = abs(gaps.mean()) / (gaps.std(ddof=1) / math.sqrt(len(gaps)))
    assert found.p == pytest.approx(2 * norm.sf(z))


def test_runs_that_were_tested_on_other_rows_are_not_paired(
    run: RunFolder, elsewhere_run: RunFolder
) -> None:
    found = compare_runs([run.path, elsewhere_run.path])
    gap = difference(found, "auc").difference
    assert "elsewhere was not tested on the rows of first: its files are others." in found.notes[0]
    halves = [(one.high - one.low) / 2 for one in found.tasks[0].metrics["auc"] if one is not None]
    assert len(halves) == 2
    reach = gap.high - gap.value
    assert reach == pytest.approx(math.hypot(*halves), rel=0.05)


def test_a_copy_of_the_data_is_the_same_data(
    run: RunFolder, like_run: RunFolder, tmp_path: Path
) -> None:
    """Paths say where rows lie, not which they are."""
    for name in ("train", "valid", "test"):
        shutil.copy(run.path.parent / f"{name}.parquet", tmp_path)
    one, two = (predict_part(load_trained(folder)) for folder in (run, like_run))
    sources = two.trained.sources
    moved = replace(
        two,
        trained=replace(
            two.trained, sources=sources._replace(test=TableSource(tmp_path / "test.parquet"))
        ),
    )
    assert unpaired(one, moved) == ""
    other = replace(
        two,
        trained=replace(
            two.trained, sources=sources._replace(test=TableSource(tmp_path / "valid.parquet"))
        ),
    )
    assert unpaired(one, other) == "its files are others"
    dropped = TableSource(tmp_path / "test.parquet", drop="price > 3")
    less = replace(two, trained=replace(two.trained, sources=sources._replace(test=dropped)))
    assert unpaired(one, less) == "`data.drop` is another"
    negatives = SampledNegativesSection(per_positive=2, user="user", item="country")
    for key, value in (("weight", "price"), ("sampled_negatives", negatives)):
        data = two.trained.experiment.data.model_copy(update={key: value})
        changed = two.trained.experiment.model_copy(update={"data": data})
        others = replace(two, trained=replace(two.trained, experiment=changed))
        assert unpaired(one, others) == f"`data.{key}` is another"
    assert unpaired(one, replace(two, part="valid")) == "its rows are those of valid, not of test"


def test_files_that_are_read_otherwise_have_other_rows(
    run: RunFolder, like_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(trained: Trained, most: int) -> Predictions:
        found = predict_part(trained, most)
        (task,) = found.tasks
        if trained.experiment.training.batch_size == 240:
            task = replace(task, labels=1 - task.labels)
        return replace(found, tasks=[task])

    monkeypatch.setattr("torchrec.report.comparison.predict_part", turned)
    found = compare_runs([run.path, like_run.path])
    assert "like was not tested on the rows of first: its labels are others." in found.notes[0]
    alone = [one.high - one.low for one in found.tasks[0].metrics["logloss"] if one is not None]
    gap = difference(found, "logloss").difference
    assert gap.high - gap.low > max(alone)


def test_without_its_data_a_run_has_its_metrics_still(
    run: RunFolder, like_run: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(like_run.path, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "model")
    found = compare_runs([run.path, tmp_path / "bare"])
    ((_, bare),) = (task.metrics["auc"] for task in found.tasks)
    test = like_run.read_result().test
    assert test is not None
    assert bare is not None
    assert bare.value == test["auc"]
    assert math.isnan(bare.low)
    assert "bare: no intervals." in found.notes[0]
    (verdict,) = found.verdicts
    assert found.tasks[0].differences["auc"] == [None]
    assert "nothing tells whether that is chance" in verdict.sentence


def test_of_three_runs_all_are_compared_with_the_first(
    run: RunFolder, poor_run: RunFolder, like_run: RunFolder, tmp_path: Path
) -> None:
    found = compare_runs([run.path, like_run.path, poor_run.path])
    assert [verdict.sentence.split()[0] for verdict in found.verdicts] == ["like", "poor"]
    assert "The p-values are adjusted for the number of runs (Holm)." in found.notes
    text = write_comparison(found, tmp_path / "compare.html").read_text("utf-8")
    for part in (
        "first · like · poor",
        "<h3>ROC",
        "Metrics",
        "training.learning_rate",
        "<h3>AUC, validation</h3>",
        found.verdicts[1].sentence.replace("<", "&lt;"),
    ):
        assert part in text
    assert "http" not in text.replace("http-equiv", "")


def test_intervals_of_single_metrics_hold_their_values(run: RunFolder) -> None:
    test = run.read_result().test
    assert test is not None
    for name, interval in predicted(run).intervals().items():
        expected = test[name]
        assert expected is not None
        assert interval.value == pytest.approx(expected, abs=1e-6)
        assert interval.low < expected < interval.high


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01], [0.01]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.04, 0.01, 0.02], [0.04, 0.03, 0.04]),
        ([math.nan], [math.nan]),
        ([], []),
    ],
)
def test_p_values_are_adjusted_as_holm_says(p_values: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(holm(p_values), expected)


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["/a/x/run", "/b/x/run", "/b/y/run"]) == ["a/x/run", "b/x/run", "b/y/run"]


def test_keys_that_only_one_has_differ() -> None:
    assert differing_keys([{"a": "1"}, {"a": "1", "b": "2"}, {}]) == [
        ("a", ["1", "1", "\N{EN DASH}"]),
        ("b", ["\N{EN DASH}", "2", "\N{EN DASH}"]),
    ]
    assert differing_keys([{"output": "a"}, {"output": "b"}]) == []


def test_what_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two or more\. Received 1"):
        compare_runs([run.path])
    with pytest.raises(ValueError, match=r"should be different\. Received '.*first' twice"):
        compare_runs([run.path, run.path.parent / "." / "first"])
    with pytest.raises(ValueError, match="Received no such folder"):
        compare_runs([run.path, tmp_path / "nothing"])
    shutil.copytree(run.path, tmp_path / "other")
    path = tmp_path / "other" / "experiment.yaml"
    path.write_text(path.read_text().replace("label: click", "label: price > 1"))
    with pytest.raises(
        ValueError, match=r"the same label\. Received `click` \(first\), `price > 1`"
    ):
        compare_runs([run.path, tmp_path / "other"])
