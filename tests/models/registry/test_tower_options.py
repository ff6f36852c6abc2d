"""Options that models with a tower share: what drops, what activates, and where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from torchrec import KeyedJaggedTensor
from torchrec.datasets.transform import TableSpec
from torchrec.models.registry import ModelSection, build_model
from torchrec.models.registry._tower import ActivationName
from torchrec.modules.mlp import activation_names

each_model = pytest.mark.parametrize("name", ["deepfm", "dlrm", "dlrm_dcn"])


def built(name: str, num_dense: int = 2, **options: object) -> nn.Module:
    """Return a model of two tables, with the weights that seed 0 gives."""
    tables = [TableSpec(table, (table,), 30, ids="plain") for table in ("user", "item")]
    names = [f"d{i}" for i in range(num_dense)]
    transform = SimpleNamespace(dense_names=names, tables=tables, is_weighted=False, outputs=[1])
    torch.manual_seed(0)
    sizes = {"dim": 8, "dense_layers": [6], "layers": [16, 8]}
    return build_model(ModelSection(name=name, **sizes | options), transform)


def batch(samples: int = 20, num_dense: int = 2) -> tuple[Tensor, KeyedJaggedTensor]:
    ids = torch.arange(2 * samples) % 30
    kjt = KeyedJaggedTensor(["user", "item"], ids, lengths=torch.ones(2 * samples).int())
    return torch.randn(samples, num_dense), kjt


def test_every_activation_can_be_named() -> None:
    assert sorted(get_args(ActivationName)) == activation_names()


@each_model
@pytest.mark.parametrize("num_dense", [0, 2])
def test_embeddings_drop_while_training_only(name, num_dense) -> None:
    plain, model = built(name, num_dense), built(name, num_dense, embedding_dropout=0.3)
    inputs = batch(num_dense=num_dense)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(model.eval()(*inputs), plain.eval()(*inputs))
    model.train()
    assert not torch.equal(model(*inputs), model(*inputs))


@each_model
def test_the_share_of_pooled_numbers_that_drop(name) -> None:
    model = built(name, embedding_dropout=0.3)
    seen: list[Tensor] = []
    (dropout,) = [
        module
        for place, module in model.named_modules()
        if isinstance(module, nn.Dropout) and place.endswith("dropout")
    ]
    dropout.register_forward_hook(lambda *parts: seen.append(parts[2]))
    model(*batch(3000))
    (kept,) = seen
    assert kept.shape == (3000, 16)  # of the tables alone, not of the dense features
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


@each_model
def test_the_activation_is_that_of_every_layer(name) -> None:
    """Of those over dense features, too."""
    model = built(name, activation="silu", batch_norm=True)
    kinds = [type(module) for module in model.modules()]
    assert nn.ReLU not in kinds
    assert kinds.count(nn.SiLU) == 2
    dense = model.dense_arch[0] if name == "deepfm" else model.dense_arch.model
    x = torch.randn(5, 2)
    first = dense._mlp[0]
    torch.testing.assert_close(first(x), nn.functional.silu(first._linear(x)))


@each_model
def test_the_weights_are_those_that_models_without_the_options_draw(name) -> None:
    expected = built(name).state_dict()
    for options in ({"embedding_dropout": 0.5}, {"activation": "relu"}):
        for key, value in built(name, **options).state_dict().items():
            assert torch.equal(value, expected[key])
