"""Weights that training starts from, as rules of the experiment file say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from torchrec.datasets.initial_weights import LayerInit, Spread, TableInit
from torchrec.modules.crossnet import LowRankCrossNet

Fill = Callable[[Tensor], Tensor]


def table_init_fn(rule: TableInit, rows: int, dim: int) -> Fill | None:
    """Return what fills a table, or rows of it that start anew; None: as a table without a rule.

    It is a function of `torch.nn.init` that takes no notice of shapes, so that a few rows of a large
    table can start anew by themselves.

    Args:
        rule: for the table.
        rows: E.
        dim: D.
    """
    spread = rule.spread(inputs=dim, outputs=rows)
    return None if spread is None else _fill(spread)


def initialise_layers(model: nn.Module, rule: LayerInit) -> None:
    """Fill the weights of all linear layers and cross layers by a rule, their biases with zeros.

    Args:
        model: written to; left alone on the meta device, and where the rule is that of PyTorch.
        rule: for its layers.
    """
    with torch.no_grad():
        for weight, bias in _layers(model):
            outputs, inputs = weight.shape
            spread = rule.spread(inputs, outputs)
            if spread is None or weight.is_meta:
                continue
            _fill(spread)(weight)
            if bias is not None:
                bias.zero_()


def _layers(model: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module.weight, module.bias
        elif isinstance(module, LowRankCrossNet):  # whose biases start at zero
            for kernel in (*module.W_kernels, *module.V_kernels):
                yield kernel, None


def _fill(spread: Spread) -> Fill:
    kind, size = spread
    if size == 0:
        return nn.init.zeros_
    if kind == "normal":
        return partial(nn.init.normal_, std=size)
    return partial(nn.init.uniform_, a=-size, b=size)
