"""Loss and metrics of the samples that are trained on, each predicted before it is learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics import BinaryMetrics, BinaryReport


class TrainingMetrics:
    """What is measured since the last record, and since the epoch began.

    Nothing here waits for a device but ``record``.

    Example:
        >>> metrics = TrainingMetrics()
        >>> metrics.update(torch.tensor(0.7), [(torch.tensor([0.1, -0.1]), torch.tensor([1, 0]))])
        >>> report, loss = metrics.record(step=1)
        >>> report.auc, round(loss, 2), metrics.epoch().samples
        (1.0, 0.7, 2)
    """

    def __init__(self) -> None:
        self._window = BinaryMetrics()  # since the last record
        self._epoch = BinaryMetrics()  # since the epoch began, up to the last record
        self._losses: list[Tensor] = []  # of the steps since the last record

    def update(self, loss: Tensor, scored: list[tuple[Tensor, Tensor]]) -> None:
        """Take a step in: its loss, and logits and labels of its batches."""
        self._losses.append(loss)
        for logits, labels in scored:
            self._window.update(logits, labels)

    def record(self, step: int) -> tuple[BinaryReport, float]:
        """Return metrics and mean loss since the last record, and begin anew.

        Args:
            step: of the last update, to name one that is wrong.

        Raises:
            ValueError: if a loss is no number, or a label neither 0 nor 1.
        """
        losses = self.check(step)
        report = self._window.compute()
        self._epoch.merge(self._window)
        self._window.reset()
        self._losses = []
        return report, sum(losses) / len(losses)

    def check(self, step: int) -> list[float]:
        """Return the losses since the last record; refuse one that is no number.

        Args:
            step: of the last of them.
        """
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        for number, loss in enumerate(losses, step + 1 - len(losses)):
            if not math.isfinite(loss):
                raise ValueError(
                    f"The loss should be a number. Received {loss} in step {number}: lower "
                    "`training.learning_rate`, or set `training.clip_norm`."
                )
        return losses

    def epoch(self) -> BinaryReport:
        """Return the metrics since the epoch began, up to the last record."""
        return self._epoch.compute()

    def new_epoch(self) -> None:
        """Begin an epoch."""
        self._epoch.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return all there is to go on from."""
        return {
            "window": self._window.state_dict(),
            "epoch": self._epoch.state_dict(),
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`.
            device: of the losses to come.
        """
        self._window.load_state_dict(state["window"])
        self._epoch.load_state_dict(state["epoch"])
        self._losses = list(state["losses"].to(device))
