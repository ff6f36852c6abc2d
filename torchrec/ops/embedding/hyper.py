"""Hyper-parameters of fused updates as one float64 tensor: a row a table, changed while training without a recompile.

Columns: lr, eps, beta1, beta2, weight_decay, momentum, eta, max_gradient (0: none), decoupled, nesterov, step,
dampening. ``step`` counts the updates made. ``csrc/embedding/bindings.cpp`` repeats this layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops.embedding.updates import Hyper

LR = 0
STEP = 10
FIELDS = 12


def write_hyper(row: Tensor, hyper: Hyper) -> None:
    """Write the hyper-parameters of a table into its row, all but the step count.

    Args:
        row: float64, ``(12,)``.
        hyper: the hyper-parameters.
    """
    beta1, beta2 = hyper.betas
    settings = [hyper.lr, hyper.eps, beta1, beta2, hyper.weight_decay, hyper.momentum, hyper.eta]
    settings += [hyper.max_gradient or 0.0, float(hyper.weight_decay_mode == "decoupled")]
    settings += [float(hyper.nesterov), float(row[STEP]), hyper.dampening]
    row.copy_(torch.tensor(settings, dtype=torch.float64))


def read_hyper(row: Tensor) -> tuple[Hyper, int]:
    """Return the hyper-parameters in the row of a table, and its step count."""
    lr, eps, beta1, beta2, decay, momentum, eta, bound, decoupled, nesterov, step, dampening = (
        row.tolist()
    )
    hyper = Hyper(
        lr=lr,
        weight_decay=decay,
        weight_decay_mode="decoupled" if decoupled else "l2",
        max_gradient=bound or None,
        eps=eps,
        betas=(beta1, beta2),
        momentum=momentum,
        dampening=dampening,
        nesterov=bool(nesterov),
        eta=eta,
    )
    return hyper, int(step)


def new_hyper(num_tables: int) -> Tensor:
    """Return the rows of ``num_tables`` tables, with no update made."""
    return torch.zeros((num_tables, FIELDS), dtype=torch.float64, device="cpu")
