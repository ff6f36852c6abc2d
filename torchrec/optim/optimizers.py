"""Optimizers for tables, as ordinary `torch.optim.Optimizer` classes.

Each works on dense and on sparse gradients. Given to `apply_optimizer_in_backward`, or named in the
configuration of a table, the same update runs inside the backward pass of the look-up.

All of them read, beside what their docstrings list, ``max_gradient`` (``None``, or the value that
each element of a gradient is clamped to) and ``weight_decay``; all but LAMB and LARS-SGD, which
have a place of their own for it, also ``weight_decay_mode``: ``"l2"`` adds ``weight_decay * w`` to
the gradient, ``"decoupled"`` shrinks the weights by ``1 - lr * weight_decay`` first. Every value
may differ from parameter group to parameter group, and a change takes effect with the next step.

With a sparse gradient only the rows that it names are updated, its duplicates summed first; with
``lazy=False`` all rows are, as with the dense gradient that it stands for.
Weights of 16 bits are updated in 32 bits, and their state is kept in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchrec.ops.embedding import updates
from torchrec.ops.embedding.updates import Rule
from torchrec.optim._private import has_torchs_optimizer_in_backward
from torchrec.optim.owners import owner_of
from torchrec.optim.rows import apply_rule, new_state

Option = float | bool | str | tuple[float, float] | Tensor | None


class RuleOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that applies one update rule to all parameters.

    Subclasses name the rule. The state of a parameter is made at its first update: ``step``, and
    what the rule keeps.
    """

    rule: ClassVar[Rule]

    def __init__(
        self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], **kwargs: Option
    ) -> None:
        defaults = self.rule.default_options()
        for name, value in kwargs.items():
            if name not in defaults:
                raise TypeError(
                    f"`{type(self).__name__}` takes {', '.join(defaults)}. Received '{name}'."
                )
            defaults[name] = value
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyper-parameters of their own.

        Args:
            param_group: ``"params"``, and any hyper-parameter that differs from the default.

        Raises:
            ValueError: if a hyper-parameter is out of range.
        """
        self.rule.hyper({**self.defaults, **param_group})
        super().add_param_group(param_group)

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
            hyper = self.rule.hyper(group)
            names = self.rule.state_names(hyper)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "step" not in state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                for name in names:
                    if name not in state:
                        state[name] = new_state(self.rule, name, param, hyper)
                state["step"] += 1
                rows = {name: state[name] for name in names}
                apply_rule(self.rule, param, param.grad, rows, int(state["step"]), hyper)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, state in the type in which it was kept.

        Args:
            state_dict: state by position of the parameter, and the parameter groups.

        Raises:
            ValueError: if the groups do not fit those of this optimizer.
        """
        super().load_state_dict(dict(state_dict))
        # torch casts state to the type of its parameter, which would round that of 16-bit weights.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[param][name].dtype:
                    self.state[param][name] = value.detach().clone().to(param.device)


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent.

    .. math:: b \leftarrow \mu b + (1 - d) g, \qquad w \leftarrow w - \eta b

    Args:
        params: parameters, or parameter groups.
        **kwargs: ``lr`` (0.001), ``momentum`` :math:`\mu` (0), ``dampening`` :math:`d` (0),
            ``nesterov`` (False), ``weight_decay`` (0), ``weight_decay_mode`` (``"l2"``),
            ``max_gradient`` (None).

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> optimizer = SGD([table], lr=0.5)
        >>> table[0].sum().backward()
        >>> _ = optimizer.step()
        >>> table.tolist()
        [[0.5, 1.5], [3.0, 4.0]]
    """

    rule = updates.SGD


class Adagrad(RuleOptimizer):
    r"""Adagrad: each weight has a step of its own, smaller the more gradient it has seen.

    .. math:: s \leftarrow s + g^2, \qquad w \leftarrow w - \eta g / (\sqrt{s} + \epsilon)

    Duchi, Hazan, Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html. `RowWiseAdagrad` keeps
    one sum a row instead.

    Args:
        params: parameters, or parameter groups.
        **kwargs: ``lr`` (0.01), ``eps`` (1e-8), ``initial_accumulator_value`` (0),
            ``weight_decay`` (0), ``weight_decay_mode`` (``"l2"``), ``max_gradient`` (None).

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> optimizer = Adagrad([table], lr=0.5)
        >>> (3 * table[0]).sum().backward()
        >>> _ = optimizer.step()
        >>> table.tolist()
        [[0.5, 1.5], [3.0, 4.0]]
    """

    rule = updates.ADAGRAD


class Adam(RuleOptimizer):
    r"""Adam: a running mean of the gradient over the root of a running mean of its square.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Kingma, Ba, https://arxiv.org/abs/1412.6980. With a sparse gradient the means of the other rows
    stay as they are ("lazy" Adam); :math:`t` counts the updates of the parameter, not of the row.

    Args:
        params: parameters, or parameter groups.
        **kwargs: ``lr`` (0.001), ``betas`` ((0.9, 0.999)), ``eps`` (1e-8), ``weight_decay`` (0),
            ``weight_decay_mode`` (``"l2"``), ``max_gradient`` (None).

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> optimizer = Adam([table], lr=0.5)
        >>> table[0].sum().backward()
        >>> _ = optimizer.step()
        >>> table.detach().round(decimals=4).tolist()
        [[0.5, 1.5], [3.0, 4.0]]
    """

    rule = updates.ADAM


class AdamW(RuleOptimizer):
    r"""Adam with decoupled weight decay.

    .. math:: w \leftarrow (1 - \eta \lambda) w, \qquad \text{then Adam's step}

    Loshchilov, Hutter, https://arxiv.org/abs/1711.05101.

    Args:
        params: parameters, or parameter groups.
        **kwargs: ``lr`` (0.001), ``betas`` ((0.9, 0.999)), ``eps`` (1e-8), ``weight_decay``
            :math:`\lambda` (0.01), ``weight_decay_mode`` (``"decoupled"``), ``max_gradient``
            (None).

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
        >>> optimizer = AdamW([table], lr=0.5, weight_decay=0.5)
        >>> table.sum().backward()
        >>> _ = optimizer.step()
        >>> table.detach().round(decimals=4).tolist()
        [[0.25, 1.0]]
    """

    rule = updates.ADAMW


class PartialRowWiseAdam(RuleOptimizer):
    r"""Adam with one second moment a row: little more than half the memory of `Adam`.

    .. math::
        v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \frac{1}{D} \sum_d g_{id}^2, \quad
        w_i \leftarrow w_i - \eta \frac{m_i / (1 - \beta_1^t)}{\sqrt{v_i / (1 - \beta_2^t)} +
        \epsilon}

    After Kingma, Ba, https://arxiv.org/abs/1412.6980.

    Args:
        params: parameters, or parameter groups.
        **kwargs: those of `Adam`.

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> optimizer = PartialRowWiseAdam([table], lr=0.5)
        >>> table[0].sum().backward()
        >>> _ = optimizer.step()
        >>> table.detach().round(decimals=4).tolist()
        [[0.5, 1.5], [3.0, 4.0]]
        >>> optimizer.state[table]["exp_avg_sq"].shape
        torch.Size([2, 1])
    """

    rule = updates.PARTIAL_ROWWISE_ADAM


class LAMB(RuleOptimizer):
    r"""LAMB: Adam's direction, scaled for each row to the norm of its weights.

    .. math::
        u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w, \quad
        w \leftarrow w - \eta \frac{|w|}{|u|} u

    You et al., https://arxiv.org/abs/1904.00962, with each row as a layer. The ratio is 1 for a
    row whose weights or whose direction are all zero.

    Args:
        params: parameters, or parameter groups.
        **kwargs: ``lr`` (0.001), ``betas`` ((0.9, 0.999)), ``eps`` (1e-6), ``weight_decay``
            :math:`\lambda` (0), ``max_gradient`` (None).

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = LAMB([table], lr=0.1)
        >>> table[:, 0].sum().backward()
        >>> _ = optimizer.step()
        >>> table.detach().round(decimals=4).tolist()
        [[2.5, 4.0]]
    """

    rule = updates.LAMB


class PartialRowWiseLAMB(RuleOptimizer):
    r"""LAMB with one second moment a row, fed with the mean square of the row's gradient.

    .. math:: v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \frac{1}{D} \sum_d g_{id}^2

    After You et al., https://arxiv.org/abs/1904.00962; the rest is as in `LAMB`.

    Args:
        params: parameters, or parameter groups.
        **kwargs: those of `LAMB`.

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = PartialRowWiseLAMB([table], lr=0.1)
        >>> table[:, 0].sum().backward()
        >>> _ = optimizer.step()
        >>> table.detach().round(decimals=4).tolist()
        [[2.5, 4.0]]
    """

    rule = updates.PARTIAL_ROWWISE_LAMB


class LarsSGD(RuleOptimizer):
    r"""SGD whose learning rate adapts to each row: as large a share of the weights everywhere.

    .. math::
        r = \eta_{\text{trust}} \frac{|w|}{|g| + \lambda |w|}, \quad
        b \leftarrow \mu b + \eta r (g + \lambda w), \quad w \leftarrow w - b

    You, Gitman, Ginsburg, https://arxiv.org/abs/1708.03888, with each row as a layer. The ratio is
    1 for a row whose weights or whose gradient are all zero.

    Args:
        params: parameters, or parameter groups.
        **kwargs: ``lr`` (0.01), ``momentum`` :math:`\mu` (0), ``weight_decay`` :math:`\lambda` (0),
            ``eta``, the trust coefficient (0.001), ``max_gradient`` (None).

    Raises:
        TypeError: if a keyword is not one of these.
        ValueError: if a value is out of range.

    Example:
        >>> table = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = LarsSGD([table], lr=1.0, eta=0.5)
        >>> (2 * table[:, 0]).sum().backward()
        >>> _ = optimizer.step()
        >>> table.tolist()
        [[0.5, 4.0]]
    """

    rule = updates.LARS_SGD


def in_backward_optimizer_filter(
    named_parameters: Iterator[tuple[str, nn.Parameter]], include: bool = False
) -> Iterator[tuple[str, nn.Parameter]]:
    """Tell the parameters that are updated in the backward pass from those that are not.

    Args:
        named_parameters: what ``module.named_parameters()`` gives.
        include: whether to yield the parameters updated in the backward pass, instead of the
            others.

    Yields:
        name and parameter.

    Example:
        >>> from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
        >>> model = nn.Linear(2, 1)
        >>> apply_optimizer_in_backward(SGD, [model.bias], {"lr": 0.1})
        >>> [name for name, _ in in_backward_optimizer_filter(model.named_parameters())]
        ['weight']
        >>> named = model.named_parameters()
        >>> [name for name, _ in in_backward_optimizer_filter(named, include=True)]
        ['bias']
    """
    for name, param in named_parameters:
        if _is_in_backward(param) == include:
            yield name, param


def _is_in_backward(param: nn.Parameter) -> bool:
    owner = owner_of(param)
    return (owner is not None and owner.in_backward) or has_torchs_optimizer_in_backward(param)
