"""Rows that changed hands start as new ones: their weights, their gradients, their optimizer state."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from torchrec.modules._tables import Tables, initialise
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.ops.embedding.reference import hash_ids

# States that do not start at 0, and the hyper-parameter that says where.
_STARTS = {"sum": "initial_accumulator_value", "step_size": "lr"}


def reset_rows(tables: Tables, table: str, rows: Tensor) -> None:
    """Make rows of a table as they were before any training.

    That is: new initial weights; no gradient that was meant for the former id, neither one that
    waits in ``weight.grad`` nor one that a fused table has collected; and no optimizer state. State
    of a fused table is reset at once, that of any other optimizer when it next steps.

    Weights are drawn from a generator of their own, which depends on the table and the rows alone:
    so a run that is resumed draws the same, and dropout elsewhere does not notice evictions.

    Args:
        tables: of a collection.
        table: name of the table.
        rows: int64 ``(N,)``, distinct.
    """
    if not rows.numel():
        return
    number = tables.number(table)
    weight = tables.weights()[number]
    rows = rows.to(weight.device)
    with torch.no_grad():
        weight.index_copy_(0, rows, _initial(tables.configs[number], weight, rows))
        _drop_gradients(weight, rows)
    for updater in tables._updaters:
        for part in updater.pending:
            stays = ~torch.isin(part[2 * number], rows)
            part[2 * number : 2 * number + 2] = [p[stays] for p in part[2 * number :][:2]]
    tables.reset_states(number, rows)
    fused = any(table.number == number for updater in tables._updaters for table in updater.tables)
    if weight.requires_grad and not fused:
        _reset_at_next_step(weight, rows)


def _initial(config: BaseEmbeddingConfig, weight: Tensor, rows: Tensor) -> Tensor:
    fresh = weight.new_empty((rows.numel(), weight.shape[1]))
    seed = zlib.crc32(config.name.encode()) ^ int(hash_ids(rows, 2**62).sum() & (2**62 - 1))
    on_cpu = weight.device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [weight.device], device_type=weight.device.type):
        # Not torch.manual_seed, which would reach the generators of all devices.
        generator = torch.default_generator
        if not on_cpu:
            generator = torch.get_device_module(weight.device).default_generators[
                weight.device.index
            ]
        generator.manual_seed(seed)
        initialise(config, fresh)
    return fresh


def _drop_gradients(weight: Tensor, rows: Tensor) -> None:
    grad = weight.grad
    if grad is None:
        return
    if not grad.is_sparse:
        grad[rows] = 0
        return
    grad = grad.coalesce()
    stays = ~torch.isin(grad.indices()[0], rows)
    weight.grad = torch.sparse_coo_tensor(
        grad.indices()[:, stays],
        grad.values()[stays],
        grad.shape,
        is_coalesced=True,
        check_invariants=False,
    )


_hook_installed = False


def _reset_at_next_step(weight: Tensor, rows: Tensor) -> None:
    """Have the optimizer that steps next, and holds the weight, forget these rows before it does."""
    global _hook_installed
    if not _hook_installed:
        register_optimizer_step_pre_hook(_forget_rows)
        _hook_installed = True
    waiting = [*(getattr(weight, "_rows_to_forget", None) or []), rows]
    if sum(part.numel() for part in waiting) > 2 * weight.shape[0]:
        waiting = [torch.cat(waiting).unique()]  # at most E, so not again soon
    weight._rows_to_forget = waiting  # type: ignore[attr-defined]


def forget_nothing(tables: Tables) -> None:
    """Call off what optimizers would forget when they next step: the rows are others now.

    Args:
        tables: of a collection into which a state was loaded.
    """
    for weight in tables.weights():
        weight._rows_to_forget = None  # type: ignore[attr-defined]


def _forget_rows(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            waiting = getattr(param, "_rows_to_forget", None)
            if waiting is None:
                continue
            rows = torch.cat(waiting)
            for name, state in optimizer.state.get(param, {}).items():
                if isinstance(state, Tensor) and state.shape[:1] == param.shape[:1]:
                    state[rows] = float(group.get(_STARTS.get(name, ""), 0.0))
            param._rows_to_forget = None
