"""When to stop: a metric of the validation data that no longer improves."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torchrec.experiment.schema import EarlyStoppingSection
from torchrec.metrics import BinaryReport


@dataclass
class EarlyStopping:
    """The best value so far, and how long ago it was.

    Args:
        section: which metric, and how patient; None never stops, nor notes a best value.

    Example:
        >>> stopping = EarlyStopping(EarlyStoppingSection(metric="auc", patience=1))
        >>> [stopping.improves(10 * i, BinaryReport(auc=auc)) for i, auc in enumerate([0.6, 0.5])]
        [True, False]
        >>> stopping.is_over, stopping.best_step, stopping.best
        (True, 0, 0.6)
    """

    section: EarlyStoppingSection | None
    best: float = math.nan
    best_step: int | None = None
    waited: int = 0

    def improves(self, step: int, report: BinaryReport) -> bool:
        """Note an evaluation, and return whether it is the best so far.

        Args:
            step: of the evaluation.
            report: what it gave.

        Raises:
            ValueError: if the metric is not defined, with the reason.
        """
        if self.section is None:
            return False
        metric = self.section.metric
        value: float = getattr(report, metric)
        if math.isnan(value):
            raise ValueError(
                f"`early_stopping.metric` should be defined for the validation data. Received "
                f"{metric}, which is not: {report.undefined.get(metric, 'it is NaN')}."
            )
        gain = value - self.best if metric == "auc" else self.best - value
        if self.best_step is None or gain > self.section.min_delta:
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.section is not None and self.waited >= self.section.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from."""
        state = asdict(self)
        del state["section"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]
