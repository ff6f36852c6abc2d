"""The optimizers against torch.optim where torch has them, against a formula where it has not."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchrec.optim import (
    LAMB,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    LarsSGD,
    PartialRowWiseAdam,
    PartialRowWiseLAMB,
    RowWiseAdagrad,
    apply_optimizer_in_backward,
    in_backward_optimizer_filter,
)

ALL = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.2, "weight_decay": 0.1}),
    (RowWiseAdagrad, {"lr": 0.1, "initial_accumulator_value": 0.2, "lr_decay": 0.1}),
    (Adam, {"lr": 0.1, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    (AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    (PartialRowWiseAdam, {"lr": 0.1, "weight_decay": 0.1}),
    (LAMB, {"lr": 0.1, "weight_decay": 0.1}),
    (PartialRowWiseLAMB, {"lr": 0.1, "weight_decay": 0.1}),
    (LarsSGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "eta": 0.5}),
]
every = pytest.mark.parametrize(
    ("cls", "options"),
    ALL,
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train(optimizer, params, steps=6, seed=10):
    """Feed the same gradients whatever the optimizer."""
    for step in range(steps):
        for i, param in enumerate(params):
            param.grad = randn(*param.shape, seed=seed + 97 * step + i).to(param.dtype)
        optimizer.step()


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
        (Adagrad, torch.optim.Adagrad, {"lr": 0.1}),
        (Adagrad, torch.optim.Adagrad, {"weight_decay": 0.2, "initial_accumulator_value": 0.5}),
        (Adam, torch.optim.Adam, {"lr": 0.1}),
        (Adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.2, "betas": (0.7, 0.9), "eps": 0.1}),
        (AdamW, torch.optim.AdamW, {"lr": 0.1}),
        (AdamW, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3, "betas": (0.7, 0.9)}),
    ],
)
@pytest.mark.parametrize("shape", [(5, 3), (4,), (2, 3, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torch_on_dense_gradients(ours, theirs, options, shape, dtype):
    mine = [nn.Parameter(randn(*shape, seed=i, dtype=dtype)) for i in range(2)]
    other = [nn.Parameter(p.detach().clone()) for p in mine]
    train(ours(mine, **options), mine)
    train(theirs(other, **options), other)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_defaults_equal_those_of_torch():
    for ours, theirs in [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]:
        a = ours([nn.Parameter(torch.zeros(1))]).defaults
        b = theirs([nn.Parameter(torch.zeros(1))]).defaults
        assert {k: a[k] for k in ("lr", "betas", "eps", "weight_decay")} == {
            k: b[k] for k in ("lr", "betas", "eps", "weight_decay")
        }


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (Adagrad, torch.optim.Adagrad, {"lr": 0.1}),
        # SparseAdam adds eps before the bias correction: without eps, the two agree.
        (Adam, torch.optim.SparseAdam, {"lr": 0.1, "eps": 1e-30}),
    ],
)
def test_equals_torch_on_sparse_gradients(ours, theirs, options):
    mine = nn.EmbeddingBag(20, 4, sparse=True)
    other = copy.deepcopy(mine)
    a, b = ours(mine.parameters(), **options), theirs(list(other.parameters()), **options)
    for step in range(5):
        ids = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(step))
        for module, optimizer in ((mine, a), (other, b)):
            optimizer.zero_grad()
            (module(ids) ** 2).sum().backward()
            with torch.sparse.check_sparse_tensor_invariants():  # torch warns of its own otherwise
                optimizer.step()
    torch.testing.assert_close(mine.weight, other.weight, rtol=2e-5, atol=2e-6)


@every
def test_sparse_equals_dense_on_the_touched_rows_and_leaves_the_others(cls, options):
    weight = randn(6, 3)
    dense, sparse = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    a, b = cls([dense], **options), cls([sparse], **options)
    ids = torch.tensor([4, 1, 4, 2, 4])
    values = randn(5, 3, seed=1)
    for _ in range(3):
        dense.grad = torch.zeros(6, 3).index_add_(0, ids, values)
        sparse.grad = torch.sparse_coo_tensor(ids[None], values, (6, 3), check_invariants=True)
        a.step()
        b.step()
    touched = torch.tensor([1, 2, 4])
    torch.testing.assert_close(sparse[touched], dense[touched])
    untouched = torch.tensor([0, 3, 5])
    assert torch.equal(sparse[untouched], weight[untouched])
    for name, value in b.state[sparse].items():
        if value.dim() > 0:
            torch.testing.assert_close(value[touched], a.state[dense][name][touched])
            fresh = options.get("initial_accumulator_value", 0.0)
            assert torch.equal(value[untouched], torch.full_like(value[untouched], fresh))


@every
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_sparse_steps_equal_dense_steps_row_by_row(cls, options, batches, dim):
    """A row behaves as a parameter of its own that skips the steps in which it is not touched."""
    sparse = nn.Parameter(randn(5, dim))
    optimizer = cls([sparse], **options)
    rows = [nn.Parameter(row[None].clone()) for row in sparse.detach()]
    singles = [cls([row], **options) for row in rows]
    for step, ids in enumerate(batches, start=1):
        values = randn(len(ids), dim, seed=step)
        where = torch.tensor(ids, dtype=torch.int64)
        sparse.grad = torch.sparse_coo_tensor(where[None], values, (5, dim), check_invariants=True)
        optimizer.step()
        for i, (row, single) in enumerate(zip(rows, singles, strict=True)):
            state = single.state[row]
            state["step"] = torch.tensor(float(step - 1))  # steps count for the whole parameter
            row.grad = values[where == i].sum(0, keepdim=True) if i in ids else None
            single.step()
    torch.testing.assert_close(sparse, torch.cat(rows), rtol=1e-4, atol=1e-5)


@every
def test_a_vector_is_one_row(cls, options):
    vector, matrix = nn.Parameter(randn(5)), nn.Parameter(randn(5)[None].clone())
    train(cls([vector], **options), [vector], seed=3)
    optimizer = cls([matrix], **options)
    for step in range(6):
        matrix.grad = randn(5, seed=3 + 97 * step)[None]
        optimizer.step()
    torch.testing.assert_close(vector, matrix[0])


@every
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_touched_changes_nothing(cls, options, rows):
    param = nn.Parameter(randn(rows, 2))
    before = param.detach().clone()
    optimizer = cls([param], **options)
    param.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2), (rows, 2), check_invariants=True
    )
    optimizer.step()
    assert torch.equal(param, before)


def dot(xs, ys):
    return sum(x * y for x, y in zip(xs, ys, strict=True))


def norm(xs):
    return math.sqrt(dot(xs, xs))


def formula(cls, weight, grads, o):
    """The papers' formulas for one row, in plain Python."""
    w, dim = list(weight), len(weight)
    m, v, v_row, s_row, b = [0.0] * dim, [0.0] * dim, 0.0, o.get("sum", 0.0), [0.0] * dim
    wd = o.get("weight_decay", 0.0)
    for t, g in enumerate(grads, start=1):
        if cls in (PartialRowWiseAdam, RowWiseAdagrad):
            g = [gi + wd * wi for gi, wi in zip(g, w, strict=True)]
        m = [0.9 * mi + 0.1 * gi for mi, gi in zip(m, g, strict=True)]
        v = [0.999 * vi + 0.001 * gi * gi for vi, gi in zip(v, g, strict=True)]
        v_row = 0.999 * v_row + 0.001 * dot(g, g) / dim
        s_row += dot(g, g) / dim
        seconds = v if cls is LAMB else [v_row] * dim
        u = [
            mi / (1 - 0.9**t) / (math.sqrt(x / (1 - 0.999**t)) + o["eps"])
            for mi, x in zip(m, seconds, strict=True)
        ]
        if cls is RowWiseAdagrad:
            delta = [o["lr"] * gi / (math.sqrt(s_row) + o["eps"]) for gi in g]
        elif cls is PartialRowWiseAdam:
            delta = [o["lr"] * ui for ui in u]
        elif cls is LarsSGD:
            zero = norm(w) == 0 or norm(g) == 0
            ratio = 1.0 if zero else o["eta"] * norm(w) / (norm(g) + wd * norm(w))
            b = [
                o["momentum"] * bi + o["lr"] * ratio * (gi + wd * wi)
                for bi, gi, wi in zip(b, g, w, strict=True)
            ]
            delta = b
        else:
            u = [ui + wd * wi for ui, wi in zip(u, w, strict=True)]
            ratio = 1.0 if norm(w) == 0 or norm(u) == 0 else norm(w) / norm(u)
            delta = [o["lr"] * ratio * ui for ui in u]
        w = [wi - di for wi, di in zip(w, delta, strict=True)]
    return w


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (RowWiseAdagrad, {"lr": 0.1, "eps": 0.01, "weight_decay": 0.2}),
        (PartialRowWiseAdam, {"lr": 0.1, "eps": 0.01, "weight_decay": 0.2}),
        (LAMB, {"lr": 0.1, "eps": 0.01, "weight_decay": 0.2}),
        (LAMB, {"lr": 0.1, "eps": 0.01}),
        (PartialRowWiseLAMB, {"lr": 0.1, "eps": 0.01, "weight_decay": 0.2}),
        (LarsSGD, {"lr": 0.1, "eta": 0.3, "momentum": 0.9, "weight_decay": 0.2}),
        (LarsSGD, {"lr": 0.1, "eta": 0.3, "momentum": 0.0}),
    ],
)
def test_equals_formula(cls, options):
    weight = randn(4, 3, dtype=torch.float64)
    weight[2] = 0.0  # no norm to trust
    grads = randn(5, 4, 3, seed=7, dtype=torch.float64)
    grads[0, 3] = 0.0
    param = nn.Parameter(weight.clone())
    optimizer = cls([param], **options)
    for grad in grads:
        param.grad = grad
        optimizer.step()
    for row in range(4):
        wanted = formula(cls, weight[row].tolist(), grads[:, row].tolist(), {"eps": 1.0, **options})
        assert param[row].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("cls", [SGD, Adagrad, RowWiseAdagrad, Adam, PartialRowWiseAdam])
