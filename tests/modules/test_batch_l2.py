"""The L2 penalty of the rows that a batch looks up, against a loop in which autograd differentiates it."""

from collections.abc import Sequence
from typing import Any

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
from torchrec.optim import Adam

STRENGTH = {"a": 0.5, "b": 0.0, "c": 0.25}
RATE = 0.1
Bags = dict[str, list[list[int]]]
# `f` and `g` read table `a`, with ids that come twice in a bag, in several bags and in none.
FIRST: Bags = {
    "f": [[1, 1, 2], [], [3]],
    "g": [[1], [0], [2]],
    "h": [[0], [1, 0], [0]],
    "i": [[5], [5], []],
}
SECOND: Bags = {"f": [[4], [1]], "g": [[], [4]], "h": [[2], [2]], "i": [[5, 6], [0]]}
FEATURES = {"a": ["f", "g"], "b": ["h"], "c": ["i"]}


def tables(kind: Any, **changes: Any) -> list[Any]:
    return [
        kind(
            7,
            dim,
            name,
            feature_names=FEATURES[name],
            **{
                "optimizer": "sgd",
                "lr": RATE,
                "optimizer_options": {"batch_l2": STRENGTH[name]} if STRENGTH[name] else {},
                **changes,
            },
        )
        for name, dim in (("a", 3), ("b", 18), ("c", 4))
    ]


def vectors(output: Any) -> Tensor:
    """All numbers of an output as one tensor."""
    if isinstance(output, dict):
        return torch.cat([value.values().flatten() for value in output.values()])
    return output.values().flatten()


def loss_of(output: Any) -> Tensor:
    values = vectors(output)
    return (values * torch.linspace(-1, 1, len(values))).sum()


def penalty(weights: dict[str, Tensor], bags: Bags, samples: int) -> Tensor:
    """The formula, id by id."""
    total = torch.zeros(())
    for table, features in FEATURES.items():
        for feature in features:
            for bag in bags[feature]:
                for row in bag:
                    total = total + STRENGTH[table] / 2 * (weights[table][row] ** 2).sum() / samples
    return total


def weights_of(collection: Any) -> dict[str, Tensor]:
    holder = getattr(collection, "embedding_bags", None) or collection.embeddings
    return {name: holder[name].weight for name in STRENGTH}


COLLECTIONS = [(EmbeddingBagCollection, EmbeddingBagConfig), (EmbeddingCollection, EmbeddingConfig)]


