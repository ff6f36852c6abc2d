"""Shards of rows: whatever a table is cut to, outputs sum to those of the whole, and gradients and updates are its."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from torchrec.errors import IdOutOfRangeError
from torchrec.ops import _library
from torchrec.ops.embedding import (
    Bags,
    Group,
    Ids,
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    choose_rows,
    lookup_bags,
    lookup_sequences,
    native,
    new_hyper,
    reference,
    write_hyper,
)
from torchrec.ops.embedding.updates import RULES
from torchrec.types import OptimizerType

needs_native = pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")
BACKENDS = [
    pytest.param(native, marks=needs_native, id="native"),
    pytest.param(reference, id="reference"),
]

SUM, MEAN = PoolingCode.SUM, PoolingCode.MEAN
KEYS, B = 3, 17
DIMS = [3, 20]
SLOTS = [(0, 2, SUM), (1, 0, MEAN), (0, 0, MEAN), (1, 2, SUM), (1, 1, MEAN)]
WIDTH = sum(DIMS[table] for table, _, _ in SLOTS)
# Policy, num_embeddings and rows of both tables.
POLICIES = {
    "hash": (PolicyCode.HASH, [(11, 11), (40, 40)]),
    "hash_size": (PolicyCode.OVERFLOW, [(9, 14), (40, 47)]),
    "clamp": (PolicyCode.CLAMP, [(11, 11), (40, 40)]),
    "ignore": (PolicyCode.IGNORE, [(11, 11), (40, 40)]),
}
# Where both tables are cut: uneven, one shard without rows, one row alone.
CUTS = [[0, 3, 3, 10, None], [0, 1, 25, 39, None]]


@dataclass
class Whole:
    """Tables, unsharded, and one batch of ids."""

    spec: LookupSpec
    weights: list[Tensor]
    values: Tensor
    offsets: Tensor
    sample_weights: Tensor
    grad: Tensor

    def bags(self, spec: LookupSpec) -> tuple:
        return spec.tensor, self.values, self.offsets, self.sample_weights, None, KEYS

    def ranges(self) -> tuple[list[int], list[int]]:
        ends = self.offsets[::B].tolist()
        keys = [slot.key for slot in self.spec.slots]
        return [ends[k] for k in keys], [ends[k + 1] - ends[k] for k in keys]


def make(policy: str, optimizer: OptimizerType | None = None, states: int = 0) -> Whole:
    generator = torch.Generator().manual_seed(4)
    code, sizes = POLICIES[policy]
    tables = [
        TableSpec(f"t{t}", dim, rows, end, code, optimizer, states)
        for t, (dim, (end, rows)) in enumerate(zip(DIMS, sizes, strict=True))
    ]
    slots, column = [], 0
    for table, key, pooling in SLOTS:
        slots.append(SlotSpec(f"f{key}", table, key, pooling, column))
        column += DIMS[table]
    lengths = torch.randint(0, 6, (KEYS * B,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    # Small integers: sums do not depend on their order.
    integers = lambda *shape: torch.randint(-8, 9, shape, generator=generator).float()  # noqa: E731
    return Whole(
        LookupSpec(tables, slots, KEYS, WIDTH),
        [integers(t.rows, t.dim) for t in tables],
        torch.randint(-9, 60, (count,), generator=generator),
        offsets,
        integers(count),
        integers(B, WIDTH),
    )


def shards(whole: Whole) -> list[tuple[LookupSpec, list[Tensor]]]:
    """Cut every table: the spec and the weights of each shard."""
    found = []
    for begin, end in zip(range(4), range(1, 5), strict=True):
        tables, weights = [], []
        for table, cuts, weight in zip(whole.spec.tables, CUTS, whole.weights, strict=True):
            first, last = cuts[begin], table.rows if cuts[end] is None else cuts[end]
            tables.append(replace(table, first_row=first, shard_rows=last - first))
            weights.append(weight[first:last].clone())
        found.append((LookupSpec(tables, whole.spec.slots, KEYS, WIDTH), weights))
    return found


def joined(parts: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(tables) for tables in zip(*parts, strict=True)]


def close(ours: list[Tensor], theirs: list[Tensor], exact: bool = True) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            mine, other, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-5
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_pooled_shards_sum_to_the_whole(backend, policy) -> None:
    whole = make(policy)
    run = lambda spec, weights: backend.embedding_bag(  # noqa: E731
        weights, *whole.bags(spec), WIDTH, torch.float32, spec.names
    )
    expected, strays = run(whole.spec, whole.weights)
    parts = [run(spec, weights) for spec, weights in shards(whole)]
    close([sum(output for output, _ in parts)], [expected], exact=False)
    assert all(torch.equal(counts, strays) for _, counts in parts)
    assert int(strays.sum()) > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_pooled_shards_are_those_of_the_whole(backend, policy) -> None:
    whole = make(policy)
    run = lambda op, spec, weights: getattr(backend, op)(  # noqa: E731
        whole.grad, weights, *whole.bags(spec)
    )
    dense = run("embedding_bag_dense_grad", whole.spec, whole.weights)
    parts = [run("embedding_bag_dense_grad", *shard) for shard in shards(whole)]
    close(joined(parts), dense)
    pairs = run("embedding_bag_sparse_grad", whole.spec, whole.weights)
    rows = [[] for _ in DIMS]
    sums = [[] for _ in DIMS]
    for spec, weights in shards(whole):
        found = run("embedding_bag_sparse_grad", spec, weights)
        for t, table in enumerate(spec.tables):
            rows[t].append(found[2 * t] + table.first_row)
            sums[t].append(found[2 * t + 1])
    close([torch.cat(r) for r in rows], pairs[::2])
    close([torch.cat(s) for s in sums], pairs[1::2])
    of_weights = run("embedding_bag_weights_grad", whole.spec, whole.weights)
    added = sum(run("embedding_bag_weights_grad", *shard) for shard in shards(whole))
    torch.testing.assert_close(added, of_weights, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_sequences_of_shards_sum_to_the_whole(backend, policy) -> None:
    whole = make(policy)
    starts, counts = whole.ranges()
    rest = whole.values, starts, counts
    grads = [
        torch.full((n, d), 1.0 + s)
        for s, (n, d) in enumerate(zip(counts, whole.spec.dims, strict=True))
    ]
    grads[1] = None
    look = lambda spec, weights: backend.embedding_sequence(  # noqa: E731
        weights, spec.tensor, *rest, spec.dims, torch.float32, spec.names
    )
    expected = look(whole.spec, whole.weights)
    parts = [look(*shard) for shard in shards(whole)]
    close([sum(outputs) for outputs in zip(*(p[:-1] for p in parts), strict=True)], expected[:-1])
    back = lambda spec, weights: backend.embedding_sequence_dense_grad(  # noqa: E731
        grads, weights, spec.tensor, *rest
    )
    close(joined([back(*shard) for shard in shards(whole)]), back(whole.spec, whole.weights))


RULES_TRIED = [OptimizerType.SGD, OptimizerType.ROWWISE_ADAGRAD, OptimizerType.ADAM]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sequences", [False, True], ids=["pooled", "sequences"])
@pytest.mark.parametrize("kind", RULES_TRIED, ids=lambda kind: kind.value)
def test_updates_of_shards_are_those_of_the_whole(backend, kind, sequences) -> None:
    rule = RULES[kind]
    settings = rule.hyper({"lr": 0.5})
    names = rule.state_names(settings)
    whole = make("hash_size", kind, len(names))
    starts, counts = whole.ranges()
    grads = [
        torch.full((n, d), 1.0 + s)
        for s, (n, d) in enumerate(zip(counts, whole.spec.dims, strict=True))
    ]

    def run(spec: LookupSpec, weights: list[Tensor]) -> list[Tensor]:
        states = [rule.new_state(name, w, settings) for w in weights for name in names]
        hyper = new_hyper(len(weights))
        for row in hyper:
            write_hyper(row, settings)
        fused = (weights, states, hyper)
        for _ in range(2):
            if sequences:
                rest = spec.tensor, whole.values, starts, counts
                backend.embedding_sequence_update_(grads, *fused, *rest)
            else:
                backend.embedding_bag_update_(whole.grad, *fused, *whole.bags(spec))
        return [*weights, *states]

    parts = [run(*shard) for shard in shards(whole)]
    before = [w.clone() for w in whole.weights]
    after = run(whole.spec, whole.weights)
    close(joined(parts), after)
    assert not torch.equal(after[0], before[0])


# ---- ids that were made rows, each sent to the shard that holds it


def chosen(whole: Whole) -> tuple[Tensor, Tensor, list[SlotSpec]]:
    """Make ids rows: the rows, slot after slot, their offsets, and the slots that read them."""
    starts, counts = whole.ranges()
    rows, _ = choose_rows(whole.spec, Ids(whole.values, starts, counts), whole.offsets)
    lengths = whole.offsets.diff().view(KEYS, B)
    mine = torch.cat([lengths[slot.key] for slot in whole.spec.slots])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mine.cumsum(0)])
    return rows, offsets, [slot._replace(key=s) for s, slot in enumerate(whole.spec.slots)]


def as_rows(spec: LookupSpec, slots: list[SlotSpec]) -> LookupSpec:
    tables = [replace(table, policy=PolicyCode.ROWS) for table in spec.tables]
    return LookupSpec(tables, slots, len(slots), WIDTH)


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_chosen_before_are_looked_up_as_ids_are(policy: str) -> None:
    whole = make(policy)
    rows, offsets, slots = chosen(whole)
    expected, _ = lookup_bags(
        whole.weights, whole.spec, Bags(whole.values, whole.offsets), torch.float32, []
    )
    spec = as_rows(whole.spec, slots)
    got, strays = lookup_bags(whole.weights, spec, Bags(rows, offsets), torch.float32, [])
    close([got], [expected])
    assert strays.tolist() == [0, 0]  # counted when they were chosen


@pytest.mark.parametrize("policy", POLICIES)
def test_parts_of_bags_with_divisors_sum_to_the_whole(policy: str) -> None:
    """What a rank sees of a batch: the rows that it holds, and the sizes of the bags they come from."""
    whole = make(policy)
    weights = [w.clone().requires_grad_() for w in whole.weights]
    groups = [Group(whole.spec, [0, 1], "dense")]
    bags = Bags(whole.values, whole.offsets)
    expected, _ = lookup_bags(weights, whole.spec, bags, torch.float32, groups)
    expected.backward(whole.grad)
    rows, offsets, slots = chosen(whole)
    bag = torch.repeat_interleave(offsets.diff())
    table = torch.tensor([slot.table for slot in slots])[bag // B]
    divisors = torch.zeros(len(offsets) - 1, dtype=torch.int64).index_add(
        0, bag, (rows >= 0).long()
    )
    total, grads = torch.zeros_like(expected), []
    for shard, mine in shards(whole):
        spec = as_rows(shard, slots)
        first = torch.tensor([t.first_row for t in spec.tables])[table]
        last = first + torch.tensor([t.num_shard_rows for t in spec.tables])[table]
        here = (rows >= first) & (rows < last)
        lengths = torch.zeros_like(divisors).index_add(0, bag[here], torch.ones_like(rows[here]))
        parts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        mine = [w.requires_grad_() for w in mine]
        part = Bags(rows[here], parts, divisors=divisors)
        output, _ = lookup_bags(mine, spec, part, torch.float32, [Group(spec, [0, 1], "dense")])
        output.backward(whole.grad)
        total += output.detach()
        grads.append([w.grad for w in mine])
    close([total], [expected.detach()], exact=False)
    close(joined(grads), [w.grad for w in weights])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_looked_up_in_sequences(backend) -> None:
    table = TableSpec("t", 2, 9, 5, PolicyCode.ROWS, first_row=4, shard_rows=3)
    spec = LookupSpec([table], [SlotSpec("f", 0, 0)], 1, 2)
    weight = torch.tensor([[4.0, 40.0], [5.0, 50.0], [6.0, 60.0]])
    rows = torch.tensor([5, -1, 3, 6, 7, 4])
    output, strays = backend.embedding_sequence(
        [weight], spec.tensor, rows, [0], [6], [2], torch.float32, spec.names
    )
    assert output[:, 0].tolist() == [5.0, 0.0, 0.0, 6.0, 0.0, 4.0]
    assert strays.tolist() == [0]
    dense = backend.embedding_sequence_dense_grad(
        [torch.ones(6, 2)], [weight], spec.tensor, rows, [0], [6]
    )
    assert dense[0].tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-2, 9])
def test_a_row_that_is_none_is_refused(backend, bad: int) -> None:
    table = TableSpec("t", 2, 9, 5, PolicyCode.ROWS, first_row=4, shard_rows=3)
    spec = LookupSpec([table], [SlotSpec("f", 0, 0)], 1, 2)
    with pytest.raises(IdOutOfRangeError, match=rf"\[0, 9\).*Received {bad} in sample 1"):
        backend.embedding_bag(
            [torch.zeros(3, 2)], spec.tensor, torch.tensor([8, bad]), torch.tensor([0, 1, 2]),
            None, None, 1, 2, torch.float32, spec.names,
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", [SUM, MEAN], ids=["sum", "mean"])
def test_divisors_are_of_means_only_and_zero_counts_as_one(backend, pooling) -> None:
    spec = LookupSpec([TableSpec("t", 1, 3, 3)], [SlotSpec("f", 0, 0, pooling)], 1, 1)
    weight = torch.tensor([[1.0], [2.0], [4.0]])
    bags = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2, 3]), None, torch.tensor([4, 7, 0])
    output, _ = backend.embedding_bag([weight], spec.tensor, *bags, 1, 1, torch.float32, spec.names)
    expected = [0.75, 0.0, 4.0] if pooling == MEAN else [3.0, 0.0, 4.0]
    assert output[:, 0].tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("divisors", "error", "message"),
    [
        (torch.tensor([1, 2]), ValueError, r"`divisors` should be one a bag \(3\). Received 2"),
        (torch.tensor([1.0, 2.0, 3.0]), TypeError, "`divisors` should be int32 or int64"),
    ],
    ids=["too_few", "floating"],
)
def test_divisors_that_do_not_fit_are_refused(backend, divisors, error, message) -> None:
    spec = LookupSpec([TableSpec("t", 1, 3, 3)], [SlotSpec("f", 0, 0, MEAN)], 1, 1)
    bags = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2, 3]), None, divisors
    with pytest.raises(error, match=message):
        backend.embedding_bag(
            [torch.ones(3, 1)], spec.tensor, *bags, 1, 1, torch.float32, spec.names
        )


def test_a_sequence_of_a_shard_trains() -> None:
    table = TableSpec("t", 1, 4, 4, first_row=1, shard_rows=2)
    spec = LookupSpec([table], [SlotSpec("f", 0, 0)], 1, 1)
    weight = torch.tensor([[1.0], [2.0]], requires_grad=True)
    ids = Ids(torch.tensor([0, 1, 1, 3]), [0], [4])
    (output,), _ = lookup_sequences(
        [weight], spec, ids, torch.float32, [Group(spec, [0], "sparse")]
    )
    output.sum().backward()
    assert output[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert weight.grad.to_dense()[:, 0].tolist() == [2.0, 0.0]
