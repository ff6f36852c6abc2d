"""batch_norm against PyTorch's on one thread, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from torchrec.ops.batch_norm import batch_norm
from torchrec.threads import using_threads

Results = dict[str, Tensor]


@pytest.fixture(params=[1, 2, 3], ids=["one_thread", "two_threads", "three_threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with using_threads(request.param):
        yield request.param


def results(norm: object, rows: int, columns: int) -> Results:
    """Return output, running values and gradients for random numbers."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    x, weight, bias = (
        draw(*shape).requires_grad_() for shape in ((rows, columns), (columns,), (columns,))
    )
    mean, var = draw(columns), draw(columns).abs()
    assert callable(norm)
    y = norm(x, mean, var, weight, bias, True, 0.1, 1e-5)
    (y * draw(rows, columns)).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    return {
        "y": y, "mean": mean, "var": var, "x": x.grad, "weight": weight.grad, "bias": bias.grad
    }  # fmt: skip


@pytest.mark.parametrize("rows", [2, 129, 4096])
@pytest.mark.parametrize("columns", [1, 33, 400])
def test_the_number_of_threads_changes_no_bit(threads: int, rows: int, columns: int) -> None:
    with using_threads(1):
        expected = results(functional.batch_norm, rows, columns)
    found = results(batch_norm, rows, columns)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_evaluation_goes_by_the_running_values(threads: int) -> None:
    x, mean, var = torch.tensor([[3.0, 5.0]]), torch.tensor([1.0, 5.0]), torch.tensor([4.0, 1.0])
    y = batch_norm(x, mean, var, torch.ones(2), torch.ones(2), False, 0.1, 0.0)
    torch.testing.assert_close(y, torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(mean, torch.tensor([1.0, 5.0]))


def test_second_derivatives(threads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 2), (2,), (2,))
    )
    apply = lambda *given: batch_norm(given[0], None, None, *given[1:], True, 0.1, 1e-3)  # noqa: E731
    assert torch.autograd.gradcheck(apply, (x, weight, bias))
    assert torch.autograd.gradgradcheck(apply, (x, weight, bias))
    frozen = weight.detach()
    assert torch.autograd.gradgradcheck(lambda x: apply(x, frozen, bias.detach()), (x,))


def test_second_derivatives_where_weights_are_made_of_the_input(threads: int) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [4.0, -1.0]], dtype=torch.float64, requires_grad=True)
    found = []
    for of in (batch_norm, functional.batch_norm):
        y = of(x, None, None, weight=x[0], bias=x[1], training=True, momentum=0.1, eps=1e-3)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append([first, *torch.autograd.grad(first.square().sum(), x)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
