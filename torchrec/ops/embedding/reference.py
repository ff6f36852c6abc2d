"""The operators in plain PyTorch: the specification of the kernels, and the fallback on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec.ops.embedding.failure import names_of_slot, raise_bad_bag, raise_bad_id
from torchrec.ops.embedding.hyper import STEP, read_hyper
from torchrec.ops.embedding.spec import (
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    read_spec,
)
from torchrec.ops.embedding.updates import RULES

NO_ROW = -1


def _as_signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift as if the numbers were unsigned: zeros come in from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_ids(ids: Tensor, span: int) -> Tensor:
    """Map any int64 to ``[0, span)``, evenly, and the same in every process and on every platform.

    A bijective mix of all 64 bits (the finaliser of MurmurHash3, Appleby 2011), modulo ``span``.

    Args:
        ids: int32 or int64, any shape.
        span: at least 1.

    Returns:
        int64, the shape of ``ids``.

    Example:
        >>> hash_ids(torch.tensor([0, 1, -1, 10_000_000_000]), 100).tolist()
        [0, 2, 44, 13]
    """
    x = ids.long()
    x = x ^ _shift_right(x, 33)
    x = x * _as_signed(0xFF51AFD7ED558CCD)
    x = x ^ _shift_right(x, 33)
    x = x * _as_signed(0xC4CEB9FE1A85EC53)
    x = x ^ _shift_right(x, 33)
    return _shift_right(x, 1) % span


def rows_of(table: TableSpec, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each id (``NO_ROW`` where it has none), and which ids are out of range."""
    ids = ids.long()
    unknown = (ids < 0) | (ids >= table.num_embeddings)
    if table.policy == PolicyCode.HASH:
        other = hash_ids(ids, max(table.num_embeddings, 1))
    elif table.policy == PolicyCode.OVERFLOW:
        other = table.num_embeddings + hash_ids(ids, table.rows - table.num_embeddings)
    elif table.policy == PolicyCode.CLAMP:
        other = (
            ids.clamp(0, table.num_embeddings - 1)
            if table.num_embeddings
            else torch.full_like(ids, NO_ROW)
        )
    else:
        other = torch.full_like(ids, NO_ROW)
    return torch.where(unknown, other, ids), unknown


def _check_ids(
    table: TableSpec, number: int, ids: Tensor, unknown: Tensor, samples: Tensor, names: str
) -> None:
    """Raise for the first id that the policy ``error`` refuses; on an accelerator, without waiting."""
    if table.policy != PolicyCode.ERROR or ids.numel() == 0:
        return
    if ids.device.type != "cpu":
        name, feature = names_of_slot(names, number)
        torch._assert_async(
            ~unknown.any(),
            f"Ids of feature '{feature}' should be in [0, {table.num_embeddings}), the rows of table '{name}'.",
        )
    elif unknown.any():
        first = int(unknown.int().argmax())
        raise_bad_id(names, number, int(samples[first]), int(ids[first]), table.num_embeddings)


def _accumulate_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _count_bags(
    values: Tensor, offsets: Tensor, sample_weights: Tensor | None, num_keys: int
) -> int:
    """Return the size of the batch, having checked that the bags lie within the values."""
    bags = (offsets.numel() - 1) // num_keys
    if offsets.numel() != num_keys * bags + 1:
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
    if sample_weights is not None and sample_weights.numel() != values.numel():
        raise ValueError(
            f"`sample_weights` should be as many as the values ({values.numel()}). "
            f"Received {sample_weights.numel()}."
        )
    return bags


def _check_ranges(values: Tensor, starts: Sequence[int], counts: Sequence[int]) -> None:
    for s, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if start < 0 or count < 0 or start > values.numel() - count:
            raise ValueError(
                f"Slot number {s} should lie within the values ({values.numel()}). "
                f"Received {count} from {start} on."
            )


class _Bags:
    """The ids of one slot, the bag of each, and the row that each chooses."""

    def __init__(
        self, table: TableSpec, slot: SlotSpec, values: Tensor, offsets: Tensor, bags: int
    ) -> None:
        mine = offsets[slot.key * bags : (slot.key + 1) * bags + 1]
        self.begin, self.end = (int(mine[0]), int(mine[-1])) if bags else (0, 0)
        self.ids = values[self.begin : self.end]
        self.lengths = mine.diff().long()
        self.bag = torch.repeat_interleave(self.lengths, output_size=self.end - self.begin)
        self.rows, self.unknown = rows_of(table, self.ids)
        self.has_row = self.rows != NO_ROW
        counted = torch.zeros(bags, dtype=torch.int64, device=values.device)
        self.counts = counted.index_add_(0, self.bag, self.has_row.long()).clamp_(min=1)


def embedding_bag(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    num_keys: int,
    width: int,
    dtype: torch.dtype,
    names: str,
) -> tuple[Tensor, Tensor]:
    """Pool the rows of every bag of every slot."""
    tables, slots = read_spec(spec)
    bags = _count_bags(values, offsets, sample_weights, num_keys)
    output = values.new_zeros((bags, width), dtype=dtype)
    out_of_range = torch.zeros(len(tables), dtype=torch.int64, device=values.device)
    for number, slot in enumerate(slots):
        table, weight = tables[slot.table], weights[slot.table]
        b = _Bags(table, slot, values, offsets, bags)
        if slot.pooling == PoolingCode.NONE and bool((b.lengths != 1).any()):
            bad = int((b.lengths != 1).int().argmax())
            raise_bad_bag(names, number, bad, int(b.lengths[bad]))
        _check_ids(table, number, b.ids, b.unknown, b.bag, names)
        out_of_range[slot.table] += b.unknown.sum()
        rows = weight[b.rows[b.has_row]].to(_accumulate_dtype(weight))
        if sample_weights is not None:
            rows = rows * sample_weights[b.begin : b.end][b.has_row].unsqueeze(1)
        pooled = rows.new_zeros((bags, table.dim)).index_add_(0, b.bag[b.has_row], rows)
        if slot.pooling == PoolingCode.MEAN:
            pooled = pooled / b.counts.unsqueeze(1)
        output[:, slot.column : slot.column + table.dim] = pooled.to(dtype)
    return output, out_of_range


