"""Every interaction against its equation, written out with plain tensor operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchrec import KeyedTensor
from torchrec.models.deepfm import FMInteractionArch
from torchrec.models.dlrm import (
    DenseArch,
    InteractionArch,
    InteractionDCNArch,
    InteractionProjectionArch,
    choose,
)
from torchrec.models.experimental.transformerdlrm import InteractionTransformerArch
from torchrec.modules.crossnet import LowRankCrossNet

F, D = 3, 4
M = (F + 1) * D
Parameters = dict[str, Tensor]


def vectors_of(dense: Tensor, sparse: Tensor) -> list[Tensor]:
    return [dense, *sparse.unbind(1)]


def mlp(x: Tensor, p: Parameters, prefix: str, layers: int) -> Tensor:
    for i in range(layers):
        name = f"{prefix}model._mlp.{i}._linear"
        x = (x @ p[f"{name}.weight"].T + p[f"{name}.bias"]).clamp(min=0)
    return x


def dots(dense: Tensor, sparse: Tensor, p: Parameters) -> Tensor:
    pairs = itertools.combinations(vectors_of(dense, sparse), 2)
    return torch.cat([dense, *((x * y).sum(1, keepdim=True) for x, y in pairs)], 1)


def projection(dense: Tensor, sparse: Tensor, p: Parameters) -> Tensor:
    x = torch.cat(vectors_of(dense, sparse), 1)
    y = mlp(x, p, "interaction_branch1.", 2).reshape(len(x), 2, D)
    z = mlp(x, p, "interaction_branch2.", 1).reshape(len(x), D, 5)
    cells = [(y[:, i] * z[:, :, j]).sum(1, keepdim=True) for i in range(2) for j in range(5)]
    return torch.cat([dense, *cells], 1)


def cross(dense: Tensor, sparse: Tensor, p: Parameters) -> Tensor:
    x = x_0 = torch.cat(vectors_of(dense, sparse), 1)
    for i in range(2):
        w, v = p[f"crossnet.W_kernels.{i}"], p[f"crossnet.V_kernels.{i}"]
        x = x_0 * (x @ v.T @ w.T + p[f"crossnet.bias.{i}"]) + x
    return x


def deep_and_fm(dense: Tensor, sparse: Tensor, p: Parameters) -> Tensor:
    x = torch.cat(vectors_of(dense, sparse), 1)
    deep = (x @ p["deep_fm.dense_module.0.weight"].T + p["deep_fm.dense_module.0.bias"]).clamp(0)
    pairs = sum(x[:, i] * x[:, j] for i, j in itertools.combinations(range(M), 2))
    return torch.cat([dense, deep, pairs.unsqueeze(1)], 1)


def layer_norm(x: Tensor, p: Parameters, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(x: Tensor, p: Parameters, prefix: str, heads: int) -> Tensor:
    """Multi-head attention of the rows of each matrix to one another."""
    q, k, v = (x @ p[f"{prefix}in_proj_weight"].T + p[f"{prefix}in_proj_bias"]).chunk(3, -1)
    size = D // heads
    outputs = []
    for h in range(heads):
        mine = slice(h * size, (h + 1) * size)
        scores = q[..., mine] @ k[..., mine].transpose(1, 2) / size**0.5
        outputs.append(scores.softmax(-1) @ v[..., mine])
    joined = torch.cat(outputs, -1)
    return joined @ p[f"{prefix}out_proj.weight"].T + p[f"{prefix}out_proj.bias"]


def encoder(x: Tensor, p: Parameters) -> Tensor:
    for i in range(2):
        layer = f"interarch_TE.layers.{i}."
        x = layer_norm(x + attention(x, p, f"{layer}self_attn.", 2), p, f"{layer}norm1")
        hidden = (x @ p[f"{layer}linear1.weight"].T + p[f"{layer}linear1.bias"]).clamp(min=0)
        out = hidden @ p[f"{layer}linear2.weight"].T + p[f"{layer}linear2.bias"]
        x = layer_norm(x + out, p, f"{layer}norm2")
    return x


def over_features(dense: Tensor, sparse: Tensor, p: Parameters) -> Tensor:
    return encoder(torch.stack(vectors_of(dense, sparse), 1), p).reshape(len(dense), -1)


def over_samples(dense: Tensor, sparse: Tensor, p: Parameters) -> Tensor:
    by_feature = encoder(torch.stack(vectors_of(dense, sparse), 0), p)
    return torch.cat(list(by_feature), 1)


class Keyed(nn.Module):
    """FMInteractionArch, given the sparse vectors as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        names = [f"f{i}" for i in range(F)]
        self.arch = FMInteractionArch(M, names, 5)
        # Its parameters go by the names that they have there.
        self.deep_fm = self.arch.deep_fm

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        names = self.arch.sparse_feature_names
        return self.arch(dense, KeyedTensor(names, [D] * F, sparse.flatten(1)))


def make_projection(features: int = F) -> nn.Module:
    return InteractionProjectionArch(features, DenseArch(M, [7, 2 * D]), DenseArch(M, [D * 5]))


