"""cross against torch.addcmul: the same bits, forwards and backwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from torchrec.ops.cross import cross

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
