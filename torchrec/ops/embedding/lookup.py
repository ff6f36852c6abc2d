"""Look-ups with gradients: the autograd functions, and where the gradient of each table goes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from operator import attrgetter
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from torchrec.ops import _library
from torchrec.ops._private import will_run
from torchrec.ops.embedding import schema
from torchrec.ops.embedding.gradients import BagGradient, Bags, Ids, SequenceGradient, Updater
from torchrec.ops.embedding.spec import LookupSpec

_INTEGERS = (torch.int64, torch.int32)
_get_is_cpu = attrgetter("is_cpu")


class Group:
    """The tables of a collection that have the same kind of gradient.

    Args:
        spec: spec of the whole collection.
        tables: numbers of the tables of this group.
        gradient: ``"dense"``: one of the shape of the table; ``"sparse"``: a sparse COO gradient;
            an ``Updater``: none, the tables are updated in the backward pass.
    """

    def __init__(
        self, spec: LookupSpec, tables: list[int], gradient: Literal["dense", "sparse"] | Updater
    ) -> None:
        mine = set(tables)
        self.tables = tables
        self.slots = [s for s, slot in enumerate(spec.slots) if slot.table in mine]
        self.spec = spec.subset(tables)
        self.gradient = gradient
        self.is_fused = isinstance(gradient, Updater)
        self.number = next(_numbers)
        # Written to in name only: a compiler may neither leave the update out nor move it.
        self.mark = torch.zeros(1, device="cpu")
        # Stands for the weights of fused tables, whose gradient autograd need not see to.
        self.anchor = torch.zeros(0, device="cpu", requires_grad=True)
        _groups[self.number] = self


# Compiled code reaches an updater by the number of its group, as operators take tensors and numbers.
_numbers = count()
_groups: WeakValueDictionary[int, Group] = WeakValueDictionary()


def _as_sparse(pairs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Make coalesced COO tensors of rows and their gradients."""
    return [
        torch.sparse_coo_tensor(
            rows.unsqueeze(0), grads, weight.shape, is_coalesced=True, check_invariants=False
        )
        for weight, rows, grads in zip(weights, pairs[::2], pairs[1::2], strict=True)
    ]


def _none_of(ctx: Any) -> tuple[None, ...]:
    """Return no gradient, for each argument of a look-up."""
    return (None,) * (8 + int(ctx.recorded))


