"""cross against torch.addcmul: the same bits, forwards and backwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from torchrec.ops import cross as family
from torchrec.ops.cross import cross, cross_layers, side_by_side
from torchrec.ops.linear import linear, native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (5, 7), (3, 4, 33)], ids=str)
def test_bits_are_those_of_addcmul(shape, dtype) -> None:
    tensors = inputs(*shape, dtype=dtype)
    actual, expected = cross(*tensors), torch.addcmul(*tensors)
    assert torch.equal(actual, expected)
    upstream = torch.randn_like(actual)
    for mine, theirs in zip(
        torch.autograd.grad(actual, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(cross(*tensors), expected)


def written_out(dense: Tensor, sparse: Tensor) -> Tensor:
    return torch.cat([dense, sparse.flatten(1)], dim=1)


@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3), (4, 2, 3), (300, 20, 50)], ids=str)
@pytest.mark.parametrize("dtypes", [DTYPES[:1] * 2, DTYPES[1:2] * 2, DTYPES[1:3]], ids=str)
def test_vectors_side_by_side(shape, dtypes) -> None:
    dense = torch.randn(shape[0], shape[2], dtype=dtypes[0], requires_grad=True)
    sparse = torch.randn(shape, dtype=dtypes[1], requires_grad=True)
    actual, expected = side_by_side(dense, sparse), written_out(dense, sparse)
    assert actual.dtype is expected.dtype
    assert torch.equal(actual, expected)
    upstream = torch.randn_like(actual)
    got = torch.autograd.grad(actual, [dense, sparse], upstream)
    assert all(map(torch.equal, got, torch.autograd.grad(expected, [dense, sparse], upstream)))
    with torch.no_grad():
        assert torch.equal(side_by_side(dense, sparse).mul_(2), 2 * expected)


def test_second_derivatives_of_vectors_side_by_side() -> None:
    dense, sparse = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(2, 3), (2, 2, 3)]
    )
    assert torch.autograd.gradcheck(side_by_side, (dense, sparse))
    assert torch.autograd.gradgradcheck(side_by_side, (dense, sparse))


# Forward mode brings torch.jit along, which is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_who_looks_on_sees_vectors_concatenated() -> None:
    dense, sparse = torch.randn(4, 3), torch.randn(4, 2, 3)
    assert "cat" in make_fx(side_by_side)(dense, sparse).code
    batched = torch.func.vmap(side_by_side)(dense[None], sparse[None])
    assert torch.equal(batched[0], written_out(dense, sparse))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(dense, torch.ones_like(dense))
        tangent = forward_ad.unpack_dual(side_by_side(dual, sparse)).tangent
    assert torch.equal(tangent, written_out(torch.ones_like(dense), torch.zeros_like(sparse)))


def layers(of: Callable[[Tensor, Tensor, Tensor], Tensor], x_0: Tensor, w: Tensor) -> Tensor:
    x = x_0
    for _ in range(3):
        x = of(x, x_0, x @ w)
    return x


def test_bits_of_a_network_whose_input_gets_gradients_from_every_layer() -> None:
    x, w = torch.randn(40, 9, requires_grad=True), torch.randn(9, 9, requires_grad=True)
    actual, expected = layers(cross, x, w), layers(torch.addcmul, x, w)
    upstream = torch.randn_like(actual)
    assert torch.equal(actual, expected)
    got = torch.autograd.grad(actual, [x, w], upstream)
    assert all(map(torch.equal, got, torch.autograd.grad(expected, [x, w], upstream)))


@pytest.mark.parametrize(
    "asked", [a for a in itertools.product([True, False], repeat=3) if any(a)], ids=str
)
def test_gradients_of_some(asked) -> None:
    tensors = [t.detach().requires_grad_(a) for t, a in zip(inputs(4, 5), asked, strict=True)]
    wanted = [t for t in tensors if t.requires_grad]
    got = torch.autograd.grad(cross(*tensors).square().sum(), wanted)
    expected = torch.autograd.grad(torch.addcmul(*tensors).square().sum(), wanted)
    assert all(map(torch.equal, got, expected))


def test_second_derivatives() -> None:
    tensors = inputs(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(cross, tensors)
    assert torch.autograd.gradgradcheck(cross, tensors)


# Forward mode brings torch.jit along, which is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_others_get_addcmul_itself() -> None:
    """Broadcast shapes, several dtypes, tracers, transforms and forward mode."""
    x, y, z = (t.detach() for t in inputs(4, 5))
    assert torch.equal(cross(x, y[:1].requires_grad_(), z), torch.addcmul(x, y[:1], z))
    assert "addcmul" in make_fx(cross)(x, y, z).code
    assert torch.equal(torch.func.vmap(cross)(x, y, z), torch.addcmul(x, y, z))
    asked = z.clone().requires_grad_()
    gradient = torch.func.grad(lambda z: cross(x, y, z).sum())(asked)
    assert torch.equal(gradient, y)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(asked, torch.ones_like(z))
        assert torch.equal(forward_ad.unpack_dual(cross(x, y, dual)).tangent, y)


def networks(rank: int | None, count: int = 3, width: int = 192) -> list[list[tuple]]:
    """Layers with a matrix of this rank, or a full one."""
    pairs = [[(width, width)]] if rank is None else [[(rank, width), (width, rank)]]
    made = []
    for shapes in pairs * count:
        layer = [(torch.randn(shape) / shape[1] ** 0.5, None) for shape in shapes]
        made.append([*layer[:-1], (layer[-1][0], torch.randn(width))])
    for layer in made:
        for pair in layer:
            for tensor in pair:
                if tensor is not None:
                    tensor.requires_grad_()
    return made


def one_by_one(x_0: Tensor, layers: list[list[tuple]]) -> Tensor:
    x = x_0
    for layer in layers:
        factors = x
        for weight, bias in layer:
            factors = linear(factors, weight, bias)
        x = cross(x, x_0, factors)
    return x


def gradients(output: Tensor, tensors: list[Tensor], upstream: Tensor, again: bool = False):
    return torch.autograd.grad(output, tensors, upstream, create_graph=again)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rank", [None, 64], ids=["full", "low rank"])
def test_bits_of_layers_are_those_of_one_layer_after_another(rank, count, threads) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    layers = networks(rank, count)
    x = torch.randn(512, 192, requires_grad=True)
    actual, expected = cross_layers(x, layers), one_by_one(x, layers)
    tensors = [x, *(t for layer in layers for pair in layer for t in pair if t is not None)]
    upstream = torch.randn_like(actual)
    assert type(actual.grad_fn).__name__ == "_CrossLayersBackward"
    assert torch.equal(actual, expected)
    mine, theirs = (gradients(output, tensors, upstream) for output in (actual, expected))
    assert all(map(torch.equal, mine, theirs))
    torch.set_num_threads(before)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_bits_of_layers_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What oneDNN makes as wide as the input comes some samples at a time, of two sizes here."""
    monkeypatch.setattr(family, "_PART", 192 * 150)
    layers, x = networks(64), torch.randn(521, 192, requires_grad=True)
    assert family._part_sizes(x) == [131, 130, 130, 130]
    actual, expected = cross_layers(x, layers), one_by_one(x, layers)
    tensors = [x, *(t for layer in layers for pair in layer for t in pair if t is not None)]
    upstream = torch.randn_like(actual)
    assert torch.equal(actual, expected)
    mine, theirs = (gradients(output, tensors, upstream) for output in (actual, expected))
    assert all(map(torch.equal, mine, theirs))


