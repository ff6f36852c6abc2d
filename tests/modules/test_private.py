"""Each private name of PyTorch that modules use is there and does what they think."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrec.modules import _private


def test_assertions_of_a_device():
    _private.assert_later(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="not so"):
        _private.assert_later(torch.tensor(False), "not so")


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_of_a_module(register):
    module = nn.Linear(1, 1)
    assert not _private.has_hooks(module)
    handle = register(module, lambda *_: None)
    assert _private.has_hooks(module)
    handle.remove()
    assert not _private.has_hooks(module)


def test_hooks_of_saved_tensors():
    assert _private.saving_hooks(False) is None
    with torch.autograd.graph.save_on_cpu():
        assert _private.saving_hooks(False) is not None
    with torch.autograd.graph.disable_saved_tensors_hooks("none"):
        assert _private.saving_hooks(False) is None


def test_functions_outside_graphs():
    compiling = []
    inner = _private.outside_graphs(lambda: compiling.append(torch.compiler.is_compiling()))

    def region(x):
        inner()
        return x + 1

    assert torch.compile(region, backend="eager")(torch.ones(1)).item() == 2
    assert compiling == [False]
    torch._dynamo.reset()


def test_constants_of_graphs():
    made = []

    @_private.constant_in_graphs
    def constant(number):
        made.append(number)
        return number * 2

    def region(x):
        return x + constant(3)

    compiled = torch.compile(region, backend="eager", fullgraph=True)
    assert [compiled(torch.ones(1)).item() for _ in range(3)] == [7, 7, 7]
    assert made == [3]
    torch._dynamo.reset()


def test_parameters_and_children_of_a_module():
    layer = nn.Linear(1, 1)
    pair = nn.Sequential(layer, layer)
    assert _private.children_by_name(pair) == {"0": layer, "1": layer}
    weights = _private.parameters_by_name(layer)
    layer.weight = nn.Parameter(torch.zeros(1, 1))
    assert weights["weight"] is layer.weight
    assert list(weights) == ["weight", "bias"]


def test_parameters_of_a_model_whose_gradients_ranks_add_up(tmp_path):
    class Asks(nn.Linear):
        def forward(self, x):
            seen.append(_private.reduced_by_ddp())
            return super().forward(x)

    seen = []
    layer = Asks(1, 1)
    layer(torch.ones(1, 1))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        layer(torch.ones(1, 1))
        nn.parallel.DistributedDataParallel(layer)(torch.ones(1, 1))
        layer(torch.ones(1, 1))
    finally:
        torch.distributed.destroy_process_group()
    assert [len(params) for params in seen] == [0, 0, 2, 0]
    assert seen[2][0] is layer.weight


def test_lazy_modules_await_their_first_pass():
    module = nn.LazyLinear(2)
    assert _private.awaits_first_pass(module)
    module(torch.ones(1, 3))
    assert not _private.awaits_first_pass(module)
    assert not _private.awaits_first_pass(nn.Linear(1, 1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # that one rank alone is not cut up
def test_a_parameter_that_is_part_of_one_that_is_cut_up(tmp_path):
    from torch.distributed.fsdp import FullyShardedDataParallel

    layer, other = nn.Linear(1, 1), nn.Linear(1, 1)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        FullyShardedDataParallel(layer, use_orig_params=True, device_id=torch.device("cpu"))
    finally:
        torch.distributed.destroy_process_group()
    assert _private.is_cut_up_by_fsdp(layer.weight) is True
    assert _private.is_cut_up_by_fsdp(other.weight) is False


def test_ranks_of_the_model_whose_forward_pass_it_is(tmp_path):
    class Asks(nn.Linear):
        def forward(self, x):
            around = _private.ddp_around()
            seen.append(1 if around is None else around.process_group.size())
            return super().forward(x)

    seen = []
    layer = Asks(1, 1)
    layer(torch.ones(1, 1))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(layer)(torch.ones(1, 1))
    finally:
        torch.distributed.destroy_process_group()
    assert seen == [1, 1]
