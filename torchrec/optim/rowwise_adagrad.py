"""Row-wise Adagrad: one accumulator a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.ops.embedding.updates import ROWWISE_ADAGRAD, RULES, Hyper
from torchrec.optim.rows import apply_rule, new_state

# What other optimizers of this package and of torch take; a shared configuration may hold them.
_FOREIGN = {name for rule in RULES.values() for name in rule.options if name != "lazy"} | {
    "amsgrad",
    "capturable",
    "differentiable",
    "foreach",
    "fused",
}


class RowWiseAdagrad(torch.optim.Optimizer):
    r"""Adagrad with one sum a row instead of one a weight: the usual optimizer of embedding tables.

    .. math::
        s_i \leftarrow s_i + \frac{1}{D} \sum_d g_{id}^2, \quad
        w_i \leftarrow w_i - \frac{\eta}{1 + (t - 1) \gamma} \frac{g_i}{\sqrt{s_i} + \epsilon}

    After Duchi, Hazan, Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html. The state is
    ``step`` and ``sum`` of shape ``(rows, 1)``; it exists from the start, so that it can be put
    into shared memory before processes fork. With a sparse gradient only the rows that it names
    are updated.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate :math:`\eta`.
        lr_decay: decay of the learning rate :math:`\gamma`.
        weight_decay: strength of the pull towards zero.
        initial_accumulator_value: where the sums start.
        eps: added to the denominator.
        maximize: climb instead of descend.
        weight_decay_mode: ``"l2"`` or ``"decoupled"``.
        max_gradient: clamp each element of the gradient to this value first; ``None``: do not.
        **unused: hyper-parameters of other optimizers (``betas``, ``momentum``, ``foreach`` ...),
            so that one configuration can serve several; they have no effect.

    Raises:
        TypeError: if a keyword is the hyper-parameter of no optimizer.
        ValueError: if a value is out of range.

    Example:
        >>> table = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> optimizer = RowWiseAdagrad([table], lr=0.5)
        >>> (3 * table[0]).sum().backward()
        >>> _ = optimizer.step()
        >>> table.tolist()
        [[0.5, 1.5], [3.0, 4.0]]
        >>> optimizer.state[table]["sum"].tolist()
        [[9.0], [0.0]]
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        weight_decay_mode: str = "l2",
        max_gradient: float | None = None,
        **unused: object,
    ) -> None:
        for name in unused:
            if name not in _FOREIGN:
                raise TypeError(
                    f"`RowWiseAdagrad` should be given hyper-parameters. Received '{name}'."
                )
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
            "weight_decay_mode": weight_decay_mode,
            "max_gradient": max_gradient,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyper-parameters of their own, and make their state.

        Args:
            param_group: ``"params"``, and any hyper-parameter that differs from the default.

        Raises:
            ValueError: if a hyper-parameter is out of range.
        """
        options = {**self.defaults, **param_group}
        hyper = ROWWISE_ADAGRAD.hyper(options)
        if not options["lr_decay"] >= 0.0:
            raise ValueError(f"`lr_decay` should be at least 0. Received {options['lr_decay']}.")
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            self.state[param] = {
                "step": torch.zeros((), dtype=torch.float32),
                "sum": new_state(ROWWISE_ADAGRAD, "sum", param, hyper),
            }

    def share_memory(self) -> None:
        """Move the sums into shared memory, so that several processes train one table (Hogwild)."""
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["sum"].share_memory_()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew; called first.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            _update(
                params,
                [param.grad for param in params],
                [self.state[param]["sum"] for param in params],
                [self.state[param]["step"] for param in params],
                ROWWISE_ADAGRAD.hyper(group),
                group["lr_decay"],
                group["maximize"],
            )
        return loss


def adagrad(
    params: list[Tensor],
    grads: list[Tensor],
    state_sums: list[Tensor],
    state_steps: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    lr_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """Take one step of row-wise Adagrad, in place, on tensors.

    Args:
        params: parameters.
        grads: their gradients, dense or sparse.
        state_sums: their sums, one number a row.
        state_steps: their step counters, each a tensor of one number; counted up here.
        lr: learning rate.
        weight_decay: strength of the pull towards zero (L2).
        lr_decay: decay of the learning rate.
        eps: added to the denominator.
        maximize: climb instead of descend.

    Raises:
        ValueError: if the lists differ in length, or a sum has not one number a row.

    Example:
        >>> table, total, step = torch.ones(2, 2), torch.zeros(2, 1), torch.tensor(0.0)
        >>> grad = torch.tensor([[2.0, 2.0], [0.0, 0.0]])
        >>> options = dict(weight_decay=0.0, lr_decay=0.0, eps=1e-10, maximize=False)
        >>> adagrad([table], [grad], [total], [step], lr=0.5, **options)
        >>> table.tolist(), total.tolist(), step.item()
        ([[0.5, 0.5], [1.0, 1.0]], [[4.0], [0.0]], 1.0)
    """
    lengths = {len(params), len(grads), len(state_sums), len(state_steps)}
    if len(lengths) != 1:
        raise ValueError(
            "`params`, `grads`, `state_sums` and `state_steps` should be as long as one another. "
            f"Received {len(params)}, {len(grads)}, {len(state_sums)} and {len(state_steps)}."
        )
    hyper = Hyper(lr=lr, weight_decay=weight_decay, eps=eps)
    _update(params, grads, state_sums, state_steps, hyper, lr_decay, maximize)


@torch.no_grad()
def _update(
    params: list[Tensor],
    grads: list[Tensor],
    sums: list[Tensor],
    steps: list[Tensor],
    hyper: Hyper,
    lr_decay: float,
    maximize: bool,
) -> None:
    """Take one step on each parameter."""
    for param, grad, total, count in zip(params, grads, sums, steps, strict=True):
        rows = param.shape[0] if param.dim() > 1 else 1
        if total.numel() != rows:
            raise ValueError(
                f"`state_sums` should hold one number for each of {rows} rows. "
                f"Received shape {tuple(total.shape)}."
            )
        count += 1
        step = int(count)
        decayed = replace(hyper, lr=hyper.lr / (1.0 + (step - 1) * lr_decay))
        state = {"sum": total.view(rows, 1)}
        apply_rule(ROWWISE_ADAGRAD, param, -grad if maximize else grad, state, step, decayed)
