"""A small instance of every dense module, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from torchrec.models import deepfm as deepfm_model
from torchrec.models import dlrm
from torchrec.models.experimental.transformerdlrm import InteractionTransformerArch
from torchrec.models.multi_task import ESMM, PLE, LayerOptions, MMoE, SharedBottom
from torchrec.models.tower import Tower
from torchrec.modules import crossnet, deepfm
from torchrec.modules.activation import SwishLayerNorm
from torchrec.modules.mlp import MLP, LazyMLP, Perceptron


class Sample(NamedTuple):
    """What to trace: a module, and its inputs for a batch size."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]


def matrix(columns: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (torch.randn(batch, columns),)


def vectors(batch: int) -> tuple[Any, ...]:
    return torch.randn(batch, 3), torch.randn(batch, 2, 3)


def embeddings(batch: int) -> tuple[Any, ...]:
    return ([torch.randn(batch, 2), torch.randn(batch, 3, 2)],)


def seen(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Return a module that has learned its size from an input."""
    module(*inputs)
    return module


# By class; more than one where an option takes another way through the module.
DENSE = {
    "Perceptron": Sample(lambda: Perceptron(4, 3), matrix(4)),
    "Perceptron, without bias": Sample(
        lambda: Perceptron(4, 3, bias=False, activation="tanh"), matrix(4)
    ),
    "MLP": Sample(lambda: MLP(4, [3, 2]), matrix(4)),
    "MLP, gelu": Sample(lambda: MLP(4, [3, 2], activation="gelu"), matrix(4)),
    "MLP, prelu": Sample(lambda: MLP(4, [3, 2], activation="prelu"), matrix(4)),
    "MLP, swish": Sample(lambda: MLP(4, [3, 2], activation="swish_layernorm"), matrix(4)),
    "MLP, no layers": Sample(lambda: MLP(4, []), matrix(4)),
    "MLP, large": Sample(lambda: MLP(64, [64]), matrix(64)),
    "LazyMLP": Sample(lambda: seen(LazyMLP([3, 2]), torch.ones(1, 4)), matrix(4)),
    "SwishLayerNorm": Sample(lambda: SwishLayerNorm([3, 2]), lambda b: (torch.randn(b, 3, 2),)),
    "CrossNet": Sample(lambda: crossnet.CrossNet(4, 2), matrix(4)),
    "LowRankCrossNet": Sample(lambda: crossnet.LowRankCrossNet(4, 2, 2), matrix(4)),
    "VectorCrossNet": Sample(lambda: crossnet.VectorCrossNet(4, 3), matrix(4)),
    "VectorCrossNet, one layer": Sample(lambda: crossnet.VectorCrossNet(4, 1), matrix(4)),
    "LowRankMixtureCrossNet": Sample(
        lambda: crossnet.LowRankMixtureCrossNet(4, 2, num_experts=3, low_rank=2), matrix(4)
    ),
    "LowRankMixtureCrossNet, one expert": Sample(
        lambda: crossnet.LowRankMixtureCrossNet(4, 2, 1, 2), lambda b: (torch.randn(b, 5, 4),)
    ),
    "DeepFM": Sample(lambda: deepfm.DeepFM(nn.Linear(8, 3)), embeddings),
    "FactorizationMachine": Sample(deepfm.FactorizationMachine, embeddings),
    "InteractionArch": Sample(lambda: dlrm.InteractionArch(2), vectors),
    "InteractionArch, two dtypes": Sample(
        lambda: dlrm.InteractionArch(2), lambda b: (torch.randn(b, 3).double(), vectors(b)[1])
    ),
    "InteractionDCNArch": Sample(
        lambda: dlrm.InteractionDCNArch(2, crossnet.CrossNet(9, 2)), vectors
    ),
    "InteractionProjectionArch": Sample(
        lambda: dlrm.InteractionProjectionArch(2, MLP(9, [6]), MLP(9, [12])), vectors
    ),
    "InteractionTransformerArch": Sample(
        lambda: InteractionTransformerArch(2, 3, nhead=1, ntransformer_layers=1).eval(), vectors
    ),
    "dlrm.DenseArch": Sample(lambda: dlrm.DenseArch(4, [3, 2]), matrix(4)),
    "dlrm.OverArch": Sample(lambda: dlrm.OverArch(4, [3, 1]), matrix(4)),
    "deepfm.DenseArch": Sample(lambda: deepfm_model.DenseArch(4, 3, 2), matrix(4)),
    "deepfm.OverArch": Sample(lambda: deepfm_model.OverArch(4), matrix(4)),
    "Tower": Sample(lambda: Tower(4, [3, 2], dropout=0.5).eval(), matrix(4)),
    "SharedBottom": Sample(lambda: SharedBottom(4, [1, 2], [3], [2]), matrix(4)),
    "MMoE": Sample(lambda: MMoE(4, [1, 2], 3, [3], [2], LayerOptions(0.5)).eval(), matrix(4)),
    "PLE": Sample(lambda: PLE(4, [1, 2], 2, 1, 2, [3], [2]), matrix(4)),
    "ESMM": Sample(lambda: ESMM(4, 3, [3]), matrix(4)),
}
