"""Which implementation is called: kernels where nobody sees the difference, and the right numbers everywhere."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torchrec.ops import _library, jagged, permute
from torchrec.ops._library import Gradient, define, is_readable
from torchrec.ops.embedding import (
    Bags,
    Group,
    Ids,
    LookupSpec,
    PoolingCode,
    SlotSpec,
    TableSpec,
    lookup_bags,
    lookup_sequences,
)
from torchrec.ops.interaction import dot_interaction

T = torch.tensor
needs_native = pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")


# ---- who is called

CALLED: list[str] = []


def _reference(x: Tensor, more: list[Tensor], maybe: Tensor | None) -> Tensor:
    CALLED.append("reference")
    return x * 2


def _kernel(x: Tensor, more: list[Tensor], maybe: Tensor | None) -> Tensor:
    CALLED.append("kernel")
    return x * 2


double = define(
    "test_double(Tensor x, Tensor[] more, Tensor? maybe) -> Tensor",
    reference=_reference,
    fake=lambda x, more, maybe: torch.empty_like(x),
    native_kernel=_kernel,
)
del _library._backends["test_double"]  # no operator of the library
torch.library.register_autograd(
    "rowwise::test_double", lambda ctx, grad: (2 * grad, [None] * ctx.more, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "more", len(inputs[1])),
)  # fmt: skip


def called(run) -> list[str]:
    """Call the operator, and say which implementation was called."""
    CALLED.clear()
    run()
    return CALLED.copy()


X, INDEX = torch.ones(3), torch.arange(3)


@needs_native
@pytest.mark.parametrize(
    ("x", "more", "maybe"),
    [
        (X, [], None),
        (X, [X, INDEX], INDEX.int()),
        (
            torch.nn.Parameter(X, requires_grad=False),
            [torch.nn.Parameter(X, requires_grad=False)],
            X,
        ),
        (X[::2], [X.expand(2, 3)], None),
    ],
    ids=["one", "all", "parameters", "strided"],
)
def test_plain_tensors_go_straight_to_the_kernel(x, more, maybe, monkeypatch) -> None:
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", None)  # nobody asks the dispatcher
    assert called(lambda: double(x, more, maybe)) == ["kernel"]


@needs_native
def test_without_recording_gradients_are_no_obstacle(monkeypatch) -> None:
    x = X.clone().requires_grad_()
    with torch.no_grad():
        monkeypatch.setattr(torch._ops.OpOverload, "__call__", None)
        assert called(lambda: double(x, [x], None)) == ["kernel"]


class Subclass(Tensor):
    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_gradients_are_recorded() -> None:
    for x in (X.clone().requires_grad_(), torch.nn.Parameter(X.clone())):
        double(x, [], None).sum().backward()
        assert x.grad.tolist() == [2.0] * 3


def _squares(x: Tensor, more: list[Tensor], power: int) -> list[Tensor]:
    CALLED.append("kernel")
    return [each.detach() ** power for each in (x, *more)]


def _save_squares(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, more, ctx.power = inputs
    ctx.save_for_backward(x, *more)


def _squares_backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    assert isinstance(grads, list | tuple)
    parts = zip(ctx.saved_tensors, grads, strict=True)
    first, *rest = [ctx.power * x ** (ctx.power - 1) * grad for x, grad in parts]
    return first, rest, None


powers = define(
    "test_powers(Tensor x, Tensor[] more, int power) -> Tensor[]",
    reference=_squares,
    fake=lambda x, more, power: [torch.empty_like(each) for each in (x, *more)],
    native_kernel=_squares,
    gradient=Gradient(_save_squares, _squares_backward),
)
del _library._backends["test_powers"], _library.definitions["test_powers"]


@pytest.mark.parametrize(
    "call", [powers, torch.ops.rowwise.test_powers], ids=["direct", "dispatcher"]
)
@pytest.mark.parametrize("count", [0, 1, 6])
def test_kernels_are_recorded(count: int, call) -> None:
    x = T([1.0, 2.0], requires_grad=True)
    more = [T([3.0 + i, 4.0], requires_grad=i % 2 == 0) for i in range(count)]
    outputs = call(x, more, 3)
    assert isinstance(outputs, list)
    assert len(outputs) == 1 + count
    leaves = [x, *more[::2]]
    scales = range(1, 2 + count)
    total = sum(scale * y.sum() for scale, y in zip(scales, outputs, strict=True))
    grads = torch.autograd.grad(total, leaves, create_graph=True)
    for leaf, scale, grad in zip(leaves, [1, *scales[1::2]], grads, strict=True):
        assert torch.equal(grad, scale * 3 * leaf**2)
        (again,) = torch.autograd.grad(grad.sum(), leaf, retain_graph=True)
        assert torch.equal(again, scale * 6 * leaf)


@needs_native
def test_kernels_are_recorded_only_where_a_gradient_is_asked() -> None:
    x, y = T([1.0], requires_grad=True), T([2.0])
    assert powers(y, [y], 2)[0].grad_fn is None
    assert powers(y, [x], 2)[1].grad_fn.name() == "RecordedBackward"
    with torch.no_grad():
        assert powers(x, [x], 2)[0].grad_fn is None
    assert powers(x.as_subclass(Named), [y], 2)[0].grad_fn.name() != "RecordedBackward"


class Named(Tensor):
    """A subclass that changes nothing."""


def test_subclasses_are_asked() -> None:
    Subclass.seen.clear()
    for arguments in ((X.as_subclass(Subclass), [], None), (X, [X.as_subclass(Subclass)], None)):
        double(*arguments)
    assert [name for name in Subclass.seen if "test_double" in name] == [
        "rowwise.test_double.default"
    ] * 2


def test_numbers_that_are_not_those_in_memory_are_made_so() -> None:
    """The kernel here is PyTorch's and would see to it itself; who gets there is what counts."""
    lazy = torch.complex(X, X).conj()
    offsets = T([0, 1, 3])
    padded = jagged.jagged_to_padded(lazy, offsets, 2)
    assert torch.equal(padded[0, 0], lazy[0].resolve_conj())
    negative = lazy.imag
    assert negative.is_neg()
    assert jagged.jagged_to_padded(negative, offsets, 2).tolist() == [[-1.0, 0.0], [-1.0, -1.0]]
    zeros = torch._efficientzerotensor(3)
    assert jagged.jagged_to_padded(zeros, offsets, 2).tolist() == [[0.0, 0.0]] * 2
    (joined,) = permute.regroup([negative[None], X[None]], [0, 0, 3, 1, 0, 1], [2])
    assert joined.tolist() == [[-1.0, -1.0, -1.0, 1.0]]


