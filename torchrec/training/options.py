"""How a model is trained: what `Trainer` takes besides model, optimizer and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torchrec.checks import require_integer

Decay = Literal["constant", "linear", "cosine", "exponential", "plateau"]
Average = Literal["ema", "swa"]
Precision = Literal["fp32", "bf16"]


def _number(name: str, value: float, wanted: str, is_right: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` should be a number. Received {value!r}.")
    if not is_right(value):
        raise ValueError(f"`{name}` should be {wanted}. Received {value}.")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` should be one of {', '.join(choices)}. Received {value!r}.")


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rates over time, as factors of those that the optimizers have.

    Args:
        warmup_steps: steps over which the learning rates rise from 0. Default 0.
        decay: how they fall: until the last step ``"linear"``, ``"cosine"`` or ``"exponential"``, by
            ``"plateau"`` when an evaluation is no better than the best one, as early stopping sees it,
            or by the loss; ``"constant"``: not at all. Default ``"constant"``.
        final: the factor that they fall to, in [0, 1]; not for ``"constant"``. Default 0.
        factor: what a plateau multiplies them by, in (0, 1). Default 0.1.
        patience: evaluations without improvement that a plateau bears. Default 0: the first one
            lowers the learning rates.
    """

    warmup_steps: int = 0
    decay: Decay = "constant"
    final: float = 0.0
    factor: float = 0.1
    patience: int = 0

    def __post_init__(self) -> None:
        require_integer(self.warmup_steps, "`schedule.warmup_steps`", least=0)
        _choice("schedule.decay", self.decay, get_args(Decay))
        _number("schedule.final", self.final, "in [0, 1]", lambda final: 0 <= final <= 1)
        _number("schedule.factor", self.factor, "in (0, 1)", lambda factor: 0 < factor < 1)
        require_integer(self.patience, "`schedule.patience`", least=0)
        for name, default in (("factor", 0.1), ("patience", 0)):
            if self.decay != "plateau" and getattr(self, name) != default:
                raise ValueError(
                    f"`schedule.{name}` should be given for `schedule.decay` plateau. Received "
                    f"{getattr(self, name)} for {self.decay}."
                )
        if self.decay == "constant" and self.final != 0:
            raise ValueError(
                "`schedule.final` should be given for learning rates that fall. Received "
                f"{self.final} for `schedule.decay` constant."
            )
        if self.decay == "exponential" and self.final == 0:
            raise ValueError(
                "`schedule.final` should be above 0 for exponential decay. Received 0."
            )


@dataclass(frozen=True)
class EarlyStoppingOptions:
    """Stop when a metric of the validation data has not improved for some evaluations.

    Args:
        metric: what should improve, by its name in the report; of several the sum of their changes,
            those with a minus that are the better the lower: ``["auc", "logloss"]`` is AUC - logloss.
            Default ``"auc"``.
        patience: evaluations without improvement before the end. Default 2.
        min_delta: what counts as an improvement. Default 0: anything above.
    """

    metric: str | Sequence[str] = "auc"
    patience: int = 2
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.metric, Sequence) or not all(
            isinstance(each, str) for each in self.metric
        ):
            raise TypeError(
                f"`early_stopping.metric` should be a name of a metric, or several. Received "
                f"{self.metric!r}."
            )
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(
                f"`early_stopping.metric` should name one metric or several that differ. Received "
                f"{self.metric!r}."
            )
        require_integer(self.patience, "`early_stopping.patience`", least=1)
        _number("early_stopping.min_delta", self.min_delta, "0 or more", lambda delta: delta >= 0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)


@dataclass(frozen=True)
class AverageOptions:
    """The average of the weights over the steps, of tables too, in place of the last ones.

    Evaluations, the best weights and the model in the end are of the average; `WeightAverage` has the
    formulas.

    Args:
        kind: ``"ema"`` forgets older steps exponentially, ``"swa"`` is the mean of the last ones.
        decay: the share of the average that ``"ema"`` keeps a step, in (0, 1). Default 0.999.
        start: the share of the steps before ``"swa"`` begins, in [0, 1). Default 0.75.
    """

    kind: Average
    decay: float = 0.999
    start: float = 0.75

    def __post_init__(self) -> None:
        _choice("average.kind", self.kind, get_args(Average))
        _number("average.decay", self.decay, "in (0, 1)", lambda decay: 0 < decay < 1)
        _number("average.start", self.start, "in [0, 1)", lambda start: 0 <= start < 1)
        for name, default, kind in (("decay", 0.999, "ema"), ("start", 0.75, "swa")):
            if self.kind != kind and getattr(self, name) != default:
                raise ValueError(
                    f"`average.{name}` should be given for `average.kind` {kind}. Received "
                    f"{getattr(self, name)} for {self.kind}."
                )


@dataclass(frozen=True)
class FitOptions:
    """How a model is trained.

    Args:
        epochs: passes over the training data. Default 1.
        accumulate: batches whose gradients are summed for a step. Default 1.
        clip_norm: largest norm of the dense gradients. Default: no limit.
        precision: ``"fp32"``, or ``"bf16"`` for the products of the dense layers; weights stay
            float32. Default ``"fp32"``.
        compile: use ``torch.compile``. Default False.
        label_smoothing: the share s, in [0, 1), by which targets of a cross-entropy move towards 1/2
            in the loss: y (1 - s) + s/2. Metrics and evaluations go by the targets. Default 0.
        schedule: the learning rates over time. Default: constant.
        average: of the weights over the steps, which is evaluated and kept. Default: the last ones.
        early_stopping: end before the last epoch. Default: never.
        evaluate_every: steps between evaluations of validation data. Default: once an epoch.
        checkpoint_every: steps between checkpoints. Default: once an epoch.
        log_every: steps between records of training. Default 50.
        seed: of the generators of random numbers, before the first step. Default 0.

    Raises:
        TypeError: if a value is of another kind; it names the option.
        ValueError: if one is out of its range.

    Example:
        >>> FitOptions(epochs=3, early_stopping=EarlyStoppingOptions(metric="ne")).accumulate
        1
    """

    epochs: int = 1
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "fp32"
    compile: bool = False
    label_smoothing: float = 0.0
    schedule: ScheduleOptions = ScheduleOptions()
    average: AverageOptions | None = None
    early_stopping: EarlyStoppingOptions | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "evaluate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) is not None or name in ("epochs", "accumulate", "log_every"):
                require_integer(getattr(self, name), f"`{name}`", least=1)
        if self.clip_norm is not None:
            _number("clip_norm", self.clip_norm, "above 0", lambda norm: 0 < norm < math.inf)
        _choice("precision", self.precision, ("fp32", "bf16"))
        _number("label_smoothing", self.label_smoothing, "in [0, 1)", lambda share: 0 <= share < 1)
        if not isinstance(self.compile, bool):
            raise TypeError(f"`compile` should be True or False. Received {self.compile!r}.")
        if not isinstance(self.schedule, ScheduleOptions):
            raise TypeError(f"`schedule` should be a ScheduleOptions. Received {self.schedule!r}.")
        if not isinstance(self.average, AverageOptions | None):
            raise TypeError(
                f"`average` should be an AverageOptions, or None. Received {self.average!r}."
            )
        if not isinstance(self.early_stopping, EarlyStoppingOptions | None):
            raise TypeError(
                "`early_stopping` should be an EarlyStoppingOptions, or None. Received "
                f"{self.early_stopping!r}."
            )
        require_integer(self.seed, "`seed`", least=0, most=2**63 - 1)
