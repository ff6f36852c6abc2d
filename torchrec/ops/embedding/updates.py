"""The update rules of all table optimizers, as functions on rows of a weight matrix.

This file is the specification: the optimizers of this package apply these functions to whole
parameters (dense gradients) or to the touched rows (sparse gradients), and the kernels fused into
the backward pass are tested against them.

Every rule has the same form::

    new_weights, new_state = rule(weights, grads, state, step, hyper)

- ``weights``, ``grads``: ``(rows, dim)``, float32 or wider. ``grads`` holds one row for each row of
  ``weights``: what several look-ups of one row contributed is summed before.
- ``state``: name -> tensor, each ``(rows, dim)``, or ``(rows, 1)`` where one number a row is kept.
- ``step``: how often the parameter has been updated, this time included, so it starts at 1. It
  counts for the whole parameter: a row first touched at step 100 is corrected for bias as of then.
- ``hyper``: the hyper-parameters.
- ``sums``, of rules that look at rows as a whole: adds up squares over a row, whose columns may lie
  in several places.

The arguments are left as they are. Rows do not influence one another, so updating the touched rows
alone equals updating all rows and keeping the touched ones. The rows that were not touched are left
alone, or, with ``lazy=False``, updated with a gradient of zero, as by an optimizer that is given a
dense gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrec.types import OptimizerType

_NOT_NEGATIVE = (
    "lr",
    "weight_decay",
    "eps",
    "momentum",
    "dampening",
    "eta",
    "initial_accumulator_value",
    "batch_l2",
)

State = Mapping[str, Tensor]
Update = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of an update; each rule reads those that it has.

    Attributes:
        lr: learning rate.
        weight_decay: strength of the pull towards zero.
        weight_decay_mode: ``"l2"`` adds ``weight_decay * w`` to the gradient, ``"decoupled"``
            shrinks the weights by ``1 - lr * weight_decay`` before the update, whatever the
            gradient. LAMB and LARS-SGD have a place of their own for it.
        max_gradient: clamp each element of the gradient to ``[-max_gradient, max_gradient]`` first;
            ``None``: do not.
        eps: added to the denominator.
        betas: decay of the running means of the gradient and of its square.
        momentum: share of the momentum buffer that is kept.
        dampening: share of the gradient that does not enter the momentum buffer.
        nesterov: look ahead along the momentum.
        eta: trust coefficient of LARS.
        initial_accumulator_value: where the sum of squares starts.
        lazy: leave rows alone that no id of the batch chose. False: update them too, by a gradient
            of zero: their moments decay, and they go on along their momentum.
        batch_l2: of tables alone: adds ``batch_l2 / B * w`` to the gradient of a row for each id
            that chose it, in a batch of B samples.
    """

    lr: float
    weight_decay: float = 0.0
    weight_decay_mode: str = "l2"
    max_gradient: float | None = None
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    eta: float = 0.001
    initial_accumulator_value: float = 0.0
    lazy: bool = True
    batch_l2: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no update can mean."""
        if not isinstance(self.lazy, bool):
            raise ValueError(f"`lazy` should be True or False. Received {self.lazy!r}.")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not value >= 0.0:
                raise ValueError(f"`{name}` should be at least 0. Received {value}.")
            if math.isinf(value):
                raise ValueError(f"`{name}` should be finite. Received {value}.")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"`betas` should be two numbers in [0, 1). Received {self.betas}.")
        if self.max_gradient is not None and not self.max_gradient > 0.0:
            raise ValueError(
                f"`max_gradient` should be above 0, or None. Received {self.max_gradient}."
            )
        if self.weight_decay_mode not in ("l2", "decoupled"):
            raise ValueError(
                "`weight_decay_mode` should be 'l2' or 'decoupled'. "
                f"Received {self.weight_decay_mode!r}."
            )
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(
                "`nesterov` should come with a momentum above 0 and no dampening. "
                f"Received momentum={self.momentum}, dampening={self.dampening}."
            )


def clip(grads: Tensor, hyper: Hyper) -> Tensor:
    """Clamp each element of the gradient to ``[-max_gradient, max_gradient]``."""
    if hyper.max_gradient is None:
        return grads
    return grads.clamp(-hyper.max_gradient, hyper.max_gradient)


def decay(weights: Tensor, grads: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """Clip the gradient, then apply weight decay to it (L2) or to the weights (decoupled)."""
    grads = clip(grads, hyper)
    if hyper.weight_decay == 0.0:
        return weights, grads
    if hyper.weight_decay_mode == "decoupled":
        return weights * (1.0 - hyper.lr * hyper.weight_decay), grads
    return weights, grads + hyper.weight_decay * weights


class RowSums:
    """Adds up squares over each row: all columns are here."""

    def of_squares(self, x: Tensor) -> Tensor:
        """Sum of the squares of each row, ``(rows, 1)``."""
        return (x * x).sum(dim=1, keepdim=True)

    def mean_square(self, x: Tensor) -> Tensor:
        """Mean of the squares of each row, ``(rows, 1)``."""
        return (x * x).mean(dim=1, keepdim=True)

    def norm(self, x: Tensor) -> Tensor:
        """Euclidean norm of each row, ``(rows, 1)``."""
        return self.of_squares(x).sqrt()


_HERE = RowSums()


def sgd(
    weights: Tensor, grads: Tensor, state: State, step: int, hyper: Hyper
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Stochastic gradient descent, with momentum if ``momentum`` is not 0.

    .. math:: b \leftarrow \mu b + (1 - d) g, \qquad w \leftarrow w - \eta b

    The first step takes the gradient whole, without dampening, as `torch.optim.SGD` does. With
    Nesterov momentum the step is along :math:`g + \mu b`. Without momentum there is no state.
    """
    weights, grads = decay(weights, grads, hyper)
    if hyper.momentum == 0.0:
        return weights - hyper.lr * grads, {}
    damped = grads if step == 1 else (1.0 - hyper.dampening) * grads
    buffer = hyper.momentum * state["momentum_buffer"] + damped
    direction = grads + hyper.momentum * buffer if hyper.nesterov else buffer
    return weights - hyper.lr * direction, {"momentum_buffer": buffer}


