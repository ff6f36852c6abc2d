"""What code asks while it is traced, in each way of tracing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec.pt2 import checks

QUESTIONS = (
    checks.is_torchdynamo_compiling,
    checks.is_non_strict_exporting,
    checks.is_pt2_compiling,
)


class Asks(torch.nn.Module):
    """Adds a power of ten for each question that is answered with yes."""

    def forward(self, x: Tensor) -> Tensor:
        for power, ask in enumerate(QUESTIONS):
            if ask():
                x = x + 10**power
        return x


def traced(how: str) -> float:
    x = torch.zeros(2)
    if how == "eager":
        return Asks()(x)[0].item()
    if how == "compile":
        return torch.compile(Asks(), backend="eager", fullgraph=True)(x)[0].item()
    return torch.export.export(Asks(), (x,), strict=how == "strict").module()(x)[0].item()


@pytest.mark.parametrize(
    ("how", "answers"), [("eager", 0), ("compile", 101), ("strict", 101), ("non-strict", 110)]
)
def test_questions(how, answers):
    assert traced(how) == answers


def test_the_path_for_tracing_can_be_taken_without():
    assert checks.get_use_torchdynamo_compiling_path() is False
    checks.set_use_torchdynamo_compiling_path(True)
    try:
        assert checks.get_use_torchdynamo_compiling_path() is True
        assert traced("eager") == 101
    finally:
        checks.set_use_torchdynamo_compiling_path(False)
    assert traced("eager") == 0


class Slices(torch.nn.Module):
    """Takes the values between two numbers that come with the input."""

    def forward(self, values: Tensor, ends: Tensor) -> Tensor:
        start, stop = checks.pt2_checks_all_is_size(ends.tolist())
        checks.pt2_checks_tensor_slice(values, start, stop)
        if checks.pt2_guard_or_false(start == stop):
            return values[:0]
        if checks.pt2_guard_or_true(stop > 0):
            return checks.pt2_check_size_nonzero(values)[start:stop]
        return values


@pytest.mark.parametrize("how", ["eager", "compile", "export"])
def test_facts_let_a_slice_be_traced(how):
    module, values = Slices(), torch.arange(6)
    run = {
        "eager": lambda: module,
        "compile": lambda: torch.compile(module, backend="eager", fullgraph=True),
        "export": lambda: torch.export.export(module, (values, torch.tensor([1, 3]))).module(),
    }[how]()
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        for start, stop in ((1, 3), (0, 6), (2, 4)):
            assert run(values, torch.tensor([start, stop])).tolist() == list(range(start, stop))


def test_facts_cost_nothing_outside_of_tracing():
    x = torch.zeros(0)
    assert checks.pt2_check_size_nonzero(x) is x
    assert checks.pt2_checks_all_is_size([-1]) == [-1]
    checks.pt2_checks_tensor_slice(x, 3, 2)
    assert checks.pt2_guard_or_true(False) is False
    assert checks.pt2_guard_or_false(True) is True


def test_facts_that_do_not_hold_are_refused_while_tracing():
    class Wrong(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            checks.pt2_checks_tensor_slice(x, 1, 9)
            return x

    with pytest.raises(RuntimeError):
        torch.export.export(Wrong(), (torch.zeros(4),))
