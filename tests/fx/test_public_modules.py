"""Every public module of the package, traced: no module can be left out."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchrec.fx
from tests.fx.dense_samples import DENSE, Sample
from tests.fx.sparse_samples import CLOCKS, SPARSE
from torchrec.modules.mc_modules import ManagedCollisionModule
from torchrec.quant.collections import QuantizedCollection

# PyTorch's own tracing warns of its own insides.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

SAMPLES = DENSE | SPARSE | CLOCKS
MODELS = {
    n: s for n, s in SAMPLES.items() if type(s.make()).__module__.startswith("torchrec.models")
}
MAPS = {
    name: sample
    for name, sample in SPARSE.items()
    if any(isinstance(module, ManagedCollisionModule) for module in sample.make().modules())
    and not isinstance(sample.make(), QuantizedCollection)  # whose maps learn no more
}
each_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
each_tracer = pytest.mark.parametrize(
    "trace", [torch.fx.symbolic_trace, torchrec.fx.symbolic_trace], ids=["torch", "torchrec"]
)


def public_modules() -> Iterator[type[nn.Module]]:
    """Yield the classes of modules in public files that can be called, but those that other ranks have a part in."""
    for found in pkgutil.walk_packages(torchrec.__path__, "torchrec."):
        if any(part.startswith("_") or part == "distributed" for part in found.name.split(".")):
            continue
        for name, cls in vars(importlib.import_module(found.name)).items():
            if (
                inspect.isclass(cls)
                and issubclass(cls, nn.Module)
                and cls.__module__ == found.name
                and not name.startswith("_")
                and not inspect.isabstract(cls)
                and cls.forward is not nn.Module.forward
            ):
                yield cls


def test_every_public_module_is_here() -> None:
    sampled = {type(sample.make()) for sample in SAMPLES.values()}
    missing = [f"{c.__module__}.{c.__name__}" for c in public_modules() if c not in sampled]
    assert not missing, "give each a sample in tests/fx"


@each_sample
def test_every_attribute_can_be_read(sample) -> None:
    """``torch.jit.trace`` reads them all, and so does ``inspect.getmembers``."""
    module = sample.make()
    assert {name for name, _ in inspect.getmembers(module)} >= vars(module).keys()


def tensors_of(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def train_step(run: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    """Run forward and backward, and return the outputs."""
    torch.manual_seed(7)
    outputs = tensors_of(run(*inputs))
    trained = [output for output in outputs if output.requires_grad]
    if trained:
        sum(output.square().sum() for output in trained).backward()
    return [output.detach() for output in outputs]


def assert_same_state(module: nn.Module, twin: nn.Module) -> None:
    """Compare weights, buffers, and gradients."""
    torch.testing.assert_close(module.state_dict(), twin.state_dict())
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) is (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)


def assert_same(traced: nn.Module, module: nn.Module, sample: Sample) -> None:
    """Train what was traced beside a copy of the module, at several batch sizes."""
    twin = copy.deepcopy(module)
    for batch in (2, 9, 6):
        inputs = sample.inputs(batch)
        expected = train_step(twin, copy.deepcopy(inputs))
        torch.testing.assert_close(train_step(traced, inputs), expected)
        assert_same_state(module, twin)


@each_sample
@each_tracer
def test_traced(sample, trace) -> None:
    module = sample.make()
    traced = trace(module)
    traced.graph.lint()
    assert_same(traced, module, sample)


@each_sample
def test_what_was_traced_can_be_traced_again_and_interpreted(sample) -> None:
    module = sample.make().eval()
    inputs = sample.inputs(4)
    expected = tensors_of(module(*copy.deepcopy(inputs)))
    traced = torch.fx.symbolic_trace(module)
    for run in (torch.fx.symbolic_trace(traced), torch.fx.Interpreter(traced).run):
        torch.testing.assert_close(tensors_of(run(*copy.deepcopy(inputs))), expected)


@pytest.mark.parametrize("sample", MODELS.values(), ids=MODELS)
def test_models_can_be_pickled_once_they_are_traced(sample) -> None:
    module = sample.make().eval()
    inputs = sample.inputs(4)
    again = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(module)))
    expected = tensors_of(module(*copy.deepcopy(inputs)))
    torch.testing.assert_close(tensors_of(again(*inputs)), expected)


@pytest.mark.parametrize(
    "sample",
    [pytest.param(s, marks=[pytest.mark.slow] * (name in MODELS)) for name, s in SPARSE.items()],
    ids=SPARSE,
)
def test_exported(sample) -> None:
    """Dense modules are in ``test_dense.py``, models with any number of ids in ``models/test_tracing.py``."""
    module = sample.make().eval()
    others = torch.export.AdditionalInputs()
    for batch in (9, 12):
        others.add(sample.inputs(batch))
    program = torch.export.export(module, sample.inputs(5), dynamic_shapes=others).module()
    for batch in (2, 7):
        inputs = sample.inputs(batch)
        expected = tensors_of(module(*copy.deepcopy(inputs)))
        torch.testing.assert_close(tensors_of(program(*inputs)), expected)


@pytest.mark.parametrize("sample", CLOCKS.values(), ids=CLOCKS)
def test_what_asks_for_the_time_is_not_exported(sample) -> None:
    with pytest.raises(NotImplementedError, match="should be asked for outside"):
        torch.export.export(sample.make(), sample.inputs(5))


@pytest.mark.parametrize("sample", MAPS.values(), ids=MAPS)
def test_maps_that_learn_are_not_exported(sample) -> None:
    with pytest.raises(NotImplementedError, match="should be in evaluation mode to be exported"):
        torch.export.export(sample.make(), sample.inputs(5))


@pytest.mark.parametrize("sample", SPARSE.values(), ids=SPARSE)
def test_copies_of_what_was_traced_go_their_own_way(sample) -> None:
    module = sample.make()
    traced = torch.fx.symbolic_trace(module)
    before = copy.deepcopy(module.state_dict())
    other = copy.deepcopy(traced)
    inputs = sample.inputs(4)
    expected = train_step(copy.deepcopy(module), copy.deepcopy(inputs))
    torch.testing.assert_close(train_step(other, inputs), expected)
    torch.testing.assert_close(module.state_dict(), before)
