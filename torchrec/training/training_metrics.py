"""Loss and metrics of the samples that are trained on, each predicted before it is learned from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.metrics import Metrics, Report
from torchrec.metrics.report import join_reports
from torchrec.training.task import Prediction, Task
from torchrec.training.world import ALONE, World


class TrainingMetrics:
    """What is measured since the last record, and since the epoch began.

    Nothing here waits for a device, or for another rank, but ``record``, ``check`` and ``state_dict``.

    Args:
        tasks: what is measured.
        world: the ranks that measure it together. Default: this process alone.

    Example:
        >>> metrics = TrainingMetrics([Task()])
        >>> outputs, targets = torch.tensor([0.1, -0.1]), torch.tensor([1, 0])
        >>> metrics.update(torch.tensor(0.7), [Prediction(Task(), outputs, targets, None)])
        >>> report, loss = metrics.record(step=1)
        >>> report.auc, round(loss, 2), metrics.epoch().samples
        (1.0, 0.7, 2)
    """

    def __init__(self, tasks: Sequence[Task], world: World = ALONE) -> None:
        self._world = world
        # Since the last record, on this rank; and since the epoch began, up to the last record, on all.
        self._window = {task.target: task.metrics() for task in tasks}
        self._epoch = {task.target: task.metrics() for task in tasks}
        self._losses: list[Tensor] = []  # of the steps since the last record

    def update(self, loss: Tensor, predictions: Iterable[Prediction]) -> None:
        """Take a step in: its loss, and what the model said of its samples before it learned from them."""
        self._losses.append(loss)
        for each in predictions:
            each.measure(self._window[each.task.target])

    def record(self, step: int) -> tuple[Report, float]:
        """Return metrics and mean loss since the last record, and begin anew.

        Args:
            step: of the last update, to name one that is wrong.

        Raises:
            ValueError: if a loss is no number, or the metrics refuse a target.
        """
        losses = self.check(step)
        of_all = self._window_of_all()
        report = join_reports({name: each.compute() for name, each in of_all.items()})
        for name, window in of_all.items():
            self._epoch[name].merge(window)
        for window in self._window.values():
            window.reset()
        self._losses = []
        return report, sum(losses) / len(losses)

    def check(self, step: int) -> list[float]:
        """Return the losses since the last record; refuse one that is no number.

        Args:
            step: of the last of them.
        """
        of_rank: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        # That of each rank is scaled so that their mean is the loss of the step, as their gradients' is.
        total = self._world.total(of_rank, f"the losses up to step {step}")
        losses = [loss / self._world.size for loss in total]
        _require_numbers(losses, step)
        return losses

    def check_here(self, step: int) -> None:
        """Refuse a loss of this rank that is no number, without asking the others.

        Args:
            step: of the last of the losses.
        """
        _require_numbers(torch.stack(self._losses).tolist() if self._losses else [], step)

    def _window_of_all(self) -> dict[str, Metrics]:
        """Return what all ranks have measured since the last record; of one rank, its own."""
        first, *others = self._world.gather(self._window, "metrics of training")
        for other in others:
            for name, each in first.items():
                each.merge(other[name])
        return first

    def epoch(self) -> Report:
        """Return the metrics since the epoch began, up to the last record."""
        return join_reports({name: each.compute() for name, each in self._epoch.items()})

    def new_epoch(self) -> None:
        """Begin an epoch."""
        for each in self._epoch.values():
            each.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return all there is to go on from, of all ranks together."""
        window, losses = self._window_of_all(), self._losses
        if self._world.size > 1:
            of_rank = torch.stack(losses).tolist() if losses else []
            total = self._world.total(of_rank, "the losses of a checkpoint")
            losses = [torch.tensor(loss / self._world.size) for loss in total]
        return {
            "window": {name: each.state_dict() for name, each in window.items()},
            "epoch": {name: each.state_dict() for name, each in self._epoch.items()},
            "losses": torch.stack(losses).cpu() if losses else torch.empty(0),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`.
            device: of the losses to come.

        Raises:
            ValueError: if it is of other tasks.
        """
        for part, metrics in (("window", self._window), ("epoch", self._epoch)):
            saved = state[part]
            if saved.keys() != metrics.keys():
                raise ValueError(
                    f"`tasks` should have the targets {sorted(saved)}, as when the state was saved. "
                    f"Received {sorted(metrics)}."
                )
            for name, each in metrics.items():
                if part == "epoch" or self._world.rank == 0:  # which goes on for all
                    each.load_state_dict(saved[name])
        self._losses = list(state["losses"].to(device))


def _require_numbers(losses: Sequence[float], step: int) -> None:
    """Refuse losses that are no numbers; the last is that of ``step``."""
    for number, loss in enumerate(losses, step + 1 - len(losses)):
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss should be a number. Received {loss} in step {number}: lower the "
                "learning rate (`learning_rate`), or limit the gradients (`clip_norm`)."
            )
