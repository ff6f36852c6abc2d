"""Trains a random model on ranks and in one process, and compares all that there is to see."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from tests.distributed.random_models import (
    Case,
    Model,
    Outputs,
    Phase,
    batch,
    joined,
    plan_of,
    sharders_of,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.layout import shards_of
from torchrec.distributed.placement import TablePlacement
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.types import DataType

# A reordered sum of n numbers of one sign is off by n * 2^-24 at most, relative to it; n is at most some hundred here,
# and a rule such as Adagrad's takes a root and a quotient. A weight of fewer bits may be rounded to its neighbour.
_RTOL = {DataType.FP32: 1e-4, DataType.FP16: 2**-9, DataType.BF16: 2**-6}
_ATOL = {DataType.FP32: 1e-5, DataType.FP16: 1e-3, DataType.BF16: 1e-2}

# What rules keep of squares of gradients: (g * (1 + e))^2 is off by 2e, relative to it.
_SQUARES = ("sum", "exp_avg_sq")


Step = list[tuple[dict[str, Tensor], list[Tensor | None]]]


def train(case: Case, number: int, model: torch.nn.Module, sharded: bool) -> Iterator[Step]:
    """Train a model for a phase; yield for each step its outputs on each rank, and gradients of weights of ids.

    Of a sharded model those are the ones of this rank; else the batches of all ranks are one.
    """
    phase = case.phases[number]
    tables, outside = _tables_of(model), _outside(case, model)
    optimizers = [tables, *outside]
    ranks = [dist.get_rank()] if sharded else list(range(phase.world_size))
    for step, mode in enumerate(phase.modes):
        if step == 0 or phase.modes[step - 1] != "accumulate":
            for optimizer in optimizers:
                optimizer.zero_grad()
        found: Step = [({}, []) for _ in ranks]
        losses = []
        with torch.no_grad() if mode == "evaluate" else nullcontext():
            for which in (step, step + 5) if mode == "twice" else (step,):
                batches = [batch(case, number, which, rank) for rank in ranks]
                outputs = model(batches[0] if sharded else joined(batches))
                sizes = [phase.sizes[step][rank] for rank in ranks]
                parts = [outputs] if sharded else _by_rank(outputs, sizes)
                losses += [
                    _loss(part, rank, _skipped(case, phase, which, rank))
                    for part, rank in zip(parts, ranks, strict=True)
                ]
                for (seen, grads), part, each in zip(found, parts, batches, strict=True):
                    seen |= {
                        f"{name} of look-up {which}": values.detach().clone()
                        for name, (values, _) in part.items()
                    }
                    grads.append(each.weights())
        total = torch.stack(losses).sum() / len(ranks)
        if mode not in ("evaluate", "forward") and total.requires_grad:
            with ExitStack() as stack:
                if mode == "accumulate":
                    for each in _collections(model):
                        stack.enter_context(each.fused_optimizer.accumulate())
                total.backward()
        if mode in ("step", "twice") or step == len(phase.modes) - 1:
            for optimizer in optimizers:
                optimizer.step()
        if case.scheduled:
            for group in tables.param_groups:
                group["lr"] *= 0.5
        # The gradients of a rank's own loss, not of the mean.
        yield [
            (seen, [None if w.grad is None else w.grad * len(ranks) for w in weights])
            for seen, weights in found
        ]


def _skipped(case: Case, phase: Phase, step: int, rank: int) -> int | None:
    """Say which outputs the loss of a rank leaves out: in even steps the same ones on all ranks."""
    # Not where DistributedDataParallel expects gradients of the same parameters in every step.
    copies = any(layout.kind == "data_parallel" for each in case.phases for layout in each.layouts)
    if not case.skips or case.dense or copies:
        return None
    return (step + rank * (step % 2)) % 3


def _outside(case: Case, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    params = [param for _, param in in_backward_optimizer_filter(model.named_parameters())]
    if not params:
        return []
    if case.outside == "adam":
        return [torch.optim.Adam(params, lr=0.02, eps=1e-3)]  # not 0 as float16
    return [torch.optim.SGD(params, lr=0.1)]


def _by_rank(outputs: Outputs, sizes: Sequence[int]) -> list[Outputs]:
    found: list[Outputs] = [{} for _ in sizes]
    for name, (values, lengths) in outputs.items():
        counts, split = list(sizes), [None] * len(sizes)
        if lengths is not None:
            split = lengths.split(list(sizes))
            counts = [int(each.sum()) for each in split]
        for part, mine, each in zip(found, values.split(counts), split, strict=True):
            part[name] = (mine, each)
    return found


def _loss(outputs: Outputs, rank: int, skipped: int | None) -> Tensor:
    """A loss whose gradients are of one sign, so that sums of them are well conditioned.

    It leaves every third output out, if asked to, but the first of each collection: all ranks run the backward
    pass of all collections.
    """
    total, met = torch.zeros(()), set[str]()
    for k, (name, (values, _)) in enumerate(outputs.items()):
        collection = name.partition(".")[0]
        if not name.endswith(" ids") and (k % 3 != skipped or collection not in met):
            met.add(collection)
            there = torch.arange(values.numel()).view_as(values)
            total = total + (values * (1 + 0.5 * torch.sin(there + 17.0 * rank + k))).sum()
    return total


def is_exact(case: Case, phase: Phase) -> dict[str, bool]:
    """Tell the tables that should train as in one process to the last bit, by name.

    A mean over ranks that are no power of two is rounded, and what DistributedDataParallel adds up comes in
    another order, as do partial sums of ranks, and gradients of bags that samples share: then it is to the
    rounding of one reordered sum. Vectors of fewer bits are rounded on their way, and rows that come by several
    look-ups wait in the type of their table.
    """
    found = {}
    model = Model(case, case.seed)
    for collection, plan in plan_of(case, phase, model).plan.items():
        for t in case.of_collection(collection):
            table, sharding = case.tables[t], plan[f"t{t}"]
            shards = shards_of(f"t{t}", (table.num_rows, table.dim), sharding, phase.world_size)
            if sharding.sharding_type == "data_parallel":
                exact = False
            else:
                placement = TablePlacement(f"t{t}", shards)
                by_row = table.optimizer is not None and RULES[table.optimizer].row_sums > 0
                summed = collection != "sequences" and not phase.exact
                exact = not (
                    (case.dense and collection != "sequences")
                    or (case.output_dtype is not None and collection != "sequences")
                    or (by_row and placement.splits_columns)
                    or (summed and (len(placement.bands) > 1 or case.variable))
                )
            exact = exact and table.data_type == DataType.FP32 and phase.world_size != 3
            found[f"t{t}"] = exact or phase.world_size == 1
    return found


def compare(
    case: Case,
    name: str,
    received: Tensor,
    expected: Tensor,
    exact: bool,
    what: str,
    power: int = 1,
) -> None:
    """Check that a tensor of a table, or of such a power of its numbers, is that of one process."""
    if exact:
        if torch.equal(received, expected):
            return
        raise AssertionError(
            f"{what} should be that of one process to the last bit. Received other values, by up to "
            f"{(received - expected).abs().max().item():.3g}."
        )
    kinds = {case.tables[int(name[1:])].data_type} if name else {t.data_type for t in case.tables}
    if case.output_dtype is not None:
        kinds.add(DataType.BF16)
    rtol, atol = power * max(_RTOL[kind] for kind in kinds), max(_ATOL[kind] for kind in kinds)
    torch.testing.assert_close(
        received, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}"
    )


def parts_of(value: Any) -> list[tuple[tuple[int, ...], Tensor]]:
    """Return the parts that are here of what a state shows, each with where it begins."""
    if hasattr(value, "local_shards"):
        return [(tuple(s.metadata.shard_offsets), s.tensor) for s in value.local_shards()]
    return [((0,) * value.dim(), value)]


def compare_states(
    case: Case, plain: Model, sharded: DistributedModelParallel, exact: dict[str, bool]
) -> None:
    """Check what a rank has of every parameter and of what its optimizer in the backward pass keeps."""
    whole, mine = plain.state_dict(), sharded.state_dict()
    assert list(whole) == list(mine)
    for name, expected in whole.items():
        compare_parts(case, name, mine[name], expected, exact, "")
    states, found = (
        _tables_of(plain).state_dict()["state"],
        _tables_of(sharded).state_dict()["state"],
    )
    assert list(states) == list(found)
    for name, state in states.items():
        assert list(state) == list(found[name])
        for kind, expected in state.items():
            power = 2 if kind in _SQUARES else 1
            compare_parts(case, name, found[name][kind], expected, exact, f"`{kind}` of ", power)


def _tables_of(model: Any) -> KeyedOptimizer:
    if isinstance(model, DistributedModelParallel):
        return model.fused_optimizer
    return CombinedOptimizer(
        list(zip(model.names, [each.fused_optimizer for each in _collections(model)], strict=True))
    )


def _collections(model: Any) -> list[Any]:
    model = getattr(model, "module", model)
    return [getattr(model, name) for name in model.names]


def compare_parts(
    case: Case,
    name: str,
    received: Any,
    expected: Tensor,
    exact: dict[str, bool],
    what: str,
    power: int = 1,
) -> None:
    """Check the parts that a rank has of something of a parameter."""
    table = name.split(".")[2] if not name.startswith("over") else ""
    assert received.shape == expected.shape
    for offsets, part in parts_of(received):
        there = expected
        for axis, (offset, size) in enumerate(zip(offsets, part.shape, strict=True)):
            there = there.narrow(axis, offset, size)
        where = f"{what}'{name}' from {offsets} on"
        compare(case, table, part, there, exact.get(table, False), where, power)


def compare_steps(
    case: Case,
    number: int,
    plain: Model,
    sharded: DistributedModelParallel,
    exact: dict[str, bool],
) -> list[Tensor]:
    """Train both for a phase and compare each step; return all that a rank has seen."""
    seen = []
    tables = {
        f"{name}.{feature}": f"t{t}"
        for name in plain.names
        for t in case.of_collection(name)
        for feature in case.tables[t].features
    }
    tables |= {f"{key}@{table}": table for key, table in tables.items()}
    steps = zip(train(case, number, plain, False), train(case, number, sharded, True), strict=True)
    for step, (of_all, [(found, grads)]) in enumerate(steps):
        expected, wanted = of_all[dist.get_rank()]
        assert list(found) == list(expected)
        for name, values in found.items():
            table = tables.get(name.partition(" ")[0], "")
            what = f"Output '{name}' of step {step}"
            compare(case, table, values, expected[name], exact.get(table, False), what)
        for grad, whole in zip(grads, wanted, strict=True):
            if grad is not None or whole is not None:
                grad, whole = (torch.zeros(()) if g is None else g for g in (grad, whole))
                grad, whole = torch.broadcast_tensors(grad, whole)
                what = f"The gradient of weights of ids of step {step}"
                compare(case, "", grad, whole, False, what)
        seen += [*found.values(), *(grad for grad in grads if grad is not None)]
    compare_states(case, plain, sharded, exact)
    states = [sharded.state_dict(), *_tables_of(sharded).state_dict()["state"].values()]
    return seen + [
        part.clone() for state in states for value in state.values() for _, part in parts_of(value)
    ]


def sharded_model(
    case: Case, phase: Phase, seed: int, device: str = "cpu"
) -> DistributedModelParallel:
    """Return the model of a case, spread over ranks as a phase says."""
    model = Model(case, seed, device)
    return DistributedModelParallel(
        model, plan=plan_of(case, phase, model), sharders=sharders_of(phase)
    )


def first_phase(case: Case, folder: str, again: bool) -> bool:
    """Train a model as in one process, twice if asked for, and save it."""
    phase, seen = case.phases[0], []
    for _ in range(2 if again else 1):
        plain, sharded = Model(case, case.seed), sharded_model(case, phase, case.seed)
        seen.append(compare_steps(case, 0, plain, sharded, is_exact(case, phase)))
    for received, expected in zip(seen[0], seen[-1], strict=True):
        assert torch.equal(received, expected), "A second run should give the same bits."
    dcp.save(_state_of(sharded), checkpoint_id=folder)
    return True


def _state_of(model: DistributedModelParallel) -> dict[str, Any]:
    return {"model": model.state_dict(), "tables": model.fused_optimizer.state_dict()}


def second_phase(case: Case, folder: str) -> bool:
    """Load the model under another plan and on other ranks, and train it further."""
    first, phase = case.phases
    device = "meta" if case.seed % 2 else "cpu"
    plain, sharded = Model(case, case.seed), sharded_model(case, phase, case.seed + 1, device)
    for _ in train(case, 0, plain, False):
        pass
    state = _state_of(sharded)
    if case.seed % 3:  # else it is the very memory of the model
        state = copy.deepcopy(state)
    dcp.load(state, checkpoint_id=folder)
    sharded.load_state_dict(state["model"])
    sharded.fused_optimizer.load_state_dict(state["tables"])
    exact = is_exact(case, first)
    compare_states(case, plain, sharded, exact)
    now = is_exact(case, phase)
    compare_steps(case, 1, plain, sharded, {name: exact[name] and now[name] for name in now})
    return True


def moved_phase(case: Case) -> bool:
    """Train a model as in one process, bring its tables to other ranks, and train it further."""
    first, phase = case.phases
    plain, sharded = Model(case, case.seed), sharded_model(case, first, case.seed)
    compare_steps(case, 0, plain, sharded, is_exact(case, first))
    plan = plan_of(case, phase, Model(case, case.seed))
    sharded.reshard({name: (1.0, tables) for name, tables in plan.plan.items()})
    assert sharded.plan == plan
    exact, now = is_exact(case, first), is_exact(case, phase)
    compare_states(case, plain, sharded, exact)
    compare_steps(case, 1, plain, sharded, {name: exact[name] and now[name] for name in now})
    return True
