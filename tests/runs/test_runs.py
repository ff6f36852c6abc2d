"""What a run leaves in its folder: there and back, old and new, and every bit of it checked."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.runs import (
    Fitted,
    MetricsFile,
    RunFolder,
    RunReport,
    RunResult,
    TableFacts,
    lock,
    read_run,
)

pytestmark = pytest.mark.once

RESULT = RunResult(
    train={"auc": 0.75, "ne": None, "samples": 300},
    valid={"auc": 0.5},
    test=None,
    samples_per_second=1250.5,
    seconds=2.25,
    peak_rss_bytes=1 << 30,
    steps=7,
    epochs=1,
    samples=300,
    best_step=5,
    best_epoch=1,
    notes=("on test the model is worse than always predicting the mean (NE 1.39)",),
)
REPORT = RunReport(
    [TableFacts("user", {"rows": 100, "dead_rows": None}), TableFacts("item", {"rows": 7.5})],
    {"predicted": [0.25, 0.5], "observed": [0.125, 1.0]},
)


def _write(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.write_experiment("model:\n  name: dlrm\n")
    log = MetricsFile(folder.metrics)
    log.append({"step": 5, "split": "train", "samples": 200, "auc": 0.7, "ids": {"missing": 3}})
    log.append({"step": 5, "split": "valid", "samples": 200, "auc": 0.5})
    folder.write_report(REPORT)
    folder.write_result(RESULT)
    return folder


def test_all_comes_back(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    assert folder.read_result() == RESULT
    report = folder.read_report()
    assert report.curves == REPORT.curves
    assert [table.name for table in report.tables] == ["user", "item"]
    assert [table.values for table in report.tables] == [{"rows": 100}, {"rows": 7.5}]
    run = read_run(tmp_path)
    assert run.series("train", "auc") == ([200], [0.7])
    assert [line.split for line in run.lines] == ["train", "valid"]
    assert run.lines[0].ids == {"missing": 3}
    assert run.scores == {"train": {"auc": 0.75, "samples": 300}, "valid": {"auc": 0.5}}
    assert (run.facts["steps"], run.facts["seconds"]) == (7, 2.25)
    assert run.notes == []


@pytest.mark.slow
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Harmless is what leaves all that is shown as it was, such as a bit of the layout."""
    folder = _write(tmp_path)
    before = read_run(tmp_path)
    for path in (folder.result, folder.report, folder.metrics, folder.experiment):
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                run = read_run(tmp_path)
            except ValueError as error:
                unnoticed = str(path) not in str(error)
            else:
                unnoticed = run != before and not any("was changed" in note for note in run.notes)
            assert not unnoticed, (path, bit)
        path.write_bytes(whole)


def test_the_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Without checksums, and with fewer keys."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "auc": 0.5}\n')
    old = {"train": {"auc": 0.5}, "valid": None, "test": None}
    old |= {"samples_per_second": 2.0, "seconds": 1.0, "peak_rss_bytes": 5}
    (tmp_path / "result.json").write_text(json.dumps(old))
    (tmp_path / "report.json").write_text('{"tables": [{"name": "t", "rows": 3}], "curves": {}}')
    run = read_run(tmp_path)
    assert run.series("train", "auc") == ([1], [0.5])
    assert (run.facts["peak_rss_bytes"], run.tables[0].values, run.notes) == (5, {"rows": 3}, [])


def test_an_experiment_stays_as_it_was_when_the_run_began(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_experiment("first")
    folder.write_experiment("second")
    assert folder.experiment.read_text() == "first"


@pytest.mark.parametrize("ended", [True, False])
def test_a_line_that_is_being_written_is_left_out(tmp_path: Path, ended: bool) -> None:
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    length = log.sync()
    log.append({"step": 2})
    log.path.write_bytes(log.path.read_bytes()[:-5])
    if ended:
        with pytest.raises(ValueError, match=r"metrics\.jsonl' .* damaged: line 2"):
            log.read(ended=True)
    else:
        assert [line.step for line in log.read()] == [1]
    log.truncate(length)
    assert [line.step for line in log.read(ended=True)] == [1]


def test_a_damaged_line_before_others_is_refused(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "auc": 0.75})
    log.append({"step": 2, "auc": 0.75})
    log.path.write_text(log.path.read_text().replace("0.75", "0.25", 1))
    with pytest.raises(ValueError, match=r"damaged: line 1: its content has checksum"):
        log.read()


def test_what_was_fitted_comes_back_or_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"user": ["a", "b", "a"], "price": [1.0, 2.0, None], "click": [0, 1, 1]})
    transform = FeatureTransform({"user": SparseFeature(), "price": DenseFeature()}, "click")
    transform.fit([table])
    folder = RunFolder(tmp_path)
    folder.write_fitted(Fitted(transform, {"price": "number"}, 3))
    fitted = folder.read_fitted()
    assert (fitted.types, fitted.rows) == ({"price": "number"}, 3)
    assert fitted.transform.features == transform.features
    path = folder.fitted / "transform.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"transform\.arrow' should be as it was written"):
        folder.read_fitted()
    (folder.fitted / "index.json").unlink()
    with pytest.raises(ValueError, match="of format 1, which earlier builds of rowwise"):
        folder.read_fitted()


def _is_locked(path: Path) -> bool:
    try:
        with lock(path):
            return False
    except ValueError:
        return True


def test_a_lock_is_of_all_processes_and_ends(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        with lock(tmp_path / "run"):
            assert pool.apply(_is_locked, (tmp_path / "run",))
        assert not pool.apply(_is_locked, (tmp_path / "run",))


@pytest.mark.parametrize("name", ["index.json", "transform.json", "transform.arrow"])
@pytest.mark.parametrize("how", ["cut", "removed"])
def test_damage_of_the_transform_says_what_to_do(tmp_path: Path, name: str, how: str) -> None:
    folder = RunFolder(tmp_path)
    features = {"user": SparseFeature(rows=10, ids="hash")}
    folder.write_fitted(Fitted(FeatureTransform(features, "click"), {}, 3))
    path = folder.fitted / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"start a new run\.$") as caught:
        folder.read_fitted()
    assert str(folder.fitted if (name, how) == ("index.json", "removed") else path) in str(
        caught.value
    )