def make_transformer(across_batch: bool) -> nn.Module:
    return InteractionTransformerArch(F, D, 2, 2, across_batch).eval()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], int]] = {
    "dots": (lambda: InteractionArch(F), dots, D + 6),
    "projection": (make_projection, projection, D + 10),
    "cross": (lambda: InteractionDCNArch(F, LowRankCrossNet(M, 2, 3)), cross, M),
    "deepfm": (Keyed, deep_and_fm, D + 5 + 1),
    "transformer": (lambda: make_transformer(False), over_features, M),
    "transformer_across_batch": (lambda: make_transformer(True), over_samples, M),
}
each_case = pytest.mark.parametrize(("make", "formula", "width"), CASES.values(), ids=CASES)


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@each_case
@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-4, 1e-4)],
    ids=["fp64", "fp32"],
)
def test_output_and_gradients(make, formula, width, batch, dtype, rtol, atol) -> None:
    module = randomized(make()).to(dtype)
    dense = torch.randn(batch, D, dtype=dtype, requires_grad=True)
    sparse = torch.randn(batch, F, D, dtype=dtype, requires_grad=True)
    if batch == 0 and isinstance(module, InteractionTransformerArch):
        assert module(dense, sparse).shape == (0, width)
        return  # the equation above takes maxima, which no samples do not have
    parameters = dict(module.named_parameters(remove_duplicate=False))
    actual, expected = module(dense, sparse), formula(dense, sparse, parameters)
    assert actual.shape == (batch, width)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    wrt = [dense, sparse, *module.parameters()]
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(actual, wrt, upstream, materialize_grads=True, allow_unused=True)
    want = torch.autograd.grad(expected, wrt, upstream, materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


@each_case
def test_bfloat16_stays_near_double(make, formula, width) -> None:
    module = randomized(make()).to(torch.bfloat16)
    dense = torch.randn(9, D, dtype=torch.bfloat16, requires_grad=True)
    sparse = torch.randn(9, F, D, dtype=torch.bfloat16, requires_grad=True)
    exact = [x.detach().double().requires_grad_() for x in (dense, sparse)]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    expected = formula(*exact, {name: p.detach().double() for name, p in parameters.items()})
    actual = module(dense, sparse)
    assert actual.dtype == torch.bfloat16
    assert (actual.double() - expected).norm() < 0.03 * expected.norm()
    upstream = torch.randn_like(actual)
    got = torch.autograd.grad(actual, [dense, sparse], upstream)
    want = torch.autograd.grad(expected, exact, upstream.double())
    for mine, theirs in zip(got, want, strict=True):
        assert (mine.double() - theirs).norm() < 0.15 * theirs.norm()


@each_case
def test_autocast_trains(make, formula, width) -> None:
    module = randomized(make())
    dense, sparse = torch.randn(9, D, requires_grad=True), torch.randn(9, F, D)
    expected = module(dense, sparse)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = module(dense, sparse)
    assert (actual - expected).norm() < 0.05 * expected.norm()
    actual.float().sum().backward()
    assert dense.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "module",
    [
        InteractionArch(0),
        InteractionDCNArch(0, nn.Identity()),
        InteractionProjectionArch(0, nn.Identity(), nn.Identity()),
        InteractionTransformerArch(0, D, 2, 1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_without_sparse_features_the_dense_vector_is_left(module) -> None:
    dense = torch.randn(5, D)
    assert torch.equal(module(dense, torch.zeros(5, 0, D)), dense)


WRONG = {
    "features": ((2, D), (2, F + 1, D), r"\(B, F, D\) = \(2, 3, 4\).*Received \(2, 4, 4\)"),
    "dimension": ((2, D), (2, F, D + 1), r"\(B, F, D\) = \(2, 3, 4\).*Received \(2, 3, 5\)"),
    "batch": ((2, D), (3, F, D), r"`sparse_features`.*\(2, 3, 4\).*Received \(3, 3, 4\)"),
    "dense": ((D,), (2, F, D), r"`dense_features` should have shape \(B, D\). Received \(4,\)"),
}


@pytest.mark.parametrize(("dense", "sparse", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["dots", "projection", "cross", "transformer"])
def test_wrong_shapes(name, dense, sparse, message) -> None:
    module = CASES[name][0]()
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(dense), torch.zeros(sparse))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="`num_sparse_features` should be at least 0"):
        InteractionArch(-1)
    with pytest.raises(TypeError, match="`num_sparse_features` should be an int"):
        InteractionArch("f1")
    with pytest.raises(TypeError, match=r"`crossnet` should be an nn.Module. Received function"):
        InteractionDCNArch(F, lambda x: x)
    with pytest.raises(TypeError, match=r"`interaction_branch2` should be an nn.Module"):
        InteractionProjectionArch(F, nn.Identity(), None)
    with pytest.raises(ValueError, match=r"`nhead` should divide `embedding_dim`=4. Received 3"):
        InteractionTransformerArch(F, D, 3)


def test_branches_give_whole_vectors() -> None:
    arch = InteractionProjectionArch(F, DenseArch(M, [D]), DenseArch(M, [D + 1]))
    with pytest.raises(ValueError, match=r"`interaction_branch2` .* multiple of D=4 .* Received 5"):
        arch(torch.zeros(2, D), torch.zeros(2, F, D))


def test_a_prediction_does_not_depend_on_the_batch() -> None:
    dense, sparse = torch.randn(6, D), torch.randn(6, F, D)
    for name in ("dots", "projection", "cross", "deepfm", "transformer"):
        module = randomized(CASES[name][0]())
        torch.testing.assert_close(module(dense, sparse)[2:3], module(dense[2:3], sparse[2:3]))


def test_the_number_of_features_is_printed() -> None:
    assert repr(InteractionArch(3)) == "InteractionArch(num_sparse_features=3)"
    assert "num_sparse_features=3" in repr(InteractionDCNArch(3, nn.Identity()))
    assert "num_sparse_features=3" in repr(make_projection())


def test_choose_counts_combinations() -> None:
    for n in range(7):
        for k in range(-1, 9):
            assert choose(n, k) == len(list(itertools.combinations(range(n), k)) if k >= 0 else [])
