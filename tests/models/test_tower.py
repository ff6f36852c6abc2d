"""The network on top: against its formula, in training and evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec.models.tower import Tower


def by_hand(tower: Tower, x: Tensor, batch_norm: bool) -> Tensor:
    p = tower.state_dict()
    for i in range(2):
        x = x @ p[f"layers.{i}._linear.weight"].T + p[f"layers.{i}._linear.bias"]
        if batch_norm:
            norm = f"layers.{i}._activation_fn.0"
            mean, var = x.mean(0), x.var(0, correction=0)
            if not tower.training:
                mean, var = p[f"{norm}.running_mean"], p[f"{norm}.running_var"]
            x = (x - mean) / (var + 1e-5).sqrt() * p[f"{norm}.weight"] + p[f"{norm}.bias"]
        x = x.clamp(min=0)
    return x @ p["logit.weight"].T + p["logit.bias"]


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_formula(batch_norm, training) -> None:
    tower, x = Tower(7, [5, 3], batch_norm=batch_norm), torch.randn(4, 7)
    tower(torch.randn(100, 7) * 3 + 1)  # moves the running statistics
    tower.train(training)
    torch.testing.assert_close(tower(x), by_hand(tower, x, batch_norm))


def test_without_layers_it_is_linear() -> None:
    tower = Tower(7, [])
    x = torch.randn(4, 7)
    torch.testing.assert_close(tower(x), x @ tower.logit.weight.T + tower.logit.bias)


def test_dropout_drops_while_training_only() -> None:
    tower, x = Tower(7, [500], dropout=0.4), torch.randn(1, 7)
    with torch.no_grad():
        kept = tower.layers(x)
        expected = tower.eval().layers(x)
    active = expected > 0
    dropped = (kept[active] == 0).float().mean()
    assert abs(float(dropped) - 0.4) < 0.15
    torch.testing.assert_close(kept[kept > 0], expected[kept > 0] / 0.6)


def test_a_batch_of_one_sample_uses_the_running_statistics() -> None:
    tower, x = Tower(7, [5, 3], batch_norm=True), torch.randn(1, 7)
    tower(torch.randn(100, 7))
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    alone = tower(x)
    assert torch.equal(alone, tower.eval()(x))
    assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"`dropout` should be in \[0, 1\). Received 1"):
        Tower(7, [5], dropout=1)
    with pytest.raises(ValueError, match=r"`layer_sizes\[1\]` should be at least 1"):
        Tower(7, [5, 0])
    with pytest.raises(ValueError, match=r"`features` should have shape \(B, 7\)"):
        Tower(7, [5])(torch.zeros(2, 6))


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("gelu", torch.nn.functional.gelu),
        ("leaky_relu", torch.nn.functional.leaky_relu),
        ("prelu", lambda x: torch.where(x > 0, x, 0.25 * x)),
    ],
)
def test_activations(name, function, batch_norm) -> None:
    tower, x = Tower(7, [5], batch_norm=batch_norm, activation=name).eval(), torch.randn(4, 7)
    layer = tower.layers[0]._linear
    before = x @ layer.weight.T + layer.bias
    if batch_norm:
        before = before / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(tower(x), tower.logit(function(before)))


def test_layers_have_activations_of_their_own() -> None:
    names = [name for name, _ in Tower(7, [5, 3], activation="prelu").named_parameters()]
    assert [name for name in names if "activation" in name] == [
        "layers.0._activation_fn.0.weight",
        "layers.1._activation_fn.0.weight",
    ]


def test_an_unknown_activation_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"`activation` should be one of .*'rulu'; did you mean"):
        Tower(7, [5], activation="rulu")