def test_decoupled_weight_decay_shrinks_the_weights_first(cls):
    decayed, shrunk = nn.Parameter(randn(3, 2)), nn.Parameter(randn(3, 2))
    a = cls([decayed], lr=0.5, weight_decay=0.4, weight_decay_mode="decoupled")
    b = cls([shrunk], lr=0.5)
    for step in range(4):
        with torch.no_grad():
            shrunk *= 1 - 0.5 * 0.4
        decayed.grad = randn(3, 2, seed=step)
        shrunk.grad = randn(3, 2, seed=step)
        a.step()
        b.step()
    torch.testing.assert_close(decayed, shrunk)


@every
def test_max_gradient_clamps_each_element(cls, options):
    clipped, clamped = nn.Parameter(randn(3, 2)), nn.Parameter(randn(3, 2))
    a, b = cls([clipped], **options, max_gradient=0.5), cls([clamped], **options)
    for step in range(3):
        clipped.grad = randn(3, 2, seed=step)
        clamped.grad = randn(3, 2, seed=step).clamp(-0.5, 0.5)
        a.step()
        b.step()
    assert torch.equal(clipped, clamped)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_weights_are_updated_in_32_bits(cls, options, dtype):
    narrow = nn.Parameter(randn(3, 4, dtype=dtype))
    wide = narrow.detach().float()
    a, b = cls([narrow], **options), None
    for step in range(3):
        wide = nn.Parameter(narrow.detach().float())
        old, b = b, cls([wide], **options)
        if old is not None:
            b.load_state_dict(old.state_dict())
        narrow.grad = randn(3, 4, seed=step, dtype=dtype)
        wide.grad = narrow.grad.float()
        a.step()
        b.step()
        assert torch.equal(narrow, wide.to(dtype))
    for name, value in a.state[narrow].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, b.state[wide][name])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_round_trip_continues_bit_identically(cls, options, dtype, tmp_path):
    param = nn.Parameter(randn(4, 3, dtype=dtype))
    optimizer = cls([param], **options)
    train(optimizer, [param], steps=3)
    optimizer.param_groups[0]["lr"] = 0.05
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = nn.Parameter(param.detach().clone())
    fresh = cls([other], lr=1.0)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    train(optimizer, [param], steps=3, seed=500)
    train(fresh, [other], steps=3, seed=500)
    assert torch.equal(param, other)


