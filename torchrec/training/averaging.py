"""Averages of the weights over the steps: what is evaluated, kept and saved instead of the last ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.training.optimizers import weights_moved_with_rows
from torchrec.training.options import AverageOptions

# What batch normalisation measures of the activations belongs to the weights that made them.
_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    r"""The average of a model's weights: dense parameters, tables, and statistics of batch norm.

    After the n-th step that counts

    .. math:: \bar w_n = \bar w_{n-1} + (1 - d_n) (w_n - \bar w_{n-1})

    with :math:`d_n = \min(\text{decay}, n / (9 + n))` for ``"ema"``, so that the first steps are soon
    forgotten, and :math:`d_n = (n - 1) / n`, the mean, for ``"swa"``. The first is the weights
    themselves. It goes over all rows of all tables each step, as rows that a step leaves as they are
    move in the average all the same; and it is in float32, whatever the weights are. Of a table that is spread
    over ranks, each has the average of its part, and nothing is sent.

    Args:
        options: which average.
        model: whose weights; it goes on training its own.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(AverageOptions(kind="swa", start=0.5), layer)
        >>> for step, weight in enumerate((9.0, 9.0, 1.0, 3.0), 1):
        ...     _ = nn.init.constant_(layer.weight, weight)
        ...     average.update(step, total=4)
        >>> with average.shown():
        ...     print(layer.weight.item())
        2.0
        >>> layer.weight.item()
        3.0

    References:
        https://arxiv.org/abs/1803.05407 averages at the end of epochs, this at each step.
    """

    def __init__(self, options: AverageOptions, model: nn.Module) -> None:
        self._options = options
        self._weights = _averaged(model)
        self._average: dict[str, Tensor] = {}
        self._count = 0  # of steps in the average

    def check_total(self, total: int | None) -> None:
        """Refuse a mean of the last steps where nobody knows which these are.

        Args:
            total: how many steps there will be; None if unknown.

        Raises:
            ValueError: if so.
        """
        if self._options.kind == "swa" and total is None:
            raise ValueError(
                "`average.kind` should be ema for data whose length is not known before it is read. "
                "Received swa."
            )

    def update(self, step: int, total: int | None) -> None:
        """Take the weights after a step in, if it is one that counts.

        Args:
            step: how many have been made.
            total: how many there will be; only the mean of the last ones needs it.
        """
        options = self._options
        if step <= self._steps_before(total):
            return
        self._count += 1
        n = self._count
        if n == 1:
            self._average = self._copied()
            return
        decay = (n - 1) / n if options.kind == "swa" else min(options.decay, n / (9 + n))
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.float(), 1.0 - decay)

    def finding(self, step: int, total: int | None) -> list[str]:
        """Say so where the weights of a step are no average yet, as its training was stopped early.

        Args:
            step: whose weights are kept.
            total: how many steps there would have been.
        """
        before = self._steps_before(total)
        if step > before:
            return []
        return [
            f"the model has the weights of step {step:,}, not an average: that of the last steps begins "
            f"after step {before:,.0f}. A lower `average.start`, or ema, begins earlier."
        ]

    def _steps_before(self, total: int | None) -> float:
        """Return how many steps there are before the first that counts."""
        if self._options.kind == "ema":
            return 0.0
        return math.inf if total is None else math.floor(self._options.start * total)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the model have the average as its weights inside."""
        own = {name: weight.clone() for name, weight in self._weights.items()}
        try:
            self.write()
            yield
        finally:
            _copy(own, self._weights)

    def write(self) -> None:
        """Write the average into the model, if it has begun."""
        _copy(self._average, self._weights)

    def init_state(self, step: int, total: int | None) -> None:
        """Have the state of a step, in memory of its own, for a checkpoint to be read into.

        Args:
            step: how many have been made.
            total: how many there will be.
        """
        self._average = self._copied() if step > self._steps_before(total) else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from."""
        return {"count": self._count, "weights": self._average}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from a state.

        Args:
            state: of an average.
            model: the model, with the weights of that time, whose rows may have moved when it loaded them.
        """
        self._count = state["count"]
        if state["weights"].keys() != self._average.keys():  # it has begun at another step
            self._average = self._copied() if state["weights"] else {}
        _copy(weights_moved_with_rows(model, state["weights"]), self._average)

    @torch.no_grad()
    def _copied(self) -> dict[str, Tensor]:
        return {name: value.to(torch.float32, copy=True) for name, value in self._weights.items()}


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Return what is averaged, by name: numbers that training changes bit by bit."""
    names = [name for name, _ in model.named_parameters()]
    names += [n for n, _ in model.named_buffers() if n.rpartition(".")[2] in _STATISTICS]
    state = model.state_dict()  # of a table that ranks share, it has the whole
    return {name: state[name] for name in names if state[name].is_floating_point()}


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        to[name].copy_(value)
