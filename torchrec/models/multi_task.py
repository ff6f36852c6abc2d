r"""What makes the outputs of several tasks of the numbers of a sample.

All take the place of the `~torchrec.models.tower.Tower` of a model with one task:

- :class:`SharedBottom`: layers for all tasks, then a tower a task;
- :class:`MMoE`: experts for all tasks, of which each task has its own mixture;
- :class:`PLE`: besides experts of each task alone, in several levels;
- :class:`ESMM`: tasks that follow one another, such as a click and then a purchase.

Letters: B samples, N numbers a sample, T tasks, E experts, H outputs of an expert.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from torchrec.models._pooled import check_columns
from torchrec.models.tower import Tower, hidden_layers
from torchrec.modules.sizes import checked_size

__all__ = ["ESMM", "PLE", "LayerOptions", "MMoE", "SharedBottom"]


class LayerOptions(NamedTuple):
    """What the layers of experts and towers have in common, as `~torchrec.models.tower.Tower` has it.

    Attributes:
        dropout: probability of dropping an output while training. Default 0.
        batch_norm: whether to normalise each layer before its activation. Default False.
        activation: by its name. Default "relu".
    """

    dropout: float = 0.0
    batch_norm: bool = False
    activation: str = "relu"


_PLAIN = LayerOptions()


class SharedBottom(nn.Module):
    r"""Layers that all tasks share, and a tower for each.

    .. math:: y_t = h_t(f(x))

    The plainest way to learn several tasks at once: Caruana, https://doi.org/10.1023/A:1007379606734.

    Args:
        in_features: N.
        out_features: numbers of each of the T tasks: 1, or more for one of several classes.
        layer_sizes: outputs of the shared layers :math:`f`, one or more.
        tower_sizes: of the layers of each tower :math:`h_t`; one of ``out_features[t]`` follows.
        options: of all layers. Default: plain ones.

    Raises:
        TypeError: a size is no integer.
        ValueError: there is no task or no layer, or a size is smaller than 1.

    Example:
        >>> head = SharedBottom(40, [1, 1, 5], layer_sizes=[16], tower_sizes=[8])
        >>> head(torch.rand(3, 40)).shape
        torch.Size([3, 7])
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        layer_sizes: Sequence[int],
        tower_sizes: Sequence[int],
        options: LayerOptions = _PLAIN,
    ) -> None:
        super().__init__()
        self.in_features = checked_size("in_features", in_features)
        self.bottom = hidden_layers(in_features, _some("layer_sizes", layer_sizes), *options)
        self.towers = _Towers(layer_sizes[-1], out_features, tower_sizes, options)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs of all tasks side by side, ``(B, sum of out_features)``.

        Args:
            features: ``(B, N)``, floating.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        outputs: Tensor = self.towers([self.bottom(features)] * len(self.towers))
        return outputs