def test_fake_tensors_stay_fake() -> None:
    with FakeTensorMode():
        assert jagged.lengths_to_offsets(torch.empty(3, dtype=torch.int64)).shape == (4,)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert not is_readable(INDEX)


def test_a_trace_has_the_operator() -> None:
    graph = make_fx(lambda x: dot_interaction(x, x[:, None]))(torch.ones(2, 3))
    assert "rowwise.dot_interaction" in graph.code
    graph = make_fx(jagged.lengths_to_offsets)(T([1, 2]))
    assert "rowwise.lengths_to_offsets" in graph.code
    assert graph(T([5, 6])).tolist() == [0, 5, 11]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_has_the_operator(backend: str) -> None:
    run = torch.compile(jagged.lengths_to_offsets, backend=backend, fullgraph=True)
    assert run(T([1, 2])).tolist() == [0, 1, 3]
    torch._dynamo.reset()


# ---- torch.jit.trace

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
OFFSETS = T([0, 2, 2, 3])


@pytest.mark.parametrize(
    ("run", "example", "other"),
    [
        pytest.param(jagged.lengths_to_offsets, (T([1, 2]),), (T([5, 0]),), id="offsets"),
        pytest.param(
            lambda v, o: jagged.jagged_to_padded(v, o, 2), (X, T([0, 1, 3])), (X * 5, T([0, 3, 3])), id="padded",
        ),
        pytest.param(
            lambda v, o: jagged.padded_to_jagged(v, o, 3),
            (torch.ones(2, 3), T([0, 1, 3])), (torch.randn(2, 3), T([0, 3, 3])), id="jagged",
        ),
        pytest.param(
            dot_interaction, (torch.ones(2, 3), torch.ones(2, 4, 3)), (torch.randn(2, 3), torch.randn(2, 4, 3)),
            id="interaction",
        ),
        pytest.param(
            lambda a, b: permute.regroup([a, b], [1, 0, 2, 0, 1, 1], [2])[0],
            (torch.ones(2, 3), torch.ones(2, 2)), (torch.randn(2, 3), torch.randn(2, 2)), id="regroup",
        ),
    ],
)  # fmt: skip
def test_a_recording_gives_the_right_numbers(run, example, other) -> None:
    traced = torch.jit.trace(run, example)
    torch.testing.assert_close(traced(*other), run(*other), rtol=0, atol=0)


