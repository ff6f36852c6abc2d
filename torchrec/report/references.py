"""What a result is compared with: simple models, and what is best possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchrec.report.card import View
from torchrec.runs import numbers_of

_BASELINES = (
    ("lr", "logistic regression", "linear"),
    ("constant", "base rate of training", "constant"),
)


@dataclass(frozen=True)
class Comparable:
    """Metrics beside those of the model.

    Attributes:
        name: what has them.
        kind: its class in the style sheet.
        scores: by metric.
    """

    name: str
    kind: str
    scores: Mapping[str, float]


def comparables(view: View, part: str) -> list[Comparable]:
    """Return what the metrics of a part of the data are to be compared with, the best first.

    Args:
        view: of the run.
        part: ``"valid"`` or ``"test"``.
    """
    found = []
    if part in view.best:
        found.append(Comparable("best possible", "best", view.best[part]))
    measured = {} if view.run.result is None else view.run.result.baselines
    for key, name, kind in _BASELINES:
        scores = numbers_of(measured.get(key, {}).get(part))
        if scores:
            found.append(Comparable(name, kind, scores))
    return found