@every
def test_learning_rate_changed_by_hand_or_schedule_counts_at_the_next_step(cls, options):
    param = nn.Parameter(randn(3, 2))
    optimizer = cls([param], **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: float(n < 2))
    for step in range(2):
        before = param.detach().clone()
        param.grad = randn(3, 2, seed=step)
        optimizer.step()
        scheduler.step()
        assert not torch.equal(param, before)
    assert optimizer.param_groups[0]["lr"] == 0.0
    if options.get("momentum") and cls is LarsSGD:
        return  # its buffer holds steps, not gradients, so it runs on
    before = param.detach().clone()
    param.grad = randn(3, 2, seed=9)
    optimizer.step()
    assert torch.equal(param, before)


def test_groups_have_hyper_parameters_of_their_own():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.25)
    a.grad = b.grad = torch.ones(2)
    optimizer.step()
    assert (a.tolist(), b.tolist()) == ([0.5, 0.5], [0.75, 0.75])


def test_parameters_without_gradient_stay():
    param = nn.Parameter(torch.ones(2))
    optimizer = Adam([param], lr=0.5)
    optimizer.step()
    assert param.tolist() == [1.0, 1.0]
    assert not optimizer.state


def test_closure_is_called_with_gradients_on():
    param = nn.Parameter(torch.ones(2))

    def closure():
        loss = param.sum()
        loss.backward()
        return loss

    for cls in (SGD, RowWiseAdagrad):
        param.grad = None
        assert cls([param], lr=0.1).step(closure) is not None
        assert param.grad is not None


