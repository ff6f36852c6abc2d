"""Fused collections against ordinary ones, trained step by step with the optimizers of PyTorch."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
    PoolingType,
)
from torchrec.modules import fused_embedding_modules as fused
from torchrec.modules.fused_embedding_modules import (
    EmbeddingLocation,
    FusedEmbeddingBagCollection,
    FusedEmbeddingCollection,
    convert_optimizer_type_and_kwargs,
    fuse_embedding_optimizer,
)
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.fused import FusedOptimizer

ROWS = 6
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-6}),
    "adagrad_defaults": (torch.optim.Adagrad, {}),
    "rowwise_adagrad": (RowWiseAdagrad, {"lr": 0.1}),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def bag_configs() -> list[EmbeddingBagConfig]:
    mean = PoolingType.MEAN
    return [
        EmbeddingBagConfig(ROWS, 3, "t", feature_names=["a", "b"]),
        EmbeddingBagConfig(ROWS, 5, "u", feature_names=["b"], pooling=mean),
    ]


def configs() -> list[EmbeddingConfig]:
    return [EmbeddingConfig(ROWS, 3, name, feature_names=["a", "b"]) for name in "tu"]


def batch_of(batch: int) -> KeyedJaggedTensor:
    lengths = torch.randint(0, 4, (2 * batch,))
    values = torch.randint(0, ROWS, (int(lengths.sum()),))
    return KeyedJaggedTensor(["a", "b"], values, lengths=lengths)


def loss_of(output) -> torch.Tensor:
    if isinstance(output, dict):
        return sum(jt.values().square().sum() * (i + 1) for i, jt in enumerate(output.values()))
    return (output.values() ** 2).sum() + output.values().sum()


def train(module: nn.Module, batches, optimizer: torch.optim.Optimizer | None) -> None:
    for batch in batches:
        loss = loss_of(module(batch))
        if optimizer is not None:
            optimizer.zero_grad()
        loss.backward()
        if optimizer is not None:
            optimizer.step()


@each_optimizer
@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_trains_as_the_ordinary_one_with_the_optimizer_outside(kind, optimizer) -> None:
    cls, kwargs = optimizer
    if kind == "bags":
        module = FusedEmbeddingBagCollection(bag_configs(), cls, kwargs)
        plain = EmbeddingBagCollection(tables=bag_configs())
    else:
        module = FusedEmbeddingCollection(configs(), cls, kwargs)
        plain = EmbeddingCollection(tables=configs())
    plain.load_state_dict(module.state_dict())
    batches = [batch_of(n) for n in (5, 1, 4)]
    train(module, batches, None)
    train(plain, batches, cls(plain.parameters(), **kwargs))
    torch.testing.assert_close(module.state_dict(), plain.state_dict())
    assert all(parameter.grad is None for parameter in module.parameters())
    torch.testing.assert_close(loss_of(module(batches[0])), loss_of(plain(batches[0])))
    assert loss_of(module(batch_of(0))) == 0


def test_names_and_what_was_given() -> None:
    kwargs = {"lr": 0.1}
    tables, location = bag_configs(), EmbeddingLocation.DEVICE
    bags = FusedEmbeddingBagCollection(
        tables, torch.optim.SGD, kwargs, is_weighted=True, device="cpu", location=location
    )
    names = ["embedding_bags.t.weight", "embedding_bags.u.weight"]
    assert list(bags.state_dict()) == [name for name, _ in bags.named_parameters()] == names
    assert bags.embedding_bag_configs() == tables
    assert bags.is_weighted()
    assert bags.device == torch.device("cpu")
    assert (bags.optimizer_type(), bags.optimizer_kwargs()) == (torch.optim.SGD, kwargs)
    assert isinstance(bags.fused_optimizer, FusedOptimizer)
    assert list(bags.fused_optimizer.params) == names
    tables = configs()
    sequences = FusedEmbeddingCollection(tables, torch.optim.SGD, kwargs, need_indices=True)
    assert list(sequences.state_dict()) == ["embeddings.t.weight", "embeddings.u.weight"]
    assert sequences.embedding_configs() == tables
    assert sequences.need_indices()
    assert sequences.embedding_dim() == 3
    assert sequences.embedding_names_by_table() == [["a@t", "b@t"], ["a@u", "b@u"]]
    assert fused.EmbeddingFusedOptimizer.__name__ == "EmbeddingFusedOptimizer"


def test_copies_and_saved_states_go_on_training_alike() -> None:
    module = FusedEmbeddingBagCollection(bag_configs(), torch.optim.Adagrad, {"lr": 0.1})
    batches = [batch_of(4) for _ in range(3)]
    train(module, batches[:1], None)
    twin = copy.deepcopy(module)
    buffer = io.BytesIO()
    torch.save((module.state_dict(), module.fused_optimizer.state_dict()), buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer)
    other = FusedEmbeddingBagCollection(bag_configs(), torch.optim.Adagrad, {"lr": 0.1})
    other.load_state_dict(weights)
    other.fused_optimizer.load_state_dict(state)
    for each in (module, twin, other):
        train(each, batches[1:], None)
    for each in (twin, other):
        torch.testing.assert_close(each.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_starts_on_meta_and_moves() -> None:
    module = FusedEmbeddingBagCollection(bag_configs(), torch.optim.SGD, {"lr": 0.1}, device="meta")
    assert module.device.type == "meta"
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    assert module.device.type == "cpu"
    train(module, [batch_of(4)], None)
    assert not torch.equal(module.embedding_bags["t"].weight, torch.ones(ROWS, 3))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = EmbeddingBagCollection(tables=bag_configs())
        self.again = self.bags
        self.inner = nn.ModuleDict({"sequences": EmbeddingCollection(tables=configs())})
        self.linear = nn.Linear(11, 1)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        pooled = self.linear(self.bags(features).values())
        return pooled.sum() + loss_of(self.inner["sequences"](features))


def test_fuses_the_collections_of_a_model() -> None:
    model = Model()
    plain = copy.deepcopy(model)
    names = list(model.state_dict())
    weight = model.bags.embedding_bags["t"].weight
    assert fuse_embedding_optimizer(model, torch.optim.SGD, {"lr": 0.1}, "cpu") is model
    assert isinstance(model.bags, FusedEmbeddingBagCollection)
    assert model.again is model.bags
    assert isinstance(model.inner["sequences"], FusedEmbeddingCollection)
    assert list(model.state_dict()) == names
    assert model.bags.embedding_bags["t"].weight is weight
    features = batch_of(5)
    model(features).backward()
    plain(features).backward()
    torch.optim.SGD([p for n, p in plain.named_parameters() if "linear" not in n], lr=0.1).step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    assert model.linear.weight.grad is not None
    root = fuse_embedding_optimizer(
        EmbeddingBagCollection(tables=bag_configs()), torch.optim.SGD, {"lr": 0.1}, "cpu"
    )
    assert isinstance(root, FusedEmbeddingBagCollection)


def test_what_cannot_be_fused_leaves_the_model_as_it_was() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"one that can be fused: .*Received RMSprop"):
        fuse_embedding_optimizer(model, torch.optim.RMSprop, {"lr": 0.1}, "cpu")
    own = EmbeddingBagConfig(ROWS, 3, "own", feature_names=["a"], optimizer="sgd", lr=0.1)
    model.last = EmbeddingBagCollection(tables=[own])
    with pytest.raises(ValueError, match=r"`optimizer` of table 'own' should be None.*SGD"):
        fuse_embedding_optimizer(model, torch.optim.SGD, {"lr": 0.1}, "cpu")
    assert type(model.bags) is EmbeddingBagCollection
    assert not model.bags.fused_optimizer.params
    with pytest.raises(ValueError, match=r"one that can be fused"):
        FusedEmbeddingBagCollection(bag_configs(), torch.optim.RMSprop, {"lr": 0.1})


def test_conversion() -> None:
    given = {"lr": 0.1, "betas": (0.8, 0.9), "foreach": False}
    assert convert_optimizer_type_and_kwargs(torch.optim.Adam, given) == (
        OptimizerType.ADAM,
        {"learning_rate": 0.1, "betas": (0.8, 0.9)},
    )
    assert convert_optimizer_type_and_kwargs(RowWiseAdagrad, {})[0] == OptimizerType.ROWWISE_ADAGRAD
    assert convert_optimizer_type_and_kwargs(torch.optim.RMSprop, {}) is None
    assert convert_optimizer_type_and_kwargs(torch.optim.Adam, {"amsgrad": True}) is None
    with pytest.raises(TypeError, match=r"Received 'momentun'"):
        convert_optimizer_type_and_kwargs(torch.optim.SGD, {"momentun": 0.9})


@pytest.mark.since_torch("2.12", "refuses to trace the change of a parameter in a backward pass")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_compiles_once_for_changing_batches() -> None:
    torch._dynamo.reset()
    module = FusedEmbeddingBagCollection(bag_configs(), torch.optim.SGD, {"lr": 0.1})
    plain = copy.deepcopy(module)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for batch in (13, 5, 9):
        features = batch_of(batch)
        train(compiled, [features], None)
        train(plain, [features], None)
        torch.testing.assert_close(module.state_dict(), plain.state_dict())
    assert counter.frame_count == 1


def test_an_optimizer_that_is_given_by_name():
    tables = [EmbeddingBagConfig(ROWS, 4, "t", feature_names=["f"])]
    named = FusedEmbeddingBagCollection(tables, "EXACT_ROWWISE_ADAGRAD", {"lr": 0.5})
    assert named.optimizer_type() is RowWiseAdagrad
    assert named.fused_optimizer.param_groups[0]["lr"] == 0.5
    model = nn.Sequential(EmbeddingBagCollection(tables=tables))
    fused = fuse_embedding_optimizer(model, OptimizerType.ADAM, {"lr": 0.25}, torch.device("cpu"))
    assert set(fused[0].fused_optimizer.state_dict()["state"]["embedding_bags.t.weight"]) == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }
    kind, options = convert_optimizer_type_and_kwargs("exact_adagrad", {"lr": 0.1})
    assert (kind, options) == (OptimizerType.ADAGRAD, {"learning_rate": 0.1})