def adagrad(
    weights: Tensor, grads: Tensor, state: State, step: int, hyper: Hyper
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adagrad: each weight has a step of its own, smaller the more gradient it has seen.

    .. math:: s \leftarrow s + g^2, \qquad w \leftarrow w - \eta g / (\sqrt{s} + \epsilon)
    """
    weights, grads = decay(weights, grads, hyper)
    total = state["sum"] + grads * grads
    return weights - hyper.lr * grads / (total.sqrt() + hyper.eps), {"sum": total}


def rowwise_adagrad(
    weights: Tensor,
    grads: Tensor,
    state: State,
    step: int,
    hyper: Hyper,
    sums: RowSums = _HERE,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adagrad with one sum a row, fed with the mean square of the row's gradient.

    .. math::
        s_i \leftarrow s_i + \frac{1}{D} \sum_d g_{id}^2, \quad
        w_i \leftarrow w_i - \eta g_i / (\sqrt{s_i} + \epsilon)
    """
    weights, grads = decay(weights, grads, hyper)
    total = state["sum"] + sums.mean_square(grads)
    return weights - hyper.lr * grads / (total.sqrt() + hyper.eps), {"sum": total}


def _moments(grads: Tensor, squares: Tensor, state: State, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """Move both running means towards the gradient and its square."""
    beta1, beta2 = hyper.betas
    mean = beta1 * state["exp_avg"] + (1.0 - beta1) * grads
    square = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * squares
    return mean, square


def _adam_direction(mean: Tensor, square: Tensor, step: int, hyper: Hyper) -> Tensor:
    """Bias-corrected mean over bias-corrected root mean square."""
    beta1, beta2 = hyper.betas
    denominator = square.sqrt() / math.sqrt(1.0 - beta2**step) + hyper.eps
    return mean / (1.0 - beta1**step) / denominator


def adam(
    weights: Tensor, grads: Tensor, state: State, step: int, hyper: Hyper
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adam, and with ``weight_decay_mode="decoupled"`` AdamW.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}
    """
    weights, grads = decay(weights, grads, hyper)
    mean, square = _moments(grads, grads * grads, state, hyper)
    new = weights - hyper.lr * _adam_direction(mean, square, step, hyper)
    return new, {"exp_avg": mean, "exp_avg_sq": square}


def partial_rowwise_adam(
    weights: Tensor,
    grads: Tensor,
    state: State,
    step: int,
    hyper: Hyper,
    sums: RowSums = _HERE,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adam with one second moment a row, fed with the mean square of the row's gradient.

    .. math:: v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \frac{1}{D} \sum_d g_{id}^2
    """
    weights, grads = decay(weights, grads, hyper)
    mean, square = _moments(grads, sums.mean_square(grads), state, hyper)
    new = weights - hyper.lr * _adam_direction(mean, square, step, hyper)
    return new, {"exp_avg": mean, "exp_avg_sq": square}


def _lamb_step(
    weights: Tensor, mean: Tensor, square: Tensor, step: int, hyper: Hyper, sums: RowSums
) -> Tensor:
    """Scale the direction of each row to the norm of its weights."""
    direction = _adam_direction(mean, square, step, hyper) + hyper.weight_decay * weights
    weight_norm, direction_norm = sums.norm(weights), sums.norm(direction)
    known = (weight_norm > 0) & (direction_norm > 0)
    ratio = torch.where(known, weight_norm / direction_norm, 1.0)
    return weights - hyper.lr * ratio * direction


def lamb(
    weights: Tensor,
    grads: Tensor,
    state: State,
    step: int,
    hyper: Hyper,
    sums: RowSums = _HERE,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""LAMB with each row as a layer (You et al., https://arxiv.org/abs/1904.00962, Algorithm 2).

    .. math::
        u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w, \quad
        w \leftarrow w - \eta \frac{|w|}{|u|} u

    The moments are Adam's. The ratio is 1 for a row whose weights or whose direction are all zero.
    """
    grads = clip(grads, hyper)
    mean, square = _moments(grads, grads * grads, state, hyper)
    new = _lamb_step(weights, mean, square, step, hyper, sums)
    return new, {"exp_avg": mean, "exp_avg_sq": square}


def partial_rowwise_lamb(
    weights: Tensor,
    grads: Tensor,
    state: State,
    step: int,
    hyper: Hyper,
    sums: RowSums = _HERE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """LAMB with one second moment a row, fed with the mean square of the row's gradient."""
    grads = clip(grads, hyper)
    mean, square = _moments(grads, sums.mean_square(grads), state, hyper)
    new = _lamb_step(weights, mean, square, step, hyper, sums)
    return new, {"exp_avg": mean, "exp_avg_sq": square}


def lars_sgd(
    weights: Tensor,
    grads: Tensor,
    state: State,
    step: int,
    hyper: Hyper,
    sums: RowSums = _HERE,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""LARS: SGD with rates that adapt to each row, as a layer (https://arxiv.org/abs/1708.03888).

    .. math::
        r = \eta_{\text{trust}} \frac{|w|}{|g| + \lambda |w|}, \quad
        b \leftarrow \mu b + \eta r (g + \lambda w), \quad w \leftarrow w - b

    The ratio is 1 for a row whose weights or whose gradient are all zero. Without momentum there is
    no state.
    """
    grads = clip(grads, hyper)
    weight_norm, grad_norm = sums.norm(weights), sums.norm(grads)
    known = (weight_norm > 0) & (grad_norm > 0)
    denominator = grad_norm + hyper.weight_decay * weight_norm
    ratio = torch.where(known, hyper.eta * weight_norm / denominator, 1.0)
    buffer = hyper.lr * ratio * (grads + hyper.weight_decay * weights)
    if hyper.momentum == 0.0:
        return weights - buffer, {}
    buffer = hyper.momentum * state["momentum_buffer"] + buffer
    return weights - buffer, {"momentum_buffer": buffer}


def _numbers(values: Iterable[float | Tensor]) -> tuple[float, ...]:
    return tuple(map(float, values))


# Hyper-parameters that may be given as tensors, and how they become numbers.
_READ: Mapping[str, Callable[[Any], object]] = {"lr": float, "betas": _numbers}


class Rule(NamedTuple):
    """An update rule, with the state that it keeps and the hyper-parameters that a user may set.

    Attributes:
        update: the function.
        state: state name -> whether it is one number a row (``True``) or one a weight (``False``).
        defaults: what the hyper-parameters are if nothing is said.
        options: names of the hyper-parameters that it reads; the others mean nothing to it.
        row_sums: how many sums over rows it asks for, one after another; 0: each weight is by itself.
    """

    update: Update
    state: Mapping[str, bool]
    defaults: Hyper
    options: tuple[str, ...]
    row_sums: int = 0

    @property
    def table_options(self) -> tuple[str, ...]:
        """Names of the hyper-parameters of a table that its look-up updates: these and one more."""
        return (*self.options, "batch_l2")

    def updates_all_rows(self, hyper: Hyper) -> bool:
        """Whether rows that no id chose are updated: they are to be, and a gradient of zero moves them."""
        moving = {"momentum_buffer", "exp_avg"}.intersection(self.state_names(hyper))
        return not hyper.lazy and (bool(moving) or hyper.weight_decay != 0.0)

    def state_names(self, hyper: Hyper) -> tuple[str, ...]:
        """Names of the state that is kept under ``hyper``: without momentum, no momentum buffer."""
        return tuple(n for n in self.state if n != "momentum_buffer" or hyper.momentum != 0.0)

    def default_options(self) -> dict[str, object]:
        """Hyper-parameters that a user may set -> default."""
        return {name: getattr(self.defaults, name) for name in self.options}

    def hyper(self, options: Mapping[str, Any]) -> Hyper:
        """Read the hyper-parameters out of ``options``, say a parameter group."""
        given: dict[str, Any] = {}
        for name in self.table_options:
            if name in options:
                read = _READ.get(name)
                given[name] = options[name] if read is None else read(options[name])
        return replace(self.defaults, **given)

    def new_state(self, name: str, weights: Tensor, hyper: Hyper) -> Tensor:
        """Return the first value of the state ``name`` for ``weights`` of shape ``(rows, dim)``."""
        rows, dim = weights.shape
        shape = (rows, 1 if self.state[name] else dim)
        dtype = torch.promote_types(weights.dtype, torch.float32)
        value = hyper.initial_accumulator_value if name == "sum" else 0.0
        return torch.full(shape, value, dtype=dtype, device=weights.device)


_DECAY = ("weight_decay", "weight_decay_mode", "max_gradient", "lazy")
_MOMENTS = {"exp_avg": False, "exp_avg_sq": False}
_ROW_MOMENTS = {"exp_avg": False, "exp_avg_sq": True}
_ADAM = ("lr", "betas", "eps", *_DECAY)
_LAMB = ("lr", "betas", "eps", "weight_decay", "max_gradient", "lazy")
_ADAGRAD = ("lr", "eps", "initial_accumulator_value", *_DECAY)

SGD = Rule(
    sgd,
    {"momentum_buffer": False},
    Hyper(lr=1e-3),
    ("lr", "momentum", "dampening", "nesterov", *_DECAY),
)
# `eps` is that of the fused kernels that programs of this API were written against, 1e-8, not the 1e-10 of PyTorch's
# own class, which keeps it where it steps itself.
ADAGRAD = Rule(adagrad, {"sum": False}, Hyper(lr=1e-2), _ADAGRAD)
ROWWISE_ADAGRAD = Rule(rowwise_adagrad, {"sum": True}, Hyper(lr=1e-2), _ADAGRAD, row_sums=1)
ADAM = Rule(adam, _MOMENTS, Hyper(lr=1e-3), _ADAM)
ADAMW = Rule(
    adam, _MOMENTS, Hyper(lr=1e-3, weight_decay=1e-2, weight_decay_mode="decoupled"), _ADAM
)
PARTIAL_ROWWISE_ADAM = Rule(partial_rowwise_adam, _ROW_MOMENTS, Hyper(lr=1e-3), _ADAM, row_sums=1)
LAMB = Rule(lamb, _MOMENTS, Hyper(lr=1e-3, eps=1e-6), _LAMB, row_sums=2)
PARTIAL_ROWWISE_LAMB = Rule(
    partial_rowwise_lamb, _ROW_MOMENTS, Hyper(lr=1e-3, eps=1e-6), _LAMB, row_sums=3
)
LARS_SGD = Rule(
    lars_sgd,
    {"momentum_buffer": False},
    Hyper(lr=1e-2),
    ("lr", "momentum", "weight_decay", "eta", "max_gradient", "lazy"),
    row_sums=2,
)

RULES: Mapping[OptimizerType, Rule] = {
    OptimizerType.SGD: SGD,
    OptimizerType.ADAM: ADAM,
    OptimizerType.ADAMW: ADAMW,
    OptimizerType.ADAGRAD: ADAGRAD,
    OptimizerType.ROWWISE_ADAGRAD: ROWWISE_ADAGRAD,
    OptimizerType.PARTIAL_ROWWISE_ADAM: PARTIAL_ROWWISE_ADAM,
    OptimizerType.LAMB: LAMB,
    OptimizerType.PARTIAL_ROWWISE_LAMB: PARTIAL_ROWWISE_LAMB,
    OptimizerType.LARS_SGD: LARS_SGD,
}
