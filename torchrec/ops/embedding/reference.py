"""The operators in plain PyTorch: the specification of the kernels, and the fallback on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.ops._memory import require_integers
from torchrec.ops.embedding.failure import raise_bad_bag
from torchrec.ops.embedding.hyper import SAMPLES, STEP, read_hyper
from torchrec.ops.embedding.layout import HYPER
from torchrec.ops.embedding.row_choice import Chosen, check_ids, choose
from torchrec.ops.embedding.spec import (
    PoolingCode,
    SlotSpec,
    TableSpec,
    read_spec,
)
from torchrec.ops.embedding.updates import RULES


def _accumulate_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def batch_size(values: Tensor, offsets: Tensor, num_keys: int) -> int:
    """Return the number of bags of each key."""
    if num_keys < 1:
        raise ValueError(f"`num_keys` should be 1 or more. Received {num_keys}.")
    if values.dim() != 1 or offsets.dim() != 1:
        raise ValueError(
            "`values` and `offsets` should have one dimension. "
            f"Received {values.dim()} and {offsets.dim()}."
        )
    return (offsets.size(0) - 1) // num_keys


def check_weights(weights: Sequence[Tensor], tables: list[TableSpec]) -> None:
    """Refuse weights that are not those of the tables."""
    if len(weights) != len(tables):
        raise ValueError(
            f"`weights` should hold one tensor a table ({len(tables)}). Received {len(weights)}."
        )
    for t, (weight, table) in enumerate(zip(weights, tables, strict=True)):
        if weight.shape != (table.num_shard_rows, table.dim):
            raise ValueError(
                f"The weight of table number {t} should have the shape "
                f"({table.num_shard_rows}, {table.dim}), as configured. Received {tuple(weight.shape)}."
            )


def _check_slots(slots: list[SlotSpec], **given: Sequence[object]) -> None:
    for name, numbers in given.items():
        if len(numbers) != len(slots):
            raise ValueError(
                f"`{name}` should be one a slot ({len(slots)}). Received {len(numbers)}."
            )


def check_key(key: int, num_keys: int) -> None:
    """Refuse the key of a slot that the input does not have."""
    if not 0 <= key < num_keys:
        raise ValueError(f"`spec` should name keys below {num_keys}. Received {key}.")


def _count_bags(
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> int:
    """Return the size of the batch, having checked that the bags lie within the values."""
    bags = batch_size(values, offsets, num_keys)
    if offsets.numel() != num_keys * bags + 1 or offsets.numel() == 0:
        raise ValueError(
            f"`offsets` should be {num_keys} keys x the size of the batch, and one. "
            f"Received {offsets.numel()}."
        )
    fit = (offsets.diff() >= 0).all() & (offsets[0] >= 0) & (offsets[-1] <= values.numel())
    if not bool(fit):
        raise ValueError(
            "`offsets` should start at 0 or later, never fall, and end within the values "
            f"({values.numel()})."
        )
    if sample_weights is not None and sample_weights.shape != values.shape:
        raise ValueError(
            f"`sample_weights` should be as many as the values ({values.numel()}). "
            f"Received {sample_weights.numel()}."
        )
    check_divisors(divisors, offsets)
    return bags


def check_divisors(divisors: Tensor | None, offsets: Tensor) -> None:
    """Refuse divisors that are not one a bag."""
    if divisors is None:
        return
    if divisors.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`divisors` should be int32 or int64. Received {divisors.dtype}.")
    if divisors.dim() != 1 or divisors.numel() != offsets.numel() - 1:
        raise ValueError(
            f"`divisors` should be one a bag ({offsets.numel() - 1}). Received {divisors.numel()}."
        )


def check_ranges(values: Tensor, starts: Sequence[int], counts: Sequence[int]) -> None:
    """Refuse slots that do not lie within the values."""
    if values.dim() != 1:
        raise ValueError(f"`values` should have one dimension. Received {values.dim()}.")
    if len(starts) != len(counts):
        raise ValueError(
            f"`starts` and `counts` should be one a slot each. Received {len(starts)} and {len(counts)}."
        )
    for s, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if start < 0 or count < 0 or start > values.numel() - count:
            raise ValueError(
                f"Slot number {s} should lie within the values ({values.numel()}). "
                f"Received {count} from {start} on."
            )


class _Bags:
    """The ids of one slot, the bag of each, and the row that each chooses.

    Attributes:
        begin, end: where the ids lie in the values.
        ids: the ids.
        lengths: of the bags.
        bag: of each id.
        chosen: the rows.
        divisors: of a mean, ``(B, 1)``.
    """

    def __init__(
        self,
        table: TableSpec,
        slot: SlotSpec,
        values: Tensor,
        offsets: Tensor,
        divisors: Tensor | None,
        bags: int,
    ) -> None:
        mine = offsets[slot.key * bags : (slot.key + 1) * bags + 1]
        self.begin, self.end = (int(mine[0]), int(mine[-1])) if bags else (0, 0)
        self.ids = values[self.begin : self.end]
        self.lengths = mine.diff().long()
        self.bag = torch.repeat_interleave(self.lengths, output_size=self.end - self.begin)
        self.chosen = Chosen(table, self.ids)
        if divisors is None:
            none = torch.zeros(bags, dtype=torch.int64, device=values.device)
            counts = none.index_add(0, self.bag, self.chosen.has_row.long())
        else:
            counts = divisors[slot.key * bags : (slot.key + 1) * bags].long()
        self.divisors = counts.clamp(min=1).unsqueeze(1)


def embedding_bag(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
    width: int,
    dtype: torch.dtype,
    names: str,
) -> tuple[Tensor, Tensor]:
    """Pool the rows of every bag of every slot."""
    tables, slots = read_spec(spec)
    check_weights(weights, tables)
    bags = Bags(values, offsets, sample_weights, divisors, num_keys)
    return pool(tables, slots, _rows_of(weights), bags, width, dtype, names)


class Bags(NamedTuple):
    """The ids of a pooled look-up, as its operators take them."""

    values: Tensor
    offsets: Tensor
    sample_weights: Tensor | None
    divisors: Tensor | None
    num_keys: int


ReadRows = Callable[[int, Tensor], Tensor]
"""Returns some rows of a table, by its number, in floats of no less than 32 bits."""


def _rows_of(weights: Sequence[Tensor]) -> ReadRows:
    return lambda t, rows: weights[t][rows].to(_accumulate_dtype(weights[t]))


def pool(
    tables: list[TableSpec],
    slots: list[SlotSpec],
    read_rows: ReadRows,
    given: Bags,
    width: int,
    dtype: torch.dtype,
    names: str,
) -> tuple[Tensor, Tensor]:
    """Pool the rows of every bag of every slot, of tables whose rows are read by a function."""
    values, offsets, sample_weights, divisors, _ = given
    bags = _count_bags(*given)
    out_of_range = [torch.zeros((), dtype=torch.int64, device=values.device) for _ in tables]
    columns: list[tuple[int, Tensor]] = []
    for number, slot in enumerate(slots):
        table = tables[slot.table]
        b = _Bags(table, slot, values, offsets, divisors, bags)
        if slot.pooling == PoolingCode.NONE and bool((b.lengths != 1).any()):
            bad = int((b.lengths != 1).int().argmax())
            raise_bad_bag(names, number, bad, int(b.lengths[bad]))
        check_ids(table, number, b.ids, b.bag, names)
        out_of_range[slot.table] = out_of_range[slot.table] + b.chosen.unknown.sum()
        rows = read_rows(slot.table, b.chosen.rows)
        if sample_weights is not None:
            rows = rows * sample_weights[b.begin : b.end][b.chosen.here].unsqueeze(1)
        pooled = rows.new_zeros((bags, table.dim)).index_add(0, b.bag[b.chosen.here], rows)
        if slot.pooling == PoolingCode.MEAN:
            pooled = pooled / b.divisors
        columns.append((slot.column, pooled.to(dtype)))
    return _side_by_side(columns, values, bags, width, dtype), _stack(out_of_range, values)


def _side_by_side(
    columns: list[tuple[int, Tensor]], values: Tensor, bags: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Join matrices, each at its column, with zeros where there are none.

    Out of place, like all of this file that has a gradient: so PyTorch can differentiate it, in
    forward mode and under transforms as well.
    """
    if bags == 0:
        return values.new_zeros((0, width), dtype=dtype)
    parts, at = [], 0
    for column, matrix in [*sorted(columns, key=lambda c: c[0]), (width, None)]:
        if column > at:
            parts.append(values.new_zeros((bags, column - at), dtype=dtype))
        if matrix is not None:
            parts.append(matrix)
            at = column + matrix.shape[1]
    return torch.cat(parts, 1) if parts else values.new_zeros((bags, 0), dtype=dtype)


