"""Which evaluation was the best so far, and how many came since: early stopping and plateaus go by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchrec.checks import did_you_mean
from torchrec.metrics import Report
from torchrec.training.evaluation import Evaluation
from torchrec.training.options import EarlyStoppingOptions


class Monitor:
    r"""The best evaluation so far, and how long ago it was.

    An evaluation with the metrics :math:`m_i` is better than the best one so far, :math:`m_i^*`, if

    .. math:: \sum_i s_i (m_i - m_i^*) > \text{min\_delta}

    where :math:`s_i` is 1 for metrics that are the better the higher, and -1 for the others. Of
    ``["auc", "logloss"]`` that is AUC - logloss: AUC may not be bought with a logloss that rises more.

    Args:
        options: which metrics, and how patient; None: by the loss, and never over.

    Example:
        >>> monitor = Monitor(EarlyStoppingOptions(metric=["auc", "logloss"], patience=1))
        >>> better = {"auc": "higher", "logloss": "lower"}
        >>> for auc, logloss in ((0.6, 0.5), (0.7, 0.7)):
        ...     report = Report({"auc": auc, "logloss": logloss}, better=better)
        ...     print(monitor.improves(Evaluation(report, logloss, 1.0), step=10, epoch=1))
        True
        False
        >>> monitor.is_over, monitor.best_step, monitor.standstill
        (True, 10, 'auc and logloss have not improved for 1 evaluation')
    """

    def __init__(self, options: EarlyStoppingOptions | None) -> None:
        self.options = options
        self.metrics = () if options is None else options.metrics
        self.best: list[float] = []  # of each metric, or of the loss alone
        self.best_step: int | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    @property
    def standstill(self) -> str:
        """How long there was nothing better, in words."""
        name, count = " and ".join(self.metrics) or "the loss", self.waited
        have = "have" if len(self.metrics) > 1 else "has"
        return f"{name} {have} not improved for {count} evaluation{'' if count == 1 else 's'}"

    def check_metrics(self, report: Report) -> None:
        """Refuse metrics that the reports to come do not have, or that have no direction.

        Args:
            report: any of them, as of no data.

        Raises:
            ValueError: if so; with the names to choose from.
        """
        choices = ", ".join(report.better)
        for metric in self.metrics:
            if metric in report.better:
                continue
            if metric in report:
                raise ValueError(
                    f"`early_stopping.metric` should be one whose values are the better the higher, "
                    f"or the lower: {choices}. Received {metric}."
                )
            raise ValueError(
                f"`early_stopping.metric` should be one of {choices}. Received {metric}"
                f"{did_you_mean(metric, report.better) or '.'}"
            )

    def improves(self, found: Evaluation, step: int, epoch: int) -> bool:
        """Note an evaluation, and return whether it is the best so far.

        Args:
            found: what it gave.
            step: when it was.
            epoch: in which epoch, from 1.

        Raises:
            ValueError: if a metric is not defined, with the reason.
        """
        values = self._values(found)
        if self.best_step is None or self._gain(values, found.report) > self._min_delta:
            self.best, self.best_step, self.best_epoch, self.waited = values, step, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.options is not None and self.waited >= self.options.patience

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are kept, as early stopping asks for; None without."""
        return None if self.options is None else self.best_step

    @property
    def _min_delta(self) -> float:
        return 0.0 if self.options is None else self.options.min_delta

    def _values(self, found: Evaluation) -> list[float]:
        for metric in self.metrics:
            if math.isnan(found.report[metric]):
                raise ValueError(
                    f"`early_stopping.metric` should be defined for the validation data. Received "
                    f"{metric}, which is not: {found.report.undefined.get(metric, 'it is NaN')}."
                )
        return [found.report[metric] for metric in self.metrics] or [found.loss]

    def _gain(self, values: list[float], report: Report) -> float:
        higher = [report.better[metric] == "higher" for metric in self.metrics] or [False]
        gains = [
            value - best if up else best - value
            for value, best, up in zip(values, self.best, higher, strict=True)
        ]
        return sum(gains)

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "best_epoch": self.best_epoch,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        best = state["best"]
        self.best_step, self.best_epoch = state["best_step"], state.get("best_epoch")
        # Before there were several metrics it was the value of one.
        self.best = list(best) if isinstance(best, list) else [best]
        self.waited = state["waited"]
