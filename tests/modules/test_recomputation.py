"""A forward pass inside a backward pass is known as such, however it comes to run there."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from torchrec.modules._recomputation import is_recomputation


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_runs_a_pass_twice(reentrant):
    passes = []

    def region(x):
        passes.append(is_recomputation())
        return x.sin().sin()

    x = torch.ones(2, requires_grad=True)
    output = checkpoint(region, x, use_reentrant=reentrant)
    assert passes == [False]
    output.sum().backward()
    assert passes == [False, True]
    assert not is_recomputation()


def test_checkpoints_in_checkpoints():
    passes = []

    def inner(x):
        passes.append(is_recomputation())
        return x.sin().sin()

    def outer(x):
        return checkpoint(inner, x.sin(), use_reentrant=False).sin()

    x = torch.ones(2, requires_grad=True)
    checkpoint(outer, x, use_reentrant=False).sum().backward()
    assert passes == [False, True, True]


def test_layers_that_run_their_forward_pass_again():
    passes = []

    class Reversible(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            passes.append(is_recomputation())
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            passes.append(is_recomputation())
            return grad * ctx.saved_tensors[0].cos()

    Reversible.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert passes == [False, True]


def test_errors_of_a_backward_pass_leave_nothing_behind():
    x = torch.ones(2, requires_grad=True)
    output = x * 2

    def fail(grad):
        assert is_recomputation()
        raise ValueError("stop")

    output.register_hook(fail)
    with pytest.raises(ValueError, match="stop"):
        output.sum().backward()
    assert not is_recomputation()


def test_a_compiled_pass_is_none():
    def region(x):
        return x * 2 if is_recomputation() else x * 3

    compiled = torch.compile(region, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)).item() == 3
    torch._dynamo.reset()
