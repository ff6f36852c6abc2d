"""What came of a comparison, in words: which run is better, by how much, and whether that may be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchrec.datasets.transform import TargetKind
from torchrec.experiment.tasks import KINDS
from torchrec.metrics import Interval, MetricDifference
from torchrec.metrics.interval import metric_text
from torchrec.metrics.names import title_of

_HIGHER = ("auc", "accuracy")  # is better, of what models are judged by


@dataclass(frozen=True)
class Finding:
    """How a run is to the first in one task.

    Attributes:
        task: its name; empty where there is one only.
        kind: of the task.
        names: of the first run and of this one.
        metrics: of both.
        differences: by how much the metrics of this run are higher; those that are known.
    """

    task: str
    kind: TargetKind
    names: tuple[str, str]
    metrics: Mapping[str, tuple[Interval | None, Interval | None]]
    differences: Mapping[str, MetricDifference]

    @property
    def main(self) -> str:
        """What models are judged by in such a task."""
        return KINDS[self.kind].metrics[0]

    @property
    def loss(self) -> str:
        """What stands beside it."""
        return KINDS[self.kind].metrics[-1]

    def scale(self, metric: str) -> float:
        """Return the metric of the first run, whose decimals differences have."""
        first, _ = self.metrics[metric]
        return math.nan if first is None else first.value

    @property
    def p(self) -> float:
        """How likely such a difference is by chance; NaN where nothing tells."""
        found = self.differences.get(self.main)
        return math.nan if found is None else found.p


@dataclass(frozen=True)
class Verdict:
    """How a run is to the first in one task, in words.

    Attributes:
        task: its name; empty where there is one only.
        run: its name.
        p: how likely such a difference is by chance, adjusted for the number of verdicts; NaN where unknown.
        sentence: the verdict.
    """

    task: str
    run: str
    p: float
    sentence: str


def verdicts_of(findings: Sequence[Finding], part: str) -> list[Verdict]:
    """Return what is to be said of some findings, with p-values adjusted for their number.

    Args:
        findings: of all runs and tasks.
        part: of the data that they are of.
    """
    adjusted = holm([one.p for one in findings])
    return [
        Verdict(one.task, one.names[1], p, f"{one.task}: {said}" if one.task else said)
        for one, p in zip(findings, adjusted, strict=True)
        for said in [_sentence(one, p, part)]
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, by Holm's method; NaN is none.

    Example:
        >>> holm([0.01, 0.04, 0.03, float("nan")])
        [0.03, 0.06, 0.06, nan]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if math.isfinite(p))
    found, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(p * (len(known) - rank), 1.0))
        found[place] = least
    return found


def _sentence(one: Finding, p: float, part: str) -> str:
    (first, other), title = one.names, title_of(one.main)
    found, loss = one.differences.get(one.main), one.differences.get(one.loss)
    if found is None or not math.isfinite(p):
        return _plain_sentence(one, part)
    gap = found.difference
    better = _is_better(one.main, gap)
    if p < 0.05:
        size = _size(gap, one.scale(one.main), title)
        text = f"{other} is {'better' if better else 'worse'} than {first} by {size}, {p_of(p)}"
    else:
        size = interval_of(gap, one.scale(one.main))
        text = f"{other} and {first} do not differ clearly in {title}: {size}, {p_of(p)}"
    if loss is not None and math.isfinite(loss.p):
        text += f"; its {title_of(one.loss)} is {_moved(loss, one.scale(one.loss))}"
        opposed = _is_better(one.loss, loss.difference) != better
        if opposed and loss.p < 0.05 and p < 0.05:
            text += ", so the two disagree"
    return f"{text}."


def _is_better(metric: str, gap: Interval) -> bool:
    return (gap.value > 0) == (metric in _HIGHER)


def _plain_sentence(one: Finding, part: str) -> str:
    """Say what can be said without an interval of what models are judged by."""
    first, other = one.names
    loss = one.differences.get(one.loss)
    if loss is not None and math.isfinite(loss.p):
        moved = _moved(loss, one.scale(one.loss))
        return f"The {title_of(one.loss)} of {other} is {moved}, against {first}."
    known = [found for found in one.metrics.get(one.main, ()) if found is not None]
    gap = known[1].value - known[0].value if len(known) == 2 else math.nan
    if not math.isfinite(gap):
        return f"There is nothing to compare {other} with {first} by."
    without = "" if one.main in one.differences else "without the predictions of both "
    return (
        f"The {title_of(one.main)} of {other} on its {part} data is {metric_text(abs(gap), known[0].value)} "
        f"{'below' if gap < 0 else 'above'} that of {first}; {without}nothing tells whether that is chance."
    )


def _moved(loss: MetricDifference, like: float) -> str:
    gap = loss.difference
    if gap.low * gap.high <= 0:
        return f"not clearly another: {interval_of(gap, like)}, {p_of(loss.p)}"
    how = "higher" if gap.value > 0 else "lower"
    return f"{how} by {_size(gap, like)}, {p_of(loss.p)}"


def _size(gap: Interval, like: float, of: str = "") -> str:
    """Write a difference without its sign, which a word says."""
    ends = (gap.low, gap.high) if gap.value >= 0 else (-gap.high, -gap.low)
    value, low, high = (metric_text(x, like) for x in (abs(gap.value), *ends))
    return f"{f'{value} {of}'.rstrip()} [{low}, {high}]"


def interval_of(gap: Interval, like: float) -> str:
    """Write a difference with its interval.

    Args:
        gap: the difference.
        like: the metric that it is of, whose decimals it has.

    Example:
        >>> interval_of(Interval(0.0031, 0.0021, 0.0041), 0.7734)
        '+0.0031 [+0.0021, +0.0041]'
    """
    value, low, high = (metric_text(x, like, sign=True) for x in (gap.value, gap.low, gap.high))
    return f"{value} [{low}, {high}]" if math.isfinite(gap.low) else value


def p_of(p: float) -> str:
    """Write a p-value.

    Example:
        >>> p_of(0.0004), p_of(0.012), p_of(0.412)
        ('p < .001', 'p = .012', 'p = .41')
    """
    if p < 0.001:
        return "p < .001"
    return f"p = {p:.3f}".replace("0.", ".", 1) if p < 0.1 else f"p = {p:.2f}".replace("0.", ".", 1)
