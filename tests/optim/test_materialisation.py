"""Optimizers that tables were given while they had no memory: they go with the tables, wherever that comes from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.optim import apply_optimizer_in_backward, in_backward_optimizer_filter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

KJT = KeyedJaggedTensor.from_lists({"f": [[1, 2], [3]], "g": [[0], [1]]})
SIZES = {"t": (5, 2, "f"), "plain": (3, 1, "g"), "u": (4, 3, "g")}
Tables = EmbeddingBagCollection | EmbeddingCollection


def torchs(optimizer: type[torch.optim.Optimizer], params: list[nn.Parameter], options: dict):
    from torch.distributed.optim import _apply_optimizer_in_backward

    _apply_optimizer_in_backward(optimizer, params, options)


APPLY: dict[str, Callable] = {"ours": apply_optimizer_in_backward, "torch's": torchs}


def bags(device: str) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(rows, dim, name, feature_names=[feature])
            for name, (rows, dim, feature) in SIZES.items()
        ],
        device=device,
    )


def sequences(device: str) -> EmbeddingCollection:
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(rows, dim, name, feature_names=[feature])
            for name, (rows, dim, feature) in SIZES.items()
            if name != "plain"
        ],
        device=device,
    )


def ones(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones(param.shape) for name, param in module.named_parameters()}


def replace(module: Tables) -> None:
    for table in [holder for child in module.children() for holder in child.values()]:
        table.weight = nn.Parameter(torch.ones(table.weight.shape))


def emptied(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        return module.to_empty(device="cpu")


WAYS: dict[str, Callable[[Tables], object]] = {
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "to_empty of the model": lambda m: nn.Sequential(m).to_empty(device="cpu"),
    "to_empty without gradients": emptied,
    "assigned": lambda m: m.load_state_dict(ones(m), assign=True),
    "assigned in a model": lambda m: nn.Sequential(m).load_state_dict(
        {f"0.{n}": w for n, w in ones(m).items()}, assign=True
    ),
    "reset_parameters": lambda m: m.to_empty(device="cpu").reset_parameters(),
    "_apply": lambda m: m._apply(lambda w: torch.ones(w.shape, dtype=w.dtype)),
    "parameters put in place": replace,
    "twice": lambda m: m.to_empty(device="meta").to_empty(device="cpu"),
}


def trained_by(module: Tables) -> list[str]:
    return [n for n, _ in in_backward_optimizer_filter(module.named_parameters(), include=True)]


def backward(module: Tables) -> None:
    out = module(KJT)
    values = (
        out.values()
        if isinstance(module, EmbeddingBagCollection)
        else torch.cat([jt.values().flatten() for jt in out.values()])
    )
    values.square().sum().backward()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad], ids=["sgd", "ada"])
@pytest.mark.parametrize("apply", APPLY.values(), ids=APPLY)
@pytest.mark.parametrize("make", [bags, sequences])
def test_tables_that_get_memory_later_train_as_if_they_had_it(make, apply, optimizer, way):
    module, expected = make("meta"), make("cpu")
    for each in (module, expected):
        given = [p for n, p in each.named_parameters() if "plain" not in n]
        apply(optimizer, given, {"lr": 0.25})
        assert len(trained_by(each)) == 2
    WAYS[way](module)
    with torch.no_grad():
        for param in [*module.parameters(), *expected.parameters()]:
            param.fill_(1.0)
    for each in (module, expected, module, expected):
        backward(each)
    assert trained_by(module) == trained_by(expected)
    weights = dict(expected.named_parameters())
    for name, param in module.named_parameters():
        assert torch.equal(param, weights[name]), name
        assert (param.grad is None) == ("plain" not in name)
        assert torch.equal(param, torch.ones_like(param)) == ("plain" in name)


def test_what_torch_has_applied_without_a_hook_waits_for_whoever_steps():
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torch.distributed.optim.apply_optimizer_in_backward import _get_in_backward_optimizers

    module = sequences("meta")
    module.embeddings["u"].weight.requires_grad_(False)
    params = [p for p in module.parameters() if p.requires_grad]
    _apply_optimizer_in_backward(torch.optim.SGD, params, {"lr": 0.5}, register_hook=False)
    module.to_empty(device="cpu")
    with torch.no_grad():
        module.embeddings["t"].weight.fill_(1.0)
    backward(module)
    weight, frozen = module.parameters()
    assert (weight.grad[1:4] == 2.0).all()
    (optimizer,) = _get_in_backward_optimizers(module)
    optimizer.step()
    assert weight[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert not frozen.requires_grad
