"""Several runs beside one another: what differs, in what was asked for and in what came of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from torchrec.datasets.transform import TargetKind
from torchrec.experiment.tasks import KINDS
from torchrec.metrics import Estimate, Interval, MetricDifference
from torchrec.metrics.names import by_task
from torchrec.report.configuration import keys_of, read_configuration
from torchrec.report.predictions import Predictions, load_trained, predict_part, tasks_of
from torchrec.report.task_predictions import TaskPredictions
from torchrec.report.verdicts import Finding, Verdict, verdicts_of
from torchrec.runs import SPLITS, Run, RunFolder, read_run

if TYPE_CHECKING:
    from torchrec.datasets.source import TableSource
    from torchrec.experiment.schema import Experiment

ROWS = 1_000_000  # that are predicted for at most
_SILENT = ("output", "data.workers", "training.keep_checkpoints", "training.tensorboard")


class TaskIdentity(NamedTuple):
    """What a task predicts: tasks of two runs are the same where this is, whatever they are called.

    Attributes:
        label: the column or expression.
        kind: of the label.
        classes: how many there are, of a label that has some.
        given: the label of the task that says where this one counts; None: everywhere.
    """

    label: str
    kind: TargetKind = "click"
    classes: int | None = None
    given: str | None = None


@dataclass(frozen=True)
class Contender:
    """One of the runs.

    Attributes:
        name: as short as tells it from the others.
        run: what its folder tells.
        keys: of its experiment; empty if its file does not read.
        targets: what its experiment predicts, with what stands before the metrics of each.
        predictions: of its model; None where they cannot be had.
        why: they cannot be had; empty where they can.
    """

    name: str
    run: Run
    keys: dict[str, str]
    targets: dict[TaskIdentity, str]
    predictions: Predictions | None
    why: str

    def predicted(self, target: TaskIdentity) -> TaskPredictions | None:
        """Return what it predicts of a task."""
        tasks = [] if self.predictions is None else self.predictions.tasks
        prefix = self.targets.get(target)
        return next((one for one in tasks if one.prefix == prefix), None)

    def measured(self, target: TaskIdentity, part: str) -> dict[str, float]:
        """Return the metrics of a task that training measured, by their names in one task."""
        prefix, scores = self.targets.get(target), self.run.scores.get(part, {})
        if prefix is None:
            return {}
        return {name: scores[f"{prefix}{name}"] for name in by_task(scores).get(prefix, [])}


@dataclass(frozen=True)
class TaskComparison:
    """What all runs reach in one task.

    Attributes:
        name: of the task; empty where there is one only.
        target: what it predicts.
        predicted: by each run; None where it has no such task or no predictions.
        metrics: by name, of each run: with intervals where there are predictions; None where it has none.
        differences: by name, to the first run, of each run but the first; None where nothing tells.
        apart: of each run but the first, why its rows are not those of the first; empty where they are.
    """

    name: str
    target: TaskIdentity
    predicted: list[TaskPredictions | None]
    metrics: Mapping[str, list[Interval | None]]
    differences: Mapping[str, list[MetricDifference | None]]
    apart: list[str]

    def finding(self, number: int, names: tuple[str, str]) -> Finding:
        """Return how a run is to the first.

        Args:
            number: of the run, 1 or more.
            names: of both.
        """
        known = {name: found[number - 1] for name, found in self.differences.items()}
        return Finding(
            self.name,
            self.target.kind,
            names,
            {name: (found[0], found[number]) for name, found in self.metrics.items()},
            {name: found for name, found in known.items() if found is not None},
        )


@dataclass(frozen=True)
class Comparison:
    """Several runs beside one another.

    Attributes:
        part: of the data that the metrics are of.
        contenders: the runs; the others are compared with the first.
        tasks: what they reach in each task that any has.
        differing: keys of the experiment that are not the same in all, with the value of each run.
        verdicts: of all runs but the first, in all tasks that it has in common with that.
        notes: what to keep in mind.
    """

    part: str
    contenders: list[Contender]
    tasks: list[TaskComparison]
    differing: list[tuple[str, list[str]]]
    verdicts: list[Verdict]
    notes: list[str]


def compare_runs(folders: Sequence[str | os.PathLike[str]], *, most: int = ROWS) -> Comparison:
    """Compare runs: their models predict for their test data again, for intervals and differences.

    Tasks are the same where they predict the same label of the same kind, under the same condition. Where two
    runs have the same test rows their predictions are paired: what is hard about these rows is so for both, and
    cancels out. Intervals and differences are DeLong's of AUCs; of other metrics intervals are by the bootstrap
    and differences by the jackknife, over the rows, or over the groups of metrics within groups.

    Args:
        folders: of the runs, two or more; all are compared with the first.
        most: rows predicted for at most; of more, every second, fourth, eighth... is taken.
            Default 1,000,000.

    Raises:
        ValueError: there are fewer than two runs, one is none or comes twice, or they predict
            different labels.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError(f"Runs to compare should be two or more. Received {len(paths)}.")
    real = [os.path.realpath(path) for path in paths]
    for number, path in enumerate(real):
        if path in real[:number]:
            raise ValueError(
                f"Runs to compare should be different. Received '{paths[number]}' twice."
            )
    runs = [read_run(path) for path in paths]
    contenders = [
        _contender(name, RunFolder(path), run, most)
        for name, path, run in zip(short_names(real), paths, runs, strict=True)
    ]
    names = _task_names(contenders)
    part = _part(contenders)
    notes = [one.why for one in contenders if one.why]
    apart = [_apart(contenders[0], other) for other in contenders[1:]]
    tasks = [_compare_task(contenders, target, name, part, apart) for target, name in names.items()]
    findings = [
        task.finding(number, (contenders[0].name, other.name))
        for number, other in enumerate(contenders[1:], 1)
        for task in tasks
        if {task.target} <= contenders[0].targets.keys() & other.targets.keys()
    ]
    notes += _notes(contenders, tasks)
    if sum(math.isfinite(one.p) for one in findings) > 1:
        several = "runs" if len(tasks) == 1 else "runs and tasks"
        notes.append(f"The p-values are adjusted for the number of {several} (Holm).")
    notes.append(
        "The intervals are of these models on such rows. Training again with another seed moves the "
        "metrics as well: `training.seeds` tells by how much."
    )
    return Comparison(
        part,
        contenders,
        tasks,
        differing_keys([one.keys for one in contenders]),
        verdicts_of(findings, part),
        notes,
    )


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the last parts of some paths, as many as tell them apart.

    Example:
        >>> short_names(["/runs/a", "/runs/b"]), short_names(["/x/run", "/y/run"])
        (['a', 'b'], ['x/run', 'y/run'])
    """
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def differing_keys(keys: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values are not the same in all; one that is not there is ``–``.

    Example:
        >>> differing_keys([{"dim": "8", "lr": "1"}, {"dim": "16", "lr": "1"}])
        [('dim', ['8', '16'])]
    """
    every = dict.fromkeys(key for one in keys for key in one)
    found = [(key, [one.get(key, "\N{EN DASH}") for one in keys]) for key in every]
    return [(key, values) for key, values in found if len(set(values)) > 1 and key not in _SILENT]


