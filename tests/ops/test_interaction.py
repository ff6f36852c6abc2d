"""dot_interaction against its equation, sample by sample and pair by pair."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.interaction import dot_interaction, reference, schema

SHAPES = {  # B, F, D
    "no_samples": (0, 3, 4),
    "one_sample": (1, 2, 3),
    "no_features": (4, 0, 5),
    "one_feature": (3, 1, 16),
    "criteo": (5, 26, 64),
    "odd": (7, 5, 13),
    "one_column": (3, 4, 1),
    "no_columns": (3, 4, 0),
    "several_chunks": (3, 4, 64 * 2 + 16 + 5),
    "whole_chunks": (2, 3, 128),
    "many_features": (2, 90, 8),
    "several_tasks": (70, 3, 32),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def equation(dense: Tensor, sparse: Tensor) -> Tensor:
    """(x_0, x_0 . x_1, ..., x_{F-1} . x_F)"""
    rows = []
    for b in range(dense.size(0)):
        vectors = [dense[b], *sparse[b]]
        dots = [(x * y).sum() for x, y in itertools.combinations(vectors, 2)]
        rows.append(torch.cat([dense[b], torch.stack(dots)]) if dots else dense[b])
    width = dense.size(1) + sparse.size(1) * (sparse.size(1) + 1) // 2
    return torch.stack(rows) if rows else dense.new_zeros(0, width) + dense.sum() + sparse.sum()


def inputs(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    samples, features, dim = shape
    dense = torch.randn(samples, dim, dtype=dtype, requires_grad=True)
    return [dense, torch.randn(samples, features, dim, dtype=dtype, requires_grad=True)]


def gradients(output: Tensor, wrt: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, wrt, upstream, allow_unused=True, materialize_grads=True)


TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2**-7, 0.05),
    torch.float16: (2**-10, 0.01),
}


@each_shape
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items(), ids=str)
def test_output_and_gradients_follow_the_equation(shape, dtype, tolerance) -> None:
    rtol, atol = tolerance
    narrow = inputs(shape, dtype)
    exact = [x.detach().double().requires_grad_() for x in narrow]
    actual, expected = dot_interaction(*narrow), equation(*exact)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)
    with torch.no_grad():  # on the way past the dispatcher
        assert torch.equal(dot_interaction(*narrow), actual)
    upstream = torch.randn_like(actual)
    got = gradients(actual, narrow, upstream)
    for mine, theirs in zip(got, gradients(expected, exact, upstream.double()), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=atol)


@given(samples=st.integers(0, 4), features=st.integers(0, 9), dim=st.integers(0, 40))
def test_kernel_agrees_with_the_reference(samples, features, dim) -> None:
    dense, sparse = (x.detach() for x in inputs((samples, features, dim), torch.float32))
    expected = reference.dot_interaction(dense, sparse)
    torch.testing.assert_close(dot_interaction(dense, sparse), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        schema.dot_interaction_grad(grad, dense, sparse),
        reference.dot_interaction_grad(grad, dense, sparse),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_wider_of_two_dtypes_counts() -> None:
    dense, sparse = inputs((3, 2, 4), torch.float32)
    output = dot_interaction(dense.bfloat16(), sparse)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, equation(dense.bfloat16().float(), sparse))


def test_views_are_read_as_they_are() -> None:
    both = torch.randn(5, 4, 6)
    dense, sparse = both[:, 0], both[:, 1:].transpose(0, 1).contiguous().transpose(0, 1)
    assert not dense.is_contiguous()
    assert not sparse.is_contiguous()
    torch.testing.assert_close(dot_interaction(dense, sparse), equation(dense, sparse))


def test_second_derivatives() -> None:
    assert torch.autograd.gradcheck(dot_interaction, inputs((2, 3, 4)))
    assert torch.autograd.gradgradcheck(dot_interaction, inputs((2, 3, 4)))


def test_gradient_of_one_input_alone() -> None:
    dense, sparse = inputs((3, 2, 4))
    (grad,) = torch.autograd.grad(dot_interaction(dense.detach(), sparse).sum(), sparse)
    (expected,) = torch.autograd.grad(equation(dense.detach(), sparse).sum(), sparse)
    torch.testing.assert_close(grad, expected)


def test_nan_and_infinity_stay_with_their_sample() -> None:
    dense, sparse = (x.detach() for x in inputs((3, 2, 4), torch.float32))
    sparse[1, 0, 2] = float("nan")
    dense[2, 0] = float("inf")
    output = dot_interaction(dense, sparse)
    assert output[0].isfinite().all()
    torch.testing.assert_close(output, equation(dense, sparse), equal_nan=True)


WRONG = {
    "dense": ((2, 3, 4), (2, 5, 4), r"`dense_features` should have shape \(B, D\).*\(2, 3, 4\)"),
    "batch": ((2, 4), (3, 5, 4), r"with B=2 and D=4, as `dense_features`. Received \(3, 5, 4\)"),
    "dim": ((2, 4), (2, 5, 3), r"with B=2 and D=4, as `dense_features`. Received \(2, 5, 3\)"),
    "flat": ((2, 4), (2, 20), r"`sparse_features` should have shape \(B, F, D\).*\(2, 20\)"),
}


@pytest.mark.parametrize(("dense", "sparse", "message"), WRONG.values(), ids=WRONG)
def test_wrong_shapes(dense, sparse, message) -> None:
    with pytest.raises(ValueError, match=message):
        dot_interaction(torch.zeros(dense), torch.zeros(sparse))


BITS = """
import json, torch
from torchrec.ops.interaction import dot_interaction
torch.manual_seed(0)
dense, sparse = torch.randn(70, 77, requires_grad=True), torch.randn(70, 5, 77, requires_grad=True)
sums = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    output = dot_interaction(dense, sparse)
    grads = torch.autograd.grad(output, [dense, sparse], torch.cos(output.detach()))
    sums.append([x.detach().view(torch.int32).long().sum().item() for x in (output, *grads)])
print(json.dumps(sums))
"""


@pytest.mark.slow
@pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")
def test_bits_do_not_depend_on_threads_or_instruction_set() -> None:
    seen = []
    for isa in ("baseline", "avx2", "avx512"):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ROWWISE_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", BITS], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        seen += json.loads(done.stdout)
    assert all(bits == seen[0] for bits in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_vectors_without_features_are_refused(dtype: torch.dtype, device: str) -> None:
    dense, flat = (
        torch.zeros(2, 3, dtype=dtype, device=device),
        torch.zeros(12, dtype=dtype, device=device),
    )
    with pytest.raises(ValueError, match=r"`sparse` \[B, F, D\], of one dtype. Received \[2, 3\]"):
        schema.dot_interaction(dense, flat)