def _stack(numbers: list[Tensor], values: Tensor) -> Tensor:
    none = torch.zeros(0, dtype=torch.int64, device=values.device)
    return torch.stack(numbers) if numbers else none


# Per table, the row that each id chose and the gradient that it receives; None: no gradient at all.
_Pairs = list[tuple[Tensor, Tensor] | None]


def _bag_pairs(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> _Pairs:
    """Return the rows that a pooled look-up chose, and their gradients."""
    tables, slots = read_spec(spec)
    check_weights(weights, tables)
    bags = _count_bags(values, offsets, sample_weights, divisors, num_keys)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tables]
    for slot in slots:
        table, weight = tables[slot.table], weights[slot.table]
        b = _Bags(table, slot, values, offsets, divisors, bags)
        mine = grad.narrow(1, slot.column, table.dim).to(_accumulate_dtype(weight))
        if slot.pooling == PoolingCode.MEAN:
            mine = mine / b.divisors
        each = mine[b.bag]
        if sample_weights is not None:
            each = each * sample_weights[b.begin : b.end].unsqueeze(1)
        pairs[slot.table].append((b.chosen.rows, each[b.chosen.here]))
    return _concatenate(pairs)


def _concatenate(pairs: list[list[tuple[Tensor, Tensor]]]) -> _Pairs:
    return [
        (torch.cat([rows for rows, _ in mine]), torch.cat([grads for _, grads in mine]))
        if mine
        else None
        for mine in pairs
    ]


