"""The networks on top of several tasks: against their formulas, loop by loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec.models.multi_task import ESMM, PLE, LayerOptions, MMoE, SharedBottom

pytestmark = pytest.mark.once

HEADS = {
    "shared_bottom": lambda *a: SharedBottom(5, [1, 1, 3], [4, 6], [3], *a),
    "mmoe": lambda *a: MMoE(5, [1, 1, 3], 4, [4, 6], [3], *a),
    "ple": lambda *a: PLE(5, [1, 1, 3], 2, 2, 1, [4, 6], [3], *a),
    "esmm": lambda *a: ESMM(5, 5, [3], *a),
}
each_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def layer(state: dict[str, Tensor], name: str, x: Tensor, relu: bool = True) -> Tensor:
    y = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    return y.relu() if relu else y


def expert(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    for i in range(2):
        x = layer(state, f"{name}.{i}._linear", x)
    return x


def tower(state: dict[str, Tensor], task: int, x: Tensor) -> Tensor:
    x = layer(state, f"towers.{task}.layers.0._linear", x)
    return layer(state, f"towers.{task}.logit", x, relu=False)


def mixed(gate: Tensor, x: Tensor, experts: list[Tensor]) -> Tensor:
    """Return the mixture of each sample, one after the other."""
    rows = []
    for b in range(len(x)):
        scores = [float(gate[e] @ x[b]) for e in range(len(experts))]
        weights = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
        rows.append(sum(w * one[b] for w, one in zip(weights, experts, strict=True)))
    return torch.stack(rows)


def test_shared_bottom_is_its_formula() -> None:
    head, x = HEADS["shared_bottom"](), torch.randn(7, 5)
    state = head.state_dict()
    shared = expert(state, "bottom", x)
    expected = torch.cat([tower(state, t, shared) for t in range(3)], 1)
    assert head(x).shape == (7, 5)
    torch.testing.assert_close(head(x), expected)


@torch.no_grad()
def test_mmoe_is_its_formula() -> None:
    head, x = HEADS["mmoe"](), torch.randn(7, 5)
    state = head.state_dict()
    experts = [expert(state, f"experts.{e}", x) for e in range(4)]
    expected = [
        tower(state, t, mixed(state[f"gates.{t}.weights.weight"], x, experts)) for t in range(3)
    ]
    torch.testing.assert_close(head(x), torch.cat(expected, 1))


@torch.no_grad()
def test_ple_is_its_formula() -> None:
    head, x = HEADS["ple"](), torch.randn(7, 5)
    state = head.state_dict()
    tasks, shared_input = [x, x, x], x
    for level in range(2):
        at = f"levels.{level}"
        shared = [expert(state, f"{at}.shared.{e}", shared_input) for e in range(2)]
        own = [expert(state, f"{at}.own.{t}.0", tasks[t]) for t in range(3)]
        if level == 0:
            all_gate = state[f"{at}.shared_gate.weights.weight"]
            shared_input = mixed(all_gate, shared_input, [*own, *shared])
        tasks = [
            mixed(state[f"{at}.gates.{t}.weights.weight"], tasks[t], [own[t], *shared])
            for t in range(3)
        ]
    expected = torch.cat([tower(state, t, tasks[t]) for t in range(3)], 1)
    torch.testing.assert_close(head(x), expected)
    assert not any("shared_gate" in name for name in state if name.startswith("levels.1"))


def test_probabilities_of_esmm_are_products() -> None:
    head, x = HEADS["esmm"](), torch.randn(7, 5)
    state = head.state_dict()
    each = torch.cat([tower(state, t, x) for t in range(5)], 1).double().sigmoid()
    torch.testing.assert_close(head(x).double().sigmoid(), each.cumprod(1), rtol=1e-5, atol=1e-6)


def test_esmm_has_gradients_where_a_probability_rounds_to_one_or_zero() -> None:
    head = ESMM(1, 2, [])
    x = torch.tensor([[200.0], [-200.0], [0.0]])
    with torch.no_grad():
        for one in head.towers:
            one.logit.weight.fill_(1.0)
            one.logit.bias.zero_()
    outputs = head(x)
    assert outputs.isfinite().all()
    labels = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    torch.nn.functional.binary_cross_entropy_with_logits(outputs, labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    assert outputs[2, 1].item() == pytest.approx(torch.tensor(0.25).logit().item())


@each_head
def test_every_parameter_of_a_head_has_a_gradient(make) -> None:
    torch.manual_seed(0)
    head = make(LayerOptions(activation="tanh"))  # no unit is dead
    (head(torch.randn(64, 5)) * torch.randn(64, 5)).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@each_head
def test_options_reach_all_layers(make) -> None:
    head, plain = make(LayerOptions(0.5, True, "tanh")), make()
    kinds = {type(part).__name__ for part in head.modules()}
    assert {"_BatchNorm", "Dropout", "Tanh"} <= kinds
    hidden = sum(type(part).__name__ == "ReLU" for part in plain.modules())
    assert sum(type(part).__name__ == "Dropout" for part in head.modules()) == hidden
    assert not any(type(part).__name__ == "ReLU" for part in head.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SharedBottom(5, [], [4], [3]), "`out_features` should have one or more sizes"),
        (lambda: MMoE(5, [1], 0, [4], [3]), "`num_experts` should be at least 1. Received 0"),
        (lambda: PLE(5, [1], 1, 1, 1, [], [3]), "`layer_sizes` should have one or more sizes"),
        (lambda: PLE(5, [1], 0, 1, 1, [4], [3]), "`num_levels` should be at least 1. Received 0"),
        (lambda: ESMM(5, 0, [3]), "`num_tasks` should be at least 1. Received 0"),
    ],
)
def test_what_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@each_head
def test_inputs_of_another_width_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"`features` should .*5"):
        make()(torch.zeros(2, 4))
