"""Learning rates that follow a course of stages, as part of the optimizer and of its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.optim.keyed import KeyedOptimizer, OptimizerWrapper


@unique
class WarmupPolicy(Enum):
    """How the learning rate moves during a stage; see `WarmupStage` for the formulas."""

    NONE = "none"
    LINEAR = "linear"
    CONSTANT = "constant"
    POLY = "poly"
    STEP = "step"
    INVSQRT = "inv_sqrt"
    COSINE_ANNEALING_WARM_RESTARTS = "cosine_annealing_warm_restarts"
    INTERPOLATE = "interpolate"


@dataclass
class WarmupStage:
    r"""One stage of the course: a policy, and the iteration up to which it holds.

    With :math:`t` the number of steps taken since training began (not since the stage began), the
    learning rate is ``lr * lr_scale`` times

    - NONE: 1.
    - LINEAR: from ``value`` to 1, :math:`v + (1 - v)\, t / \text{max\_iters}`.
    - CONSTANT: ``value``.
    - POLY: :math:`(1 - t / \text{decay\_iters})^v`, and 0 from ``decay_iters`` on.
    - STEP: :math:`v^{\lfloor t / \text{decay\_iters} \rfloor}`.
    - INVSQRT: :math:`1 / \sqrt{\max(t, 1)}`.
    - COSINE_ANNEALING_WARM_RESTARTS: with :math:`p` = ``sgdr_period``,
      :math:`v + (1 - v) (1 + \cos(\pi (t \bmod p) / p)) / 2`
      (Loshchilov, Hutter, https://arxiv.org/abs/1608.03983).
    - INTERPOLATE: from ``value`` at ``start_interpolating_iters`` in a straight line to
      ``end_value`` at ``max_iters``; ``value`` before.

    Args:
        policy: the formula.
        max_iters: the last :math:`t` of the stage, counted from the beginning of training.
        value: :math:`v`.
        lr_scale: factor for the whole stage.
        decay_iters: see POLY and STEP; -1 means ``max_iters`` for POLY and 1 for STEP.
        sgdr_period: steps from one warm restart to the next.
        start_interpolating_iters: see INTERPOLATE.
        end_value: see INTERPOLATE.

    Raises:
        ValueError: if INTERPOLATE lacks its arguments, or a number is out of range.

    Example:
        >>> stage = WarmupStage(WarmupPolicy.LINEAR, max_iters=4, value=0.2)
        >>> [round(stage.factor(t), 2) for t in range(5)]
        [0.2, 0.4, 0.6, 0.8, 1.0]
    """

    policy: WarmupPolicy = WarmupPolicy.LINEAR
    max_iters: int = 1
    value: float = 1.0
    lr_scale: float = 1.0
    decay_iters: int = -1
    sgdr_period: int = 1
    start_interpolating_iters: int | None = None
    end_value: float | None = None

    def __post_init__(self) -> None:
        """Check what the formula needs."""
        for name in ("max_iters", "sgdr_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` should be at least 1. Received {getattr(self, name)}.")
        if self.decay_iters == 0 or self.decay_iters < -1:
            raise ValueError(
                f"`decay_iters` should be at least 1, or -1. Received {self.decay_iters}."
            )
        if self.policy is not WarmupPolicy.INTERPOLATE:
            return
        for name in ("start_interpolating_iters", "end_value"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` should be given for INTERPOLATE. Received None.")
        if not 0 <= (self.start_interpolating_iters or 0) < self.max_iters:
            raise ValueError(
                f"`start_interpolating_iters` should be in [0, {self.max_iters}), `max_iters`. "
                f"Received {self.start_interpolating_iters}."
            )

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by.

        Args:
            step: number of steps taken since training began.
        """
        return self.lr_scale * self._course(step)

    def _course(self, step: int) -> float:
        """Return the value of the formula, without ``lr_scale``."""
        value = self.value
        if self.policy is WarmupPolicy.LINEAR:
            return value + (1.0 - value) * step / self.max_iters
        if self.policy is WarmupPolicy.CONSTANT:
            return value
        if self.policy is WarmupPolicy.POLY:
            iters = self.max_iters if self.decay_iters == -1 else self.decay_iters
            return math.pow(max(1.0 - step / iters, 0.0), value)
        if self.policy is WarmupPolicy.STEP:
            return math.pow(value, step // max(self.decay_iters, 1))
        if self.policy is WarmupPolicy.INVSQRT:
            return 1.0 / math.sqrt(max(step, 1))
        if self.policy is WarmupPolicy.COSINE_ANNEALING_WARM_RESTARTS:
            phase = (step % self.sgdr_period) / self.sgdr_period
            return value + (1.0 - value) * (1.0 + math.cos(math.pi * phase)) / 2.0
        if self.policy is WarmupPolicy.INTERPOLATE:
            start, end_value = self.start_interpolating_iters or 0, self.end_value or 0.0
            done = max(step - start, 0) / (self.max_iters - start)
            return value + (end_value - value) * done
        return 1.0


class WarmupOptimizer(OptimizerWrapper):
    """Sets the learning rate of the optimizer inside before each step, stage after stage.

    A stage holds up to and including its ``max_iters``; after the last stage the learning rate is
    ``lr``. The position in the course is part of the state, under the name ``param_name``, so that
    a training that is taken up again goes on where it stopped. A learning rate that is written
    into a parameter group by hand counts for one step; use ``update_hyper_parameters({"lr":
    ...})`` to change what the course multiplies. All parameter groups get this one rate, whichever they
    had, those of a `CombinedOptimizer` too: where rates differ, warm each optimizer up by itself.

    Args:
        optimizer: the optimizer inside.
        stages: the course, with increasing ``max_iters``.
        lr: the learning rate that the stages multiply.
        lr_param: name of the hyper-parameter to set. A parameter group that does not have it gets it.
        param_name: name that the position in the course is kept under.

    Raises:
        ValueError: if ``max_iters`` does not increase, ``lr_param`` is another one than ``"lr"``
            that no parameter group has, or ``param_name`` is taken.

    Example:
        >>> from torchrec.optim.keyed import KeyedOptimizerWrapper
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> inner = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=1.0))
        >>> stages = [WarmupStage(WarmupPolicy.LINEAR, max_iters=2, value=0.0)]
        >>> optimizer = WarmupOptimizer(inner, stages, lr=0.5)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        >>> rates
        [0.0, 0.25, 0.5, 0.5]
        >>> optimizer.state_dict()["state"]["__warmup"]
        {'warmup': tensor([4, 1])}
    """

    def __init__(
        self,
        optimizer: KeyedOptimizer,
        stages: list[WarmupStage],
        lr: float = 0.1,
        lr_param: str = "lr",
        param_name: str = "__warmup",
    ) -> None:
        for before, after in pairwise(stages):
            if after.max_iters <= before.max_iters:
                raise ValueError(
                    f"`max_iters` should increase from stage to stage, above {before.max_iters}. "
                    f"Received {after.max_iters}."
                )
        if param_name in optimizer.params:
            raise ValueError(f"`param_name` should be no parameter. Received '{param_name}'.")
        groups = optimizer.param_groups
        if lr_param != "lr" and groups and not any(lr_param in group for group in groups):
            known = sorted({name for group in groups for name in group} - {"params"})
            raise ValueError(
                f"`lr_param` should name a hyper-parameter of the optimizer, {known}. "
                f"Received '{lr_param}'."
            )
        self._stages = stages
        self._lr = lr
        self._lr_param = lr_param
        self._param_name = param_name
        self._param = nn.Parameter(torch.empty(0))  # stands for the course among the parameters
        self._position: dict[str, Any] = {"warmup": torch.tensor([0, 0])}  # step, stage
        super().__init__(optimizer)
        self._set_lr()

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Name -> parameter, and an empty one that stands for the course."""
        return {**self._optimizer.params, self._param_name: self._param}

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]
        """Parameter -> its state; of the course, step and stage."""
        return {**self._optimizer.state, self._param: self._position}

    def _live_state(self, param: Tensor) -> dict[str, Any]:
        return self._position if param is self._param else self._optimizer._live_state(param)

    def _set_lr(self) -> None:
        """Write the learning rate of the position in the course into all groups."""
        step, stage = self._position["warmup"].tolist()
        while stage < len(self._stages) and step > self._stages[stage].max_iters:
            stage += 1
        self._position["warmup"][1] = stage
        factor = self._stages[stage].factor(step) if stage < len(self._stages) else 1.0
        for group in self.param_groups:
            group[self._lr_param] = self._lr * factor  # type: ignore[index]

    def post_load_state_dict(self) -> None:
        """Set the learning rate of the position that has been loaded."""
        super().post_load_state_dict()
        self._position["warmup"][1] = 0  # this course may have other stages than the saved one
        self._set_lr()

    def update_hyper_parameters(self, params_dict: dict[str, Any]) -> None:
        """Change hyper-parameters; the learning rate is the one that the stages multiply.

        Args:
            params_dict: name -> value.

        Raises:
            ValueError: if no group has a hyper-parameter of the name.
        """
        super().update_hyper_parameters(params_dict)
        self._lr = params_dict.get(self._lr_param, self._lr)
        self._set_lr()

    def step(self, closure: Any = None) -> Any:
        """Step with the learning rate of now, then set the next one.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What ``closure`` returned.
        """
        loss = super().step(closure)
        self._position["warmup"][0] += 1
        self._set_lr()
        return loss
