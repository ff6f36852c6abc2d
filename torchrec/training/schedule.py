"""Learning rates over time: one factor of the step, for tables and dense parameters alike."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torchrec.training.options import ScheduleOptions

# Courses that do not depend on how many steps there will be.
_WITHOUT_END = ("constant", "plateau")


def learning_rate_factor(options: ScheduleOptions, step: int, total: int | None) -> float:
    """Return what the learning rates are multiplied by.

    They rise in a straight line over ``warmup_steps``, and then fall to ``final`` at the last step.
    What a plateau multiplies them by comes on top: `Plateau`.

    Args:
        options: the course.
        step: how many steps have been taken.
        total: how many there will be; None if unknown, which ``constant`` and ``plateau`` do without.

    Example:
        >>> course = ScheduleOptions(warmup_steps=2, decay="linear", final=0.5)
        >>> [learning_rate_factor(course, step, 5) for step in range(5)]
        [0.5, 1.0, 1.0, 0.75, 0.5]
    """
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if options.decay in _WITHOUT_END or total is None:
        return 1.0
    last = max(total - 1 - options.warmup_steps, 1)
    done = min((step - options.warmup_steps) / last, 1.0)
    if options.decay == "linear":
        return 1.0 + (options.final - 1.0) * done
    if options.decay == "cosine":
        return options.final + (1.0 - options.final) * (1.0 + math.cos(math.pi * done)) / 2.0
    return float(options.final**done)


class Plateau:
    """Lowers the learning rates when evaluations do not improve.

    Each time that more than ``patience`` evaluations in a row are no better than the best one, the
    factor is multiplied by ``factor``, down to ``final``, and the count begins anew.

    Args:
        options: the course; of another ``decay`` the factor stays 1.

    Example:
        >>> plateau = Plateau(ScheduleOptions(decay="plateau", factor=0.5, final=0.2, patience=1))
        >>> [plateau.lowers(improved) for improved in (True, False, False, False, False)]
        [False, False, True, False, True]
        >>> plateau.factor, plateau.waited
        (0.25, 0)
    """

    def __init__(self, options: ScheduleOptions) -> None:
        self._options = options
        self.factor = 1.0
        self.waited = 0

    def lowers(self, improved: bool) -> bool:
        """Note an evaluation, and return whether the learning rates are lower from now on.

        Args:
            improved: whether it was the best so far.
        """
        options = self._options
        if options.decay != "plateau":
            return False
        self.waited = 0 if improved else self.waited + 1
        if self.waited <= options.patience or self.factor <= options.final:
            return False
        self.factor, self.waited = max(self.factor * options.factor, options.final), 0
        return True

    def state_dict(self) -> dict[str, float]:
        """Return what to go on from."""
        return {"factor": self.factor, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""
        self.factor, self.waited = state["factor"], int(state["waited"])


class Schedule:
    """Writes the learning rate of a step into parameter groups.

    It keeps no position: the step and the plateau say all, so there is nothing to save.

    Args:
        options: the course.
        groups: parameter groups with the learning rates that the course multiplies.
        total: how many steps there will be; None if unknown.
        plateau: what else multiplies them. Default: nothing.

    Raises:
        ValueError: if the course has to know the last step, or warms up beyond it.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = Schedule(ScheduleOptions(warmup_steps=4), optimizer.param_groups, None)
        >>> schedule.write(0)
        0.125
    """

    def __init__(
        self,
        options: ScheduleOptions,
        groups: Collection[Mapping[str, Any]],
        total: int | None,
        plateau: Plateau | None = None,
    ) -> None:
        if options.decay not in _WITHOUT_END and total is None:
            raise ValueError(
                "`schedule.decay` should be constant or plateau for data whose length is not known "
                f"before it is read. Received {options.decay}."
            )
        if total is not None and options.warmup_steps >= max(total, 2):
            raise ValueError(
                f"`schedule.warmup_steps` should be less than the steps of the run ({total}). "
                f"Received {options.warmup_steps}."
            )
        self._options = options
        self._total = total
        self._plateau = Plateau(options) if plateau is None else plateau
        self._groups = [(group, float(group["lr"])) for group in groups]
        self._factor: float | None = None

    def write(self, step: int) -> float:
        """Set the learning rates for a step, and return the last of them.

        Args:
            step: how many steps have been taken.
        """
        factor = learning_rate_factor(self._options, step, self._total) * self._plateau.factor
        if factor != self._factor:
            self._set(factor)
            self._factor = factor
        return self._groups[-1][1] * factor if self._groups else 0.0

    def end(self) -> None:
        """Set the learning rates back to those that the course multiplied."""
        self._set(1.0)
        self._factor = None

    def _set(self, factor: float) -> None:
        """Write what differs: groups of tables bring what they keep of it up to date."""
        for group, rate in self._groups:
            if group["lr"] != rate * factor:
                group["lr"] = rate * factor  # type: ignore[index]
