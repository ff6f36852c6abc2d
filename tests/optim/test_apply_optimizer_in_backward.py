import copy
import gc

import pytest
import torch
from torch import nn

from torchrec.optim import (
    SGD,
    Adam,
    RowWiseAdagrad,
    apply_optimizer_in_backward,
    in_backward_optimizer_filter,
    owner_of,
    owners,
)
from torchrec.optim.owners import set_owner
from torchrec.optim.table_update import TableUpdate


class Model(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.EmbeddingBag(10, 4, sparse=sparse)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)
        for param in self.parameters():
            param.data = torch.randn(param.shape, generator=generator)

    def forward(self, ids):
        x = self.table(ids)
        return self.second(torch.tanh(self.first(self.first(x))))  # `first` is used twice


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 10, (5, 3), generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("cls", "options", "sparse"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, False),
        (torch.optim.Adam, {"lr": 0.1}, False),
        (SGD, {"lr": 0.1}, True),
        (Adam, {"lr": 0.1}, False),
        (RowWiseAdagrad, {"lr": 0.1}, True),
    ],
)
def test_equals_the_plain_loop(cls, options, sparse):
    inside = Model(sparse)
    plain = copy.deepcopy(inside)
    apply_optimizer_in_backward(cls, inside.parameters(), options)
    optimizer = cls(plain.parameters(), **options)
    for ids in batches(6):
        inside(ids).square().mean().backward()
        optimizer.zero_grad()
        plain(ids).square().mean().backward()
        optimizer.step()
        assert all(param.grad is None for param in inside.parameters())
    for a, b in zip(inside.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_schedulers():
    inside = Model()
    plain = copy.deepcopy(inside)
    apply_optimizer_in_backward(torch.optim.SGD, inside.parameters(), {"lr": 0.1})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    schedulers = [
        torch.optim.lr_scheduler.StepLR(o, 2, 0.5)
        for o in (optimizer, *(owner_of(p).optimizer for p in inside.parameters()))
    ]
    for ids in batches(5):
        inside(ids).square().mean().backward()
        optimizer.zero_grad()
        plain(ids).square().mean().backward()
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for a, b in zip(inside.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulation_in_one_backward_pass_is_one_update():
    inside = Model()
    plain = copy.deepcopy(inside)
    apply_optimizer_in_backward(torch.optim.SGD, inside.parameters(), {"lr": 0.1})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    sum(inside(ids).square().mean() for ids in batches(3)).backward()
    for ids in batches(3):
        plain(ids).square().mean().backward()
    optimizer.step()
    for a, b in zip(inside.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_parameters_stay_until_they_are_thawed():
    model = nn.Linear(2, 1)
    model.weight.requires_grad_(False)
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight, weight)
    assert not torch.equal(model.bias, bias)
    model.weight.requires_grad_(True)
    model(torch.ones(1, 2)).sum().backward()
    torch.testing.assert_close(model.weight.detach(), weight - 0.1)


def test_a_parameter_has_one_optimizer():
    model = nn.Linear(2, 1)
    params = [model.weight, model.weight]
    apply_optimizer_in_backward(torch.optim.SGD, params, {"lr": 0.1})
    apply_optimizer_in_backward(torch.optim.SGD, params, {"lr": 0.1})
    weight = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    torch.testing.assert_close(model.weight.detach(), weight - 0.1)
    with pytest.raises(
        ValueError,
        match=r"should have one optimizer.*SGD with \{'lr': 0\.2\} .*shape \(1, 2\), which has SGD",
    ):
        apply_optimizer_in_backward(torch.optim.SGD, [model.bias, model.weight], {"lr": 0.2})
    assert [n for n, _ in in_backward_optimizer_filter(model.named_parameters())] == ["bias"]


def test_copies_are_ordinary():
    model = nn.Linear(2, 1)
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    twin = copy.deepcopy(model)
    assert len(list(in_backward_optimizer_filter(twin.named_parameters()))) == 2
    twin(torch.ones(1, 2)).sum().backward()
    assert torch.equal(twin.weight, model.weight)
    assert twin.weight.grad is not None


def test_computed_tensors_are_refused():
    with pytest.raises(ValueError, match=r"leaves of the graph.*shape \(2,\) that was computed"):
        apply_optimizer_in_backward(SGD, [nn.Parameter(torch.ones(2)) * 2], {"lr": 0.1})


class Watched:
    """Stands for the collection of a table."""

    bound = 0

    def bind(self):
        self.bound += 1


def table():
    param, collection = nn.Parameter(torch.ones(2, 2)), Watched()
    update = TableUpdate("t")
    update.own(param)
    update.join(collection)
    return param, update, collection


def test_tables_fuse_the_update_themselves():
    param, update, collection = table()
    apply_optimizer_in_backward(torch.optim.Adam, [param], {"lr": 0.1})
    apply_optimizer_in_backward(torch.optim.Adam, [param], {"lr": 0.1})
    assert collection.bound == 1
    assert update.rule.optimizer.value == "adam"
    assert update.rule.hyper.lr == 0.1
    assert owner_of(param) is update
    assert owner_of(param).optimizer is None
    assert list(in_backward_optimizer_filter(iter([("t", param)]))) == []


def test_owners_go_with_their_parameters():
    param, update, _ = table()
    number, numbers = id(param), owners._owners
    assert number in numbers
    del param, update
    gc.collect()
    assert number not in numbers


def test_an_owner_that_is_gone_leaves_an_ordinary_parameter():
    param, update, _ = table()
    del update
    gc.collect()
    assert owner_of(param) is None
    apply_optimizer_in_backward(torch.optim.SGD, [param], {"lr": 0.5})
    param.sum().backward()
    assert param.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_owners_can_be_called_off():
    param, _update, _ = table()
    set_owner(param, None)
    set_owner(param, None)
    assert owner_of(param) is None


def test_an_optimizer_that_is_given_by_name():
    """The same for an ordinary parameter and for a table, and the same as the class."""
    ordinary, (param, update, _) = nn.Parameter(torch.ones(2)), table()
    apply_optimizer_in_backward("EXACT_SGD", [ordinary, param], {"lr": 0.5})
    apply_optimizer_in_backward(SGD, [ordinary, param], {"lr": 0.5})
    assert update.applied == (SGD, {"lr": 0.5})
    assert type(owner_of(ordinary).optimizer) is SGD
    ordinary.sum().backward()
    assert ordinary.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"should be a class, or the name .* Received 'exact'"):
        apply_optimizer_in_backward("exact", [nn.Parameter(torch.ones(2))], {"lr": 0.5})


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (torch.optim.RMSprop, {"lr": 0.1}, ValueError, r"one that can be fused: .* RMSprop"),
        (torch.optim.SGD, {"lr": 0.1, "maximize": True}, ValueError, r"`maximize` should be off"),
        (torch.optim.Adam, {"lr": -1.0}, ValueError, r"`lr` should be at least 0"),
        (SGD, {"rate": 0.1}, TypeError, r"fused update of `SGD` takes lr, .* Received 'rate'"),
    ],
)
def test_what_cannot_be_fused_changes_no_parameter(cls, options, error, message):
    ordinary, (param, update, _) = nn.Parameter(torch.ones(2)), table()
    with pytest.raises(error, match=message):
        apply_optimizer_in_backward(cls, [ordinary, param], options)
    assert update.rule is None
    assert owner_of(ordinary) is None
    ordinary.sum().backward()
    assert ordinary.grad is not None