def test_sizes_of_parts() -> None:
    sizes = {
        shape: family._part_sizes(torch.empty(shape, device="meta"))
        for shape in [(1, 3), (2048, 1728), (130, 1 << 20)]
    }
    assert sizes == {(1, 3): [1], (2048, 1728): [512] * 4, (130, 1 << 20): [65, 65]}


def test_layers_with_frozen_parameters_and_a_gradient_that_comes_in_columns() -> None:
    layers = networks(64)
    layers[1][0][0].requires_grad_(False)
    layers[2][1][1].requires_grad_(False)
    x = torch.randn(512, 192, requires_grad=True)
    output = cross_layers(x, layers)
    upstream = torch.randn(192, 512).t()
    (expected,) = gradients(one_by_one(x, layers), [x], upstream)
    output.backward(upstream)
    assert torch.equal(x.grad, expected)
    assert layers[1][0][0].grad is None
    assert layers[2][1][1].grad is None
    assert layers[1][1][0].grad is not None


def test_second_derivatives_of_layers() -> None:
    layers, x = networks(64, 2), torch.randn(512, 192, requires_grad=True)
    tensors = [x, layers[0][0][0], layers[1][1][1]]
    upstream = torch.randn(512, 192)
    seconds = []
    for output in (cross_layers(x, layers), one_by_one(x, layers)):
        first = gradients(output, tensors, upstream, again=True)
        seconds.append(torch.autograd.grad(sum(g.square().mean() for g in first), tensors))
    for mine, theirs in zip(*seconds, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_second_derivatives_of_layers_whose_parameters_are_shared_and_made_of_the_input() -> None:
    x, weight = torch.randn(512, 192, requires_grad=True), torch.randn(192, 192, requires_grad=True)
    upstream = torch.randn(512, 192)
    found = []
    for of in (cross_layers, one_by_one):
        made = weight / 192 + x.mean()
        first = gradients(
            of(x, [[(made, None)], [(made, None)]]), [x, weight], upstream, again=True
        )
        second = torch.autograd.grad(sum(g.square().mean() for g in first), [x, weight])
        found.append([*first, *second])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_layers_that_no_kernel_takes() -> None:
    x = torch.randn(3, 2, 192, requires_grad=True)
    layers = networks(64)
    assert torch.equal(cross_layers(x, layers), one_by_one(x, layers))
    assert cross_layers(x, []) is x
    with torch.no_grad():
        large = torch.randn(512, 192)
        assert torch.equal(cross_layers(large, layers), one_by_one(large, layers))


@pytest.mark.parametrize(
    ("grads", "factors", "message"),
    [
        ([(3, 4)], [(4, 3)], r"`factors` should be 3 samples, as `input`. Received \[4\]"),
        (
            [(2, 4), (1, 4)],
            [(2, 4), (1, 3)],
            r"`factors` should be \[1, 4\], as of `input`. Received \[1, 3\]",
        ),
        ([(1, 4), (2, 4)], [(2, 4), (1, 4)], r"`grads` should be \[2, 4\], as of `input`"),
    ],
)
def test_refuses_gradients_of_other_shapes(grads, factors, message) -> None:
    parts = [[torch.zeros(s) for s in shapes] for shapes in (grads, factors)]
    whole = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=message):
        native.cross_grad(parts[0], whole, parts[1], None, False)
    with pytest.raises(ValueError, match=r"`total` should be \[3, 4\], as of `input`"):
        native.cross_grad([whole], whole, [whole], torch.zeros(2, 4), False)
    with pytest.raises(ValueError, match="`total` should be contiguous"):
        native.cross_grad([whole], whole, [whole], torch.zeros(4, 3).t(), False)
