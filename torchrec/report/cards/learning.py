"""Metrics over time: with the best evaluation, overfitting, and what to compare with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

from torchrec.metrics.interval import metric_text
from torchrec.report.card import Card, CardFile, View, chart_cards, of_task
from torchrec.report.charts import Axis, Chart, Mark, Reference, Series, line_chart
from torchrec.report.references import comparables
from torchrec.report.scale import focus
from torchrec.runs import MetricsLine, Run

_METRICS = {
    "auc": ("AUC", "Higher is better; one half is guessing."),
    "ne": ("Normalised entropy", "Lower is better; 1 is guessing the mean."),
    "mse": ("Squared error", "Mean; lower is better."),
    "accuracy": ("Accuracy", "Share of the rows whose class is the likeliest; higher is better."),
}
_HIGHER = ("auc", "accuracy")
_LEAST = 0.002  # of the lowest validation loss: a rise by less may come of the last few steps
_UNKNOWN = 0.01  # where nothing tells how far chance goes


@dataclass(frozen=True)
class Overfitting:
    """The validation loss rose while that of training fell, by more than chance explains.

    Attributes:
        start: the lowest validation loss.
        end: the last.
        error: the standard error of a validation loss; NaN where unknown.
        spared: whether the weights that were saved are those of the lowest loss.
    """

    start: MetricsLine
    end: MetricsLine
    error: float
    spared: bool

    def sentence(self) -> str:
        """Say so."""
        low, high = (line.values["logloss"] for line in (self.start, self.end))
        error = (
            f", standard error {metric_text(self.error, low)}" if math.isfinite(self.error) else ""
        )
        saved = " The weights of before were saved." if self.spared else ""
        return (
            f"Overfitting: since {moment(self.start)} the log loss of the validation data has risen "
            f"({metric_text(low)} to {metric_text(high, low)}{error}) while that of training fell.{saved}"
        )


def moment(line: MetricsLine) -> str:
    """Say when something was measured: after which epoch, or at which step."""
    epoch = line.values.get("epoch", math.nan)
    if math.isfinite(epoch) and epoch > 0 and abs(epoch - round(epoch)) < 1e-3:
        return f"epoch {round(epoch)}"
    return f"step {line.step:,.0f}"


def overfitting(run: Run) -> Overfitting | None:
    """Return where a run began to overfit, if it did.

    Its validation loss ends above the lowest, by more than its standard error (that of a difference
    on the same rows is less than half of it) and than 0.2 %, and its training loss fell meanwhile.
    Of a run that has not ended nothing tells the standard error: there it is 1 %.
    """
    valid = _measured(run, "valid", "logloss")
    if len(valid) < 2:
        return None
    best = min(valid, key=lambda line: line.values["logloss"])
    end = valid[-1]
    lowest, error = best.values["logloss"], standard_error(run)
    noise = max(error, _LEAST * lowest) if math.isfinite(error) else _UNKNOWN * lowest
    if end.values["logloss"] - lowest <= noise:
        return None
    train = _measured(run, "train", "logloss")
    before = [line for line in train if line.step <= best.step]
    after = [line for line in train if best.step < line.step <= end.step]
    if not before or not after:
        return None
    few = max(min(len(before), len(after)) // 5, 1)
    fell = _mean(after[-few:]) < _mean(before[-few:])
    spared = run.facts.get("best_step") == best.step
    return Overfitting(best, end, error, spared) if fell else None


def standard_error(run: Run) -> float:
    """Return that of the mean log loss of the validation data; NaN where unknown.

    How losses deviate is worked out from the histogram of scores, which is of the test data where there
    are any.
    """
    rows = run.scores.get("valid", {}).get("samples", math.nan)
    edges = run.curves.get("histogram_edges", [])
    total = first = second = 0.0
    for name, sign in (("positives", 1), ("negatives", -1)):
        counts = run.curves.get(name, [])
        for (low, high), count in zip(itertools.pairwise(edges), counts, strict=False):
            middle = (low + high) / 2
            loss = -math.log(middle if sign > 0 else 1 - middle)
            total, first, second = total + count, first + count * loss, second + count * loss**2
    if not total or not rows > 0:
        return math.nan
    return math.sqrt(max(second / total - (first / total) ** 2, 0.0) / rows)


def _mean(lines: list[MetricsLine]) -> float:
    return sum(line.values["logloss"] for line in lines) / len(lines)


def _measured(run: Run, split: str, metric: str) -> list[MetricsLine]:
    return [
        line
        for line in run.lines
        if line.split == split and math.isfinite(line.values.get(metric, math.nan))
    ]


def sample_axis(run: Run) -> Axis:
    """Return the axis of training samples seen."""
    last = max((line.samples for line in run.lines), default=1.0) or 1.0
    return Axis("samples", bounds=(0.0, last))


def _draw(view: View) -> list[Card]:
    overfit = overfitting(view.run)
    said = "" if overfit is None else f" {overfit.sentence()}"
    charts = [
        _chart(view, f"{prefix}{metric}", f"{title}{of}", about, higher=metric in _HIGHER)
        for prefix, of in task_prefixes(_METRICS, view.run)
        for metric, (title, about) in _METRICS.items()
    ]
    loss = _chart(view, "loss", "Loss", f"What training minimises.{said}")
    return chart_cards(*charts, loss)


def task_prefixes(endings: Collection[str], run: Run) -> list[tuple[str, str]]:
    """Return what stands before the names of the metrics of each task, and how its titles end.

    Args:
        endings: names of metrics as they are of one task.
        run: whose lines have them.

    Returns:
        ``("", "")`` of one task; of several as ``("click.", " of click")``.
    """
    found = {
        name.removesuffix(ending): None
        for line in run.lines
        for name in line.values
        for ending in endings
        if name == ending or name.endswith(f".{ending}")
    }
    return [(prefix, of_task(prefix)) for prefix in found]


def _chart(view: View, metric: str, title: str, about: str, higher: bool = False) -> Chart | None:
    run = view.run
    lines, valid = [], []
    for split in ("train", "valid"):
        found = _measured(run, split, metric)
        if metric == "loss" and not found:
            found = _measured(run, split, metric := "logloss")  # the same, without weights
        note = ""
        if split == "valid" and len(found) > 1:
            valid = found
            best = (max if higher else min)(found, key=lambda line: line.values[metric])
            note = f"(best {metric_text(best.values[metric])}, {moment(best)})"
        points = [line.samples for line in found], [line.values[metric] for line in found]
        lines.append(Series(split, split, *points, note))
    bounds, cut = focus([(line.x, line.y) for line in lines])
    marks = _marks(view, "loss" if metric == "logloss" else metric, valid)
    references = _references(view, metric)
    bounds = _with_near(bounds, references)
    return line_chart(
        title,
        f"{about} The start is cut off." if cut else about,
        lines,
        x=sample_axis(run),
        y=Axis(bounds=bounds),
        references=references,
        marks=marks,
    )


def _marks(view: View, metric: str, valid: list[MetricsLine]) -> list[Mark]:
    saved = view.run.facts.get("best_step")
    marks = [Mark("saved", line.samples) for line in valid[:-1] if line.step == saved]
    found = overfitting(view.run) if metric != "auc" else None
    if found is not None:
        marks.append(Mark("overfitting", found.start.samples, found.end.samples))
    return marks


def _references(view: View, metric: str) -> list[Reference]:
    """Return what is best possible and what simple models reach, as far as it is known."""
    key = "logloss" if metric == "loss" else metric
    part = "valid" if "valid" in view.scores else "test"
    return [
        Reference(one.name, one.scores[key], one.kind)
        for one in comparables(view, part)
        if key in one.scores
    ]


def _with_near(bounds: tuple[float, float], references: list[Reference]) -> tuple[float, float]:
    """Stretch bounds to the references that are near; the others are only named."""
    low, high = bounds
    span = high - low
    for level in references:
        if low - span < level.value < high + span:
            low, high = min(low, level.value - span * 0.04), max(high, level.value + span * 0.04)
    return low, high


CARDS = CardFile("learning", 10, _draw)