class MMoE(nn.Module):
    r"""Multi-gate mixture of experts: each task mixes the same experts in its own way.

    .. math:: y_t = h_t\Big(\sum_e g_t(x)_e\, f_e(x)\Big),
        \quad g_t(x) = \mathrm{softmax}(W_t x)

    Ma et al., https://doi.org/10.1145/3219819.3220007, equations 6 and 7.

    Args:
        in_features: N.
        out_features: numbers of each of the T tasks.
        num_experts: E.
        layer_sizes: outputs of the layers of each expert :math:`f_e`, H the last.
        tower_sizes: of the layers of each tower :math:`h_t`; one of ``out_features[t]`` follows.
        options: of all layers. Default: plain ones.

    Raises:
        TypeError: a size is no integer.
        ValueError: there is no task or no layer, or a size is smaller than 1.

    Example:
        >>> head = MMoE(40, [1, 1], num_experts=4, layer_sizes=[16], tower_sizes=[8])
        >>> head(torch.rand(3, 40)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        num_experts: int,
        layer_sizes: Sequence[int],
        tower_sizes: Sequence[int],
        options: LayerOptions = _PLAIN,
    ) -> None:
        super().__init__()
        self.in_features = checked_size("in_features", in_features)
        self.experts = _experts(in_features, num_experts, layer_sizes, options)
        self.towers = _Towers(layer_sizes[-1], out_features, tower_sizes, options)
        self.gates = nn.ModuleList(_Gate(in_features, num_experts) for _ in self.towers)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs of all tasks side by side, ``(B, sum of out_features)``.

        Args:
            features: ``(B, N)``, floating.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        experts = _stacked(self.experts, features)
        outputs: Tensor = self.towers([gate(features, experts) for gate in self.gates])
        return outputs


class PLE(nn.Module):
    r"""Progressive layered extraction: experts for all tasks beside experts of each task alone.

    In every level a task mixes its own experts and the shared ones, by a gate that sees the task's
    input; but in the last, a further mixture, of all experts, is the input of the shared experts of the
    next level:

    .. math:: x_t^{l+1} = \sum_{e \in \mathrm{own}_t \cup \mathrm{shared}}
        \mathrm{softmax}(W_t^l x_t^l)_e\, f_e, \qquad y_t = h_t(x_t^L)

    With one level it is CGC of the same paper: Tang et al., https://doi.org/10.1145/3383313.3412236,
    equations 1 to 7.

    Args:
        in_features: N.
        out_features: numbers of each of the T tasks.
        num_levels: L.
        num_shared_experts: in every level.
        num_task_experts: of each task in every level.
        layer_sizes: outputs of the layers of each expert, H the last.
        tower_sizes: of the layers of each tower :math:`h_t`; one of ``out_features[t]`` follows.
        options: of all layers. Default: plain ones.

    Raises:
        TypeError: a size is no integer.
        ValueError: there is no task or no layer, or a size is smaller than 1.

    Example:
        >>> head = PLE(40, [1, 1], 2, 2, 1, layer_sizes=[16], tower_sizes=[8])
        >>> head(torch.rand(3, 40)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        num_levels: int,
        num_shared_experts: int,
        num_task_experts: int,
        layer_sizes: Sequence[int],
        tower_sizes: Sequence[int],
        options: LayerOptions = _PLAIN,
    ) -> None:
        super().__init__()
        self.in_features = checked_size("in_features", in_features)
        num_levels = checked_size("num_levels", num_levels)
        counts = [
            checked_size("num_shared_experts", num_shared_experts),
            checked_size("num_task_experts", num_task_experts),
        ]
        width = _some("layer_sizes", layer_sizes)[-1]
        self.towers = _Towers(width, out_features, tower_sizes, options)
        self.levels = nn.ModuleList(
            _Level(
                in_features if level == 0 else width,
                len(self.towers),
                counts,
                layer_sizes,
                options,
                is_last=level == num_levels - 1,
            )
            for level in range(num_levels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs of all tasks side by side, ``(B, sum of out_features)``.

        Args:
            features: ``(B, N)``, floating.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        inputs = [features] * (len(self.towers) + 1)  # of each task, and of what is shared
        for level in self.levels:
            inputs = level(inputs)
        outputs: Tensor = self.towers(inputs)
        return outputs


class ESMM(nn.Module):
    r"""Tasks that follow one another: each can happen only where the one before did.

    A tower a task gives the probability that it happens where the one before did; the output is the
    logit of their product, the probability that all happen up to this one:

    .. math:: P(y_1 \wedge \dots \wedge y_t \mid x) = \prod_{s \le t} \sigma(h_s(x))

    So a purchase after a click is learned of all samples, not of those with a click alone, which are
    others than those that are predicted for: Ma et al., https://arxiv.org/abs/1804.07931, equation 1.

    Args:
        in_features: N.
        num_tasks: T, one number each.
        tower_sizes: of the layers of each tower :math:`h_t`; one of 1 follows.
        options: of all layers. Default: plain ones.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1.

    Example:
        >>> head = ESMM(40, num_tasks=2, tower_sizes=[8])
        >>> click, purchase = head(torch.rand(3, 40)).sigmoid().unbind(1)
        >>> bool((purchase < click).all())
        True
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        tower_sizes: Sequence[int],
        options: LayerOptions = _PLAIN,
    ) -> None:
        super().__init__()
        self.in_features = checked_size("in_features", in_features)
        ones = [1] * checked_size("num_tasks", num_tasks)
        self.towers = _Towers(in_features, ones, tower_sizes, options)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of all tasks, ``(B, T)``.

        Args:
            features: ``(B, N)``, floating.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        logits: Tensor = self.towers([features] * len(self.towers)).float()
        logs = logsigmoid(logits).cumsum(1)  # of the products
        # A probability that rounds to 1 would have an infinite logit, and no gradient.
        logs = logs[:, 1:].clamp(max=-torch.finfo(torch.float32).tiny)
        return torch.cat([logits[:, :1], logs - torch.log(-torch.expm1(logs))], dim=1)


class _Towers(nn.ModuleList):
    """A tower a task."""

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        layer_sizes: Sequence[int],
        options: LayerOptions,
    ) -> None:
        super().__init__(
            Tower(in_features, layer_sizes, *options, out_features=out)
            for out in _some("out_features", out_features)
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the outputs of all towers side by side, each of its own input."""
        return torch.cat([tower(x) for tower, x in zip(self, inputs, strict=True)], dim=1)


class _Gate(nn.Module):
    """A mixture of experts, with weights that depend on an input."""

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.weights = nn.Linear(in_features, num_experts, bias=False)

    def forward(self, input: Tensor, experts: Tensor) -> Tensor:
        """Mix ``experts`` ``(B, E, H)`` to ``(B, H)`` by an input ``(B, N)``."""
        weights = self.weights(input).softmax(dim=1).to(experts.dtype)
        # Not as a product of matrices, whose last bits depend on where in the batch a sample is.
        mixed: Tensor = (experts * weights.unsqueeze(2)).sum(dim=1)
        return mixed


class _Level(nn.Module):
    """A level of `PLE`: from inputs of T tasks and a shared one to as many, the last without that."""

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        counts: Sequence[int],
        layer_sizes: Sequence[int],
        options: LayerOptions,
        is_last: bool,
    ) -> None:
        super().__init__()
        shared, own = counts
        self.shared = _experts(in_features, shared, layer_sizes, options)
        self.own = nn.ModuleList(
            _experts(in_features, own, layer_sizes, options) for _ in range(num_tasks)
        )
        self.gates = nn.ModuleList(_Gate(in_features, own + shared) for _ in range(num_tasks))
        self.shared_gate = None if is_last else _Gate(in_features, num_tasks * own + shared)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Mix the experts: ``(B, H)`` for each task, and for what is shared."""
        *task_inputs, shared_input = inputs
        shared = _stacked(self.shared, shared_input)
        own = [_stacked(e, x) for e, x in zip(self.own, task_inputs, strict=True)]
        mixed: list[Tensor] = [
            gate(x, torch.cat([mine, shared], dim=1))
            for gate, x, mine in zip(self.gates, task_inputs, own, strict=True)
        ]
        if self.shared_gate is not None:
            mixed.append(self.shared_gate(shared_input, torch.cat([*own, shared], dim=1)))
        return mixed


def _experts(
    in_features: int, number: int, layer_sizes: Sequence[int], options: LayerOptions
) -> nn.ModuleList:
    sizes = _some("layer_sizes", layer_sizes)
    return nn.ModuleList(
        hidden_layers(in_features, sizes, *options)
        for _ in range(checked_size("num_experts", number))
    )


def _stacked(experts: nn.Module, features: Tensor) -> Tensor:
    """Return what all experts say, ``(B, E, H)``."""
    return torch.stack([expert(features) for expert in experts.children()], dim=1)


def _some(argument: str, sizes: Sequence[int]) -> Sequence[int]:
    if not sizes:
        raise ValueError(f"`{argument}` should have one or more sizes. Received {list(sizes)}.")
    return sizes