@pytest.mark.parametrize("cls", sorted({cls for cls, _ in ALL}, key=lambda c: c.__name__))
def test_unknown_keyword_is_named(cls):
    with pytest.raises(TypeError, match=r"Received 'learning_rat'"):
        cls([nn.Parameter(torch.zeros(1))], learning_rat=0.1)


def test_keyword_of_another_optimizer_is_refused_except_by_rowwise_adagrad():
    params = [nn.Parameter(torch.zeros(1, 1))]
    with pytest.raises(TypeError, match=r"`SGD` takes lr, momentum, .*\. Received 'betas'\."):
        SGD(params, betas=(0.9, 0.99))
    RowWiseAdagrad(params, betas=(0.9, 0.99), foreach=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"`lr` should be at least 0\. Received -1\.0\."),
        ({"lr": math.nan}, r"`lr` should be at least 0\. Received nan\."),
        ({"eps": -1.0}, r"`eps` should be at least 0"),
        ({"weight_decay": -1.0}, r"`weight_decay` should be at least 0"),
        ({"betas": (0.9, 1.0)}, r"`betas` should be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, r"`betas` should be two numbers"),
        ({"max_gradient": 0.0}, r"`max_gradient` should be above 0, or None"),
        ({"weight_decay_mode": "l1"}, r"`weight_decay_mode` should be 'l2' or 'decoupled'"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Adam([nn.Parameter(torch.zeros(1))], **options)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="`nesterov` should come with a momentum above 0"):
        SGD([nn.Parameter(torch.zeros(1))], nesterov=True)


def test_sparse_gradient_of_two_sparse_dimensions_is_refused():
    param = nn.Parameter(torch.ones(2, 2))
    param.grad = torch.ones(2, 2).to_sparse(2)
    with pytest.raises(ValueError, match=r"one sparse dimension, the rows\. Received 2"):
        SGD([param]).step()


def test_filter_tells_the_parameters_apart():
    model = nn.Linear(2, 1)
    apply_optimizer_in_backward(SGD, [model.bias], {"lr": 0.1})
    names = [name for name, _ in in_backward_optimizer_filter(model.named_parameters())]
    assert names == ["weight"]
    names = [name for name, _ in in_backward_optimizer_filter(model.named_parameters(), True)]
    assert names == ["bias"]
