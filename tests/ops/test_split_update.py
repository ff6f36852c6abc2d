"""Row-wise Adagrad in two halves, of which each knows some columns, against the update of whole tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.ops.test_embedding import MEAN, SUM, Case, make, native, needs_native, trained, update
from torchrec.ops.embedding import (
    BagGradient,
    Bags,
    Ids,
    LookupSpec,
    SequenceGradient,
    SplitUpdate,
)

pytestmark = needs_native

NAMES = [
    "rowwise_adagrad",
    "rowwise_adagrad_l2",  # weights take part in gradients
    "rowwise_adagrad_decoupled",
    "rowwise_adagrad-batch_l2",
]
SLOTS = [(0, 0, SUM), (1, 1, MEAN), (0, 1, SUM), (2, 0, SUM)]
# Bags that share rows, ids without any, weights of ids, one id a bag at most, nothing at all.
CASES = {
    "long": {"bags": 40, "longest": 9, "rows": 200},
    "many times": {"bags": 60, "longest": 9, "rows": 7},
    "weighted": {"bags": 40, "longest": 9, "rows": 200, "weighted": True},
    "short": {"bags": 50, "longest": 1, "rows": 60},
    "empty": {"bags": 0},
}


def bags_of(m):
    return Bags(m.values, m.offsets, m.sample_weights)


def split_update(m, table, shares):
    gradient = BagGradient(m.grad, table.weights, table.spec, bags_of(m))
    return SplitUpdate(gradient, table.states, table.hyper, shares)


@pytest.mark.parametrize("tables", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_both_halves_of_whole_tables_are_the_update_to_the_bit(name, case, tables):
    case = Case(dims=[17, 1, 64], slots=SLOTS, keys=2, tables=tables, **CASES[case])
    whole = trained(case, make(case), name)
    halves = whole.copy()
    for step in range(3):
        m = make(case, seed=step)
        update(native, whole, m)
        split = split_update(m, halves, [1.0] * 3)
        split.finish(split.numbers())
        assert halves.hyper.tolist() == whole.hyper.tolist()
        for mine, other in zip(
            halves.weights + halves.states, whole.weights + whole.states, strict=True
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_the_columns_train_as_the_whole_table_and_have_one_state(name, case):
    case = Case(dims=[48], slots=[(0, 0, SUM), (0, 1, SUM)], keys=2, **CASES[case])
    m = make(case)
    whole = trained(case, m, name)
    pieces, at = [], 0
    for dim in (32, 16):
        columns = slice(at, at + dim)
        part = whole.copy()
        slots = [slot._replace(column=k * dim) for k, slot in enumerate(part.spec.slots)]
        part.spec = LookupSpec([replace(part.spec.tables[0], dim=dim)], slots, 2, 2 * dim)
        part.weights = [whole.weights[0][:, columns].contiguous()]
        grad = torch.cat([m.grad[:, columns], m.grad[:, 48:][:, columns]], 1)
        gradient = BagGradient(grad, part.weights, part.spec, bags_of(m))
        split = SplitUpdate(gradient, part.states, part.hyper, [dim / 48])
        pieces.append((columns, part, split))
        at += dim
    update(native, whole, m)
    assert pieces[0][2].counts == pieces[1][2].counts
    total = pieces[0][2].numbers() + pieces[1][2].numbers()
    for columns, part, split in pieces:
        split.finish(total)
        torch.testing.assert_close(part.weights[0], whole.weights[0][:, columns])
        torch.testing.assert_close(part.states[0], whole.states[0])
        assert torch.equal(part.states[0], pieces[0][1].states[0])


def test_sequences_with_a_slot_that_nobody_uses():
    case = Case(dims=[17, 5], slots=[(0, 0, SUM), (1, 1, SUM)], keys=2, bags=40, longest=6)
    m = make(case)
    whole = trained(case, m, "rowwise_adagrad")
    halves = whole.copy()
    starts = [0, len(m.values) // 2]
    ids = Ids(m.values, starts, [starts[1], len(m.values) - starts[1]])
    grads = [torch.randn(ids.counts[0], 17), None]
    gradient = SequenceGradient(grads, halves.weights, halves.spec, ids)
    split = SplitUpdate(gradient, halves.states, halves.hyper, [1.0, 1.0])
    assert split.counts[1] == 0
    split.finish(split.numbers())
    native.embedding_sequence_update_(
        grads, whole.weights, whole.states, whole.hyper, whole.spec.tensor, *ids[:3]
    )
    for mine, other in zip(
        halves.weights + halves.states, whole.weights + whole.states, strict=True
    ):
        assert torch.equal(mine, other)


def test_numbers_are_fewer_than_rows_and_the_same_for_any_number_of_threads():
    case = Case(dims=[64], bags=300, longest=40, rows=60_000)
    m = make(case)
    table = trained(case, m, "rowwise_adagrad")
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            split = split_update(m, table, [0.5])
            found.append(split.numbers())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert 300 < len(found[0]) < len(m.values.unique()) / 2
    # A bag whose rows nobody else chose has the mean square of its gradient, times the share.
    torch.testing.assert_close(found[0][:300], m.grad.square().mean(1) / 2)


def test_what_does_not_fit_is_refused_before_anything_is_written():
    case = Case(dims=[4], bags=9)
    m = make(case)
    table = trained(case, m, "rowwise_adagrad")
    before = table.copy()
    split = split_update(m, table, [1.0])
    numbers = split.numbers()
    with pytest.raises(ValueError, match=r"`numbers` should be as many as were measured \(\d+\)"):
        split.finish(numbers[1:])
    for name in ("adagrad", "rowwise_adagrad_l2-all_rows"):
        other = trained(case, m, name)
        with pytest.raises(ValueError, match="Table number 0 should be updated by row-wise Adag"):
            split_update(m, other, [1.0])
    with pytest.raises(ValueError, match="`shares` should be one a table"):
        split_update(m, table, [])
    assert torch.equal(table.weights[0], before.weights[0])
    assert table.hyper.tolist() == before.hyper.tolist()
    split.finish(numbers)
    assert not torch.equal(table.weights[0], before.weights[0])
    with pytest.raises(ValueError, match="`numbers` should be as many as were measured"):
        split.finish(numbers)
