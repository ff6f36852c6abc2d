import pytest
import torch
from torch import nn

from torchrec.optim import RowWiseAdagrad
from torchrec.optim.rowwise_adagrad import adagrad


def grads(count=4):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(count, 3, 2, generator=generator))


def test_learning_rate_decays():
    weight = torch.ones(3, 2)
    param = nn.Parameter(weight.clone())
    optimizer = RowWiseAdagrad([param], lr=0.5, lr_decay=0.25, eps=0.1)
    total = torch.zeros(3, 1)
    for step, grad in enumerate(grads()):
        param.grad = grad
        optimizer.step()
        total += grad.square().mean(1, keepdim=True)
        weight -= 0.5 / (1 + step * 0.25) * grad / (total.sqrt() + 0.1)
    torch.testing.assert_close(param.detach(), weight)


def test_maximize_is_descent_on_the_negative():
    up, down = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    a, b = RowWiseAdagrad([up], maximize=True), RowWiseAdagrad([down])
    for grad in grads():
        up.grad, down.grad = grad, -grad
        a.step()
        b.step()
    assert torch.equal(up, down)


def test_state_exists_from_the_start_and_can_be_shared():
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = RowWiseAdagrad([param], initial_accumulator_value=0.5)
    state = optimizer.state[param]
    assert state["sum"].tolist() == [[0.5]] * 3
    optimizer.share_memory()
    assert state["sum"].is_shared()
    held = state["sum"]
    param.grad = torch.ones(3, 2)
    optimizer.step()
    assert held.tolist() == [[1.5]] * 3


@pytest.mark.parametrize("shape", [(3, 1), (3,)], ids=str)
def test_function_equals_class(shape):
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = RowWiseAdagrad([param], lr=0.5, weight_decay=0.1, lr_decay=0.2)
    weight, total, step = torch.ones(3, 2), torch.zeros(shape), torch.tensor(0.0)
    for grad in grads():
        param.grad = grad
        optimizer.step()
        adagrad(
            [weight],
            [grad],
            [total],
            [step],
            lr=0.5,
            weight_decay=0.1,
            lr_decay=0.2,
            eps=1e-10,
            maximize=False,
        )
    assert torch.equal(weight, param.detach())
    assert step.item() == 4.0


def test_misfits_are_named():
    options = {"lr": 0.1, "weight_decay": 0.0, "lr_decay": 0.0, "eps": 0.1, "maximize": False}
    weight = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"as long as one another\. Received 1, 0, 1 and 1\."):
        adagrad([weight], [], [torch.zeros(3)], [torch.tensor(0.0)], **options)
    with pytest.raises(
        ValueError, match=r"one number for each of 3 rows\. Received shape \(3, 2\)"
    ):
        adagrad([weight], [weight], [torch.zeros(3, 2)], [torch.tensor(0.0)], **options)
    with pytest.raises(ValueError, match=r"`lr_decay` should be at least 0\. Received -1"):
        RowWiseAdagrad([nn.Parameter(weight)], lr_decay=-1.0)
