"""Read what a run left in its folder: its metrics over time, its result, its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

SPLITS = ("train", "valid", "test")

Json = dict[str, object]


@dataclass(frozen=True)
class Moment:
    """One line of ``metrics.jsonl``: what was measured after so many samples."""

    split: str
    step: float
    samples: float
    seconds: float
    values: dict[str, float]
    phases: dict[str, float]
    ids: dict[str, float]


@dataclass(frozen=True)
class TableFacts:
    """One embedding table at the end of the run; what was not measured is missing."""

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class Curves:
    """How scores and labels go together at the end: lists of numbers, empty where not measured.

    ``histogram_edges`` has one more than ``positives`` and ``negatives``; ``predicted`` and
    ``observed`` are means of groups of ascending score.
    """

    histogram_edges: list[float]
    positives: list[float]
    negatives: list[float]
    predicted: list[float]
    observed: list[float]


@dataclass(frozen=True)
class RunFolder:
    """A run as far as its folder tells; a run that is young or broke off lacks some of it."""

    name: str
    moments: list[Moment]
    scores: dict[str, dict[str, float]]  # split -> metric -> value, at the end
    facts: dict[str, float]  # samples_per_second, seconds, peak_rss_bytes
    tables: list[TableFacts]
    curves: Curves
    configuration: str
    notes: list[str] = field(default_factory=list)

    def series(self, split: str, metric: str) -> tuple[list[float], list[float]]:
        """Return samples seen, and the metric there."""
        found = [m for m in self.moments if m.split == split and metric in m.values]
        return [m.samples for m in found], [m.values[metric] for m in found]


def read_run(folder: Path) -> RunFolder:
    """Read a run folder; files that are not there (yet) are left out and noted.

    Raises:
        ValueError: if the folder is not one of a run, or one of its files is damaged.
    """
    metrics, result, report = (
        folder / name for name in ("metrics.jsonl", "result.json", "report.json")
    )
    if not metrics.is_file() and not result.is_file():
        raise ValueError(
            f"'{folder}' should be the folder of a run, with metrics.jsonl or result.json. "
            "Received a folder without them."
            if folder.is_dir()
            else f"'{folder}' should be the folder of a run. Received no such folder."
        )
    notes = []
    if not result.is_file():
        notes.append("This run has not ended: there is no result yet.")
    ended = _object(result)
    details = _object(report)
    scores = {split: _numbers(ended.get(split)) for split in SPLITS}
    configuration = folder / "experiment.yaml"
    return RunFolder(
        name=folder.resolve().name,
        moments=list(_moments(metrics)),
        scores={split: values for split, values in scores.items() if values},
        facts=_numbers(ended),
        tables=[
            TableFacts(str(table.get("name", "?")), _numbers(table))
            for table in _objects(details.get("tables"))
        ],
        curves=_curves(details.get("curves")),
        configuration=configuration.read_text("utf-8") if configuration.is_file() else "",
        notes=notes,
    )


def _moments(path: Path) -> Iterator[Moment]:
    """Yield one moment a split and step: a resumed run repeats some, and the last one holds."""
    moments: dict[tuple[str, float], Moment] = {}
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # still being written, or cut off when the run was
                break
            raise ValueError(
                f"'{path}' should have one JSON object a line. Line {number} is damaged."
            ) from error
        values = _numbers(found)
        split, step = str(found.get("split", "train")), values.pop("step", float(number))
        moment = Moment(
            split=split,
            step=step,
            samples=values.pop("samples", step),
            seconds=values.pop("seconds", 0.0),
            values=values,
            phases=_numbers(found.get("time")),
            ids=_numbers(found.get("ids")),
        )
        moments.pop((split, step), None)
        moments[split, step] = moment
    yield from sorted(moments.values(), key=lambda moment: moment.step)


def _object(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"'{path}' should hold JSON. It is damaged; delete it or train again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' should hold a JSON object. Received {type(found).__name__}.")
    return found


def _objects(found: object) -> list[Json]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _numbers(found: object) -> dict[str, float]:
    """Keep what is a number; JSON has no NaN, so some writers give null, which is left out."""
    if not isinstance(found, dict):
        return {}
    return {
        str(key): float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _curves(found: object) -> Curves:
    curves = found if isinstance(found, dict) else {}
    return Curves(**{field.name: _list(curves.get(field.name)) for field in fields(Curves)})


def _list(found: object) -> list[float]:
    values = found if isinstance(found, list) else []
    return [float(v) if isinstance(v, int | float) else math.nan for v in values]
