"""When to stop: a metric of the validation data that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchrec.checks import did_you_mean
from torchrec.metrics import Report
from torchrec.training.options import EarlyStoppingOptions


@dataclass
class EarlyStopping:
    """The best value so far, and how long ago it was.

    Args:
        options: which metric, and how patient; None never stops, nor notes a best value.

    Example:
        >>> stopping = EarlyStopping(EarlyStoppingOptions(metric="auc", patience=1))
        >>> reports = [Report({"auc": auc}, better={"auc": "higher"}) for auc in (0.6, 0.5)]
        >>> [stopping.improves(10 * i, report) for i, report in enumerate(reports)]
        [True, False]
        >>> stopping.is_over, stopping.best_step, stopping.best
        (True, 0, 0.6)
    """

    options: EarlyStoppingOptions | None
    best: float = math.nan
    best_step: int | None = None
    waited: int = 0

    def check_metric(self, report: Report) -> None:
        """Refuse a metric that the reports to come do not have, or that has no direction.

        Args:
            report: any of them, as of no data.

        Raises:
            ValueError: if so; with the names to choose from.
        """
        if self.options is None or self.options.metric in report.better:
            return
        metric, choices = self.options.metric, ", ".join(report.better)
        if metric in report:
            raise ValueError(
                f"`early_stopping.metric` should be one whose values are the better the higher, or "
                f"the lower: {choices}. Received {metric}."
            )
        raise ValueError(
            f"`early_stopping.metric` should be one of {choices}. Received {metric}"
            f"{did_you_mean(metric, report.better) or '.'}"
        )

    def improves(self, step: int, report: Report) -> bool:
        """Note an evaluation, and return whether it is the best so far.

        Args:
            step: of the evaluation.
            report: what it gave.

        Raises:
            ValueError: if the metric is not defined, with the reason.
        """
        if self.options is None:
            return False
        metric = self.options.metric
        value = report[metric]
        if math.isnan(value):
            raise ValueError(
                f"`early_stopping.metric` should be defined for the validation data. Received "
                f"{metric}, which is not: {report.undefined.get(metric, 'it is NaN')}."
            )
        higher = report.better[metric] == "higher"
        gain = value - self.best if higher else self.best - value
        if self.best_step is None or gain > self.options.min_delta:
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.options is not None and self.waited >= self.options.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from."""
        state = asdict(self)
        del state["options"]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]
