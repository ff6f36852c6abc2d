"""FactorizationMachine against the sum over pairs, DeepFM against its network row by row."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchrec.modules.deepfm import DeepFM, FactorizationMachine
from torchrec.modules.mlp import MLP, LazyMLP


def rows(embeddings: list[Tensor]) -> list[Tensor]:
    """All elements of each sample, one after another."""
    batch = embeddings[0].shape[0]
    return [torch.cat([e[b].reshape(-1) for e in embeddings]) for b in range(batch)]


def all_pairs(embeddings: list[Tensor]) -> Tensor:
    """The definition: the product of every pair of elements, summed."""
    sums = [
        sum((x[i] * x[j] for i, j in itertools.combinations(range(len(x)), 2)), x.new_zeros(()))
        for x in rows(embeddings)
    ]
    return torch.stack(sums).unsqueeze(1) if sums else embeddings[0].new_zeros(0, 1)


SHAPES = {
    "one": [(3, 2, 4)],
    "mixed_dimensions": [(3, 2, 4), (3, 1, 3), (3, 5)],
    "two_d": [(7, 2), (7, 3)],
    "four_d": [(2, 2, 2, 2)],
    "one_sample": [(1, 2, 3), (1, 2)],
    "no_sample": [(0, 2, 3), (0, 2)],
    "one_element": [(5, 1)],
}
each_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


@each_shape
def test_fm_output_and_gradients_follow_the_definition(shapes) -> None:
    x = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    actual, expected = FactorizationMachine()(x), all_pairs(x)
    assert actual.shape == (shapes[0][0], 1)
    torch.testing.assert_close(actual, expected)
    if actual.numel() and sum(e[0].numel() for e in x) > 1:
        upstream = torch.randn_like(expected)
        got = torch.autograd.grad(actual, x, upstream)
        torch.testing.assert_close(got, torch.autograd.grad(expected, x, upstream))


@given(batch=st.integers(0, 4), widths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_fm_does_not_depend_on_the_order_or_grouping(batch, widths) -> None:
    x = [torch.randn(batch, width, dtype=torch.float64) for width in widths]
    fm = FactorizationMachine()
    together = fm([torch.cat(x, dim=1)])
    torch.testing.assert_close(fm(x), together)
    torch.testing.assert_close(fm(x[::-1]), together)


def test_fm_second_derivatives() -> None:
    x = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 2, 3), (2, 2)]]
    fm = FactorizationMachine()
    assert torch.autograd.gradcheck(lambda *e: fm(e), x)
    assert torch.autograd.gradgradcheck(lambda *e: fm(e), x)


def test_fm_in_bfloat16_loses_only_the_rounding_of_the_result() -> None:
    # Far from zero both sums are large, and their difference would drown in their own rounding.
    x = [torch.randn(5, 20, 16, dtype=torch.bfloat16)]
    actual = FactorizationMachine()(x)
    assert actual.dtype == torch.bfloat16
    double = x[0].double().flatten(1)
    exact = (double.sum(1) ** 2 - (double**2).sum(1)).unsqueeze(1) / 2
    torch.testing.assert_close(actual.double(), exact, rtol=2**-8, atol=1e-2)


def test_fm_of_mixed_dtypes_promotes() -> None:
    x = [torch.randn(3, 4), torch.randn(3, 2, 2, dtype=torch.bfloat16)]
    actual = FactorizationMachine()(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, all_pairs([e.float() for e in x]))


@each_shape
def test_deepfm_runs_its_network_on_every_row(shapes) -> None:
    x = [torch.randn(s, requires_grad=True) for s in shapes]
    network = MLP(sum(torch.Size(s[1:]).numel() for s in shapes), [4, 2], activation="tanh")
    actual = DeepFM(network)(x)
    assert actual.shape == (shapes[0][0], 2)
    if not shapes[0][0]:
        return
    expected = torch.stack([network(row) for row in rows(x)])
    torch.testing.assert_close(actual, expected)
    got = torch.autograd.grad(actual.sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), x))


def test_deepfm_has_the_state_of_its_network_and_gives_it_back() -> None:
    module, other = DeepFM(nn.Linear(4, 2)), DeepFM(nn.Linear(4, 2))
    assert set(module.state_dict()) == {"dense_module.weight", "dense_module.bias"}
    other.load_state_dict(module.state_dict())
    x = [torch.randn(3, 2, 2)]
    assert torch.equal(other(x), module(x))


def test_bfloat16_network() -> None:
    x = [torch.randn(3, 2, 2, dtype=torch.bfloat16)]
    network = nn.Linear(4, 2, dtype=torch.bfloat16)
    assert torch.equal(DeepFM(network)(x), network(x[0].reshape(3, 4)))


@pytest.mark.parametrize("make", [FactorizationMachine, lambda: DeepFM(nn.Identity())])
class TestErrors:
    def test_no_embeddings(self, make) -> None:
        with pytest.raises(ValueError, match=r"one or more tensors. Received none"):
            make()([])

    def test_a_tensor_and_no_list(self, make) -> None:
        with pytest.raises(ValueError, match=r"should be a list .* Received a tensor"):
            make()(torch.zeros(3, 2))

    def test_batch_sizes_differ(self, make) -> None:
        expected = r"`embeddings\[1\]` should have shape \(3, \*\).* Received \(4, 2, 3\)"
        with pytest.raises(ValueError, match=expected):
            make()([torch.zeros(3, 2), torch.zeros(4, 2, 3)])

    def test_no_batch_dimension(self, make) -> None:
        with pytest.raises(ValueError, match=r"`embeddings\[0\]` should have shape \(B, \*\)"):
            make()([torch.zeros(3)])


def test_width_of_the_network_is_checked() -> None:
    expected = r"5 elements a sample, as `dense_module`. Received 6, from shapes \[\(3, 2, 3\)\]"
    with pytest.raises(ValueError, match=expected):
        DeepFM(nn.Linear(5, 2))([torch.zeros(3, 2, 3)])
    with pytest.raises(TypeError, match=r"`dense_module` should be an nn.Module"):
        DeepFM(lambda x: x)


@pytest.mark.parametrize(
    "module", [FactorizationMachine(), DeepFM(nn.Linear(10, 2))], ids=["fm", "deepfm"]
)
class TestTracing:
    def test_one_compilation_for_all_batches(self, module) -> None:
        graphs = []
        fast = torch.compile(
            module, fullgraph=True, dynamic=True, backend=lambda g, _: graphs.append(g) or g
        )
        for batch in (6, 8, 5):  # no other dimension's size, which would be taken for the same
            x = [torch.randn(batch, 2, 3), torch.randn(batch, 4)]
            torch.testing.assert_close(fast(x), module(x))
        assert len(graphs) == 1

    def test_export_with_a_dynamic_batch(self, module) -> None:
        x = [torch.randn(3, 2, 3), torch.randn(3, 4)]
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(module, (x,), dynamic_shapes=([{0: batch}, {0: batch}],))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        x = [torch.randn(6, 2, 3), torch.randn(6, 4)]
        torch.testing.assert_close(torch.export.load(file).module()(x), module(x))


class TestSeedExamples:
    """The examples of the documents, with what had to be corrected."""

    def test_deepfm(self) -> None:
        # imported torchrec.fb.modules, which never existed outside its makers' house, and not nn
        batch_size = 3
        output_dim = 30
        # the input embedding are a torch.Tensor of [batch_size, num_embeddings, embedding_dim]
        input_embeddings = [
            torch.randn(batch_size, 2, 64),
            torch.randn(batch_size, 2, 32),
        ]
        dense_module = nn.Linear(192, output_dim)
        deepfm = DeepFM(dense_module=dense_module)
        deep_fm_output = deepfm(embeddings=input_embeddings)
        assert deep_fm_output.shape == (batch_size, output_dim)
        # LazyMLP is imported there and not used: it takes any input
        assert DeepFM(LazyMLP([output_dim]))(input_embeddings).shape == (batch_size, output_dim)

    def test_factorization_machine(self) -> None:
        batch_size = 3
        # the input embedding are in torch.Tensor of [batch_size, num_embeddings, embedding_dim]
        input_embeddings = [
            torch.randn(batch_size, 2, 64),
            torch.randn(batch_size, 2, 32),
        ]
        fm = FactorizationMachine()
        output = fm(embeddings=input_embeddings)
        assert output.shape == (batch_size, 1)

    def test_element_count(self) -> None:
        # "the in_features should be: 2*3+4*5"
        embeddings = [torch.randn(3, 2, 3), torch.randn(3, 4, 5)]
        assert DeepFM(nn.Linear(2 * 3 + 4 * 5, 10))(embeddings).shape == (3, 10)