# Per table, the row that each id chose and the gradient that it receives; None: no gradient at all.
_Pairs = list[tuple[Tensor, Tensor] | None]


def _bag_pairs(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    num_keys: int,
) -> _Pairs:
    """Return the rows that a pooled look-up chose, and their gradients."""
    tables, slots = read_spec(spec)
    bags = _count_bags(values, offsets, sample_weights, num_keys)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tables]
    for slot in slots:
        table, weight = tables[slot.table], weights[slot.table]
        b = _Bags(table, slot, values, offsets, bags)
        mine = grad[:, slot.column : slot.column + table.dim].to(_accumulate_dtype(weight))
        if slot.pooling == PoolingCode.MEAN:
            mine = mine / b.counts.unsqueeze(1)
        each = mine[b.bag]
        if sample_weights is not None:
            each = each * sample_weights[b.begin : b.end].unsqueeze(1)
        pairs[slot.table].append((b.rows[b.has_row], each[b.has_row]))
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
    return unique, grads.new_zeros((len(unique), grads.shape[1])).index_add_(0, inverse, grads)


def _dense(pairs: _Pairs, weights: Sequence[Tensor]) -> list[Tensor]:
    result = []
    for weight, mine in zip(weights, pairs, strict=True):
        grad = weight.new_zeros(weight.shape, dtype=_accumulate_dtype(weight))
        if mine is not None:
            grad.index_add_(0, *mine)
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
    left = list(states)
    for t, (table, weight, pair) in enumerate(zip(tables, weights, pairs, strict=True)):
        mine, left = left[: table.states], left[table.states :]
        if table.optimizer is None or pair is None:  # frozen for now, or not used
            continue
        rule = RULES[table.optimizer]
        hyper[t, STEP] += 1
        settings, step = read_hyper(hyper[t])
        unique, sums = _sum_by_row(*pair)
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
    num_keys: int,
) -> list[Tensor]:
    """Sum the gradient of every row into a tensor of the shape of its table."""
    pairs = _bag_pairs(grad, weights, spec, values, offsets, sample_weights, num_keys)
    return _dense(pairs, weights)


def embedding_bag_sparse_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    num_keys: int,
) -> list[Tensor]:
    """Return, for each table in turn, the rows that have a gradient, ascending, and its sums."""
    pairs = _bag_pairs(grad, weights, spec, values, offsets, sample_weights, num_keys)
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
    num_keys: int,
) -> None:
    """Sum the gradient of every row and apply its table's update rule, in place."""
    pairs = _bag_pairs(grad, weights, spec, values, offsets, sample_weights, num_keys)
    _update(pairs, weights, states, hyper, spec)


def embedding_bag_weights_grad(
    grad: Tensor,
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor,
    num_keys: int,
) -> Tensor:
    """Gradient of the per-sample weights: of each id, the dot product of its row and its bag's."""
    tables, slots = read_spec(spec)
    bags = _count_bags(values, offsets, sample_weights, num_keys)
    result = torch.zeros_like(sample_weights)
    for slot in slots:
        table, weight = tables[slot.table], weights[slot.table]
        b = _Bags(table, slot, values, offsets, bags)
        mine = grad[:, slot.column : slot.column + table.dim].to(_accumulate_dtype(weight))
        rows = weight[b.rows.clamp(min=0)].to(mine.dtype) if table.rows else mine[b.bag]
        dots = (rows * mine[b.bag]).sum(1) * b.has_row
        if slot.pooling == PoolingCode.MEAN:
            dots = dots / b.counts[b.bag]
        result[b.begin : b.end] += dots.to(result.dtype)
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
    _check_ranges(values, starts, counts)
    tables, slots = read_spec(spec)
    out_of_range = torch.zeros(len(tables), dtype=torch.int64, device=values.device)
    outputs = []
    for number, (slot, start, count) in enumerate(zip(slots, starts, counts, strict=True)):
        table, weight = tables[slot.table], weights[slot.table]
        ids = values[start : start + count]
        rows, unknown = rows_of(table, ids)
        _check_ids(table, number, ids, unknown, torch.arange(len(ids), device=ids.device), names)
        out_of_range[slot.table] += unknown.sum()
        output = values.new_zeros((count, table.dim), dtype=dtype)
        has_row = rows != NO_ROW
        output[has_row] = weight[rows[has_row]].to(dtype)
        outputs.append(output)
    return [*outputs, out_of_range]


def _sequence_pairs(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
) -> _Pairs:
    _check_ranges(values, starts, counts)
    tables, slots = read_spec(spec)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tables]
    for slot, grad, start, count in zip(slots, grads, starts, counts, strict=True):
        if grad is None:
            continue
        rows, _ = rows_of(tables[slot.table], values[start : start + count])
        has_row = rows != NO_ROW
        mine = grad.to(_accumulate_dtype(weights[slot.table]))
        pairs[slot.table].append((rows[has_row], mine[has_row]))
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
