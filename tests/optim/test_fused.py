import pytest
import torch
from torch import nn

from torchrec.optim import (
    CombinedOptimizer,
    EmptyFusedOptimizer,
    FusedOptimizer,
    FusedOptimizerModule,
    KeyedOptimizerWrapper,
)


class Tables(FusedOptimizer):
    def step(self, closure=None):
        return None

    def zero_grad(self, set_to_none=False):
        return None


def test_fused_optimizers_keep_names_state_and_rates():
    table = nn.Parameter(torch.zeros(2))
    state = {table: {"sum": torch.zeros(2)}}
    group = {"params": [table], "lr": 0.5}
    optimizer = Tables({"t": table}, state, [group])
    optimizer.load_state_dict({"state": {"t": {"sum": torch.ones(2)}}})
    assert state[table]["sum"].tolist() == [1.0, 1.0]
    optimizer.init_state()
    assert table.grad is None
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == pytest.approx(0.05)
    with pytest.raises(TypeError, match="abstract"):
        FusedOptimizer({}, {}, [])


def test_empty_fused_optimizer():
    optimizer = EmptyFusedOptimizer()
    optimizer.zero_grad()
    assert optimizer.step() is None
    assert optimizer.step(lambda: 3.0) == 3.0
    optimizer.load_state_dict(optimizer.state_dict())
    weight = nn.Parameter(torch.ones(2))
    other = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=0.1))
    assert list(CombinedOptimizer([optimizer, other]).params) == ["w"]


def test_fused_optimizer_module_is_abstract():
    class Module(nn.Module, FusedOptimizerModule):
        pass

    with pytest.raises(TypeError, match="fused_optimizer"):
        Module()
