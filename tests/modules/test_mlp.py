"""Perceptron, MLP and LazyMLP against y = g(W x + b), written out."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchrec.modules.activation import SwishLayerNorm
from torchrec.modules.mlp import (
    MLP,
    LazyMLP,
    Perceptron,
    activation_module,
    activation_names,
)


def layers_of(x: Tensor, state: dict[str, Tensor], g: list[Callable[[Tensor], Tensor]]) -> Tensor:
    for i, activation in enumerate(g):
        x = x @ state[f"_mlp.{i}._linear.weight"].T
        x = activation(x + state.get(f"_mlp.{i}._linear.bias", 0))
    return x


def positive_part(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("on_last", [True, False], ids=["on_last", "not_on_last"])
@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (7, 5), (2, 3, 5), (5,)], ids=str)
def test_output_and_gradients_follow_the_equation(bias, on_last, shape) -> None:
    mlp = MLP(5, [4, 3, 2], bias=bias, activation_on_last=on_last, dtype=torch.float64)
    state = dict(mlp.named_parameters())
    assert len(state) == (6 if bias else 3)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = [positive_part, positive_part, positive_part if on_last else lambda x: x]
    expected, actual = layers_of(x, state, g), mlp(x)
    torch.testing.assert_close(actual, expected)
    wrt = [x, *state.values()]
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, wrt, upstream)
    torch.testing.assert_close(got, torch.autograd.grad(expected, wrt, upstream))


@given(
    batch=st.integers(0, 5),
    in_size=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 6), max_size=4),
)
def test_any_sizes(batch, in_size, sizes) -> None:
    mlp = MLP(in_size, sizes, activation="sigmoid", dtype=torch.float64)
    x = torch.randn(batch, in_size, dtype=torch.float64)
    expected = layers_of(x, mlp.state_dict(), [lambda x: 1 / (1 + (-x).exp())] * len(sizes))
    torch.testing.assert_close(mlp(x).detach(), expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("activation", ["relu", "swish_layernorm"])
def test_low_precision_stays_near_double(activation, dtype, tolerance) -> None:
    mlp = MLP(16, [8, 8], activation=activation, dtype=dtype)
    exact = copy.deepcopy(mlp).double()
    x = torch.randn(9, 16, dtype=dtype)
    actual, expected = mlp(x), exact(x.double())
    assert {p.dtype for p in mlp.parameters()} == {dtype}
    assert actual.dtype == dtype
    assert (actual.double() - expected).norm() < tolerance * expected.norm()


def test_second_derivatives() -> None:
    mlp = MLP(3, [4, 2], activation=torch.tanh, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)
    assert torch.autograd.gradgradcheck(mlp, x)


NAMED = {
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * torch.tanh(torch.log1p(x.exp())),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "relu": lambda x: torch.where(x > 0, x, 0 * x),
    "selu": lambda x: (
        1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1))
    ),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "silu": lambda x: x / (1 + (-x).exp()),
    "softplus": lambda x: torch.log1p(x.exp()),
    "swish_layernorm": lambda x: x * torch.sigmoid(torch.layer_norm(x, x.shape[-1:])),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
}


class TestActivation:
    @pytest.mark.parametrize("name", NAMED)
    def test_name(self, name) -> None:
        layer = Perceptron(4, 3, activation=name, dtype=torch.float64)
        state = layer.state_dict()
        x = torch.randn(9, 4, dtype=torch.float64)
        expected = NAMED[name](x @ state["_linear.weight"].T + state["_linear.bias"])
        torch.testing.assert_close(layer(x).detach(), expected)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("rleu", "; did you mean 'relu'?"), ("ReLU", "; did you mean 'relu'?"), ("zzz", ".")],
    )
    def test_unknown_name_is_an_error_with_the_nearest(self, name, hint) -> None:
        with pytest.raises(ValueError, match="`activation` should be one of elu, gelu") as caught:
            MLP(4, [2], activation=name)
        assert str(caught.value).endswith(f"swish_layernorm, tanh. Received '{name}'{hint}")

    def test_function(self) -> None:
        layer = Perceptron(2, 2, activation=lambda x: x * 10)
        x = torch.randn(3, 2)
        torch.testing.assert_close(layer(x), layer._linear(x) * 10)

    @pytest.mark.parametrize(
        "factory",
        [nn.PReLU, lambda: nn.PReLU(), functools.partial(nn.PReLU, init=0.5), "prelu"],
        ids=["class", "function", "partial", "name"],
    )
    def test_factory_gives_each_layer_its_own(self, factory) -> None:
        mlp = MLP(4, [3, 2], activation=factory)
        names = [name for name, _ in mlp.named_parameters() if "activation" in name]
        assert names == ["_mlp.0._activation_fn.weight", "_mlp.1._activation_fn.weight"]

    def test_swish_layernorm_has_the_size_of_its_layer(self) -> None:
        mlp = MLP(4, [3, 2], activation="swish_layernorm")
        state = mlp.state_dict()
        assert state["_mlp.0._activation_fn.norm.0.weight"].shape == (3,)
        assert state["_mlp.1._activation_fn.norm.0.weight"].shape == (2,)
        assert isinstance(mlp._mlp[0]._activation_fn, SwishLayerNorm)

    def test_module_is_shared(self) -> None:
        mlp = MLP(4, [3, 2], activation=nn.PReLU())
        names = [name for name, _ in mlp.named_parameters() if "activation" in name]
        assert names == ["_mlp.0._activation_fn.weight"]

    def test_neither_name_nor_callable_is_an_error(self) -> None:
        with pytest.raises(TypeError, match=r"`activation` should be a name, .* Received 3"):
            Perceptron(4, 2, activation=3)


class TestReluInPlace:
    """The default activation overwrites the output of the linear layer, where nobody can see it."""

    def test_forward_hooks_see_the_linear_output(self) -> None:
        layer, seen = Perceptron(4, 8), []
        layer._linear.register_forward_hook(lambda module, args, output: seen.append(output))
        x = torch.randn(16, 4)
        layer(x)
        state = layer.state_dict()
        expected = x @ state["_linear.weight"].T + state["_linear.bias"]
        assert (expected < 0).any()
        torch.testing.assert_close(seen[0].detach(), expected)

    def test_input_survives_a_layer_put_in_the_linear_s_place(self) -> None:
        layer = Perceptron(4, 4)
        layer._linear = nn.Identity()
        x = torch.tensor([-1.0, 2.0, -3.0, 4.0])
        assert layer(x).tolist() == [0, 2, 0, 4]
        assert x.tolist() == [-1, 2, -3, 4]

    def test_second_derivatives(self) -> None:
        layer = Perceptron(3, 4, dtype=torch.float64)
        x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(lambda x: layer(x) ** 2, x)

    def test_gradients_per_sample(self) -> None:
        layer = Perceptron(3, 4)
        parameters = dict(layer.named_parameters())
        x = torch.randn(5, 3)

        def loss(p: dict[str, Tensor], sample: Tensor) -> Tensor:
            return torch.func.functional_call(layer, p, (sample,)).sum()

        together = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        for i in range(5):
            alone = torch.func.grad(loss)(parameters, x[i])
            torch.testing.assert_close({k: v[i] for k, v in together.items()}, alone)


def test_initial_values_are_those_of_a_linear_layer() -> None:
    state = MLP(100, [200]).state_dict()
    for name in ("_mlp.0._linear.weight", "_mlp.0._linear.bias"):
        assert state[name].abs().max().item() == pytest.approx(0.1, rel=0.05)
        assert state[name].std().item() == pytest.approx(0.1 / 3**0.5, rel=0.15)


@pytest.mark.parametrize("shape", [(3, 41), (39,), ()], ids=str)
def test_wrong_width_is_an_error(shape) -> None:
    with pytest.raises(ValueError, match=r"`input` should have shape \(\*, 40\), as `in_size`=40"):
        MLP(40, [2])(torch.zeros(shape))


def test_wrong_sizes_are_errors() -> None:
    with pytest.raises(ValueError, match=r"`in_size` should be at least 1. Received 0"):
        MLP(0, [2])
    with pytest.raises(ValueError, match=r"`layer_sizes\[1\]` should be at least 1. Received -2"):
        MLP(4, [2, -2])
    with pytest.raises(TypeError, match=r"`out_size` should be an integer. Received '2'"):
        Perceptron(4, "2")


def test_no_layers_are_the_identity() -> None:
    x = torch.randn(2, 4)
    assert torch.equal(MLP(4, [])(x), x)
    assert torch.equal(MLP(4, [], activation_on_last=False)(x), x)


@pytest.mark.parametrize(
    "make", [lambda: MLP(4, [3, 2]), lambda: LazyMLP([3, 2])], ids=["mlp", "lazy"]
)
def test_state_round_trip(make) -> None:
    mlp, other = MLP(4, [3, 2]), make()
    names = [f"_mlp.{i}._linear.{name}" for i in range(2) for name in ("weight", "bias")]
    assert list(mlp.state_dict()) == names
    file = io.BytesIO()
    torch.save(mlp.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    x = torch.randn(3, 4)
    assert torch.equal(other(x), mlp(x))


def test_meta_device() -> None:
    mlp = MLP(4, [3, 2], activation="swish_layernorm", device=torch.device("meta"))
    assert all(p.is_meta for p in mlp.parameters())
    assert mlp(torch.empty(3, 4, device="meta")).shape == (3, 2)


class TestLazyMLP:
    def test_first_input_gives_the_size(self) -> None:
        mlp = LazyMLP([3, 2], activation="tanh", dtype=torch.float64)
        optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)  # holds the same parameters later
        x = torch.randn(5, 7, dtype=torch.float64)
        expected = mlp(x)
        torch.testing.assert_close(expected, layers_of(x, mlp.state_dict(), [torch.tanh] * 2))
        expected.sum().backward()
        optimizer.step()
        assert not torch.equal(mlp(x), expected)
        with pytest.raises(ValueError, match=r"shape \(\*, 7\), as `in_size`=7"):
            mlp(torch.zeros(5, 8, dtype=torch.float64))

    def test_in_size_none_is_lazy_too(self) -> None:
        assert Perceptron(None, 2)(torch.zeros(3, 7)).shape == (3, 2)

    def test_size_not_known_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="uninitialized parameter"):
            nn.init.zeros_(LazyMLP([3])._mlp[0]._linear.weight)


@pytest.mark.parametrize("activation", ["relu", "swish_layernorm"])
class TestTracing:
    def test_one_compilation_for_all_batches(self, activation) -> None:
        mlp, graphs = MLP(4, [3, 2], activation=activation), []
        fast = torch.compile(
            mlp, fullgraph=True, dynamic=True, backend=lambda g, _: graphs.append(g) or g
        )
        for batch in (6, 8, 5):
            x = torch.randn(batch, 4)
            torch.testing.assert_close(fast(x), mlp(x))
        assert len(graphs) == 1

    def test_export_with_a_dynamic_batch(self, activation) -> None:
        mlp = MLP(4, [3, 2], activation=activation)
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(mlp, (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        x = torch.randn(6, 4)
        torch.testing.assert_close(torch.export.load(file).module()(x), mlp(x))


class TestSeedExamples:
    """The examples of the documents, with what had to be corrected."""

    def test_mlp(self) -> None:
        batch_size = 3
        in_size = 40
        input = torch.randn(batch_size, in_size)

        layer_sizes = [16, 8, 4]
        mlp_module = MLP(in_size, layer_sizes, bias=True)
        output = mlp_module(input)
        assert list(output.shape) == [batch_size, layer_sizes[-1]]

    def test_perceptron(self) -> None:
        batch_size = 3
        in_size = 40
        input = torch.randn(batch_size, in_size)

        out_size = 16
        perceptron = Perceptron(in_size, out_size, bias=True)

        output = perceptron(input)
        # compared list(output), the rows, and not the shape
        assert list(output.shape) == [batch_size, out_size]


@pytest.mark.parametrize("name", activation_names())
def test_an_activation_as_a_module_is_the_function_of_its_name(name: str) -> None:
    x = torch.randn(4, 6)
    by_name = Perceptron(6, 6, activation=name)
    with torch.no_grad():
        by_name._linear.weight.copy_(torch.eye(6))
        by_name._linear.bias.zero_()
    module = activation_module(name, 6)
    assert isinstance(module, nn.Module)
    torch.testing.assert_close(module(x), by_name(x))


def test_activations_are_known_by_the_same_names() -> None:
    message = f"`activation` should be one of {', '.join(activation_names())}. Received 'relo'"
    for make in (lambda: activation_module("relo", 3), lambda: MLP(3, [2], activation="relo")):
        with pytest.raises(ValueError, match=message):
            make()