def _contender(name: str, folder: RunFolder, run: Run, most: int) -> Contender:
    experiment = read_configuration(run.configuration, run.name)
    why = ""
    try:
        predictions = predict_part(load_trained(folder), most)
    except (OSError, ValueError) as error:
        predictions, why = None, f"{name}: no intervals. {error}"
    if experiment is None and predictions is not None:
        experiment = predictions.trained.experiment
    if experiment is None:
        return Contender(name, run, {}, {}, predictions, why)
    return Contender(name, run, keys_of(experiment), _targets_of(experiment), predictions, why)


def _targets_of(experiment: Experiment) -> dict[TaskIdentity, str]:
    """Return what an experiment predicts, and what stands before the metrics of each task.

    Of two tasks with one label, which differ in their losses, the first is compared.
    """
    tasks = tasks_of(experiment)
    found: dict[TaskIdentity, str] = {}
    for name, one in tasks.items():
        given = None if one.given is None else tasks[one.given].label
        target = TaskIdentity(one.label, one.kind, one.classes, given)
        found.setdefault(target, f"{name}." if len(tasks) > 1 else "")
    return found


def _task_names(contenders: Sequence[Contender]) -> dict[TaskIdentity, str]:
    """Return the tasks that any run has, as the first run calls them that has several.

    Raises:
        ValueError: runs have no task in common with the first, or another one of the same name.
    """
    names: dict[TaskIdentity, str] = {}
    for one in contenders:
        for target, prefix in one.targets.items():
            names[target] = names.get(target) or prefix.removesuffix(".")
    first = contenders[0]
    clash = len(set(names.values())) < len(names)
    apart = any(
        one.targets and first.targets and not one.targets.keys() & first.targets.keys()
        for one in contenders
    )
    if clash or apart:
        said = ", ".join(
            f"{', '.join(f'`{target.label}`' for target in one.targets)} ({one.name})"
            for one in contenders
            if one.targets
        )
        raise ValueError(f"Runs to compare should predict the same label. Received {said}.")
    return names


def _part(contenders: Sequence[Contender]) -> str:
    for one in contenders:
        if one.predictions is not None:
            return one.predictions.part
    scores = contenders[0].run.scores
    return next((one for one in reversed(SPLITS) if one in scores), "test")