class _BagLookup(torch.autograd.Function):
    """Pooled look-up of all tables; each group gets its kind of gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        spec: LookupSpec,
        groups: list[Group],
        dtype: torch.dtype,
        values: Tensor,
        offsets: Tensor,
        sample_weights: Tensor | None,
        divisors: Tensor | None,
        updated: list[Tensor] | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weights = list(inputs) if updated is None else updated
        ctx.set_materialize_grads(False)
        ctx.spec, ctx.groups, ctx.weights, ctx.recorded = spec, groups, weights, len(inputs)
        # What is saved as autograd saves is refused when it has changed by the backward pass. For
        # the weights this is right only where they are read again, for the gradient of the sample
        # weights: else a fused table may change, when another look-up of this step is done with it.
        ctx.for_sample_weights = sample_weights is not None and sample_weights.requires_grad
        read_again = weights if ctx.for_sample_weights else ()
        ctx.save_for_backward(values, offsets, sample_weights, divisors, *read_again)
        output, out_of_range = _pool(
            weights, spec, Bags(values, offsets, sample_weights, divisors), dtype
        )
        ctx.mark_non_differentiable(out_of_range)
        return output, out_of_range

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:  # nobody uses what was looked up
            return _none_of(ctx)
        values, offsets, sample_weights, divisors, *_read_again = ctx.saved_tensors
        weights, bags = ctx.weights, Bags(values, offsets, sample_weights, divisors)
        sample_weights_grad: Tensor | None = None
        if ctx.for_sample_weights:
            sample_weights_grad = schema.embedding_bag_weights_grad(
                grad, weights, ctx.spec.tensor, *bags, ctx.spec.num_keys
            )
        grads: list[Tensor | None] = [None] * len(weights)
        updated = is_compiling() or _anchor_gets_gradient(ctx)
        for group in ctx.groups:
            mine = list(map(weights.__getitem__, group.tables))
            gradient = BagGradient(grad, mine, group.spec, bags)
            if isinstance(group.gradient, Updater):
                if is_compiling():
                    _queue_bags(group, gradient)
                elif updated:
                    group.gradient.receive(gradient)
                continue
            if group.gradient == "sparse":
                found = _as_sparse(gradient.pairs(), mine)
            else:
                found = schema.embedding_bag_dense_grad(
                    grad, mine, group.spec.tensor, *bags, group.spec.num_keys
                )
            for t, g in zip(group.tables, found, strict=True):
                grads[t] = g
        recorded = grads if ctx.recorded == len(grads) else (None,) * ctx.recorded
        return (None, None, None, None, None, sample_weights_grad, None, None, *recorded)


class _SequenceLookup(torch.autograd.Function):
    """Look-up of sequences in all tables; one output a slot."""

    @staticmethod
    def forward(
        ctx: Any,
        spec: LookupSpec,
        groups: list[Group],
        dtype: torch.dtype,
        values: Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        samples: int,
        updated: list[Tensor] | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        weights = list(inputs) if updated is None else updated
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values)
        ctx.groups, ctx.starts, ctx.counts, ctx.samples = groups, starts, counts, samples
        ctx.weights, ctx.recorded = weights, len(inputs)
        outputs = _gather(weights, spec, Ids(values, starts, counts), dtype)
        ctx.mark_non_differentiable(outputs[-1])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in output_grads):  # nobody uses what was looked up
            return _none_of(ctx)
        (values,), weights = ctx.saved_tensors, ctx.weights
        grads: list[Tensor | None] = [None] * len(weights)
        updated = is_compiling() or _anchor_gets_gradient(ctx)
        for group in ctx.groups:
            mine = list(map(weights.__getitem__, group.tables))
            received = [output_grads[s] for s in group.slots]
            starts, counts = ([n[s] for s in group.slots] for n in (ctx.starts, ctx.counts))
            ids = Ids(values, starts, counts, ctx.samples)
            gradient = SequenceGradient(received, mine, group.spec, ids)
            if isinstance(group.gradient, Updater):
                if is_compiling():
                    _queue_sequences(group, gradient)
                elif updated:
                    group.gradient.receive(gradient)
                continue
            if group.gradient == "sparse":
                found = _as_sparse(gradient.pairs(), mine)
            else:
                found = schema.embedding_sequence_dense_grad(
                    received, mine, group.spec.tensor, values, starts, counts
                )
            used = {
                slot.table
                for slot, g in zip(group.spec.slots, received, strict=True)
                if g is not None
            }
            for number, (t, g) in enumerate(zip(group.tables, found, strict=True)):
                grads[t] = g if number in used else None
        recorded = grads if ctx.recorded == len(grads) else (None,) * ctx.recorded
        return (None, None, None, None, None, None, None, None, *recorded)


def _pool(
    weights: Sequence[Tensor], spec: LookupSpec, bags: Bags, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    pooled: tuple[Tensor, Tensor] = schema.embedding_bag(
        weights, spec.tensor, *bags, spec.num_keys, spec.width, dtype, spec.names
    )
    return pooled


def _gather(
    weights: Sequence[Tensor], spec: LookupSpec, ids: Ids, dtype: torch.dtype
) -> list[Tensor]:
    outputs: list[Tensor] = schema.embedding_sequence(
        weights, spec.tensor, ids.values, ids.starts, ids.counts, spec.dims, dtype, spec.names
    )
    return outputs


def _check_input(weights: list[Tensor], spec: LookupSpec, values: Tensor) -> None:
    """Refuse what no implementation can look up, in the same words for all of them."""
    if values.dtype not in _INTEGERS:
        raise TypeError(f"`values` should be int32 or int64. Received {values.dtype}.")
    if not is_compiling() and values.is_cpu and all(map(_get_is_cpu, weights)):
        return  # quicker than to compare devices
    for table, weight in zip(spec.tables, weights, strict=True):
        if weight.device != values.device:
            raise ValueError(
                f"Table '{table.name}' should be on the device of the ids ({values.device}). "
                f"Received {weight.device}."
            )


def _recorded(
    weights: list[Tensor], groups: list[Group]
) -> tuple[list[Tensor] | None, Sequence[Tensor]]:
    """Return the weights, None if they are autograd's inputs all of them, and its inputs.

    It has no gradient of fused tables to see to: to record one would cost time, and have the hooks
    of the weight called. A tensor in their place has the output recorded.
    """
    if is_compiling() or not groups or not groups[0].is_fused:
        return None, weights
    if groups[-1].is_fused:
        return weights, [groups[0].anchor]
    updated = {t for group in groups if group.is_fused for t in group.tables}
    return weights, [groups[0].anchor if t in updated else w for t, w in enumerate(weights)]


def _anchor_gets_gradient(ctx: Any) -> bool:
    """Say whether the backward pass goes to what stands for the fused weights.

    One for some other tensors, as ``torch.autograd.grad`` runs it, does not: it leaves the tables
    alone, as it does the ``grad`` of every parameter.
    """
    if not ctx.groups or not ctx.groups[0].is_fused:
        return False
    table = 0 if ctx.recorded == 1 else ctx.groups[0].tables[0]
    return will_run(ctx.next_functions[table - ctx.recorded][0])


def lookup_bags(
    weights: list[Tensor], spec: LookupSpec, bags: Bags, dtype: torch.dtype, groups: list[Group]
) -> tuple[Tensor, Tensor]:
    """Look up every slot of a spec and pool each bag, all tables in one call.

    Args:
        weights: one ``(E, D)`` a table: float32, float16, bfloat16 (or float64, in plain PyTorch),
            contiguous. Rows are summed in float32 (float64).
        spec: the tables and slots.
        bags: the ids.
        dtype: of the output.
        groups: the tables that get a gradient, each in one group, fused ones first; empty without
            gradients.

    Returns:
        The pooled rows, ``(B, width)``, and how many ids were out of range, int64, ``(T,)``.

    Raises:
        IdOutOfRangeError: for an id that no row stands for, if the table's policy is ``ERROR``.
        ValueError: if a weight does not have the shape that the spec says, or is on another device
            than the ids.
        TypeError: if ids or offsets are not int32 or int64.

    Example:
        >>> from torchrec.ops.embedding import Bags, LookupSpec, SlotSpec, TableSpec, lookup_bags
        >>> spec = LookupSpec([TableSpec("t", 2, 3, 3)], [SlotSpec("f", 0, 0)], 1, 2)
        >>> weight = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
        >>> bags = Bags(torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]))
        >>> lookup_bags([weight], spec, bags, torch.float32, [])[0].tolist()
        [[101.0, 202.0], [0.0, 0.0], [10.0, 20.0]]
    """
    values, offsets, sample_weights = bags.values, bags.offsets, bags.sample_weights
    _check_input(weights, spec, values)
    if offsets.dtype not in _INTEGERS:
        raise TypeError(f"`offsets` should be int32 or int64. Received {offsets.dtype}.")
    asked = groups or (sample_weights is not None and sample_weights.requires_grad)
    if asked and _library.is_recorded():
        updated, inputs = _recorded(weights, groups)
        output, out_of_range = _BagLookup.apply(  # type: ignore[no-untyped-call]
            spec,
            groups,
            dtype,
            values,
            offsets,
            sample_weights,
            bags.divisors,
            updated,
            *inputs,
        )
        return output, out_of_range
    return _pool(weights, spec, bags, dtype)


def lookup_sequences(
    weights: list[Tensor], spec: LookupSpec, ids: Ids, dtype: torch.dtype, groups: list[Group]
) -> tuple[list[Tensor], Tensor]:
    """Look up the ids of every slot of a spec, one row an id, all tables in one call.

    Args:
        weights: one ``(E, D)`` a table, as in `lookup_bags`.
        spec: the tables and slots; pooling is not looked at.
        ids: the ids.
        dtype: of the output.
        groups: the tables that get a gradient, each in one group, fused ones first; empty without
            gradients.

    Returns:
        One ``(count, D)`` a slot, and how many ids were out of range, int64, ``(T,)``. An ignored
        id gives zeros.

    Raises:
        IdOutOfRangeError: for an id that no row stands for, if the table's policy is ``ERROR``;
            its ``sample`` is the position of the id in its slot.
        ValueError: if a weight does not have the shape that the spec says, or is on another device
            than the ids.
        TypeError: if ids are not int32 or int64.

    Example:
        >>> from torchrec.ops.embedding import Ids, LookupSpec, SlotSpec, TableSpec
        >>> spec = LookupSpec([TableSpec("t", 2, 3, 3)], [SlotSpec("f", 0, 0)], 1, 2)
        >>> weight = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
        >>> outputs, _ = lookup_sequences(
        ...     [weight], spec, Ids(torch.tensor([2, 0, 2]), [1], [2]), torch.float32, []
        ... )
        >>> outputs[0].tolist()
        [[1.0, 2.0], [100.0, 200.0]]
    """
    _check_input(weights, spec, ids.values)
    if groups and _library.is_recorded():
        updated, inputs = _recorded(weights, groups)
        outputs = _SequenceLookup.apply(  # type: ignore[no-untyped-call]
            spec, groups, dtype, ids.values, ids.starts, ids.counts, ids.samples, updated, *inputs
        )
    else:
        outputs = _gather(weights, spec, ids, dtype)
    return list(outputs[:-1]), outputs[-1]


def choose_rows(spec: LookupSpec, ids: Ids, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Decide which row each id takes, by the policy of its table, without looking anything up.

    A look-up decides this itself, on the fly. Where ids travel before they are looked up, to the
    rank that holds their row say, they are made rows first; the look-up then has the policy
    ``ROWS``.

    Args:
        spec: the tables and slots; neither weights nor pooling are looked at.
        ids: the ids.
        offsets: of the bags of all keys, as in `Bags`: errors then name the sample. Default: they
            name the position of the id in its slot.

    Returns:
        Rows of the whole tables, int64, those of one slot after another, ``NO_ROW`` (-1) where no
        row stands for the id; and how many ids were out of range, int64, ``(T,)``.

    Raises:
        IdOutOfRangeError: for an id that no row stands for, if the table's policy is ``ERROR``.
        TypeError: if ids are not int32 or int64.

    Example:
        >>> from torchrec.ops.embedding import Ids, LookupSpec, PolicyCode, SlotSpec, TableSpec
        >>> table = TableSpec("t", 2, 4, 3, PolicyCode.OVERFLOW)  # row 3 is for all other ids
        >>> spec = LookupSpec([table], [SlotSpec("f", 0, 0)], 1, 2)
        >>> choose_rows(spec, Ids(torch.tensor([2, 77, 0, -5]), [0], [4]))
        (tensor([2, 3, 0, 3]), tensor([2]))
    """
    if ids.values.dtype not in _INTEGERS:
        raise TypeError(f"`values` should be int32 or int64. Received {ids.values.dtype}.")
    rows, out_of_range = schema.choose_rows(
        spec.tensor,
        ids.values,
        offsets,
        ids.starts,
        ids.counts,
        spec.num_keys,
        len(spec.tables),
        spec.names,
    )
    return rows, out_of_range