@pytest.mark.parametrize(
    "run",
    [
        lambda lengths: T(jagged.sum_equal_groups(lengths, 2)),
        lambda lengths: T(jagged.sum_groups(lengths, [1, 3])),
        lambda lengths: T(jagged.lengths_fit(lengths, 4)),
        lambda lengths: T(jagged.offsets_fit(lengths, 4)),
        lambda lengths: jagged.jagged_index_select(torch.ones(4), lengths, T([1]))[0],
        lambda lengths: permute.permute_jagged(lengths, torch.ones(4), None, [2, 2], [1])[0],
    ],
    ids=["sum_equal_groups", "sum_groups", "lengths_fit", "offsets_fit", "select", "permute"],
)
def test_a_recording_of_numbers_that_would_be_constants_is_refused(run) -> None:
    with pytest.raises(
        NotImplementedError, match=r"torch.jit.trace should not need .*: they would stay"
    ):
        torch.jit.trace(run, (T([1, 1, 1, 1]),))


# ---- another default device

ON_ANOTHER_DEVICE = """
import torch
from torchrec.ops import collision, hashing, jagged, permute
from torchrec.ops.embedding import *
lengths, values = torch.tensor([2, 0, 1]), torch.tensor([4.0, 5.0, 6.0])
data, samples = torch.arange(9, dtype=torch.uint8), torch.tensor([1])
weight = torch.ones(3, 2, requires_grad=True)
spec = LookupSpec([TableSpec("t", 2, 3, 3)], [SlotSpec("f", 0, 0)], 1, 2)
id_map, history, totals = collision.new_id_map(4), collision.new_history(4), torch.zeros(3, dtype=torch.int64)
torch.set_default_device("meta")
offsets = jagged.lengths_to_offsets(lengths)
assert offsets.tolist() == [0, 2, 2, 3], offsets
assert jagged.sum_groups(lengths, [1, 2]) == [2, 1]
assert jagged.sum_equal_groups(lengths, 3) == [2, 0, 1]
assert jagged.lengths_fit(lengths, 3) and jagged.offsets_fit(offsets, 3)
assert jagged.jagged_index_select(values, lengths, lengths)[0].tolist() == [6.0, 4.0, 5.0]
taken = jagged.keyed_index_select(values, values, lengths[None], samples)
assert taken[2].tolist() == [0]
assert jagged.jagged_to_padded(values, offsets, 1).tolist() == [[4.0], [0.0], [6.0]]
assert permute.permute_jagged(lengths, values, None, 1, [2, 0], [2, 0, 1])[0].tolist() == [6.0, 4.0, 5.0]
assert hashing.hash_strings(data, offsets).is_cpu
assert collision.find_ids(id_map, lengths).tolist() == [-1] * 3
assert collision.count_ids(id_map, history, lengths, 1, totals).tolist() == [-1] * 3
for kind in ("dense", "sparse"):
    groups, bags = [Group(spec, [0], kind)], Bags(lengths, offsets, values)
    output, _ = lookup_bags([weight], spec, bags, torch.float32, groups)
    output.backward(torch.ones(3, 2, device="cpu"))
    assert output.tolist() == [[9.0, 9.0], [0.0, 0.0], [6.0, 6.0]], output
    outputs, _ = lookup_sequences([weight], spec, Ids(lengths, [0], [3]), torch.float32, groups)
    outputs[0].backward(torch.ones(3, 2, device="cpu"))
    grad = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
    assert grad.is_cpu and grad[:, 0].tolist() == [6.0, 7.0, 5.0], grad
    weight.grad = None
rows, counts = choose_rows(spec, Ids(lengths, [0], [3]), offsets)
assert rows.tolist() == [2, 0, 1] and counts.tolist() == [0]
print("fine")
"""