def _apart(first: Contender, other: Contender) -> str:
    """Return why the data of two runs are not the same; empty where they are, or predictions are missing."""
    one, two = first.predictions, other.predictions
    return "" if one is None or two is None else unpaired(one, two)


def _compare_task(
    contenders: Sequence[Contender],
    target: TaskIdentity,
    name: str,
    part: str,
    apart: Sequence[str],
) -> TaskComparison:
    predicted = [one.predicted(target) for one in contenders]
    measured = [one.measured(target, part) for one in contenders]
    apart = [
        why or ("" if _same_rows(predicted[0], other) else "its labels are others")
        for why, other in zip(apart, predicted[1:], strict=True)
    ]
    metrics: dict[str, list[Interval | None]] = {}
    differences: dict[str, list[MetricDifference | None]] = {}
    for metric in _metric_names(target.kind, predicted, measured):
        # One metric at a time: influences of all would take the memory of all rows, many times.
        estimates = [
            one.measured(metric) if one is not None and metric in one.report else None
            for one in predicted
        ]
        metrics[metric] = [
            _interval(estimate, scores.get(metric))
            for estimate, scores in zip(estimates, measured, strict=True)
        ]
        first, *others = estimates
        differences[metric] = [
            _difference(first, other, paired=not why)
            for other, why in zip(others, apart, strict=True)
        ]
    return TaskComparison(name, target, predicted, metrics, differences, apart)


def _metric_names(
    kind: TargetKind,
    predicted: Sequence[TaskPredictions | None],
    measured: Sequence[Mapping[str, float]],
) -> list[str]:
    """Return the metrics that any run has: those of the kind, then those within groups."""
    found = [name for one in predicted if one is not None for name in one.report]
    found += [name for scores in measured for name in scores]
    plain = [name for name in KINDS[kind].estimators if name in found]
    grouped = [name for name in found if "(" in name and not name.startswith("groups(")]
    return [*plain, *dict.fromkeys(grouped)]


def _interval(estimate: Estimate | None, measured: float | None) -> Interval | None:
    if estimate is not None:
        return replace(estimate.interval(), value=estimate.value)
    return None if measured is None else Interval(measured, math.nan, math.nan)


def _difference(
    first: Estimate | None, other: Estimate | None, *, paired: bool
) -> MetricDifference | None:
    """Return by how much the other is above the first; None where either is not defined."""
    if first is None or other is None or not math.isfinite(other.value - first.value):
        return None
    return first.difference(other, paired=paired)


def _notes(contenders: Sequence[Contender], tasks: Sequence[TaskComparison]) -> list[str]:
    """Say which rows the metrics are of, and where runs were not tested on the same."""
    found = []
    for one in contenders:
        predictions = one.predictions
        if predictions is not None and not predictions.is_whole:
            found.append(f"{one.name}: {predictions.sentence()} {predictions.missing()}".rstrip())
    first = contenders[0].name
    found += [
        f"{other.name} was not tested on the rows of {first}: {why}. The difference is that of two samples, "
        "and partly one of the data."
        for number, other in enumerate(contenders[1:])
        for task in tasks
        if (why := task.apart[number])
    ]
    return list(dict.fromkeys(found))


def unpaired(one: Predictions, two: Predictions) -> str:
    """Return why predictions are not of the same data; empty where they are.

    Files with the same bytes and names are the same, wherever they lie: a split by chance goes by names.
    """
    if one.part != two.part:
        return f"its rows are those of {two.part}, not of {one.part}"
    sources = [found.trained.evaluated_part()[1] for found in (one, two)]
    if not _same_files(*sources):
        return "its files are others"
    data = [found.trained.experiment.data for found in (one, two)]
    for what, values in (
        ("`data.split`", [source.split for source in sources]),
        ("`data.drop`", [source.drop and source.drop.text for source in sources]),
        ("`data.weight`", [section.weight for section in data]),
        ("`data.sampled_negatives`", [section.sampled_negatives for section in data]),
    ):
        if values[0] != values[1]:
            return f"{what} is another"
    return ""


def _same_rows(one: TaskPredictions | None, two: TaskPredictions | None) -> bool:
    """Tell whether the same rows with the same labels count for a task; where there are none, they do."""
    if one is None or two is None:
        return True
    return np.array_equal(one.rows, two.rows) and np.array_equal(one.labels, two.labels)


def _same_files(one: TableSource, two: TableSource) -> bool:
    if len(one.files) != len(two.files):
        return False
    for first, second in zip(one.files, two.files, strict=True):
        if os.path.realpath(first.path) == os.path.realpath(second.path):
            continue
        if first.name != second.name or first.fingerprint() != second.fingerprint():
            return False
    return True
