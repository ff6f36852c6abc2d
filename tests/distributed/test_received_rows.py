"""Rows that came for ids, pooled where the sample is, against a loop over ids."""

from __future__ import annotations

import pytest
import torch

from torchrec.distributed.received_rows import pool_received
from torchrec.distributed.route import Slot


def pooled_by_a_loop(slots, rows, places, lengths, counts, weights):
    """Sum bag by bag."""
    columns, start = [], 0
    for s, (slot, count) in enumerate(zip(slots, counts, strict=True)):
        bags, at = [], start
        for length in lengths[s].tolist():
            ids = [i for i in range(at, at + length) if places[i] >= 0]
            parts = [rows[s][places[i]] * (1 if weights is None else weights[i]) for i in ids]
            total = sum(parts, torch.zeros(slot.dim))
            bags.append(total / max(len(ids), 1) if slot.mean else total)
            at += length
        columns.append(torch.stack(bags) if bags else rows[s][:0])
        start += count
    return torch.cat(columns, 1)


def example(dims, means, batch, dropped, weighted):
    generator = torch.Generator().manual_seed(3)
    slots = [Slot(f"f{s}", s, d, m) for s, (d, m) in enumerate(zip(dims, means, strict=True))]
    lengths = torch.randint(4, (len(dims), batch), generator=generator)
    counts = lengths.sum(1).tolist()
    rows, places = [], []
    for dim, count in zip(dims, counts, strict=True):
        order = torch.randperm(count, generator=generator).int()
        if dropped and count:
            order = torch.where(order == count - 1, -1, order)
        places.append(order)
        rows.append(torch.randn(count - (dropped and count > 0), dim, generator=generator))
    weights = torch.rand(sum(counts), generator=generator) if weighted else None
    return slots, rows, torch.cat(places).int(), lengths, counts, weights


@pytest.mark.parametrize(
    ("dims", "means", "batch", "dropped", "weighted"),
    [
        ((4, 4, 4), (False, False, False), 5, False, False),
        ((3,), (False,), 7, False, False),
        ((4, 4), (False, False), 0, False, False),
        ((4, 4), (False, False), 6, True, False),
        ((4, 3), (False, False), 6, False, False),
        ((4, 4), (False, True), 6, False, False),
        ((4, 4), (False, False), 6, False, True),
    ],
)
def test_it_sums_rows_and_gives_each_the_gradient_of_its_bag(dims, means, batch, dropped, weighted):
    slots, rows, places, lengths, counts, weights = example(dims, means, batch, dropped, weighted)
    found = [each.clone().requires_grad_() for each in rows]
    expected = [each.clone().requires_grad_() for each in rows]
    output = pool_received(slots, found, places, lengths, counts, weights, torch.float32)
    wanted = pooled_by_a_loop(slots, expected, places, lengths, counts, weights)
    assert output.shape == (batch, sum(dims))
    torch.testing.assert_close(output, wanted)
    # As autograd gives them, too: with gaps.
    grad = (torch.arange(2 * output.numel()).float() + 1).view(-1, 2)[:, 0].view(output.shape)
    assert batch == 0 or not grad.is_contiguous()
    for each, other in zip(
        torch.autograd.grad(output, found, grad),
        torch.autograd.grad(wanted, expected, grad, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(each, other)
