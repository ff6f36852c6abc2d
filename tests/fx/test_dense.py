"""Dense modules and interactions: traced, exported, and scripted once they are traced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchrec.fx
from tests.fx.dense_samples import DENSE, Sample

# PyTorch warns of TorchScript, and its own tracing of its own insides.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

each_module = pytest.mark.parametrize("sample", DENSE.values(), ids=DENSE)


def assert_same(ours: Callable[..., object], module: nn.Module, sample: Sample) -> None:
    """Compare outputs and gradients at batch sizes that were not traced."""
    for batch in (2, 7, 40):
        inputs = sample.inputs(batch)
        expected, received = module(*inputs), ours(*inputs)
        torch.testing.assert_close(received, expected)
        parameters = list(module.parameters())
        if parameters:
            torch.testing.assert_close(
                torch.autograd.grad(received.square().sum(), parameters),
                torch.autograd.grad(expected.square().sum(), parameters),
            )


@each_module
@pytest.mark.parametrize(
    "trace", [torch.fx.symbolic_trace, torchrec.fx.symbolic_trace], ids=["torch", "torchrec"]
)
def test_traced(sample, trace) -> None:
    module = sample.make()
    assert_same(trace(module), module, sample)


@each_module
def test_scripted_once_it_is_traced(sample) -> None:
    module = sample.make()
    assert_same(torch.jit.script(torch.fx.symbolic_trace(module)), module, sample)


@each_module
def test_exported_with_any_batch(sample) -> None:
    module = sample.make()
    inputs = sample.inputs(5)
    batch = torch.export.Dim("batch")
    shapes = torch.utils._pytree.tree_map(lambda _: {0: batch}, inputs)
    program = torch.export.export(module, inputs, dynamic_shapes=shapes).module()
    for size in (2, 7, 40):
        inputs = sample.inputs(size)
        torch.testing.assert_close(program(*inputs), module(*inputs))


@each_module
def test_recorded_by_the_tracer_of_torchscript(sample) -> None:
    module = sample.make()
    assert_same(torch.jit.trace(module, sample.inputs(5)), module, sample)


def test_modules_that_have_seen_no_input_are_refused() -> None:
    from torchrec.modules.crossnet import CrossNet

    with pytest.raises(ValueError, match="`in_features` should be known before the module is tra"):
        torch.fx.symbolic_trace(CrossNet(num_layers=1))


def test_the_graph_of_an_interaction_holds_its_operator() -> None:
    graph = torch.fx.symbolic_trace(DENSE["InteractionArch"].make()).graph
    assert torch.ops.rowwise.dot_interaction in [node.target for node in graph.nodes]


def test_inputs_are_checked_as_before_where_nothing_is_traced() -> None:
    module = DENSE["MLP"].make()
    torch.fx.symbolic_trace(module)
    with pytest.raises(ValueError, match=r"`input` should have shape \(\*, 4\)"):
        module(torch.ones(2, 3))
