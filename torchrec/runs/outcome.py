"""What a run reached, in and out of JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torchrec.files import DamagedError, FileDigest, Json, json_with_checksum, parse_json

SPLITS = ("train", "valid", "test")
Scores = dict[str, float | None]


@dataclass(frozen=True)
class RunResult:
    """What a run reached, as ``result.json`` has it.

    Attributes:
        train: metrics of the last epoch, each sample predicted before it was learned from.
        valid: metrics of the saved model; None without such data.
        test: likewise.
        samples_per_second: of training, with reading.
        seconds: of training, evaluations and checkpoints.
        peak_rss_bytes: the most memory that the process had; None where the system does not say.
        steps: updates made.
        epochs: passes over the data.
        samples: training samples seen.
        best_step: the step whose weights were saved; None for the last.
        threads: that steps ran on in the end; None where unknown.
        best_epoch: the epoch, from 1, of the best evaluation; None without any.
        notes: what a person should know of it, a sentence each.
        baselines: metrics of other predictions by name and split: ``"constant"``, the base rate of
            training everywhere, and ``"lr"``, a logistic regression; what was not measured is missing.
        seed: that it was trained with; None of several, or where unknown.
        seeds: of a run with several, whose metrics are means over them, and whose time, steps and
            samples are sums; empty for a single one.
        deviation: sample standard deviations over the seeds, by split; empty for a single one.
        ensemble: metrics of the mean of the members' logits, by split, where it was asked for.
    """

    train: Scores
    valid: Scores | None
    test: Scores | None
    samples_per_second: float
    seconds: float
    peak_rss_bytes: int | None = None
    steps: int | None = None
    epochs: int | None = None
    samples: int | None = None
    best_step: int | None = None
    threads: int | None = None
    best_epoch: int | None = None
    notes: tuple[str, ...] = ()
    baselines: Mapping[str, Mapping[str, Scores | None]] = field(default_factory=dict)
    seed: int | None = None
    seeds: tuple[int, ...] = ()
    deviation: Mapping[str, Scores | None] = field(default_factory=dict)
    ensemble: Mapping[str, Scores | None] = field(default_factory=dict)

    def part_name(self, split: str) -> str:
        """Return what a table calls the metrics of a part of the data.

        Those of training are of the last epoch, which is told where earlier weights are saved.

        Args:
            split: ``"train"``, ``"valid"`` or ``"test"``.

        Returns:
            Its name, as ``"valid"`` or ``"train, epoch 12"``.
        """
        if split != "train" or self.best_step in (None, self.steps) or self.epochs is None:
            return split
        return f"{split}, epoch {self.epochs}"


@dataclass(frozen=True)
class TableFacts:
    """One embedding table at the end of the run; what was not measured is None or missing."""

    name: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class RunReport:
    """What ``report.json`` holds.

    Attributes:
        tables: the embedding tables.
        curves: how scores and labels go together, by name; empty where not measured.
        ranks: figures of each process that trained, in order of ranks; none of one alone.
        plan: where each table was, in words; likewise.
    """

    tables: list[TableFacts] = field(default_factory=list)
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    ranks: Sequence[Mapping[str, float]] = ()
    plan: Mapping[str, str] = field(default_factory=dict)


def result_json(result: RunResult, experiment: FileDigest) -> str:
    """Return a result as JSON, with the digest of the experiment file."""
    return json_with_checksum({**asdict(result), "experiment": asdict(experiment)}, indent=1)


def parse_result(path: Path) -> tuple[RunResult, FileDigest | None]:
    """Return the result in a file, and the digest of the experiment if it has one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    found = _object(path)
    missing = {"train", "samples_per_second", "seconds"} - found.keys()
    if missing:
        raise DamagedError(path, f"{sorted(missing)} is missing")
    result = RunResult(
        train=_scores(found["train"]) or {},
        valid=_scores(found.get("valid")),
        test=_scores(found.get("test")),
        samples_per_second=_float(found["samples_per_second"]),
        seconds=_float(found["seconds"]),
        peak_rss_bytes=_int(found.get("peak_rss_bytes")),
        steps=_int(found.get("steps")),
        epochs=_int(found.get("epochs")),
        samples=_int(found.get("samples")),
        best_step=_int(found.get("best_step")),
        threads=_int(found.get("threads")),
        best_epoch=_int(found.get("best_epoch")),
        notes=_texts(found.get("notes")),
        baselines={name: _splits(scores) for name, scores in _dict(found.get("baselines")).items()},
        seed=_int(found.get("seed")),
        seeds=_ints(found.get("seeds")),
        deviation=_splits(found.get("deviation")),
        ensemble=_splits(found.get("ensemble")),
    )
    experiment = found.get("experiment")
    if not isinstance(experiment, dict):  # of a run from before there were digests
        return result, None
    digest = FileDigest(_int(experiment.get("bytes")) or 0, str(experiment.get("sha256")))
    return result, digest


def report_json(report: RunReport) -> str:
    """Return tables and curves as JSON."""
    tables: list[Json] = [{"name": table.name, **table.values} for table in report.tables]
    content: dict[str, Json] = {
        "tables": tables,
        "curves": {k: [*v] for k, v in report.curves.items()},
    }
    if report.ranks:
        content |= {"ranks": [dict(rank) for rank in report.ranks], "plan": dict(report.plan)}
    return json_with_checksum(content, indent=1)


def parse_report(path: Path) -> RunReport:
    """Return the tables and curves in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    found = _object(path)
    tables, curves = found.get("tables"), found.get("curves")
    ranks, plan = found.get("ranks"), found.get("plan")
    listed = [one for one in tables if isinstance(one, dict)] if isinstance(tables, list) else []
    lines = curves if isinstance(curves, dict) else {}
    return RunReport(
        [TableFacts(str(one.pop("name", "?")), numbers_of(one)) for one in listed],
        {name: _floats(values) for name, values in lines.items()},
        [numbers_of(rank) for rank in ranks] if isinstance(ranks, list) else [],
        {name: str(where) for name, where in plan.items()} if isinstance(plan, dict) else {},
    )


def numbers_of(found: object) -> dict[str, float]:
    """Return what is a number in an object, by key.

    Example:
        >>> numbers_of({"auc": 0.75, "ne": None, "split": "test", "early": True})
        {'auc': 0.75}
    """
    if not isinstance(found, dict):
        return {}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _object(path: Path) -> dict[str, Json]:
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise DamagedError(path, str(error)) from None


def _dict(found: Json) -> dict[str, Json]:
    return found if isinstance(found, dict) else {}


def _splits(found: Json) -> dict[str, Scores | None]:
    """Return metrics by split."""
    return {split: _scores(scores) for split, scores in _dict(found).items()}


def _scores(found: Json) -> Scores | None:
    """Return metrics by name; JSON has no NaN, what is not defined is null."""
    return {**dict.fromkeys(found), **numbers_of(found)} if isinstance(found, dict) else None


def _float(found: Json) -> float:
    return float(found) if isinstance(found, int | float) else math.nan


def _int(found: Json) -> int | None:
    return int(found) if isinstance(found, int | float) else None


def _ints(found: Json) -> tuple[int, ...]:
    return (
        tuple(value for value in found if isinstance(value, int)) if isinstance(found, list) else ()
    )


def _texts(found: Json) -> tuple[str, ...]:
    return tuple(str(value) for value in found) if isinstance(found, list) else ()


def _floats(found: Json) -> list[float]:
    return [_float(value) for value in found] if isinstance(found, list) else []