@pytest.fixture(params=COLLECTIONS, ids=["bags", "sequences"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same tables, updated in the backward pass with the penalty, and with a gradient."""
    collection, kind = request.param
    fused = collection(tables=tables(kind))
    plain = collection(tables=tables(kind, optimizer=None, lr=None, optimizer_options={}))
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def step_plainly(plain: Any, passes: Sequence[Sequence[Bags]]) -> None:
    """One step of SGD: passes of look-ups of the same samples."""
    optimizer = torch.optim.SGD(plain.parameters(), lr=RATE)
    samples = sum(len(looked_up[0]["f"]) for looked_up in passes)
    for looked_up in passes:
        for bags in looked_up:
            output = plain(KeyedJaggedTensor.from_lists(bags))
            (loss_of(output) + penalty(weights_of(plain), bags, samples)).backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_same(fused: Any, plain: Any) -> None:
    for name, weight in weights_of(fused).items():
        torch.testing.assert_close(weight, weights_of(plain)[name], rtol=1e-6, atol=1e-6)


def run(fused: Any, bags: Bags) -> Tensor:
    return loss_of(fused(KeyedJaggedTensor.from_lists(bags)))


def test_a_look_up(pair: tuple[Any, Any]) -> None:
    fused, plain = pair
    before = weights_of(fused)["a"].detach().clone()
    run(fused, FIRST).backward()
    step_plainly(plain, [[FIRST]])
    assert_same(fused, plain)
    run(fused, SECOND).backward()
    step_plainly(plain, [[SECOND]])
    assert_same(fused, plain)
    assert torch.equal(weights_of(fused)["a"][5:], before[5:])  # nobody looked these up


def test_two_look_ups_of_the_same_samples(pair: tuple[Any, Any]) -> None:
    fused, plain = pair
    other = {name: bags[::-1] for name, bags in FIRST.items()}
    (run(fused, FIRST) + run(fused, other)).backward()
    step_plainly(plain, [[FIRST, other]])
    assert_same(fused, plain)


def test_accumulated_passes_are_one_batch(pair: tuple[Any, Any]) -> None:
    fused, plain = pair
    with fused.fused_optimizer.accumulate():
        run(fused, FIRST).backward()
    run(fused, SECOND).backward()
    step_plainly(plain, [[FIRST], [SECOND]])
    assert_same(fused, plain)


def test_gradients_that_are_dropped_take_their_samples_along(pair: tuple[Any, Any]) -> None:
    fused, plain = pair
    with fused.fused_optimizer.accumulate():
        run(fused, SECOND).backward()
    fused.fused_optimizer.zero_grad()
    with fused.fused_optimizer.accumulate():
        run(fused, FIRST).backward()
    fused.fused_optimizer.step()
    step_plainly(plain, [[FIRST]])
    assert_same(fused, plain)


def test_a_pass_beside_a_direct_use_of_the_weight(pair: tuple[Any, Any]) -> None:
    fused, plain = pair
    weight = weights_of(fused)["a"]
    (run(fused, FIRST) + (weight[2:4] ** 3).sum()).backward()
    (weights_of(plain)["a"][2:4] ** 3).sum().backward()
    step_plainly(plain, [[FIRST]])
    assert_same(fused, plain)


def test_one_weight_in_two_collections() -> None:
    one, other = (EmbeddingBagCollection(tables=tables(EmbeddingBagConfig)) for _ in range(2))
    for name, weight in weights_of(one).items():
        other.embedding_bags[name].weight = weight
    plain = EmbeddingBagCollection(
        tables=tables(EmbeddingBagConfig, optimizer=None, lr=None, optimizer_options={})
    )
    plain.load_state_dict(one.state_dict())
    reverse = {name: bags[::-1] for name, bags in FIRST.items()}
    (run(one, FIRST) + run(other, reverse)).backward()
    step_plainly(plain, [[FIRST, reverse]])
    assert_same(one, plain)


def test_with_a_rule_that_scales_the_gradient() -> None:
    """The penalty is part of what the moments and the clipping see."""
    options = {"batch_l2": 4.0, "max_gradient": 0.2}
    fused = EmbeddingBagCollection(
        tables=tables(EmbeddingBagConfig, optimizer="adagrad", optimizer_options=options)
    )
    weight = fused.embedding_bags["c"].weight
    before = weight.detach().clone()
    run(fused, FIRST).backward()
    state = fused.fused_optimizer.state[weight]["sum"]
    columns = torch.linspace(-1, 1, 3 * (3 + 3 + 18 + 4)).view(3, -1)[:, -4:]
    gradient = (columns[0] + columns[1] + 2 * 4.0 / 3 * before[5]).clamp(-0.2, 0.2)
    torch.testing.assert_close(state[5], gradient**2)
    assert not state[:5].any()


def test_needs_a_rate_of_its_own() -> None:
    with pytest.raises(
        ValueError, match=r"`batch_l2` of table 'a' should come with an `lr`.*Received 0.5 and no"
    ):
        EmbeddingBagCollection(tables=tables(EmbeddingBagConfig, lr=None))
    with pytest.raises(ValueError, match=r"`batch_l2` should be at least 0. Received -1"):
        EmbeddingBagCollection(
            tables=tables(EmbeddingBagConfig, optimizer_options={"batch_l2": -1.0})
        )


def test_optimizers_that_do_not_look_up_refuse_it() -> None:
    with pytest.raises(TypeError, match=r"`Adam` takes .* Received 'batch_l2'"):
        Adam([torch.nn.Parameter(torch.zeros(2, 2))], batch_l2=0.1)
