"""Hyper-parameters of fused updates as one float64 tensor: a row a table, changed while training without a recompile.

``layout.HYPER`` names the columns.
"""

from __future__ import annotations

from operator import itemgetter

import torch
from torch import Tensor

from torchrec.ops.embedding.layout import HYPER
from torchrec.ops.embedding.updates import Hyper

LR = HYPER.index("lr")
STEP = HYPER.index("step")
SAMPLES = HYPER.index("samples")
_in_order = itemgetter(*HYPER)


def write_hyper(row: Tensor, hyper: Hyper) -> None:
    """Write the hyper-parameters of a table into its row, all but the step count.

    Args:
        row: float64, one number a column.
        hyper: the hyper-parameters.
    """
    beta1, beta2 = hyper.betas
    numbers = {
        "lr": hyper.lr,
        "eps": hyper.eps,
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": hyper.weight_decay,
        "momentum": hyper.momentum,
        "eta": hyper.eta,
        "max_gradient": hyper.max_gradient or 0.0,
        "decoupled": float(hyper.weight_decay_mode == "decoupled"),
        "nesterov": float(hyper.nesterov),
        "step": float(row[STEP]),
        "dampening": hyper.dampening,
        "dense": float(not hyper.lazy),
        "batch_l2": hyper.batch_l2,
        "samples": 0.0,
    }
    row.copy_(torch.tensor(_in_order(numbers), dtype=torch.float64, device="cpu"))


def read_hyper(row: Tensor) -> tuple[Hyper, int]:
    """Return the hyper-parameters in the row of a table, and its step count."""
    number = dict(zip(HYPER, row.tolist(), strict=True))
    hyper = Hyper(
        lr=number["lr"],
        weight_decay=number["weight_decay"],
        weight_decay_mode="decoupled" if number["decoupled"] else "l2",
        max_gradient=number["max_gradient"] or None,
        eps=number["eps"],
        betas=(number["beta1"], number["beta2"]),
        momentum=number["momentum"],
        dampening=number["dampening"],
        nesterov=bool(number["nesterov"]),
        eta=number["eta"],
        lazy=not number["dense"],
        batch_l2=number["batch_l2"],
    )
    return hyper, int(number["step"])


def new_hyper(num_tables: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the rows of ``num_tables`` tables, with no update made.

    Args:
        num_tables: T.
        device: where the kernels of the tables read it. Default: the CPU.
    """
    return torch.zeros((num_tables, len(HYPER)), dtype=torch.float64, device=device)
