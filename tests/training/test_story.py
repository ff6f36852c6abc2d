"""Observers are told one story, once: begin, steps, records, end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.clicks import ClickModel, Source, make_trainer, valid_batches
from torchrec.datasets.utils import Batch
from torchrec.experiment.files import check_experiment
from torchrec.metrics import BinaryMetrics, Report
from torchrec.training import Checkpoints, Extent, Observer, Record, Task, trainer
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once


class Story(Observer):
    """Keeps all that it is told, in order; breaks off after a step if so told."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._stop = stop

    def started(self, extent: Extent) -> None:
        self.calls.append(("started", extent.step))

    def stepped(self, step: int, samples: int) -> None:
        self.calls.append(("stepped", step))
        if step == self._stop:
            raise KeyboardInterrupt

    def recorded(self, record: Record) -> None:
        self.calls.append((record.split, record.step))

    def said(self, message: str) -> None:
        self.calls.append(("said", message))

    def ended(self) -> None:
        self.calls.append(("ended", None))

    def of(self, name: str) -> list[Any]:
        return [what for call, what in self.calls if call == name]

    def check(self) -> None:
        """What holds of every story."""
        names = [name for name, _ in self.calls]
        assert names.count("started") == names.count("ended") == 1
        assert names[-1] == "ended"
        told_before = set(names[: names.index("started")])
        assert told_before <= {"said"}
        for name in ("stepped", "train", "valid", "test"):
            assert self.of(name) == sorted(set(self.of(name)))


