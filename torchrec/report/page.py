"""What the page of a run shows, and in which order."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from torchrec.checks import printable
from torchrec.experiment.files import parse_experiment_yaml
from torchrec.files import write_file
from torchrec.report.charts import Axis, Chart, Series, line_chart, stacked_chart
from torchrec.report.scale import UNKNOWN, duration, memory, short
from torchrec.runs import SPLITS, Run, RunFolder, TableFacts, read_run

Curves = Mapping[str, list[float]]

_PHASES = ("reading", "lookup", "dense", "optimizer")
_TABLES_SHOWN = 12  # the rest unfolds
_METRICS = (
    ("auc", "AUC", "share of (positive, negative) pairs in the right order"),
    ("ne", "Normalised entropy", "log loss over that of guessing the mean"),
    ("logloss", "Log loss", "mean of the negative log likelihood"),
    ("calibration", "Calibration", "sum of predictions over number of positives"),
)


@dataclass(frozen=True)
class Tile:
    """A number of the first line: what it is, its value, and the same elsewhere."""

    name: str
    value: str
    about: str
    beside: list[str]


@dataclass(frozen=True)
class TableColumn:
    """A column of the table of embedding tables."""

    key: str
    name: str
    write: Callable[[float], str]


_COLUMNS = (
    TableColumn("rows", "rows", lambda n: f"{n:,.0f}"),
    TableColumn("dim", "dim", short),
    TableColumn("bytes", "memory", memory),
    TableColumn("ids_seen", "ids seen", lambda n: f"{n:,.0f}"),
    TableColumn("occupancy", "occupancy", lambda share: f"{share:.1%}"),
    TableColumn("out_of_range", "out of range", lambda n: f"{n:,.0f}"),
    TableColumn("hashed", "hashed", lambda n: f"{n:,.0f}"),
    TableColumn("norm_mean", "mean norm", short),
    TableColumn("norm_max", "max norm", short),
    TableColumn("dead_rows", "dead rows", lambda n: f"{n:,.0f}"),
)


def write_report(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Write the report of a run: one HTML file with all in it, that needs no network.

    Args:
        folder: the folder of the run.
        output: the file to write; by default ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: if the folder is not one of a run.
    """
    run = read_run(folder)
    path = RunFolder(folder).page if output is None else Path(output)
    write_file(path, render(run))
    return path


def render(run: Run) -> str:
    """Return the page of a run."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_seen,
    )
    charts = [chart for chart in _charts(run) if chart]
    columns, tables = _tables(run.tables)
    split, tiles = _tiles(run)
    return environment.get_template("page.html").render(
        run=run,
        summary=_summary(run),
        split=split,
        tiles=tiles,
        charts=charts,
        columns=columns,
        tables=tables[:_TABLES_SHOWN],
        more_tables=tables[_TABLES_SHOWN:],
        memory=memory(sum(table.values.get("bytes") or 0.0 for table in run.tables)),
        counts=_counts(run),
    )


def _seen(value: object) -> object:
    """Return what stands on the page for a value: names as they are, not as they would be read."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n\t")
    return Markup(text) if isinstance(value, Markup) else text


def _resource(name: str) -> str:
    return resources.files("torchrec.report").joinpath(name).read_text("utf-8")


def _charts(run: Run) -> list[Chart | None]:
    samples = Axis(
        "samples", bounds=(0.0, max((line.samples for line in run.lines), default=1.0) or 1.0)
    )
    rate = _series(run, "learning_rate")
    speed = _series(run, "samples_per_second")
    top = max((y for line in speed for y in line.y if math.isfinite(y)), default=1.0)
    return [
        _learning(run, samples, "auc", "AUC", "Higher is better; one half is guessing."),
        _learning(run, samples, "ne", "Normalised entropy", "Lower is better; 1 is guessing the mean."),
        _learning(run, samples, "loss", "Loss", "What training minimises."),
        _calibration(run.curves),
        _histogram(run.curves),
        line_chart(
            "Learning rate", "Of the dense layers.", _named(rate, "learning rate"),
            x=samples, y=Axis(),
        ),
        line_chart(
            "Samples per second", "While training.", _named(speed, "samples/s"),
            x=samples, y=Axis(bounds=(0.0, top * 1.08)),
        ),
        _phases(run, samples),
    ]  # fmt: skip


def _series(run: Run, metric: str) -> list[Series]:
    return [Series("train", "train", *run.series("train", metric))]


def _named(series: list[Series], name: str) -> list[Series]:
    return [Series(name, line.kind, line.x, line.y) for line in series]


def _learning(run: Run, samples: Axis, metric: str, title: str, about: str) -> Chart | None:
    lines = []
    for split in ("train", "valid"):
        points = run.series(split, metric)
        if metric == "loss" and not points[0]:
            points = run.series(split, "logloss")  # the same, where samples have no weights
        lines.append(Series(split, split, *points))
    return line_chart(title, about, lines, x=samples, y=Axis())


