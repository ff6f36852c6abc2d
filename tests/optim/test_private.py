"""Each private name of PyTorch that optimizers use is there and does what they think."""

import pytest
import torch
from torch import nn

from torchrec.optim import _private, in_backward_optimizer_filter


def test_backward_passes_have_numbers():
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: seen.append(_private.backward_pass_number()))
    y.register_hook(lambda _: seen.append(_private.backward_pass_number()))
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert [number == seen[0] for number in seen] == [True, True, False, False]
    assert -1 not in seen
    assert _private.backward_pass_number() == -1


def test_callbacks_run_when_all_gradients_are_there_in_their_order():
    order = []
    x = torch.ones(1, requires_grad=True)
    y = (x * 2) * 3

    def queue(_):
        _private.at_end_of_backward_pass(lambda: order.append(("first", x.grad.item())))
        _private.at_end_of_backward_pass(lambda: order.append(("second", x.grad.item())))
        order.append(("in the pass", x.grad))

    y.register_hook(queue)
    y.sum().backward()
    assert order == [("in the pass", None), ("first", 6.0), ("second", 6.0)]


def test_an_error_of_a_callback_is_one_of_the_pass():
    def fail():
        raise KeyError("at the end")

    y = torch.ones(1, requires_grad=True) * 2
    y.register_hook(lambda _: _private.at_end_of_backward_pass(fail))
    with pytest.raises(KeyError, match="at the end"):
        y.sum().backward()


def test_a_pass_that_fails_calls_and_keeps_no_callback():
    class Called:
        alive = 0

        def __init__(self):
            Called.alive += 1

        def __del__(self):
            Called.alive -= 1

        def __call__(self):
            raise AssertionError

    def queue_and_fail(_):
        _private.at_end_of_backward_pass(Called())
        raise KeyError("in the pass")

    y = torch.ones(1, requires_grad=True) * 2
    y.register_hook(queue_and_fail)
    with pytest.raises(KeyError, match="in the pass"):
        y.sum().backward()
    assert Called.alive == 0


def test_callbacks_are_refused_outside_of_a_pass():
    with pytest.raises(RuntimeError, match="during backward pass"):
        _private.at_end_of_backward_pass(lambda: None)


def test_rows_of_gradients_that_are_not_coalesced():
    grad = torch.sparse_coo_tensor(
        [[3, 1, 3]], [[1.0], [2.0], [4.0]], (5, 1), check_invariants=True
    )
    rows, values = _private.row_gradients(grad)
    assert rows.tolist() == [3, 1, 3]
    assert values.tolist() == [[1.0], [2.0], [4.0]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_parameters_that_torch_updates_in_the_backward_pass():
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = nn.Linear(2, 1)
    _apply_optimizer_in_backward(torch.optim.SGD, [model.bias], {"lr": 0.1})
    assert _private.has_torchs_optimizer_in_backward(model.bias)
    assert not _private.has_torchs_optimizer_in_backward(model.weight)
    named = list(in_backward_optimizer_filter(model.named_parameters()))
    assert [name for name, _ in named] == ["weight"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_parameter_that_takes_the_place_of_one_that_torch_updates(frozen):
    from torch.distributed.optim import _apply_optimizer_in_backward

    former, other = (nn.Parameter(torch.ones(1, device="meta")) for _ in range(2))
    _apply_optimizer_in_backward(torch.optim.SGD, [former], {"lr": 0.25})
    _apply_optimizer_in_backward(torch.optim.Adam, [former], {"lr": 0.5}, register_hook=False)
    param = nn.Parameter(torch.ones(1), requires_grad=not frozen)
    _private.pass_on_torchs_optimizer_in_backward(other, param)
    assert not _private.has_torchs_optimizer_in_backward(param)
    for _ in range(2):  # the second time, it has them
        _private.pass_on_torchs_optimizer_in_backward(former, param)
    sgd, adam = param._in_backward_optimizers
    assert (type(sgd), type(adam)) == (torch.optim.SGD, torch.optim.Adam)
    assert [o.param_groups[0]["params"][0] is param for o in (sgd, adam)] == [True, True]
    assert param.requires_grad is not frozen


def test_parameters_whose_gradients_ranks_add_up(tmp_path):
    """One rank alone adds nothing up; several do, see the tests of these."""
    layer = nn.Linear(1, 1)
    assert _private.reduced_by_ddp(-2) == {}
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        around = nn.parallel.DistributedDataParallel(layer)
        assert around.process_group.size() == 1
        assert set(around._module_parameters) == set(layer.parameters())
        assert _private.reduced_by_ddp(-3) == {}
    finally:
        torch.distributed.destroy_process_group()
