"""What a person should know of how training went: overfitting, and models that are of no use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchrec.metrics import Report
from torchrec.metrics.interval import metric_text

_RISE = 0.01  # of the lowest loss: what is less is noise
_EVALUATIONS = 2  # since the lowest loss


class Overfitting:
    """Sees that the loss of the validation data rises for the weights that are kept, and says so once.

    Early stopping by a metric of order, such as AUC, goes on keeping weights whose probabilities get
    worse all the time.

    Args:
        loss: the name of the loss.

    Example:
        >>> overfitting = Overfitting("logloss")
        >>> for epoch, loss in enumerate((0.5, 0.4, 0.42, 0.44), 1):
        ...     overfitting.note(loss, epoch, kept=True)
        ...     print(overfitting.is_clear)
        False
        False
        False
        True
        >>> overfitting.sentence().partition(":")[0]
        'validation logloss has been rising since epoch 2 (0.4000 -> 0.4400)'
    """

    def __init__(self, loss: str) -> None:
        self._loss = loss
        self.lowest: float | None = None
        self.epoch = 0  # of the lowest
        self.since = 0  # evaluations since the lowest
        self.kept: float | None = None  # of the weights that are kept
        self.is_told = False

    def note(self, loss: float, epoch: int, kept: bool) -> None:
        """Take an evaluation in.

        Args:
            loss: the mean loss.
            epoch: in which, from 1.
            kept: whether the weights are those to keep, as it looks now.
        """
        self.since += 1
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.epoch, self.since = loss, epoch, 0
        if kept:
            self.kept = loss

    @property
    def is_there(self) -> bool:
        """Whether other weights than those that are kept had a lower loss."""
        if self.lowest is None or self.kept is None:
            return False
        return self.kept - self.lowest > _RISE * abs(self.lowest)

    @property
    def is_clear(self) -> bool:
        """Whether it has been so for some evaluations, and was not told yet."""
        return self.is_there and self.since >= _EVALUATIONS and not self.is_told

    def sentence(self) -> str:
        """Return what to say of it."""
        assert self.lowest is not None
        assert self.kept is not None
        lowest, kept = metric_text(self.lowest), metric_text(self.kept)
        what, metrics = "predictions", self._loss
        if self._loss == "logloss":
            what, metrics = "probabilities", "logloss, or by auc and logloss"
        return (
            f"validation {self._loss} has been rising since epoch {self.epoch} ({lowest} -> {kept}): "
            f"the {what} get worse. Early stopping by {metrics}, more weight decay or "
            "dropout, or a lower learning rate may help."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from."""
        return {
            "lowest": self.lowest,
            "epoch": self.epoch,
            "since": self.since,
            "kept": self.kept,
            "is_told": self.is_told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.lowest, self.epoch, self.since = state["lowest"], state["epoch"], state["since"]
        self.kept, self.is_told = state["kept"], state["is_told"]


def useless(split: str, report: Report | None) -> list[str]:
    """Say so if a model predicts worse than the mean of the labels would: its NE is above 1.

    Args:
        split: of which data.
        report: the metrics; of several tasks there is one a task. None: nothing is said.

    Example:
        >>> useless("test", Report({"auc": 0.55, "ne": 1.386}))
        ['on test the model is worse than always predicting the mean (NE 1.39)']
        >>> useless("valid", Report({"click.ne": 0.9}))
        []
    """
    found = []
    for name, value in ({} if report is None else report).items():
        task, _, metric = name.rpartition(".")
        if metric == "ne" and value > 1:
            of = f" of {task}" if task else ""
            # Two places, unless these would say that it is 1.
            number = f"{value:.2f}" if value >= 1.005 else f"{value:.6f}"
            found.append(
                f"on {split} the model{of} is worse than always predicting the mean (NE {number})"
            )
    return found


def without_signal(split: str, report: Report | None) -> list[str]:
    """Say so if predictions order samples no better than chance does: an AUC within two standard errors of 1/2.

    That of chance is by Mann and Whitney, "On a test of whether one of two random variables is
    stochastically larger than the other" (1947): sqrt((p + n + 1) / (12 p n)) of p positives, n negatives.

    Args:
        split: of which data.
        report: the metrics; of several tasks there is one a task. None: nothing is said.

    Example:
        >>> counts = {"samples": 1000, "positives": 200}
        >>> without_signal("test", Report({"auc": 0.53}, counts))[0].partition(":")[0]
        'on test predictions order samples as chance does (AUC 0.530, by chance 0.500 +- 0.046)'
        >>> without_signal("test", Report({"auc": 0.56}, counts))
        []
    """
    found = []
    for name, value in ({} if report is None else report).items():
        task, dot, metric = name.rpartition(".")
        counts = {} if report is None else report.counts
        samples = counts.get(f"{task}{dot}samples", 0)
        positives = counts.get(f"{task}{dot}positives", 0)
        if metric != "auc" or not 0 < positives < samples:
            continue
        error = 2 * math.sqrt((samples + 1) / (12 * positives * (samples - positives)))
        if abs(value - 0.5) <= error:
            of = f" of {task}" if task else ""
            found.append(
                f"on {split} predictions{of} order samples as chance does (AUC {value:.3f}, by chance "
                f"0.500 +- {error:.3f}): the features tell nothing of the label, or rows are too few."
            )
    return found


def of_test(report: Report | None) -> list[str]:
    """Return what a person should know of the metrics of the test data; None: there are none."""
    return [*useless("test", report), *without_signal("test", report)]
