"""SwishLayerNorm against Y = X * sigmoid(LayerNorm(X)), with the normalisation written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec.modules.activation import SwishLayerNorm


def equation(x: Tensor, weight: Tensor, bias: Tensor, dims: int) -> Tensor:
    over = tuple(range(-dims, 0))
    centred = x - x.mean(over, keepdim=True)
    variance = (centred * centred).mean(over, keepdim=True)
    normal = centred / (variance + 1e-5).sqrt() * weight + bias
    return x / (1 + (-normal).exp())


def randomized(dims: int | list[int], dtype: torch.dtype) -> SwishLayerNorm:
    module = SwishLayerNorm(dims, dtype=dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(
    ("dims", "shape"),
    [(4, (3, 4)), (4, (0, 4)), ([4], (1, 4)), ([2, 5], (7, 3, 2, 5)), (torch.Size([3]), (2, 2, 3))],
    ids=str,
)
def test_output_and_gradients_follow_the_equation(dims, shape) -> None:
    module = randomized(dims, torch.float64)
    weight, bias = module.parameters()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = equation(x, weight, bias, weight.dim())
    actual = module(x)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, [x, weight, bias], upstream)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [x, weight, bias], upstream))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)], ids=["fp32", "bf16"]
)
def test_low_precision_stays_near_double(dtype, tolerance) -> None:
    module = randomized(16, dtype)
    x = torch.randn(9, 16, dtype=dtype)
    weight, bias = (p.double() for p in module.parameters())
    expected = equation(x.double(), weight, bias, 1)
    actual = module(x)
    assert actual.dtype == dtype
    assert (actual.double() - expected).norm() < tolerance * expected.norm()


def test_second_derivatives() -> None:
    module = randomized(3, torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


def test_scale_of_the_input_does_not_reach_the_gate() -> None:
    module = SwishLayerNorm(8)
    x = torch.randn(4, 8)
    torch.testing.assert_close(module(100 * x), 100 * module(x), rtol=1e-3, atol=1e-3)


def test_state_has_the_names_of_the_api_and_comes_back() -> None:
    module, other = randomized([3, 2], torch.float32), SwishLayerNorm([3, 2])
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    assert shapes == {"norm.0.weight": (3, 2), "norm.0.bias": (3, 2)}
    other.load_state_dict(module.state_dict())
    x = torch.randn(4, 3, 2)
    assert torch.equal(other(x), module(x))


def test_meta_device() -> None:
    module = SwishLayerNorm(4, device=torch.device("meta"))
    assert all(p.is_meta for p in module.parameters())
    assert module(torch.empty(3, 4, device="meta")).shape == (3, 4)


def test_wrong_arguments_are_errors() -> None:
    expected = r"`input` should have shape \(\*, 2, 5\), as `input_dims`. Received \(5, 2\)"
    with pytest.raises(ValueError, match=expected):
        SwishLayerNorm([2, 5])(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="`input_dims` should name at least one dimension"):
        SwishLayerNorm([])
    with pytest.raises(ValueError, match=r"`input_dims` should be at least 1. Received 0"):
        SwishLayerNorm([2, 0])
    with pytest.raises(TypeError, match=r"`input_dims` should be an integer. Received 1.5"):
        SwishLayerNorm(1.5)


def test_seed_example() -> None:
    sln = SwishLayerNorm(100)
    assert sln(torch.randn(3, 100)).shape == (3, 100)
