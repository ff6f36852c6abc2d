"""The cross networks against the equations of the papers, written out plainly."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchrec.modules.crossnet import (
    CrossNet,
    LowRankCrossNet,
    LowRankMixtureCrossNet,
    VectorCrossNet,
)

State = dict[str, Tensor]


def full_rank(x_0: Tensor, p: State, layers: int, g: Callable[[Tensor], Tensor]) -> Tensor:
    x = x_0
    for i in range(layers):
        x = x_0 * (x @ p[f"kernels.{i}"].T + p[f"bias.{i}"][:, 0]) + x
    return x


def low_rank(x_0: Tensor, p: State, layers: int, g: Callable[[Tensor], Tensor]) -> Tensor:
    x = x_0
    for i in range(layers):
        x = x_0 * (x @ p[f"V_kernels.{i}"].T @ p[f"W_kernels.{i}"].T + p[f"bias.{i}"]) + x
    return x


def vector(x_0: Tensor, p: State, layers: int, g: Callable[[Tensor], Tensor]) -> Tensor:
    x = x_0
    for i in range(layers):
        dot = (x * p[f"kernels.{i}"][:, 0]).sum(-1, keepdim=True)
        x = x_0 * dot + p[f"bias.{i}"][:, 0] + x
    return x


def mixture(x_0: Tensor, p: State, layers: int, g: Callable[[Tensor], Tensor]) -> Tensor:
    x = x_0
    for i in range(layers):
        experts, gates = [], []
        for k in range(p[f"U_kernels.{i}"].shape[0]):
            u, c, v = (p[f"{name}_kernels.{i}"][k] for name in "UCV")
            experts.append(x_0 * (g(g(x @ v.T) @ c.T) @ u.T + p[f"bias.{i}"][:, 0]))
            gates.append(x @ p[f"gates.{k}.weight"][0] if "gates.0.weight" in p else x[..., 0] * 0)
        weights = torch.stack(gates, -1).softmax(-1)
        x = x + sum(weights[..., k : k + 1] * expert for k, expert in enumerate(experts))
    return x


NETS = {
    "full": (lambda n, layers: CrossNet(n, layers), full_rank),
    "low_rank": (lambda n, layers: LowRankCrossNet(n, layers, low_rank=3), low_rank),
    "vector": (lambda n, layers: VectorCrossNet(n, layers), vector),
    "one_expert": (lambda n, layers: LowRankMixtureCrossNet(n, layers, 1, 3), mixture),
    "experts": (lambda n, layers: LowRankMixtureCrossNet(n, layers, 4, 3), mixture),
}
CLASSES = [CrossNet, LowRankCrossNet, VectorCrossNet, LowRankMixtureCrossNet]
each_net = pytest.mark.parametrize(("make", "formula"), NETS.values(), ids=NETS)
each_class = pytest.mark.parametrize("cls", CLASSES)


def randomized(net: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Give every parameter, the biases too, values that matter."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return net.to(dtype)


@each_net
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (7, 5), (2, 3, 5), (5,)], ids=str)
def test_output_and_gradients_follow_the_equation(make, formula, layers, shape) -> None:
    net = randomized(make(5, layers))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = formula(x, dict(net.named_parameters()), layers, torch.relu)
    actual = net(x)
    torch.testing.assert_close(actual, expected)
    wrt = [x, *net.parameters()]
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, wrt, upstream, allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(expected, wrt, upstream, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got, want)


@each_net
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=["fp32", "bf16"]
)
def test_low_precision_stays_near_double(make, formula, dtype, tolerance) -> None:
    net = randomized(make(8, 2), dtype)
    x = torch.randn(9, 8, dtype=dtype)
    exact = {name: p.double() for name, p in net.state_dict().items()}
    expected = formula(x.double(), exact, 2, torch.relu)
    actual = net(x)
    assert actual.dtype == dtype
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < tolerance


@each_net
def test_autocast_trains(make, formula) -> None:
    net = randomized(make(8, 2), torch.float32)
    x = torch.randn(9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = net(x)
    expected = net(x)
    assert (actual - expected).norm() < 0.05 * expected.norm()
    actual.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


@each_net
def test_second_derivatives(make, formula) -> None:
    net = randomized(make(3, 2))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, x)
    assert torch.autograd.gradgradcheck(net, x)


@each_net
def test_transforms_of_functions(make, formula) -> None:
    net = randomized(make(4, 2))
    parameters = dict(net.named_parameters())
    x = torch.randn(3, 4, dtype=torch.float64)

    def loss(p: State, sample: Tensor) -> Tensor:
        return torch.func.functional_call(net, p, (sample,)).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        alone = torch.func.grad(loss)(parameters, x[i])
        torch.testing.assert_close({k: v[i] for k, v in per_sample.items()}, alone)


@given(
    batch=st.integers(0, 6),
    features=st.integers(1, 9),
    layers=st.integers(1, 4),
    experts=st.integers(1, 4),
    rank=st.integers(1, 5),
)
def test_mixture_of_any_size(batch, features, layers, experts, rank) -> None:
    net = LowRankMixtureCrossNet(features, layers, experts, rank, torch.sigmoid)
    randomized(net)
    x = torch.randn(batch, features, dtype=torch.float64)
    expected = mixture(x, net.state_dict(), layers, torch.sigmoid)
    torch.testing.assert_close(net(x).detach(), expected)


@given(batch=st.integers(0, 6), features=st.integers(1, 9), layers=st.integers(0, 6))
def test_vector_recursion_of_any_depth(batch, features, layers) -> None:
    net = randomized(VectorCrossNet(features, layers))
    x = torch.randn(batch, features, dtype=torch.float64)
    torch.testing.assert_close(net(x).detach(), vector(x, net.state_dict(), layers, torch.relu))


def test_cross_terms_of_one_layer_are_products_of_pairs() -> None:
    net = CrossNet(2, 1)
    net.load_state_dict(
        {"kernels.0": torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "bias.0": torch.zeros(2, 1)}
    )
    assert net(torch.tensor([[3.0, 5.0]])).tolist() == [[3 * 5 + 3, 5]]


def test_mixture_with_an_activation_of_its_own_parameters() -> None:
    net = LowRankMixtureCrossNet(4, 1, 2, 3, nn.PReLU(init=0.1))
    assert "_activation.weight" in net.state_dict()
    randomized(net)
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = mixture(x, net.state_dict(), 1, net._activation)
    torch.testing.assert_close(net(x), expected)


STATE_SHAPES = {
    CrossNet: {"kernels": (6, 6), "bias": (6, 1)},
    LowRankCrossNet: {"W_kernels": (6, 1), "V_kernels": (1, 6), "bias": (6,)},
    VectorCrossNet: {"kernels": (6, 1), "bias": (6, 1)},
    LowRankMixtureCrossNet: {
        "U_kernels": (1, 6, 1),
        "V_kernels": (1, 1, 6),
        "C_kernels": (1, 1, 1),
        "bias": (6, 1),
    },
}


@each_class
def test_state_has_the_names_and_shapes_of_the_api(cls) -> None:
    expected = {f"{k}.{i}": shape for k, shape in STATE_SHAPES[cls].items() for i in range(2)}
    assert {k: tuple(v.shape) for k, v in cls(6, 2).state_dict().items()} == expected


def test_state_of_the_gates() -> None:
    state = LowRankMixtureCrossNet(6, 2, num_experts=3).state_dict()
    assert [tuple(state[f"gates.{k}.weight"].shape) for k in range(3)] == [(1, 6)] * 3
    assert not any(k.startswith("gates") for k in LowRankMixtureCrossNet(6, 2).state_dict())


@pytest.mark.parametrize(
    ("net", "name", "std"),
    [
        (lambda: CrossNet(200, 1), "kernels.0", (2 / 400) ** 0.5),
        (lambda: LowRankCrossNet(200, 1, 50), "W_kernels.0", (2 / 250) ** 0.5),
        (lambda: LowRankCrossNet(200, 1, 50), "V_kernels.0", (2 / 250) ** 0.5),
        (lambda: VectorCrossNet(5000, 1), "kernels.0", (2 / 5001) ** 0.5),
        (lambda: LowRankMixtureCrossNet(200, 1, 3, 50), "U_kernels.0", (2 / 10150) ** 0.5),
        (lambda: LowRankMixtureCrossNet(200, 1, 3, 50), "V_kernels.0", (2 / 10600) ** 0.5),
        (lambda: LowRankMixtureCrossNet(200, 1, 3, 50), "C_kernels.0", (2 / 2650) ** 0.5),
        (lambda: LowRankMixtureCrossNet(5000, 1, 2, 1), "gates.1.weight", (3 * 5000) ** -0.5),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_initial_spread(net, name, std) -> None:
    state = net().state_dict()
    assert state[name].std().item() == pytest.approx(std, rel=0.05)
    assert state["bias.0"].abs().max() == 0


@each_class
def test_state_round_trip(cls) -> None:
    net, other = randomized(cls(4, 2), torch.float32), cls(4, 2)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    x = torch.randn(3, 4)
    assert torch.equal(net(x), other(x))


class TestInFeaturesLeftOut:
    @each_class
    def test_first_input_gives_the_size(self, cls) -> None:
        net = cls(num_layers=2)
        assert net.in_features is None
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)  # holds the same parameters later
        out = net(torch.randn(3, 10))
        assert out.shape == (3, 10)
        assert net.in_features == 10
        out.sum().backward()
        optimizer.step()
        assert net.bias[0].abs().max() > 0
        with pytest.raises(ValueError, match=r"shape \(\*, 10\), as `in_features`=10"):
            net(torch.randn(3, 9))

    @each_class
    def test_loaded_state_gives_the_size(self, cls) -> None:
        net, lazy = cls(5, 2), cls(num_layers=2)
        twin = copy.deepcopy(lazy)
        for other in (lazy, twin, pickle.loads(pickle.dumps(cls(num_layers=2)))):
            other.load_state_dict(net.state_dict())
            assert other.in_features == 5
            assert torch.equal(other(torch.ones(1, 5)), net(torch.ones(1, 5)))

    def test_part_of_a_larger_state(self) -> None:
        lazy = nn.Sequential(nn.Linear(3, 5), LowRankMixtureCrossNet(num_layers=1, num_experts=2))
        net = nn.Sequential(nn.Linear(3, 5), LowRankMixtureCrossNet(5, 1, num_experts=2))
        lazy.load_state_dict(net.state_dict())
        assert torch.equal(lazy(torch.ones(1, 3)), net(torch.ones(1, 3)))

    @each_class
    def test_printed_before_and_after(self, cls) -> None:
        net = cls(num_layers=1)
        assert "in_features=None, num_layers=1" in str(net)
        assert "not sized yet" in str(net)
        net(torch.ones(1, 3))
        assert "in_features=3, num_layers=1" in str(net)
        assert "not sized yet" not in str(net)


@each_class
def test_meta_device(cls) -> None:
    net = cls(4, 2, device=torch.device("meta"))
    assert all(p.is_meta for p in net.parameters())
    assert net(torch.empty(3, 4, device="meta")).shape == (3, 4)
    with torch.device("meta"):
        assert all(p.is_meta for p in cls(4, 2).parameters())


@each_class
@pytest.mark.parametrize("shape", [(3, 9), (3, 11), (9,), ()], ids=str)
def test_wrong_width_is_an_error(cls, shape) -> None:
    received = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"as `in_features`=10. Received {received}"):
        cls(10, 1)(torch.zeros(shape))


@each_class
def test_wrong_sizes_are_errors(cls) -> None:
    with pytest.raises(ValueError, match=r"`in_features` should be at least 1. Received 0"):
        cls(0, 1)
    with pytest.raises(ValueError, match=r"`num_layers` should be at least 0. Received -1"):
        cls(4, -1)
    with pytest.raises(TypeError, match=r"`num_layers` should be an integer. Received None"):
        cls(4)
    with pytest.raises(TypeError, match=r"`in_features` should be an integer. Received 2.5"):
        cls(2.5, 1)


def test_wrong_rank_experts_and_activation_are_errors() -> None:
    with pytest.raises(ValueError, match=r"`low_rank` should be at least 1. Received 0"):
        LowRankCrossNet(4, 1, low_rank=0)
    with pytest.raises(ValueError, match=r"`num_experts` should be at least 1. Received 0"):
        LowRankMixtureCrossNet(4, 1, num_experts=0)
    with pytest.raises(TypeError, match=r"`activation` should be a module or a function"):
        LowRankMixtureCrossNet(4, 1, activation="relu")


@each_net
def test_one_compilation_for_all_batches(make, formula) -> None:
    net = randomized(make(4, 2), torch.float32)
    graphs = []
    fast = torch.compile(
        net, fullgraph=True, dynamic=True, backend=lambda graph, _: graphs.append(graph) or graph
    )
    for batch in (3, 8, 5):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(fast(x), net(x))
    assert len(graphs) == 1


@each_net
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # PyTorch's, up to 2.10
def test_export_with_a_dynamic_batch(make, formula) -> None:
    net = randomized(make(4, 2), torch.float32)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(6, 4)
    torch.testing.assert_close(loaded(x), net(x))


class TestSeedExamples:
    """The examples of the documents, with what had to be corrected."""

    batch_size, num_layers, in_features = 3, 2, 10

    @pytest.mark.parametrize(
        "make",
        [
            # `in_features` was left out of all of them: accepted, it comes with the first input.
            lambda layers: CrossNet(num_layers=layers),
            lambda layers: LowRankCrossNet(num_layers=layers, low_rank=3),
            # said LowRankCrossNet, which has no experts
            lambda layers: LowRankMixtureCrossNet(num_layers=layers, num_experts=5, low_rank=3),
            lambda layers: VectorCrossNet(num_layers=layers),
        ],
        ids=[
            cls.__name__
            for cls in (CrossNet, LowRankCrossNet, LowRankMixtureCrossNet, VectorCrossNet)
        ],
    )
    def test_example(self, make) -> None:
        input = torch.randn(self.batch_size, self.in_features)
        dcn = make(self.num_layers)
        output = dcn(input)
        assert output.shape == (self.batch_size, self.in_features)


@pytest.mark.parametrize(
    ("experts", "order"),
    [
        (1, ["U_kernels.0", "V_kernels.0", "bias.0", "C_kernels.0"]),
        (
            2,
            [
                "U_kernels.0",
                "V_kernels.0",
                "bias.0",
                "gates.0.weight",
                "gates.1.weight",
                "C_kernels.0",
            ],
        ),
    ],
)
def test_parameters_of_a_mixture_come_in_the_order_of_the_api(experts, order) -> None:
    net = LowRankMixtureCrossNet(4, 1, experts, 3)
    assert [name for name, _ in net.named_parameters()] == order
