"""What came of a search, and what it maximised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrec.metrics import BinaryMetrics, Report
from torchrec.tuning.space import SearchSpace, Value, Values
from torchrec.tuning.trials import Trial, best_of

BEST, PAGE = "best.yaml", "report.html"
"""The results in the folder of a search."""


@dataclass(frozen=True)
class Tuning:
    """A search, as far as it has come.

    Attributes:
        folder: where it is.
        metrics: what was maximised: their sum, those with a minus that are the better the lower.
        space: what was varied.
        base: what the experiment had, by key.
        trials: all of them; the first is the experiment as it is.
        importances: by key, how much of the difference between trials is due to it.
    """

    folder: Path
    metrics: Sequence[str]
    space: SearchSpace
    base: Values
    trials: Sequence[Trial]
    importances: Mapping[str, float]

    @property
    def best(self) -> Trial | None:
        """The best trial; None before one is complete."""
        return best_of(self.trials)

    @property
    def start(self) -> Trial | None:
        """The experiment as it was; None before it was tried."""
        return self.trials[0] if self.trials else None

    def value_of(self, trial: Trial, key: str) -> Value:
        """Return what a trial had for a key."""
        return trial.values.get(key, self.base[key])

    @property
    def experiment(self) -> Path:
        """The file of the best experiment, as `torchrec train` takes it."""
        return self.folder / BEST

    @property
    def page(self) -> Path:
        """The page of results."""
        return self.folder / PAGE


def score(report: Report, metrics: Sequence[str]) -> float:
    """Return what is maximised: the sum of the metrics, those with a minus that are the better the lower.

    Raises:
        ValueError: one is not defined for these data.
    """
    total = 0.0
    for metric in metrics:
        value = report[metric]
        if not math.isfinite(value):
            raise ValueError(
                f"`metric` should be defined for the validation data. Received {metric}, which is not: "
                f"{report.undefined.get(metric, 'it is not finite')}."
            )
        total += value if report.better[metric] == "higher" else -value
    return total


def label_of(metrics: Sequence[str]) -> str:
    """Return what is maximised in words, as ``auc - logloss``."""
    better = BinaryMetrics().compute().better
    text = " ".join(f"{'+' if better[metric] == 'higher' else '-'} {metric}" for metric in metrics)
    return text.removeprefix("+ ")