class Passes:
    """Batches to evaluate on, and how often they were read."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[Batch]:
        self.count += 1
        yield from valid_batches()


class CountedMetrics(BinaryMetrics):
    reports = 0

    def compute(self, curves: bool = False) -> Report:
        report = super().compute(curves)
        CountedMetrics.reports += report.samples > 0
        return report


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ({}, [7, 14]),
        ({"evaluate_every": 7}, [7, 14]),
        ({"evaluate_every": 5}, [5, 7, 10, 14]),
        ({"epochs": 9, "early_stopping": {"min_delta": 1.0, "patience": 1}}, [7, 14]),
        ({"early_stopping": {"patience": 9}, "evaluate_every": 2}, [2, 4, 6, 7, 8, 10, 12, 14]),
    ],
    ids=["once an epoch", "at the end of epochs", "within epochs", "stopped", "best restored"],
)
@pytest.mark.parametrize("tested", [True, False], ids=["tested", "not tested"])
def test_nothing_is_read_or_computed_twice(
    options: dict[str, Any], evaluations: list[int], tested: bool
) -> None:
    story, valid, test = Story(), Passes(), Passes()
    CountedMetrics.reports = 0
    result = make_trainer(
        ClickModel(), tasks=Task(metrics=CountedMetrics), observers=[story], log_every=4, **options
    ).fit(Source(), valid, test if tested else None)
    story.check()
    assert story.of("valid") == evaluations
    assert story.of("test") == [result.steps] * tested
    assert (valid.count, test.count) == (len(evaluations), int(tested))
    # Each record has one report, and the result one of the last epoch.
    records = len(story.of("train")) + len(evaluations) + tested
    assert CountedMetrics.reports == records + 1
    assert (result.test is not None) == tested
    assert result.valid is not None
    assert result.valid.curves.keys() >= {"predicted", "observed"}


def test_going_on_tells_the_rest(tmp_path: Path) -> None:
    """Steps since the checkpoint are told again; what was evaluated before is not evaluated again."""

    def stories(folder: Path, stop: int | None) -> tuple[Story, Passes]:
        story, valid = Story(stop), Passes()
        fitting = make_trainer(
            ClickModel(), observers=[story], checkpoints=Checkpoints(folder), checkpoint_every=3
        )
        if stop is None:
            fitting.fit(Source(), valid, resume=True)
        else:
            with pytest.raises(KeyboardInterrupt):
                fitting.fit(Source(), valid, resume=True)
        story.check()
        return story, valid

    first, _ = stories(tmp_path, 8)
    assert first.of("stepped") == list(range(1, 9))
    second, valid = stories(tmp_path, None)
    assert (second.of("started"), second.of("stepped")) == ([7], list(range(8, 15)))
    assert (second.of("valid"), valid.count) == ([14], 1)
    third, valid = stories(tmp_path, None)
    assert (third.of("started"), third.of("stepped"), valid.count) == ([14], [], 0)


def test_validation_data_that_came_later_are_evaluated_in_the_end(tmp_path: Path) -> None:
    def fit(valid: Passes | None) -> Any:
        checkpoints = Checkpoints(tmp_path)
        return make_trainer(ClickModel(), checkpoints=checkpoints).fit(Source(), valid, resume=True)

    assert fit(None).valid is None
    valid = Passes()
    assert fit(valid).valid is not None
    assert valid.count == 1


def test_the_end_is_told_to_all_though_one_fails() -> None:
    class Fails(Story):
        def ended(self) -> None:
            raise OSError("gone")

    first, last = Story(), Story()
    with pytest.raises(OSError, match="gone"):
        make_trainer(ClickModel(), observers=[first, Fails(), last]).fit(Source())
    first.check()
    last.check()


class FailsToStart(Story):
    def started(self, extent: Extent) -> None:
        super().started(extent)
        raise KeyboardInterrupt


def test_who_was_started_is_ended_though_another_fails_to_start() -> None:
    """And nobody else; learning rates are those of before."""
    first, failing, last = Story(), FailsToStart(), Story()
    model = ClickModel(lr=0.5)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(model, schedule={"warmup_steps": 4}, observers=[first, failing, last]).fit(
            Source()
        )
    for story in (first, failing):
        story.check()
        assert story.calls == [("started", 0), ("ended", None)]
    assert last.calls == []
    assert model.ebc.fused_optimizer.param_groups[0]["lr"] == 0.5


def experiment(folder: Path, training: dict[str, Any], **split: float) -> Any:
    data: dict[str, Any] = {"label": "click", "workers": 1}
    for part, rows in {"train": 60, "valid": 24, "test": 20}.items():
        columns = {"user": [i % 7 for i in range(rows)], "click": [i % 3 == 0 for i in range(rows)]}
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
        data[part] = [str(folder / f"{part}.parquet")]
    if split:
        data = {name: value for name, value in data.items() if name not in ("valid", "test")}
        data["split"] = split
    values = {
        "data": data,
        "features": {"user": {"type": "sparse", "rows": 10}},
        "model": {"dim": 4, "layers": [4], "dense_layers": [4]},
        "training": {"batch_size": 6, "epochs": 2, "baselines": False, **training},
        "output": "unused",
    }
    return check_experiment(values, "experiment.yaml")


@pytest.mark.parametrize(
    "training",
    [{}, {"early_stopping": {"metric": "logloss", "patience": 1}, "evaluate_every": 3}],
    ids=["plain", "stopping"],
)
def test_a_run_is_one_story(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: Counter[int] = Counter()
    real = trainer.evaluate

    def counted(*arguments: Any) -> Any:
        evaluated["all"] += 1
        return real(*arguments)

    monkeypatch.setattr(trainer, "evaluate", counted)
    story = Story()
    result = run_experiment(experiment(tmp_path, training), tmp_path / "run", observers=[story])
    story.check()
    assert evaluated["all"] == len(story.of("valid")) + 1
    assert len(story.of("test")) == 1
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["split"] == "test"
    assert result.test is not None
    assert lines[-1]["auc"] == result.test["auc"]
    best = min(line["logloss"] for line in lines if line["split"] == "valid")
    last = [line for line in lines if line["split"] == "valid"][-1]["logloss"]
    assert result.valid is not None
    assert result.valid["logloss"] == (best if training else last)


def test_evaluating_without_validation_data_is_refused(tmp_path: Path) -> None:
    what = experiment(tmp_path, {"evaluate_every": 3}, valid=0.0, test=0.2)
    with pytest.raises(ValueError, match=r"`training.evaluate_every` should be .* Received none"):
        run_experiment(what, tmp_path / "run", observers=[])
    assert not (tmp_path / "run").exists()
    plain = experiment(tmp_path, {}, valid=0.0, test=0.2)
    result = run_experiment(plain, tmp_path / "run", observers=[])
    assert (result.valid, result.test is None) == (None, False)
