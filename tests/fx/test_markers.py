"""Marks in graphs, and what programs that trace ask for besides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchrec.fx import Tracer, symbolic_trace
from torchrec.fx.tracer import is_fx_tracing
from torchrec.fx.utils import (
    assert_fx_safe,
    dmp_fx_trace_forward,
    fake_range,
    fx_marker,
    is_marker_node,
)

pytestmark = pytest.mark.once


class Marked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        fx_marker("begin", x)
        y = x * 2
        fx_marker("end", y)
        return y


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, symbolic_trace], ids=["torch", "ours"])
def test_marks_are_found_by_name_and_do_nothing(trace) -> None:
    traced = trace(Marked())
    for name, count in (("begin", 1), ("end", 1), ("other", 0)):
        found = [node for node in traced.graph.nodes if is_marker_node(node, name)]
        assert len(found) == count
    assert traced(torch.tensor([3.0])).tolist() == [6.0]
    assert fx_marker("begin", torch.ones(1)) is None


class Checked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert_fx_safe(x.sum() > 0, "positive")
        return x


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, symbolic_trace], ids=["torch", "ours"])
def test_conditions_are_checked_but_not_while_traced(trace) -> None:
    traced = trace(Checked())
    assert traced(-torch.ones(2)).tolist() == [-1.0, -1.0]
    with pytest.raises(AssertionError, match="positive"):
        Checked()(-torch.ones(2))


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + int(is_fx_tracing())


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def test_modules_are_kept_whole_by_the_name_of_their_class() -> None:
    def calls(**options) -> list[object]:
        graph = symbolic_trace(Outer(), **options).graph
        return [node.target for node in graph.nodes if node.op == "call_module"]

    assert calls() == []
    assert calls(leaf_modules=["Inner"]) == ["inner"]
    assert calls(leaf_modules=["inner", "Outer"]) == []
    assert symbolic_trace(Outer(), leaf_modules=["Inner"])(torch.tensor(1.0)) == 2


def test_code_can_ask_whether_it_is_traced() -> None:
    assert symbolic_trace(Outer())(torch.tensor(1.0)) == 4
    assert torch.fx.symbolic_trace(Outer())(torch.tensor(1.0)) == 2
    assert Outer()(torch.tensor(1.0)) == 2
    with pytest.raises(RuntimeError, match="stop"):
        symbolic_trace(_stopped)
    assert not is_fx_tracing()


def _stopped(x: Tensor) -> Tensor:
    raise RuntimeError("stop")


def test_arguments_may_be_given() -> None:
    def scaled(x: Tensor, by: int = 1) -> Tensor:
        return x * by if by > 1 else x

    traced = symbolic_trace(scaled, concrete_args={"by": 3})
    assert traced(torch.tensor(2.0), 3) == 6
    with pytest.raises(AssertionError, match="by has been specialized to have value 3"):
        traced(torch.tensor(2.0), 4)


def test_wrappers_are_traced_by_what_they_run() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Outer()

    targets = [node.target for node in dmp_fx_trace_forward(Wrapper(), Tracer(["Inner"])).nodes]
    assert "inner" in targets
    with pytest.raises(TypeError, match=r"`dmp` should be a wrapper with the .* Received Outer\."):
        dmp_fx_trace_forward(Outer(), Tracer())


def test_a_range_of_no_source() -> None:
    assert isinstance(fake_range(), torch._C._jit_tree_views.SourceRange)