def _sum_by_row(rows: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, ascending, and the sum of the gradients of each, in order."""
    unique, inverse = rows.unique(return_inverse=True)
    return unique, grads.new_zeros((len(unique), grads.shape[1])).index_add(0, inverse, grads)


def _dense(pairs: _Pairs, weights: Sequence[Tensor]) -> list[Tensor]:
    result = []
    for weight, mine in zip(weights, pairs, strict=True):
        grad = weight.new_zeros(weight.shape, dtype=_accumulate_dtype(weight))
        if mine is not None:
            grad = grad.index_add(0, *mine)
        result.append(grad.to(weight.dtype))
    return result


def _sparse(pairs: _Pairs, weights: Sequence[Tensor]) -> list[Tensor]:
    result: list[Tensor] = []
    for weight, mine in zip(weights, pairs, strict=True):
        if mine is None:
            empty = torch.empty(0, dtype=torch.int64, device=weight.device)
            result += [empty, weight.new_empty((0, weight.shape[1]))]
            continue
        unique, sums = _sum_by_row(*mine)
        result += [unique, sums.to(weight.dtype)]
    return result


def _update(
    pairs: _Pairs, weights: Sequence[Tensor], states: Sequence[Tensor], hyper: Tensor, spec: Tensor
) -> None:
    tables, _ = read_spec(spec)
    wanted = sum(table.states for table in tables)
    if len(states) != wanted:
        raise ValueError(
            f"`states` should be those of all tables in turn ({wanted}). Received {len(states)}."
        )
    if hyper.shape != (len(tables), len(HYPER)):
        raise TypeError(
            f"`hyper` should be float64 {(len(tables), len(HYPER))}. Received {tuple(hyper.shape)}."
        )
    left = list(states)
    for t, (table, weight, pair) in enumerate(zip(tables, weights, pairs, strict=True)):
        mine, left = left[: table.states], left[table.states :]
        if table.optimizer is None or pair is None:  # frozen for now, or not used
            continue
        rule = RULES[table.optimizer]
        hyper[t, STEP] += 1
        settings, step = read_hyper(hyper[t])
        unique, sums = _sum_by_row(*pair)
        samples = float(hyper[t, SAMPLES])
        if settings.batch_l2 and samples:
            times = pair[0].unique(return_counts=True)[1].to(sums.dtype)
            factors = torch.tensor(settings.batch_l2 / samples, dtype=sums.dtype) * times
            sums = sums + weight[unique].to(sums.dtype) * factors.unsqueeze(1)
        if rule.updates_all_rows(settings):
            rest = sums.new_zeros((weight.shape[0], sums.shape[1]))
            sums = rest.index_copy(0, unique, sums)
            unique = torch.arange(weight.shape[0], device=weight.device)
        names = rule.state_names(settings)
        old = {name: state[unique] for name, state in zip(names, mine, strict=True)}
        new_rows, new = rule.update(weight[unique].to(sums.dtype), sums, old, step, settings)
        weight[unique] = new_rows.to(weight.dtype)
        for name, state in zip(names, mine, strict=True):
            state[unique] = new[name].to(state.dtype)


def embedding_bag_dense_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> list[Tensor]:
    """Sum the gradient of every row into a tensor of the shape of its table."""
    pairs = _bag_pairs(grad, weights, spec, values, offsets, sample_weights, divisors, num_keys)
    return _dense(pairs, weights)


def embedding_bag_sparse_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> list[Tensor]:
    """Return, for each table in turn, the rows that have a gradient, ascending, and its sums."""
    pairs = _bag_pairs(grad, weights, spec, values, offsets, sample_weights, divisors, num_keys)
    return _sparse(pairs, weights)


def embedding_bag_update_(
    grad: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    hyper: Tensor,
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> None:
    """Sum the gradient of every row and apply its table's update rule, in place."""
    pairs = _bag_pairs(grad, weights, spec, values, offsets, sample_weights, divisors, num_keys)
    _update(pairs, weights, states, hyper, spec)


def embedding_bag_weights_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> Tensor:
    """Gradient of the per-sample weights: of each id, the dot product of its row and its bag's."""
    if sample_weights is None:
        raise TypeError("`sample_weights` should be a tensor. Received None.")
    tables, slots = read_spec(spec)
    check_weights(weights, tables)
    bags = _count_bags(values, offsets, sample_weights, divisors, num_keys)
    result = torch.zeros_like(sample_weights)
    for slot in slots:
        table, weight = tables[slot.table], weights[slot.table]
        b = _Bags(table, slot, values, offsets, divisors, bags)
        mine = grad.narrow(1, slot.column, table.dim).to(_accumulate_dtype(weight))
        bag = b.bag[b.chosen.here]
        dots = (weight[b.chosen.rows].to(mine.dtype) * mine[bag]).sum(1)
        if slot.pooling == PoolingCode.MEAN:
            dots = dots / b.divisors[bag, 0]
        positions = torch.arange(b.begin, b.end, device=values.device)[b.chosen.here]
        result = result.index_add(0, positions, dots.to(result.dtype))
    return result


def embedding_sequence(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype,
    names: str,
) -> list[Tensor]:
    """Return the row of each id of each slot, and last the out-of-range counts of the tables."""
    tables, slots = read_spec(spec)
    check_weights(weights, tables)
    return gather(
        tables, slots, lambda t, rows: weights[t][rows], values, starts, counts, dims, dtype, names
    )


def gather(
    tables: list[TableSpec],
    slots: list[SlotSpec],
    read_rows: ReadRows,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype,
    names: str,
) -> list[Tensor]:
    """Return the row of each id of each slot, of tables whose rows are read by a function."""
    check_ranges(values, starts, counts)
    _check_slots(slots, starts=starts, counts=counts, dims=dims)
    out_of_range = [torch.zeros((), dtype=torch.int64, device=values.device) for _ in tables]
    outputs = []
    for number, (slot, start, count) in enumerate(zip(slots, starts, counts, strict=True)):
        table = tables[slot.table]
        ids = values[start : start + count]
        check_ids(table, number, ids, None, names)
        chosen = Chosen(table, ids)
        out_of_range[slot.table] = out_of_range[slot.table] + chosen.unknown.sum()
        rows = read_rows(slot.table, chosen.rows).to(dtype)
        zeros = rows.new_zeros((count, table.dim))
        outputs.append(zeros.index_put((chosen.here.nonzero().squeeze(1),), rows))
    return [*outputs, _stack(out_of_range, values)]


def choose_rows(
    spec: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    starts: Sequence[int],
    counts: Sequence[int],
    num_keys: int,
    num_tables: int,
    names: str,
) -> tuple[Tensor, Tensor]:
    """Return the row of each id of each slot, slot after slot, and the out-of-range counts of the tables."""
    if offsets is not None:
        require_integers("offsets", offsets)
    check_ranges(values, starts, counts)
    tables, slots = read_spec(spec)
    check_num_tables(num_tables, len(tables))
    _check_slots(slots, starts=starts, counts=counts)
    out_of_range = torch.zeros(len(tables), dtype=torch.int64, device=values.device)
    rows = [values.new_empty(0, dtype=torch.int64)]
    for number, (slot, start, count) in enumerate(zip(slots, starts, counts, strict=True)):
        table, ids = tables[slot.table], values[start : start + count]
        check_ids(table, number, ids, samples_of(offsets, slot, start, count, num_keys), names)
        chosen, unknown = choose(table, ids)
        out_of_range[slot.table] += unknown.sum()
        rows.append(chosen)
    return torch.cat(rows), out_of_range


def check_num_tables(num_tables: int, found: int) -> None:
    """Refuse a number of tables that is not that of the spec."""
    if num_tables != found:
        raise ValueError(
            f"`num_tables` should be the tables of the spec ({found}). Received {num_tables}."
        )


def samples_of(
    offsets: Tensor | None, slot: SlotSpec, start: int, count: int, num_keys: int
) -> Tensor | None:
    """Return the bag of each id of a slot, for messages; None: there are no bags."""
    if offsets is None:
        return None
    bags = batch_size(offsets, offsets, num_keys)
    ends = offsets[slot.key * bags + 1 : (slot.key + 1) * bags + 1]
    positions = torch.arange(start, start + count, dtype=offsets.dtype, device=offsets.device)
    return torch.searchsorted(ends, positions, right=True)


def _sequence_pairs(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
) -> _Pairs:
    check_ranges(values, starts, counts)
    tables, slots = read_spec(spec)
    check_weights(weights, tables)
    _check_slots(slots, grads=grads, starts=starts, counts=counts)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tables]
    for slot, grad, start, count in zip(slots, grads, starts, counts, strict=True):
        if grad is None:
            continue
        chosen = Chosen(tables[slot.table], values[start : start + count])
        mine = grad.to(_accumulate_dtype(weights[slot.table]))
        pairs[slot.table].append((chosen.rows, mine[chosen.here]))
    return _concatenate(pairs)


def embedding_sequence_dense_grad(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
) -> list[Tensor]:
    """Sum the gradient of every row into a tensor of the shape of its table."""
    return _dense(_sequence_pairs(grads, weights, spec, values, starts, counts), weights)


def embedding_sequence_sparse_grad(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
) -> list[Tensor]:
    """Return, for each table in turn, the rows that have a gradient, ascending, and its sums."""
    return _sparse(_sequence_pairs(grads, weights, spec, values, starts, counts), weights)


def embedding_sequence_update_(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    hyper: Tensor,
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
) -> None:
    """Sum the gradient of every row and apply its table's update rule, in place."""
    pairs = _sequence_pairs(grads, weights, spec, values, starts, counts)
    _update(pairs, weights, states, hyper, spec)