def _updater_of(number: int) -> tuple[Group, Updater]:
    group = _groups.get(number)
    if group is None or not isinstance(group.gradient, Updater):
        raise RuntimeError(
            "A backward pass should be that of a look-up of the tables as they are now. Received one "
            "whose tables have been moved since, or have got other weights."
        )
    return group, group.gradient


# What compiled code hands over is copied: an updater may keep it until the pass is over, and the
# memory is the compiler's, who may use it for something else by then.


def _queue_bags(group: Group, gradient: BagGradient) -> None:
    bags = gradient.bags
    given = bags.values, bags.offsets, bags.sample_weights, bags.divisors
    _queue_bag_gradient(gradient.grad, group.mark, gradient.weights, *given, group.number)


def _receive_bag_gradient(
    grad: Tensor,
    _mark: Tensor,
    weights: list[Tensor],
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    number: int,
) -> None:
    """Hand the gradient of a compiled pooled look-up to its updater."""
    group, updater = _updater_of(number)
    optional = [None if t is None else t.clone() for t in (sample_weights, divisors)]
    bags = Bags(values.clone(), offsets.clone(), *optional)
    updater.receive(BagGradient(grad.clone(), weights, group.spec, bags))


_queue_bag_gradient = _library.define_effect(
    "queue_bag_gradient(Tensor grad, Tensor(a!) mark, Tensor[] weights, Tensor values, Tensor offsets,"
    " Tensor? sample_weights, Tensor? divisors, SymInt number) -> ()",
    _receive_bag_gradient,
)


def _queue_sequences(group: Group, gradient: SequenceGradient) -> None:
    ids = gradient.ids
    given = ids.values, ids.starts, ids.counts, ids.samples
    _queue_sequence_gradient(gradient.grads, group.mark, gradient.weights, *given, group.number)


def _receive_sequence_gradient(
    grads: list[Tensor | None],
    _mark: Tensor,
    weights: list[Tensor],
    values: Tensor,
    starts: list[int],
    counts: list[int],
    samples: int,
    number: int,
) -> None:
    """Hand the gradients of a compiled look-up of sequences to its updater."""
    group, updater = _updater_of(number)
    kept = [None if grad is None else grad.clone() for grad in grads]
    ids = Ids(values.clone(), starts, counts, samples)
    updater.receive(SequenceGradient(kept, weights, group.spec, ids))


_queue_sequence_gradient = _library.define_effect(
    "queue_sequence_gradient(Tensor?[] grads, Tensor(a!) mark, Tensor[] weights, Tensor values,"
    " SymInt[] starts, SymInt[] counts, SymInt samples, SymInt number) -> ()",
    _receive_sequence_gradient,
)