def test_another_default_device_changes_nothing_for_tensors_of_the_cpu() -> None:
    # In a process of its own: what goes wrong here ends the process.
    done = subprocess.run([sys.executable, "-c", ON_ANOTHER_DEVICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# ---- torch.func and forward-mode AD: every differentiable operator

DOUBLE = torch.float64
LENGTHS, BAG_OFFSETS = T([2, 0, 1]), T([0, 2, 2, 3])


def rows_like(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE)


SPEC = LookupSpec(
    [TableSpec("a", 2, 5, 5), TableSpec("b", 3, 4, 4)],
    [SlotSpec("f", 0, 0, PoolingCode.SUM, 0), SlotSpec("g", 1, 1, PoolingCode.MEAN, 2)],
    2,
    5,
)
GROUPS = [Group(SPEC, [0], "dense"), Group(SPEC, [1], "sparse")]
ALL_DENSE = [Group(SPEC, [0, 1], "dense")]
IDS, ID_OFFSETS = T([4, 0, 4, 1, 3]), T([0, 2, 3, 3, 5])


def pooled(a: Tensor, b: Tensor, factors: Tensor | None = None) -> Tensor:
    bags = Bags(IDS, ID_OFFSETS, factors)
    return lookup_bags([a, b], SPEC, bags, a.dtype, GROUPS)[0]


def sequences(a: Tensor, b: Tensor) -> Tensor:
    outputs, _ = lookup_sequences([a, b], SPEC, Ids(IDS, [0, 3], [3, 2]), a.dtype, GROUPS)
    return torch.cat([output.flatten() for output in outputs])


# Name -> a function of tensors, and the tensors.
DIFFERENTIABLE = {
    "interaction": (dot_interaction, [rows_like(3, 4), rows_like(3, 2, 4)]),
    "select": (lambda v: jagged.jagged_index_select(v, LENGTHS, T([2, 0, 2]), 4)[0], [rows_like(3, 2)]),
    "padded": (lambda v: jagged.jagged_to_padded(v, BAG_OFFSETS, 3, 0.5), [rows_like(3, 2)]),
    "jagged": (lambda p: jagged.padded_to_jagged(p, BAG_OFFSETS, 3), [rows_like(3, 1, 2)]),
    "samples": (
        lambda v, w: torch.cat(jagged.keyed_index_select(v, w, LENGTHS[None], T([2, 0]))[:2]),
        [rows_like(3), rows_like(3)],
    ),
    "permute": (
        lambda v, w: torch.cat(permute.permute_jagged(LENGTHS, v, w, 1, [2, 0], [2, 0, 1])[:2]),
        [rows_like(3), rows_like(3)],
    ),
    "regroup": (
        lambda a, b: torch.cat(permute.regroup([a, b], [1, 0, 2, 0, 1, 2, 0, 2, 1, -1, 0, 1], [2, 2]), 1),
        [rows_like(3, 3), rows_like(3, 2)],
    ),
    "pooled": (pooled, [rows_like(5, 2), rows_like(4, 3)]),
    "weighted": (pooled, [rows_like(5, 2), rows_like(4, 3), rows_like(5)]),
    "sequences": (sequences, [rows_like(5, 2), rows_like(4, 3)]),
}  # fmt: skip


@pytest.fixture(params=DIFFERENTIABLE)
def case(request):
    return DIFFERENTIABLE[request.param]


def numeric(function, inputs: list[Tensor], tangents: list[Tensor]) -> Tensor:
    step = 1e-6
    moved = [[x + s * step * t for x, t in zip(inputs, tangents, strict=True)] for s in (1, -1)]
    return (function(*moved[0]) - function(*moved[1])) / (2 * step)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_tangents_are_those_of_the_difference_quotient(case) -> None:
    function, inputs = case
    tangents = [torch.randn_like(x) for x in inputs]
    expected = numeric(function, inputs, tangents)
    output, tangent = torch.func.jvp(function, tuple(inputs), tuple(tangents))
    close(output, function(*inputs))
    close(tangent, expected)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        close(forward_ad.unpack_dual(function(*duals)).tangent, expected)


def test_transforms_give_the_gradients_of_a_backward_pass(case) -> None:
    function, inputs = case
    asked = [x.clone().requires_grad_() for x in inputs]
    output = function(*asked)
    factors = torch.randn_like(output)
    (output * factors).sum().backward()
    expected = [x.grad.to_dense() if x.grad.is_sparse else x.grad for x in asked]
    all_of_them = tuple(range(len(inputs)))
    loss = lambda *xs: (function(*xs) * factors).sum()  # noqa: E731
    for ours, theirs in zip(torch.func.grad(loss, all_of_them)(*inputs), expected, strict=True):
        close(ours, theirs)
    jacobians = torch.func.jacrev(function, all_of_them)(*inputs)
    dims = list(range(output.dim()))
    for jacobian, theirs in zip(jacobians, expected, strict=True):
        close(torch.tensordot(factors, jacobian, (dims, dims)), theirs)


def test_batches_are_those_of_a_loop(case) -> None:
    function, inputs = case
    stacked = [torch.stack([x, 2 * x, -x]) for x in inputs]
    expected = torch.stack([function(*(s[i] for s in stacked)) for i in range(3)])
    close(torch.func.vmap(function)(*stacked), expected)


def test_gradients_of_gradients(case) -> None:
    function, inputs = case
    squares = lambda x: (function(x, *inputs[1:]) ** 2).sum()  # noqa: E731
    hessian = torch.func.hessian(squares)(inputs[0])
    direction = torch.randn_like(inputs[0])
    gradient = torch.func.grad(squares)
    expected = numeric(gradient, [inputs[0]], [direction])
    dims = list(range(direction.dim()))
    torch.testing.assert_close(
        torch.tensordot(hessian, direction, (dims, dims)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "name", ["interaction", "padded", "regroup", "pooled", "weighted", "sequences"]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_batched_gradients(name: str, monkeypatch) -> None:
    function, inputs = DIFFERENTIABLE[name]
    monkeypatch.setattr(sys.modules[__name__], "GROUPS", ALL_DENSE)  # a sparse one has no batch
    x = inputs[0].clone().requires_grad_()
    output = function(x, *inputs[1:])
    grads = torch.randn(3, *output.shape, dtype=output.dtype)
    expected = [torch.autograd.grad(output, x, g, retain_graph=True)[0] for g in grads]
    (found,) = torch.autograd.grad(output, x, grads, is_grads_batched=True)
    close(found, torch.stack(expected))


# ---- what changes in place between forward and backward


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("changed", ["values", "offsets", "factors", "divisors"])
def test_inputs_changed_before_the_backward_pass_are_refused(kind, changed) -> None:
    spec = LookupSpec([TableSpec("t", 2, 9, 9)], [SlotSpec("f", 0, 0, PoolingCode.MEAN)], 1, 2)
    weight = torch.ones(9, 2, requires_grad=True)
    inputs = {
        "values": T([1, 2, 3]), "offsets": T([0, 1, 3]), "factors": torch.ones(3), "divisors": T([1, 2]),
    }  # fmt: skip
    output, _ = lookup_bags(
        [weight], spec, Bags(*inputs.values()), torch.float32, [Group(spec, [0], kind)]
    )
    inputs[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_ids_of_sequences_changed_before_the_backward_pass_are_refused(kind) -> None:
    spec = LookupSpec([TableSpec("t", 2, 9, 9)], [SlotSpec("f", 0, 0)], 1, 2)
    weight, ids = torch.ones(9, 2, requires_grad=True), T([1, 2, 3])
    groups = [Group(spec, [0], kind)]
    (output,), _ = lookup_sequences([weight], spec, Ids(ids, [0], [3]), torch.float32, groups)
    ids.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# ---- the meta device


def test_lookups_on_the_meta_device_have_their_shapes() -> None:
    meta = {"device": "meta"}
    weights = [
        torch.empty(5, 2, **meta, requires_grad=True),
        torch.empty(4, 3, **meta, requires_grad=True),
    ]
    ids, offsets = IDS.to("meta"), ID_OFFSETS.to("meta")
    groups = [Group(SPEC, [0, 1], "dense")]
    output, strays = lookup_bags(weights, SPEC, Bags(ids, offsets), torch.float32, groups)
    assert (output.shape, output.device.type, strays.shape) == ((2, 5), "meta", (2,))
    output.sum().backward()
    assert [w.grad.shape for w in weights] == [(5, 2), (4, 3)]
    sparse = [Group(SPEC, [0, 1], "sparse")]
    weights = [w.detach().requires_grad_() for w in weights]
    lookup_bags(weights, SPEC, Bags(ids, offsets), torch.float32, sparse)[0].sum().backward()
    assert [(w.grad.is_sparse, w.grad.shape) for w in weights] == [(True, (5, 2)), (True, (4, 3))]
    outputs, _ = lookup_sequences(weights, SPEC, Ids(ids, [0, 3], [3, 2]), torch.float16, groups)
    assert [(o.shape, o.dtype, o.is_meta) for o in outputs] == [
        ((3, 2), torch.float16, True), ((2, 3), torch.float16, True),
    ]  # fmt: skip
    assert jagged.lengths_to_offsets(LENGTHS.to("meta")).shape == (4,)
