"""linear against the product written out, on both of its ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchrec.ops import _library
from torchrec.ops import linear as family
from torchrec.ops.linear import linear, native
from torchrec.threads import using_threads

# B, I, O; the first ones are large enough for oneDNN, and one has a gradient that is tall.
SHAPES = {
    "large": (300, 130, 120),
    "tall": (600, 40, 200),
    "thin_input": (5000, 13, 80),
    "small": (5, 7, 3),
    "one_output": (9000, 500, 1),
    "no_samples": (0, 7, 3),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what oneDNN is given."""
    seen: list[int] = []
    forward = family.onednn_linear

    def counted(*arguments: object, **options: object) -> Tensor:
        seen.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(family, "onednn_linear", counted)
    return seen


def inputs(shape: tuple[int, int, int], bias: bool = True) -> list[Tensor]:
    batch, i, o = shape
    sizes = [(batch, i), (o, i), *([(o,)] if bias else [])]
    return [torch.randn(size, requires_grad=True) for size in sizes]


def formula(x: Tensor, w: Tensor, b: Tensor | None = None, relu: bool = False) -> Tensor:
    y = x @ w.T if b is None else x @ w.T + b
    return y.clamp(min=0) if relu else y


@each_shape
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "plain"])
def test_output_and_gradients(shape, bias, relu) -> None:
    tensors = inputs(shape, bias)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    actual, expected = linear(*tensors, relu=relu), formula(*exact, relu=relu)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(linear(*tensors, relu=relu), actual)
    upstream = torch.randn_like(actual) * (actual.detach().abs() > 1e-3)  # away from the kink
    got = torch.autograd.grad(actual, tensors, upstream)
    for mine, theirs in zip(
        got, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        assert mine.is_contiguous()
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not family._available(), reason="this PyTorch has no oneDNN")
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch on its own TF32 settings
def test_large_products_go_to_one_dnn(calls) -> None:
    tensors = inputs(SHAPES["large"])
    linear(*tensors).sum().backward()
    assert len(calls) == 3  # the output and two gradients
    linear(*inputs(SHAPES["small"])).sum().backward()
    assert len(calls) == 3
    with torch.backends.mkldnn.flags(enabled=False):
        linear(*tensors)
    assert len(calls) == 3


@pytest.mark.skipif(not family._available(), reason="this PyTorch has no oneDNN")
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch on its own TF32 settings
@pytest.mark.parametrize("gaps", ["input", "weight", "upstream"])
def test_parts_of_wider_matrices(gaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN gets matrices without gaps: for some others it has no kernel, and takes seconds."""
    seen: list[Tensor] = []
    product = family.linear_pointwise

    def watched(left: Tensor, right: Tensor, bias: Tensor | None, then: str) -> Tensor:
        seen.extend((left, right))
        return product(left, right, bias, then)

    monkeypatch.setattr(family, "linear_pointwise", watched)
    x, w, _ = (t.detach() for t in inputs(SHAPES["large"]))
    upstream = torch.randn(len(x), len(w))

    def part(matrix: Tensor, name: str) -> Tensor:
        rows, columns = matrix.shape
        wide = torch.cat([matrix, matrix.new_ones(rows, 7)], 1) if name == gaps else matrix
        return wide[:, :columns]

    tensors = [part(x, "input").requires_grad_(), part(w, "weight").requires_grad_()]
    output = linear(*tensors)
    grads = torch.autograd.grad(output, tensors, part(upstream, "upstream"))
    assert len(seen) == 6
    assert all(matrix.is_contiguous() or matrix.T.is_contiguous() for matrix in seen)
    for actual, expected in zip(
        (output, *grads), (x @ w.T, upstream @ w, upstream.T @ x), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_gradients_that_nobody_asks_for_are_not_computed(calls) -> None:
    x, w, b = inputs(SHAPES["large"])
    linear(x.detach(), w, b).sum().backward()
    assert len(calls) in (0, 2)
    assert x.grad is None


def test_second_derivatives() -> None:
    x, w, b = inputs(SHAPES["large"])
    (first,) = torch.autograd.grad(linear(x, w, b, relu=True).square().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(formula(x, w, b, True).square().sum(), x, create_graph=True)
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(
        torch.autograd.grad(first.sum(), w)[0],
        torch.autograd.grad(expected.sum(), w)[0],
        rtol=1e-3,
        atol=1e-1,
    )


def others() -> Iterator[tuple[str, object]]:
    """Callers that oneDNN would pass by, or break."""

    def autocast(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear(x, w)

    def forward_mode(x: Tensor, w: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            return forward_ad.unpack_dual(linear(dual, w)).tangent

    yield "autocast", autocast
    yield "vmap", lambda x, w: torch.func.vmap(linear, (None, 0))(x, torch.stack([w, w]))
    yield "func_grad", lambda x, w: torch.func.grad(lambda y: linear(y, w).square().sum())(x)
    yield "forward_mode", forward_mode
    yield "double", lambda x, w: linear(x.double(), w.double())
    yield "three_dimensions", lambda x, w: linear(torch.stack([x, x]), w)


# Forward mode brings torch.jit along, which is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("call", [c for _, c in others()], ids=[name for name, _ in others()])
def test_others_get_pytorch_itself(call, calls) -> None:
    x, w = (t.detach() for t in inputs(SHAPES["large"], bias=False))
    assert call(x, w).isfinite().all()
    assert calls == []


MATRICES = {
    "empty": (0, 5),
    "one_number": (1, 1),
    "tiles": (64, 32),
    "ragged": (35, 21),
    "several_tasks": (300, 150),
}


@pytest.mark.parametrize("shape", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_turned_matrices(shape, threads) -> None:
    grad, output = torch.randn(shape), torch.relu(torch.randn(shape))
    output[output > 2] = float("nan")  # of which PyTorch lets the gradient through
    with using_threads(threads):
        turned, (masked, masked_turned) = (
            family._transposed(grad.T),
            family._relu_grad(grad, output),
        )
    assert turned.is_contiguous()
    assert torch.equal(turned, grad)
    assert torch.equal(masked, torch.ops.aten.threshold_backward(grad, output, 0))
    assert masked_turned.is_contiguous()
    assert torch.equal(masked_turned, masked.T)


@pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")
def test_turned_matrices_of_other_kinds_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`matrix` should be two-dimensional and float32. Received \[3\]"
    ):
        native.transposed(torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"`grad` should be .* float32. Received .* of torch.float64"
    ):
        native.relu_grad(torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4))
    with pytest.raises(
        ValueError, match=r"`grad` should be \[4, 3\], as `output`. Received \[3, 4\]"
    ):
        native.relu_grad(torch.zeros(3, 4), torch.zeros(4, 3))


def test_wrong_shapes_say_so() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.zeros(3000, 130), torch.zeros(120, 100))
