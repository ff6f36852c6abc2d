"""The embedding kernels against plain PyTorch: outputs and all gradients, over odd shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from torchrec.errors import IdOutOfRangeError
from torchrec.ops import _library
from torchrec.ops.embedding import (
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    hash_ids,
    native,
    new_hyper,
    reference,
    write_hyper,
)
from torchrec.ops.embedding.hyper import SAMPLES
from torchrec.ops.embedding.layout import HYPER
from torchrec.ops.embedding.updates import RULES, Hyper
from torchrec.types import OptimizerType

needs_native = pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")

SUM, MEAN, NONE = PoolingCode.SUM, PoolingCode.MEAN, PoolingCode.NONE


@dataclass
class Case:
    """A look-up: tables, slots as (table, key, pooling), and how its ids are drawn."""

    dims: list[int] = field(default_factory=lambda: [4])
    slots: list[tuple[int, int, PoolingCode]] = field(default_factory=lambda: [(0, 0, SUM)])
    keys: int = 1
    bags: int = 5
    longest: int = 4
    rows: int = 11
    spare: int = 0  # rows behind the others
    policy: PolicyCode = PolicyCode.ERROR
    ids: torch.dtype = torch.int64
    offsets: torch.dtype = torch.int64
    tables: torch.dtype = torch.float32
    output: torch.dtype = torch.float32
    weighted: bool = False
    stray: bool = False  # whether ids leave the table
    optimizer: OptimizerType | None = None


@dataclass
class Made:
    """The tensors of a case, in the order in which the operators take them."""

    spec: LookupSpec
    weights: list[Tensor]
    values: Tensor
    offsets: Tensor
    sample_weights: Tensor | None
    grad: Tensor

    def bags(self) -> tuple:
        return (
            self.spec.tensor,
            self.values,
            self.offsets,
            self.sample_weights,
            None,
            self.spec.num_keys,
        )


def draw_ids(case: Case, count: int, generator: torch.Generator) -> Tensor:
    low, high = (-7, case.rows + 9) if case.stray else (0, case.rows)
    return torch.randint(low, high, (count,), generator=generator).to(case.ids)


def make(case: Case, seed: int = 0) -> Made:
    generator = torch.Generator().manual_seed(seed)
    rule = RULES[case.optimizer] if case.optimizer else None
    states = len(rule.state_names(rule.defaults)) if rule else 0
    tables = [
        TableSpec(
            f"t{t}", dim, case.rows + case.spare, case.rows, case.policy, case.optimizer, states
        )
        for t, dim in enumerate(case.dims)
    ]
    slots, column = [], 0
    for table, key, pooling in case.slots:
        slots.append(SlotSpec(f"f{key}", table, key, pooling, column))
        column += case.dims[table]
    spec = LookupSpec(tables, slots, case.keys, column)
    one = any(s.pooling == NONE for s in slots)
    bags = case.keys * case.bags
    lengths = torch.randint(0, case.longest + 1, (bags,), generator=generator)
    if one:
        lengths = torch.ones_like(lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    shape = (case.rows + case.spare,)
    weights = [torch.randn((*shape, d), generator=generator).to(case.tables) for d in case.dims]
    sample_weights = torch.randn(count, generator=generator) if case.weighted else None
    grad = torch.randn((case.bags, column), generator=generator).to(case.output)
    values = draw_ids(case, count, generator)
    return Made(spec, weights, values, offsets.to(case.offsets), sample_weights, grad)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Bit by bit, shapes and dtypes included."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


MANY = {
    "no_bags": Case(bags=0),
    "one_bag": Case(bags=1),
    "odd_batch": Case(bags=37),
    "all_bags_empty": Case(longest=0),
    "one_row": Case(rows=1, longest=9),
    "many_duplicates": Case(rows=2, bags=64, longest=50),
    "long_bags": Case(bags=3, longest=400, rows=50),
    **{f"dim_{d}": Case(dims=[d], bags=9) for d in (0, 1, 3, 8, 15, 16, 17, 64, 127, 128, 129, 130, 257)},
    "two_tables": Case(dims=[3, 16], slots=[(0, 0, SUM), (1, 1, SUM)], keys=2),
    "features_share_a_table": Case(slots=[(0, 0, SUM), (0, 1, SUM), (0, 2, SUM)], keys=3),
    "tables_share_a_feature": Case(dims=[5, 2], slots=[(0, 0, SUM), (1, 0, SUM)]),
    "unused_keys_and_other_order": Case(
        dims=[5, 7, 4], slots=[(0, 4, SUM), (1, 1, SUM), (2, 0, SUM), (0, 2, SUM)], keys=6
    ),
    "tables_of_all_widths": Case(
        dims=[5, 200, 64, 16, 130], slots=[(t, 4 - t, SUM) for t in (0, 1, 2, 3, 4, 1)], keys=5, bags=70, longest=2
    ),
    "enough_for_threads": Case(
        dims=[64, 16], slots=[(0, 0, SUM), (1, 1, SUM), (0, 2, SUM)], keys=3, bags=500, rows=900
    ),
}  # fmt: skip


def pooled(case: Case, pooling: PoolingCode) -> Case:
    return replace(case, slots=[(table, key, pooling) for table, key, _ in case.slots])


def lookup(backend, case: Case, m: Made) -> list[Tensor]:
    width = m.spec.width
    return list(backend.embedding_bag(m.weights, *m.bags(), width, case.output, m.spec.names))


@needs_native
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("pooling", [SUM, MEAN, NONE], ids=lambda p: p.name.lower())
@pytest.mark.parametrize("name", MANY)
def test_pooled_equals_reference(name: str, pooling: PoolingCode, weighted: bool) -> None:
    case = replace(pooled(MANY[name], pooling), weighted=weighted)
    m = make(case)
    equal(lookup(native, case, m), lookup(reference, case, m))
    for op in ("embedding_bag_dense_grad", "embedding_bag_sparse_grad"):
        ours = getattr(native, op)(m.grad, m.weights, *m.bags())
        equal(ours, getattr(reference, op)(m.grad, m.weights, *m.bags()))
    if weighted:
        ours = native.embedding_bag_weights_grad(m.grad, m.weights, *m.bags())
        theirs = reference.embedding_bag_weights_grad(m.grad, m.weights, *m.bags())
        # A dot product: the kernel adds up columns in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


DTYPES = [
    pytest.param(t, o, id=f"{str(t)[6:]}_to_{str(o)[6:]}")
    for t in (torch.float32, torch.float16, torch.bfloat16)
    for o in (torch.float32, torch.float16, torch.bfloat16)
]


@needs_native
@pytest.mark.parametrize("pooling", [SUM, MEAN], ids=lambda p: p.name.lower())
@pytest.mark.parametrize(("tables", "output"), DTYPES)
def test_dtypes_equal_reference(tables, output, pooling) -> None:
    slots = [(0, 0, pooling), (1, 1, pooling), (1, 0, pooling)]
    case = Case(dims=[33, 16], slots=slots, keys=2, bags=23, tables=tables, output=output)
    m = make(case)
    equal(lookup(native, case, m), lookup(reference, case, m))
    for op in ("embedding_bag_dense_grad", "embedding_bag_sparse_grad"):
        ours = getattr(native, op)(m.grad, m.weights, *m.bags())
        equal(ours, getattr(reference, op)(m.grad, m.weights, *m.bags()))


@needs_native
@pytest.mark.parametrize("offsets", [torch.int32, torch.int64], ids=lambda d: f"offsets_{d}"[-5:])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=lambda d: f"ids_{d}"[-5:])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_widths_of_integers_make_no_difference(ids, offsets, weighted) -> None:
    wide = Case(dims=[6, 20], slots=[(0, 1, SUM), (1, 0, MEAN)], keys=2, bags=19, weighted=weighted)
    narrow = replace(wide, ids=ids, offsets=offsets)
    expected, m = make(wide), make(narrow)
    assert (m.values.dtype, m.offsets.dtype) == (ids, offsets)
    equal(lookup(native, narrow, m), lookup(native, wide, expected))
    equal(lookup(reference, narrow, m), lookup(native, wide, expected))
    equal(
        native.embedding_bag_dense_grad(m.grad, m.weights, *m.bags()),
        native.embedding_bag_dense_grad(expected.grad, expected.weights, *expected.bags()),
    )


POLICIES = {
    "hash": (PolicyCode.HASH, 0),
    "hash_size": (PolicyCode.OVERFLOW, 5),
    "unknown": (PolicyCode.OVERFLOW, 1),
    "clamp": (PolicyCode.CLAMP, 0),
    "ignore": (PolicyCode.IGNORE, 0),
}
EXTREMES = [torch.iinfo(torch.int64).min, -1, torch.iinfo(torch.int64).max, 1 << 31, 11, -(1 << 31)]


@needs_native
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("pooling", [SUM, MEAN], ids=lambda p: p.name.lower())
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_equal_reference(policy, pooling, weighted) -> None:
    code, spare = POLICIES[policy]
    slots = [(0, 0, pooling), (1, 1, pooling), (0, 1, pooling)]
    case = Case(
        dims=[7, 130], slots=slots, keys=2, bags=29, policy=code, spare=spare, stray=True,
        weighted=weighted,
    )  # fmt: skip
    m = make(case)
    m.values[: len(EXTREMES)] = torch.tensor(EXTREMES)
    ours, theirs = lookup(native, case, m), lookup(reference, case, m)
    equal(ours, theirs)
    keys = m.values[: m.offsets[29]], m.values[m.offsets[29] :]
    strays = [int(((k < 0) | (k >= case.rows)).sum()) for k in keys]
    assert ours[1].tolist() == [sum(strays), strays[1]]
    for op in ("embedding_bag_dense_grad", "embedding_bag_sparse_grad"):
        got = getattr(native, op)(m.grad, m.weights, *m.bags())
        equal(got, getattr(reference, op)(m.grad, m.weights, *m.bags()))
    if weighted:
        torch.testing.assert_close(
            native.embedding_bag_weights_grad(m.grad, m.weights, *m.bags()),
            reference.embedding_bag_weights_grad(m.grad, m.weights, *m.bags()),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("backend", [pytest.param(native, marks=needs_native), reference])
@pytest.mark.parametrize("value", EXTREMES)
def test_an_id_without_a_row_is_refused(backend, value) -> None:
    case = Case(dims=[4, 4], slots=[(0, 0, SUM), (1, 1, SUM)], keys=2, bags=3)
    m = make(case)
    m.offsets = torch.tensor([0, 2, 2, 4, 4, 6, 8])
    m.values = torch.arange(8)
    m.values[5] = value  # of key 1, in its second bag
    sample = 1
    with pytest.raises(IdOutOfRangeError, match=rf"'f1'.*'t1'.*{value} in sample {sample}"):
        lookup(backend, case, m)


@pytest.mark.parametrize("backend", [pytest.param(native, marks=needs_native), reference])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_bad_id_is_the_one_named(backend, threads) -> None:
    case = Case(dims=[32], bags=3000, rows=100)
    m = make(case)
    m.values[[500, 4000, 5000]] = 100
    sample = int(torch.searchsorted(m.offsets, 500, right=True)) - 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(IdOutOfRangeError) as caught:
            lookup(backend, case, m)
    finally:
        torch.set_num_threads(before)
    error = caught.value
    assert (error.table, error.feature, error.sample, error.id, error.rows) == (
        "t0", "f0", sample, 100, 100,
    )  # fmt: skip


@pytest.mark.parametrize("backend", [pytest.param(native, marks=needs_native), reference])
@pytest.mark.parametrize("length", [0, 2])
def test_pooling_none_takes_bags_of_one_id_only(backend, length) -> None:
    case = Case(slots=[(0, 0, NONE)], bags=3)
    m = make(case)
    m.offsets = torch.tensor([0, 1, 1 + length, 2 + length])
    m.values = torch.zeros(2 + length, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"'f0' of table 't0'.*Received {length} in sample 1"):
        lookup(backend, case, m)


def test_hash_is_frozen() -> None:
    ids = torch.tensor([0, 1, 2, -1, 1 << 40, *EXTREMES])
    # Tables are saved with rows chosen by this hash: another one would mix them up.
    frozen = [0, 680305, 209774, 236668, 93355, 171741, 236668, 925228, 69571, 355574, 848619]
    assert hash_ids(ids, 1_000_003).tolist() == frozen
    narrow = torch.tensor([-(1 << 31), -1, 7], dtype=torch.int32)
    assert hash_ids(narrow, 97).tolist() == hash_ids(narrow.long(), 97).tolist()


# ---- sequences


def sequences(case: Case, m: Made) -> tuple[list[int], list[int]]:
    bounds = m.offsets[:: case.bags].tolist() if case.bags else [0] * (case.keys + 1)
    starts = [bounds[key] for _, key, _ in case.slots]
    return starts, [bounds[key + 1] - bounds[key] for _, key, _ in case.slots]


def lookup_rows(backend, case: Case, m: Made) -> list[Tensor]:
    starts, counts = sequences(case, m)
    spec = m.spec
    return backend.embedding_sequence(
        m.weights, spec.tensor, m.values, starts, counts, spec.dims, case.output, spec.names
    )


def sequence_grads(case: Case, m: Made, some: bool) -> list[Tensor | None]:
    counts = sequences(case, m)[1]
    grads: list[Tensor | None] = [
        torch.randn(n, d).to(case.output) for n, d in zip(counts, m.spec.dims, strict=True)
    ]
    return [None if some and s % 2 else g for s, g in enumerate(grads)]


@needs_native
@pytest.mark.parametrize("some", [False, True], ids=["all_grads", "some_grads"])
@pytest.mark.parametrize("name", MANY)
def test_sequences_equal_reference(name: str, some: bool) -> None:
    case = MANY[name]
    m = make(case)
    equal(lookup_rows(native, case, m), lookup_rows(reference, case, m))
    grads = sequence_grads(case, m, some)
    for op in ("embedding_sequence_dense_grad", "embedding_sequence_sparse_grad"):
        arguments = (grads, m.weights, m.spec.tensor, m.values, *sequences(case, m))
        equal(getattr(native, op)(*arguments), getattr(reference, op)(*arguments))


@needs_native
@pytest.mark.parametrize(("tables", "output"), DTYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_sequence_policies_and_dtypes_equal_reference(policy, tables, output) -> None:
    code, spare = POLICIES[policy]
    case = Case(
        dims=[9, 32], slots=[(0, 0, SUM), (1, 1, SUM)], keys=2, bags=8, policy=code, spare=spare,
        stray=True, tables=tables, output=output,
    )  # fmt: skip
    m = make(case)
    equal(lookup_rows(native, case, m), lookup_rows(reference, case, m))
    arguments = (sequence_grads(case, m, False), m.weights, m.spec.tensor, m.values)
    for op in ("embedding_sequence_dense_grad", "embedding_sequence_sparse_grad"):
        ours = getattr(native, op)(*arguments, *sequences(case, m))
        equal(ours, getattr(reference, op)(*arguments, *sequences(case, m)))


@pytest.mark.parametrize("backend", [pytest.param(native, marks=needs_native), reference])
def test_an_id_of_a_sequence_without_a_row_is_refused(backend) -> None:
    case = Case(dims=[4, 4], slots=[(0, 0, SUM), (1, 1, SUM)], keys=2)
    m = make(case)
    start = sequences(case, m)[0][1]
    m.values[start + 2] = -5
    with pytest.raises(IdOutOfRangeError, match=r"'f1'.*'t1'.*-5 in sample 2"):
        lookup_rows(backend, case, m)


# ---- gradients in every layout that autograd may hand over


@needs_native
@pytest.mark.parametrize("layout", ["expanded", "row_expanded", "transposed", "strided", "offset"])
def test_gradients_of_any_strides(layout: str) -> None:
    case = Case(dims=[6, 10], slots=[(0, 0, SUM), (1, 1, MEAN)], keys=2, bags=7)
    m = make(case)
    shape = m.grad.shape
    m.grad = {
        "expanded": lambda: torch.tensor(0.5).expand(shape),
        "row_expanded": lambda: torch.randn(shape[1]).expand(shape),
        "transposed": lambda: torch.randn(shape[1], shape[0]).t(),
        "strided": lambda: torch.randn(shape[0], 2 * shape[1])[:, ::2],
        "offset": lambda: torch.randn(shape[0] + 1, shape[1] + 3)[1:, 3:],
    }[layout]()
    dense = native.embedding_bag_dense_grad(m.grad, m.weights, *m.bags())
    equal(dense, reference.embedding_bag_dense_grad(m.grad, m.weights, *m.bags()))


# ---- fused updates

HYPERS: dict[str, tuple[OptimizerType, dict[str, object]]] = {
    "sgd": (OptimizerType.SGD, {}),
    "sgd_l2": (OptimizerType.SGD, {"weight_decay": 0.1}),
    "sgd_decoupled": (OptimizerType.SGD, {"weight_decay": 0.1, "weight_decay_mode": "decoupled"}),
    "sgd_momentum": (OptimizerType.SGD, {"momentum": 0.9, "dampening": 0.25}),
    "sgd_nesterov": (OptimizerType.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd_clipped": (OptimizerType.SGD, {"max_gradient": 0.3, "weight_decay": 0.1}),
    "adagrad": (OptimizerType.ADAGRAD, {"weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    "adagrad_clipped": (OptimizerType.ADAGRAD, {"max_gradient": 0.5}),
    "rowwise_adagrad": (OptimizerType.ROWWISE_ADAGRAD, {}),
    "rowwise_adagrad_l2": (OptimizerType.ROWWISE_ADAGRAD, {"weight_decay": 0.1, "eps": 1e-4}),
    "rowwise_adagrad_decoupled": (
        OptimizerType.ROWWISE_ADAGRAD,
        {"weight_decay": 0.1, "weight_decay_mode": "decoupled", "max_gradient": 0.4},
    ),
    "adam": (OptimizerType.ADAM, {"weight_decay": 0.1}),
    "adam_clipped": (OptimizerType.ADAM, {"betas": (0.5, 0.7), "max_gradient": 0.4}),
    "adamw": (OptimizerType.ADAMW, {"weight_decay": 0.1}),
    "partial_rowwise_adam": (OptimizerType.PARTIAL_ROWWISE_ADAM, {"weight_decay": 0.1}),
    "partial_rowwise_adam_decoupled": (
        OptimizerType.PARTIAL_ROWWISE_ADAM,
        {"weight_decay": 0.1, "weight_decay_mode": "decoupled"},
    ),
    "lamb": (OptimizerType.LAMB, {"weight_decay": 0.1}),
    "lamb_clipped": (OptimizerType.LAMB, {"max_gradient": 0.4}),
    "partial_rowwise_lamb": (OptimizerType.PARTIAL_ROWWISE_LAMB, {"weight_decay": 0.1}),
    "lars_sgd": (OptimizerType.LARS_SGD, {"eta": 0.5, "weight_decay": 0.1}),
    "lars_sgd_momentum": (OptimizerType.LARS_SGD, {"eta": 0.5, "momentum": 0.9}),
}
HYPERS |= {
    f"{name}-all_rows": (kind, {**options, "lazy": False})
    for name, (kind, options) in HYPERS.items()
} | {
    f"{name}-batch_l2": (HYPERS[name][0], {**HYPERS[name][1], "batch_l2": 0.7, "lazy": lazy})
    for name, lazy in (("sgd", True), ("adam", False), ("rowwise_adagrad", True), ("lamb", True))
}


@dataclass
class Trained:
    """Fused tables: weights, states, hyper-parameters, and the spec that fits them."""

    spec: LookupSpec
    weights: list[Tensor]
    states: list[Tensor]
    hyper: Tensor

    def copy(self) -> Trained:
        return Trained(
            self.spec,
            [w.clone() for w in self.weights],
            [s.clone() for s in self.states],
            self.hyper.clone(),
        )


def trained(case: Case, m: Made, name: str) -> Trained:
    kind, options = HYPERS[name]
    rule = RULES[kind]
    settings: Hyper = rule.hyper({"lr": 0.05, **options})
    names = rule.state_names(settings)
    tables = [
        TableSpec(t.name, t.dim, t.rows, t.num_embeddings, t.policy, kind, len(names))
        for t in m.spec.tables
    ]
    states = [rule.new_state(n, w, settings) for w in m.weights for n in names]
    hyper = new_hyper(len(tables))
    for row in hyper:
        write_hyper(row, settings)
        row[SAMPLES] = case.bags
    spec = LookupSpec(tables, m.spec.slots, m.spec.num_keys, m.spec.width)
    return Trained(spec, [w.clone() for w in m.weights], states, hyper)


def update(backend, t: Trained, m: Made) -> None:
    backend.embedding_bag_update_(
        m.grad, t.weights, t.states, t.hyper, t.spec.tensor, *m.bags()[1:]
    )


@needs_native
@pytest.mark.parametrize("tables", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HYPERS)
def test_updates_equal_reference(name: str, tables: torch.dtype) -> None:
    slots = [(0, 0, SUM), (1, 1, MEAN), (0, 1, SUM), (2, 0, SUM)]
    case = Case(dims=[17, 1, 64], slots=slots, keys=2, bags=31, tables=tables, weighted=True)
    m = make(case)
    ours = trained(case, m, name)
    theirs = ours.copy()
    for step in range(4):
        m = make(case, seed=step)
        update(native, ours, m)
        update(reference, theirs, m)
        assert ours.hyper.tolist() == theirs.hyper.tolist()
        # One step each from the same start, so that rounding of narrow tables does not add up.
        rounding = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[tables]
        for mine, other in zip(ours.weights, theirs.weights, strict=True):
            torch.testing.assert_close(mine, other, rtol=rounding, atol=rounding)
        for mine, other in zip(ours.states, theirs.states, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
        theirs = ours.copy()


@needs_native
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "adam", "partial_rowwise_lamb"])
@pytest.mark.parametrize("dim", [1, 3, 8, 15, 16, 33, 130, 257])
def test_updates_of_odd_dims_equal_reference(dim: int, name: str) -> None:
    case = Case(dims=[dim], bags=13)
    m = make(case)
    ours = trained(case, m, name)
    theirs = ours.copy()
    update(native, ours, m)
    update(reference, theirs, m)
    for mine, other in zip(
        [*ours.weights, *ours.states], [*theirs.weights, *theirs.states], strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("tables", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HYPERS)
def test_updates_of_rows_that_two_features_choose_many_times_equal_reference(
    name: str, tables: torch.dtype
) -> None:
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[tables]
    for dim in (1, 3, 15, 17, 33):
        slots = [(0, 0, SUM), (0, 1, MEAN)]
        case = Case([dim], slots, keys=2, bags=40, longest=6, rows=21, tables=tables)
        m = make(case, seed=dim)
        m.values[::2] = 3  # the others choose any row, and some rows are chosen by none
        m.values[m.values == 7] = 8
        ours = trained(case, m, name)
        theirs = ours.copy()
        update(native, ours, m)
        update(reference, theirs, m)
        for mine, other in zip(ours.weights, theirs.weights, strict=True):
            torch.testing.assert_close(mine, other, rtol=rounding, atol=rounding)
        for mine, other in zip(ours.states, theirs.states, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


# A row of 2^20 and a bag are sorted as one number: of 32 bits up to 2^12 bags.
@needs_native
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("bags", [1 << 12, (1 << 12) + 1, 1 << 13], ids=["narrow", "wide", "wider"])
def test_rows_times_bags_beyond_32_bits(bags: int, weighted: bool) -> None:
    case = Case([1], rows=1 << 20, bags=bags, longest=3, weighted=weighted)
    m = make(case)
    m.values[::3] = torch.tensor([0, 1, 1 << 19, (1 << 20) - 2, (1 << 20) - 1])[m.values[::3] % 5]
    for operator in ("embedding_bag_dense_grad", "embedding_bag_sparse_grad"):
        ours, theirs = (
            getattr(b, operator)(m.grad, m.weights, *m.bags()) for b in (native, reference)
        )
        equal(ours, theirs)
    trained_here = trained(case, m, "sgd")
    trained_there = trained_here.copy()
    update(native, trained_here, m)
    update(reference, trained_there, m)
    torch.testing.assert_close(trained_here.weights, trained_there.weights, rtol=1e-6, atol=1e-6)


@needs_native
def test_rows_times_bags_beyond_62_bits_are_refused() -> None:
    def grad(rows: int, bags: int) -> list[Tensor]:
        case = Case([0], rows=11, bags=bags)
        m = make(case)
        table = TableSpec("t", 0, rows, rows, case.policy, None, 0)  # no columns, so no memory
        spec = LookupSpec([table], m.spec.slots, 1, 0)
        weights = [torch.empty(rows, 0)]
        return native.embedding_bag_dense_grad(m.grad, weights, spec.tensor, *m.bags()[1:])

    assert grad(1 << 61, 1)[0].shape == (1 << 61, 0)
    for rows, bags in ((1 << 62, 1), (1 << 61, 2), ((1 << 63) - 1, 1)):
        with pytest.raises(
            ValueError, match=rf"fewer than 2\^62 rows, times bags. Received {rows}"
        ):
            grad(rows, bags)


@needs_native
@pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize("name", [n for n, (_, o) in HYPERS.items() if o.get("lazy", True)])
def test_rows_without_gradient_stay(name: str, backend) -> None:
    case = Case(dims=[5], rows=200, bags=6)
    m = make(case)
    t = trained(case, m, name)
    before = t.copy()
    update(backend, t, m)
    touched = torch.zeros(200, dtype=torch.bool)
    touched[m.values] = True
    equal([t.weights[0][~touched]], [before.weights[0][~touched]])
    equal([s[~touched] for s in t.states], [s[~touched] for s in before.states])
    assert not torch.equal(t.weights[0][touched], before.weights[0][touched])


@needs_native
@pytest.mark.parametrize("name", HYPERS)
def test_sequence_updates_equal_reference(name: str) -> None:
    case = Case(dims=[17, 4], slots=[(0, 0, SUM), (1, 1, SUM), (0, 1, SUM)], keys=2, bags=9)
    m = make(case)
    ours = trained(case, m, name)
    theirs = ours.copy()
    grads = sequence_grads(case, m, True)
    for backend, t in ((native, ours), (reference, theirs)):
        backend.embedding_sequence_update_(
            grads, t.weights, t.states, t.hyper, t.spec.tensor, m.values, *sequences(case, m)
        )
    for mine, other in zip(
        [*ours.weights, *ours.states], [*theirs.weights, *theirs.states], strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


# ---- what the kernels refuse


@needs_native
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("weights_missing", ValueError, "one tensor a table"),
        ("weights_small", ValueError, "as configured"),
        ("weights_strided", ValueError, "contiguous"),
        ("values_float", TypeError, "`values` should be int32 or int64"),
        ("offsets_float", TypeError, "`offsets` should be int32 or int64"),
    ],
)
def test_what_kernels_refuse(change: str, error: type[Exception], message: str) -> None:
    case = Case()
    m = make(case)
    if change == "weights_missing":
        m.weights = []
    elif change == "weights_small":
        m.weights = [torch.zeros(10, 4)]
    elif change == "weights_strided":
        m.weights = [torch.zeros(4, 11).t()]
    elif change == "values_float":
        m.values = m.values.float()
    else:
        m.offsets = m.offsets.float()
    with pytest.raises(error, match=message):
        lookup(native, case, m)


@needs_native
def test_gradients_of_another_size_are_refused() -> None:
    case = Case(bags=7)
    m = make(case)
    with pytest.raises(ValueError, match=r"a row for each sample \(7\)\. Received 1"):
        native.embedding_bag_dense_grad(m.grad[:1], m.weights, *m.bags())
    starts, counts = sequences(case, m)
    with pytest.raises(ValueError, match=rf"a row for each id \({counts[0]}\)\. Received 0"):
        native.embedding_sequence_dense_grad(
            [torch.zeros(0, 4)], m.weights, m.spec.tensor, m.values, starts, counts
        )


@needs_native
def test_states_of_the_wrong_size_are_refused() -> None:
    case = Case()
    m = make(case)
    t = trained(case, m, "adam")
    t.states[1] = torch.zeros(3)
    with pytest.raises(ValueError, match="State 1 of table number 0 should have 44 elements"):
        update(native, t, m)
    t.states[1] = torch.zeros(11, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"contiguous float32 on the CPU. Received torch.float64"):
        update(native, t, m)


@needs_native
@pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", float("nan")),
        ("lr", -0.1),
        ("eps", float("inf")),
        ("beta1", 1.0),
        ("max_gradient", -1.0),
        ("step", float("inf")),
        ("nesterov", 1.0),
    ],
)
def test_hyper_parameters_that_no_update_can_mean_are_refused(
    backend, field: str, value: float
) -> None:
    case = Case(dims=[2, 3], slots=[(0, 0, SUM), (1, 0, SUM)])
    m = make(case)
    t = trained(case, m, "sgd")
    before = t.weights[0].clone()
    t.hyper[0, HYPER.index(field)] = value
    with pytest.raises((ValueError, OverflowError)):
        update(backend, t, m)
    assert torch.equal(t.weights[0], before)


@needs_native
@pytest.mark.parametrize(
    "hyper",
    [
        torch.zeros(2, 15),
        torch.zeros(1, 15, dtype=torch.float64),
        torch.zeros(1, 15, device="meta"),
    ],
    ids=["float32", "too_few", "elsewhere"],
)
def test_hyper_parameters_that_kernels_cannot_read_are_refused(hyper: Tensor) -> None:
    case = Case(dims=[2, 3], slots=[(0, 0, SUM), (1, 0, SUM)])
    m = make(case)
    t = trained(case, m, "sgd")
    t.hyper = hyper
    with pytest.raises(TypeError, match=r"`hyper` should be float64 \(2, 15\) on the CPU"):
        update(native, t, m)
