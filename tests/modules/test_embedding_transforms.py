"""Collections under `torch.func`, forward-mode AD and batched gradients: the numbers of a plain backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

FEATURES = {"a": [[1, 1], [], [4, 77]], "b": [[2], [0, 2], []]}
# Of the first table; the second is always plain.
OPTIONS = {
    "plain": {},
    "sparse": {"sparse": True},
    "fused": {"optimizer": "rowwise_adagrad", "lr": 0.1},
    "fused_without_lr": {"optimizer": "sgd"},
}


def make(sequences: bool, **options) -> EmbeddingBagCollection | EmbeddingCollection:
    config = EmbeddingConfig if sequences else EmbeddingBagConfig
    torch.manual_seed(3)
    tables = [
        config(
            num_embeddings=6, embedding_dim=3, name="t", feature_names=["a"], hash_size=2, **options
        ),
        config(num_embeddings=5, embedding_dim=2, name="u", feature_names=["b"]),
    ]
    return (
        EmbeddingCollection(tables=tables) if sequences else EmbeddingBagCollection(tables=tables)
    )


def look_up(module, weights: dict[str, Tensor] | None = None, features=None) -> Tensor:
    features = KeyedJaggedTensor.from_lists(FEATURES) if features is None else features
    found = (
        torch.func.functional_call(module, weights, (features,)) if weights else module(features)
    )
    if isinstance(found, dict):
        return torch.cat([output.values().flatten() for output in found.values()])
    return found.values()


@pytest.fixture(params=[False, True], ids=["pooled", "sequences"])
def sequences(request) -> bool:
    return request.param


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_gradient_of_a_function_is_that_of_a_plain_table(options, sequences) -> None:
    plain = make(sequences)
    output = look_up(plain)
    factors = torch.randn_like(output)
    (output * factors).sum().backward()
    module = make(sequences, **options)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    grads = torch.func.grad(lambda w: (look_up(module, w) * factors).sum())(before)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)
    for name, parameter in module.named_parameters():  # nothing was updated, nothing has waited
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_goes_on_after_a_transform_as_before_it(options, sequences) -> None:
    modules = [make(sequences, **options) for _ in range(2)]
    for step in range(3):
        for module in modules:
            outer = torch.optim.SGD(module.parameters(), lr=0.5)
            look_up(module).square().sum().backward()
            outer.step()
        if step == 0:
            weights = {n: p.detach().clone() for n, p in modules[0].named_parameters()}
            torch.func.jacrev(lambda w: look_up(modules[0], w))(weights)
    for mine, other in zip(*(m.parameters() for m in modules), strict=True):
        assert torch.equal(mine, other)


def test_weights_of_an_ensemble(sequences) -> None:
    module = make(sequences)
    weights = {n: torch.randn(4, *p.shape) for n, p in module.named_parameters()}
    found = torch.vmap(lambda w: look_up(module, w))(weights)
    for i, output in enumerate(found):
        assert torch.equal(output, look_up(module, {n: w[i] for n, w in weights.items()}))


def test_a_tangent_of_the_weights(sequences) -> None:
    module = make(sequences)
    weights = {n: p.detach().clone() for n, p in module.named_parameters()}
    tangents = {n: torch.randn_like(w) for n, w in weights.items()}
    output, tangent = torch.func.jvp(lambda w: look_up(module, w), (weights,), (tangents,))
    torch.testing.assert_close(output, look_up(module, weights))
    torch.testing.assert_close(tangent, look_up(module, tangents))  # a look-up is linear in them


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_in_batches(sequences) -> None:
    module = make(sequences)
    output = look_up(module)
    grads = torch.randn(3, *output.shape)
    weights = list(module.parameters())
    batched = torch.autograd.grad(output, weights, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        single = torch.autograd.grad(output, weights, grad, retain_graph=True)
        for mine, other in zip(batched, single, strict=True):
            torch.testing.assert_close(mine[i], other)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("changed", ["values", "offsets"])
def test_ids_changed_before_the_backward_pass_are_refused(changed, options, sequences) -> None:
    if sequences and changed == "offsets":
        pytest.skip("sequences read no offsets in the backward pass")
    module = make(sequences, **options)
    features = KeyedJaggedTensor.from_lists(FEATURES)
    output = look_up(module, features=features)
    getattr(features, changed)().add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