def _calibration(curves: Curves) -> Chart | None:
    predicted, observed = curves.get("predicted", []), curves.get("observed", [])
    top = max(filter(math.isfinite, [*predicted, *observed]), default=1.0)
    bounds = (0.0, min(1.0, top * 1.06))
    return line_chart(
        "Calibration",
        "Dashed: what is predicted is what happens.",
        [Series("observed", "valid", predicted, observed)],
        x=Axis("predicted probability", bounds=bounds),
        y=Axis(bounds=bounds),
        diagonal=True,
    )


def _histogram(curves: Curves) -> Chart | None:
    edges = curves.get("histogram_edges", [])
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    lines = [
        Series(name, kind, middles, [count / total for count in counts])
        for name, kind, counts in (
            ("negatives", "train", curves.get("negatives", [])),
            ("positives", "valid", curves.get("positives", [])),
        )
        if len(counts) == len(middles) and (total := sum(counts)) > 0
    ]
    top = max((y for line in lines for y in line.y), default=1.0)
    return line_chart(
        "Scores",
        "Share of samples by predicted probability.",
        lines,
        x=Axis("predicted probability", bounds=(0.0, 1.0)),
        y=Axis(write=lambda share: f"{short(share * 100, 2)}%", bounds=(0.0, top * 1.08)),
        filled=True,
    )


def _phases(run: Run, samples: Axis) -> Chart | None:
    timed = [line for line in run.lines if line.split == "train" and line.time]
    names = list(dict.fromkeys([*_PHASES, *(name for line in timed for name in line.time)]))
    used = [name for name in names if any(line.time.get(name) for line in timed)]
    x = [line.samples for line in timed]
    totals = [max(sum(line.time.values()), 1.0) for line in timed]  # clocks overlap a little
    lines = []
    for name in used:
        shares = [
            line.time.get(name, 0.0) / total for line, total in zip(timed, totals, strict=True)
        ]
        mean = sum(shares) / len(shares)
        kind = f"phase-{names.index(name)}" if name in _PHASES else "phase-other"
        lines.append(Series(name, kind, x, shares, f"{mean:.0%}"))
    return stacked_chart(
        "Where the time goes",
        "Share of a training step.",
        lines,
        x=samples,
        y=Axis(write=lambda share: f"{share:.0%}"),
    )


def _tiles(run: Run) -> tuple[str, list[Tile]]:
    """The metrics of the best split there is, with those of the others beside."""
    # Of a run without a result: the last of what was measured.
    scores = run.scores or {line.split: dict(line.values) for line in run.lines}
    split = next((name for name in reversed(SPLITS) if name in scores), "")
    tiles = [
        Tile(
            name,
            _score(scores[split][key]),
            about,
            [
                f"{other} {_score(scores[other][key])}"
                for other in SPLITS
                if other != split and key in scores.get(other, {})
            ],
        )
        for key, name, about in _METRICS
        if key in scores.get(split, {})
    ]
    return split, tiles


def _score(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else UNKNOWN


def _summary(run: Run) -> list[tuple[str, str]]:
    """The run in a line: model, length, speed."""
    try:
        configuration = parse_experiment_yaml(run.configuration, run.name)
    except ValueError:
        configuration = None  # shown as it is, further down
    section = configuration.get("model") if isinstance(configuration, dict) else None
    model = section.get("name") if isinstance(section, dict) else None
    last = next((line for line in reversed(run.lines) if line.split == "train"), None)
    facts: list[tuple[str, str]] = [("model", str(model))] if model else []
    if last:
        facts.append(("samples", f"{last.samples:,.0f}"))
        facts.append(("steps", f"{last.step:,.0f}"))
    if last and run.facts.get("best_step", last.step) != last.step:
        facts.append(("weights of step", f"{run.facts['best_step']:,.0f}, the best on valid"))
    seconds = run.facts.get("seconds", last.seconds if last else 0.0)
    if seconds:
        facts.append(("time", duration(seconds)))
    if "samples_per_second" in run.facts:
        facts.append(("samples/s", f"{run.facts['samples_per_second']:,.0f}"))
    if "peak_rss_bytes" in run.facts:
        facts.append(("peak memory", memory(run.facts["peak_rss_bytes"])))
    return facts


def _tables(tables: Sequence[TableFacts]) -> tuple[list[TableColumn], list[tuple[str, list[str]]]]:
    """The columns that are known of any table, and the tables, the largest first."""
    columns = [column for column in _COLUMNS if any(column.key in t.values for t in tables)]
    largest_first = sorted(tables, key=lambda table: -(table.values.get("bytes") or 0.0))
    return columns, [
        (
            table.name,
            [column.write(v) if (v := table.values.get(column.key)) is not None
             and math.isfinite(v) else UNKNOWN for column in columns],
        )
        for table in largest_first
    ]  # fmt: skip


def _counts(run: Run) -> list[tuple[str, str]]:
    """What was counted on the way (ids hashed, unknown, missing ...), largest first."""
    totals: dict[str, float] = {}
    for line in run.lines:
        if line.split == "train":
            for name, count in line.ids.items():
                totals[name] = totals.get(name, 0.0) + count
    return [
        (name, f"{count:,.0f}")
        for name, count in sorted(totals.items(), key=lambda item: -item[1])
        if count
    ]
