"""Each private name of PyTorch that the choice of an implementation uses is there and answers right."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from torchrec.ops import _private
from torchrec.ops._library import is_observed

# Forward-mode AD scripts a function or two when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Through(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_nothing_is_at_work_by_itself() -> None:
    assert _private.num_dispatch_modes() == _private.num_function_modes() == 0
    assert _private.jit_trace() is None
    assert not _private.has_transforms()
    assert _private.tangent_level() == -1
    assert not _private.has_batched_grads()
    assert not _private.is_wrapped(torch.ones(1))
    assert not is_observed()
    with torch.no_grad(), torch.autocast("cpu"):
        assert not is_observed()
    with torch.inference_mode():
        assert not is_observed()


def test_which_nodes_a_backward_pass_comes_to() -> None:
    seen = []

    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, grad):
            seen.append([_private.will_run(node) for node, _ in ctx.next_functions])
            return grad, grad

    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    Both.apply(x, y * 1).sum().backward()
    torch.autograd.grad(Both.apply(x, y * 1).sum(), [y])
    Both.apply(x, y * 1).sum().backward(inputs=[y])
    assert seen == [[True, True], [False, True], [False, True]]


def test_modes_are_counted() -> None:
    with Through():
        assert _private.num_dispatch_modes() == 1
        assert is_observed()
    with torch.device("cpu"):
        assert _private.num_function_modes() == 1
        assert is_observed()
    assert not is_observed()


def seen_in(run) -> list[tuple[bool, bool, bool, bool]]:
    """What is at work inside a function that `run` is given: recording, transforms, tangents, a wrapped argument."""
    found = []

    def inside(x):
        found.append(
            (
                _private.jit_trace() is not None,
                _private.has_transforms(),
                _private.tangent_level() >= 0,
                _private.is_wrapped(x),
            )
        )
        assert is_observed()
        return (x * 2).sum()

    run(inside)
    assert not is_observed()
    return found


def dual(function) -> None:
    with forward_ad.dual_level():
        function(forward_ad.make_dual(torch.ones(3), torch.ones(3)))


def test_a_recording_is_seen() -> None:
    run = lambda f: torch.jit.trace(f, (torch.ones(3),), check_trace=False)  # noqa: E731
    assert seen_in(run)[0] == (True, False, False, False)


def test_a_recording_can_be_stepped_out_of() -> None:
    def made(x):
        with _private.outside_jit_trace():
            assert _private.jit_trace() is None
            kept = torch.ones(3) * 2
        return x + kept

    graph = torch.jit.trace(made, (torch.ones(3),)).graph
    assert "aten::add" in str(graph)
    assert "aten::mul" not in str(graph)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(lambda f: torch.func.grad(f)(torch.ones(3)), (False, True, False, True), id="grad"),
        pytest.param(lambda f: torch.func.vmap(f)(torch.ones(2, 3)), (False, True, False, True), id="vmap"),
        pytest.param(
            lambda f: torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),)), (False, True, True, True), id="jvp"
        ),
        pytest.param(dual, (False, False, True, False), id="dual"),
    ],
)  # fmt: skip
def test_transforms_are_seen(run, expected) -> None:
    assert seen_in(run) == [expected]


def test_batched_gradients_are_seen() -> None:
    seen = []
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: seen.append(_private.has_batched_grads()))
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    torch.autograd.grad(x * 3, x, torch.ones(3))
    assert seen == [True]
    assert not _private.has_batched_grads()


def test_numbers_are_taken_out_of_transforms() -> None:
    total = torch.zeros(1)

    def function(x):
        with _private.outside_transforms(torch.full((1,), 2.0)) as number:
            assert not _private.has_transforms()
            assert not _private.is_wrapped(number)
            total.add_(number)
        assert _private.has_transforms()
        return x.sum()

    torch.func.vmap(torch.func.grad(function))(torch.ones(3, 2))
    torch.func.jvp(function, (torch.ones(2),), (torch.ones(2),))
    assert total.item() == 4
    with _private.outside_transforms(total) as same:  # nor is there harm where there are none
        assert same is total


def test_assertions_of_a_device() -> None:
    _private.assert_later(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="not so"):
        _private.assert_later(torch.tensor(False), "not so")


def test_schemas_are_parsed() -> None:
    arguments = _private.parse_schema(
        "rowwise::f(Tensor[] a, Tensor? b, int c) -> Tensor"
    ).arguments
    assert [argument.name for argument in arguments] == ["a", "b", "c"]
    assert [str(argument.type) for argument in arguments] == [
        "List[Tensor]",
        "Optional[Tensor]",
        "int",
    ]


def test_zeros_without_memory_are_told() -> None:
    assert not _private.is_zero(torch.zeros(2))
    assert _private.is_zero(torch._efficientzerotensor(2))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -9.0])], ids=["plain", "bias"])
def test_a_product_with_what_follows(bias) -> None:
    input, weight = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1, 1], [0, 1, 0]])
    expected = torch.nn.functional.linear(input, weight, bias)
    assert torch.equal(_private.linear_pointwise(input, weight, bias, "none"), expected)
    assert torch.equal(_private.linear_pointwise(input, weight, bias, "relu"), expected.relu())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_a_product_and_an_addend() -> None:
    input, weight = torch.randn(50, 40), torch.randn(60, 40)
    addend = torch.randn(50, 60)
    expected = _private.linear_pointwise(input, weight, None, "none") + addend
    assert torch.equal(_private.linear_pointwise_plus(input, weight, addend), expected)


def zeros(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(4, 4, dtype=dtype)


@pytest.mark.parametrize(
    "other",
    [
        zeros(torch.float16),
        zeros()[:3],
        zeros()[None],
        zeros().t(),
        zeros().to("meta"),
        zeros().requires_grad_(),
        torch.nn.Parameter(zeros(), requires_grad=False),
        torch._neg_view(zeros()),
        torch._efficientzerotensor(4, 4),
        zeros().to_sparse(),
        None,
    ],
    ids=lambda other: f"{type(other).__name__} {getattr(other, 'dtype', '')}",
)
def test_tensors_that_changed_are_told(other) -> None:
    tensors = [zeros(), zeros()[:, :2]]
    holds = _private.guard_of(tensors)
    assert holds(*tensors)
    assert holds(torch.ones(4, 4), tensors[1])  # what they hold does not count
    assert not holds(other, tensors[1])
    assert not holds(tensors[0], zeros()[:2].t())
    assert not holds(tensors[0], tensors[0])
    assert holds(*tensors)


def test_shapes_of_an_operator_are_registered() -> None:
    with torch.library._scoped_library("rowwise_private", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        _private.register_fake(
            library, "rowwise_private::twice", lambda x: x.new_empty(2 * x.size(0))
        )
        with FakeTensorMode():
            assert torch.ops.rowwise_private.twice(torch.empty(3)).shape == (6,)


def test_gradients_of_an_operator_are_registered() -> None:
    def save(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0]

    with torch.library._scoped_library("rowwise_private", "FRAGMENT") as library:
        library.define("square(Tensor x) -> Tensor")
        library.impl("square", lambda x: x * x, "CPU")
        _private.register_autograd(
            library, torch.ops.rowwise_private.square.default, save, backward
        )
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        for _ in range(2):
            assert torch.autograd.grad(torch.ops.rowwise_private.square(x).sum(), x)[
                0
            ].tolist() == [6, 8]
        assert not torch.ops.rowwise_private.square(x.detach()).requires_grad
