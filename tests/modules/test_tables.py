"""Which tables a collection trains and shows: weights that are shared, replaced, swapped, copied, or left behind."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.ops.embedding import LookupSpec

T = torch.tensor
KJT = KeyedJaggedTensor.from_lists({"f": [[0], [1, 0]]})
SIZES = {"t": (10, 4), "u": (6, 2)}
NAMES = ["embedding_bags.t.weight", "embedding_bags.u.weight"]


def bags(t: dict | None = None, u: dict | None = None) -> EmbeddingBagCollection:
    """Two tables that differ in size; fused Adagrad unless said otherwise."""
    configs = [
        EmbeddingBagConfig(
            *SIZES[name],
            name,
            feature_names=["f"],
            init_fn=nn.init.zeros_,
            **({"optimizer": "adagrad", "lr": 0.1} if options is None else options),
        )
        for name, options in (("t", t), ("u", u))
    ]
    return EmbeddingBagCollection(tables=configs)


def weight(module: nn.Module, name: str = "t") -> nn.Parameter:
    return module.embedding_bags[name].weight


def put(module: nn.Module, new: nn.Parameter, name: str = "t") -> None:
    module.embedding_bags[name].weight = new


def train(*modules: nn.Module) -> None:
    for module in modules:
        module(KJT).values().sum().backward()


def shown(module: EmbeddingBagCollection) -> dict[str, tuple[float, float]]:
    """The sum and the step count of each table that the optimizer shows."""
    state = module.fused_optimizer.state_dict()["state"]
    return {name: (s["sum"][0, 0].item(), s["step"].item()) for name, s in state.items()}


def steps(module: EmbeddingBagCollection) -> list[float]:
    return [state["step"].item() for state in module.fused_optimizer.state.values()]


def tied() -> tuple[EmbeddingBagCollection, EmbeddingBagCollection]:
    one, two = bags(), bags()
    put(two, weight(one))
    return one, two


# ---- copies


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("met", [False, True])
@pytest.mark.parametrize("order", ["one two", "two one"])
def test_a_copy_trains_on_with_the_state(order: str, met: bool, copied: Callable) -> None:
    modules = dict(zip(("one", "two"), tied(), strict=True))
    train(modules["one"])
    if met:
        train(modules["two"])
    model = nn.ModuleDict({name: modules[name] for name in order.split()})
    other = copied(model)
    for name in modules:
        assert shown(other[name]) == shown(model[name])
    for each in (model, other):
        train(*each.values())
        train(each["one"])
    for name in modules:
        assert shown(other[name]) == shown(model[name])
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert weight(other["one"]) is weight(other["two"])


def test_a_copy_of_the_sharing_collection_alone_has_the_state_and_shows_it() -> None:
    one, two = tied()
    train(one, two)
    alone = copy.deepcopy(two)
    train(alone)
    assert shown(alone) == {NAMES[0]: (12.0, 3), NAMES[1]: (8.0, 2)}
    assert shown(one) == {NAMES[0]: (8.0, 2), NAMES[1]: (4.0, 1)}
    assert shown(two) == {NAMES[1]: (4.0, 1)}


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("order", ["collection first", "optimizer first", "optimizer alone"])
def test_an_optimizer_that_is_copied_with_its_collection_steers_the_copy(
    order: str, copied: Callable
) -> None:
    module = bags()
    train(module)
    pair = {"collection": module, "optimizer": module.fused_optimizer}
    if order == "optimizer first":
        pair = dict(reversed(list(pair.items())))
    if order == "optimizer alone":
        saved = copied(module.fused_optimizer).state_dict()
        assert saved["param_groups"] == module.fused_optimizer.state_dict()["param_groups"]
        assert list(saved["state"]) == NAMES
        return
    other = copied(pair)
    for group in other["optimizer"].param_groups:
        group["lr"] = 0.0
    before = weight(other["collection"]).detach().clone()
    train(other["collection"], module)
    assert torch.equal(weight(other["collection"]), before)
    assert not torch.equal(weight(module), before)


# ---- what is between putting a weight in place of another and the next look-up


def test_rows_that_start_anew_after_a_weight_was_shared() -> None:
    one, two = bags(), bags()
    train(one)
    put(two, weight(one))
    two.reset_rows("t", torch.tensor([0]))
    assert shown(one)[NAMES[0]] == (0.0, 1)


def test_rows_that_are_loaded_after_a_weight_was_shared() -> None:
    one, two = bags(), bags()
    train(one)
    put(two, weight(one))
    two.load_rows("t", torch.tensor([0]), torch.zeros(1, 4), reset_state=True)
    assert shown(one)[NAMES[0]] == (0.0, 1)


def test_gradients_that_are_dropped_after_a_weight_was_shared() -> None:
    one, two = bags(), bags()
    with one.fused_optimizer.accumulate():
        train(one)
    put(two, weight(one))
    two.zero_grad()
    one.fused_optimizer.step()
    assert weight(one).count_nonzero() == 0
    assert weight(one, "u").count_nonzero() == 4


def test_rows_of_a_plain_table_whose_weight_was_replaced() -> None:
    module = bags(t={})
    put(module, nn.Parameter(torch.ones(10, 4)))
    weight(module).grad = torch.ones(10, 4)
    module.reset_rows("t", torch.tensor([0]))
    assert weight(module).grad[:2, 0].tolist() == [0.0, 1.0]


def test_the_optimizer_shows_the_weight_that_is_there() -> None:
    module = bags()
    assert module.fused_optimizer.params[NAMES[0]] is weight(module)
    put(module, nn.Parameter(torch.ones(10, 4)))
    assert module.fused_optimizer.params[NAMES[0]] is weight(module)
    assert module.fused_optimizer is module.fused_optimizer


# ---- weights that are lent for one call


def lent(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    return {name: change(value.detach()) for name, value in module.named_parameters()}


def test_weights_of_somebody_else_are_read_and_leave_the_training_as_it_is() -> None:
    """As when the running mean of the weights is evaluated."""
    module, expected = bags(u={}), bags(u={})
    for each in (module, expected):
        with each.fused_optimizer.accumulate():
            train(each)
    out = torch.func.functional_call(module, lent(module, torch.ones_like), (KJT,))
    assert out.values().tolist() == [[1.0] * 6, [2.0] * 6]
    for each in (module, expected):
        train(each)
    assert shown(module) == shown(expected) == {NAMES[0]: (16.0, 1)}
    assert torch.equal(weight(module), weight(expected))


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("u", [None, {}, {"optimizer": "sgd"}], ids=["fused", "plain", "waits"])
def test_gradients_of_weights_of_somebody_else_are_theirs(u: dict | None, computed: bool) -> None:
    module = bags(u=u)
    train(module)
    before, state = copy.deepcopy(module.state_dict()), steps(module)
    factor = torch.ones(1, requires_grad=True)
    weights = lent(module, lambda w: (w + 1) * factor if computed else (w + 1).requires_grad_())
    values = {name: value.detach().clone() for name, value in weights.items()}
    torch.func.functional_call(module, weights, (KJT,)).values().sum().backward()
    if computed:
        looked_up = sum(2 * v[0].sum() + v[1].sum() for v in values.values())
        torch.testing.assert_close(factor.grad, looked_up.reshape(1))
    else:
        for value in weights.values():
            assert value.grad[:3, 0].tolist() == [2.0, 1.0, 0.0]
    for name, value in values.items():
        assert torch.equal(weights[name], value)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert steps(module) == state


# ---- who shows what


def test_a_table_is_shown_by_the_next_collection_when_the_first_is_gone() -> None:
    one, two = tied()
    train(one, two)
    assert shown(two) == {NAMES[1]: (4.0, 1)}
    left = weakref.ref(weight(one, "u"))
    del one
    gc.collect()
    assert shown(two) == {NAMES[0]: (8.0, 2), NAMES[1]: (4.0, 1)}
    gc.collect()
    assert left() is None
    two.fused_optimizer.param_groups[0]["lr"] = 0.0
    before = weight(two).detach().clone()
    train(two)
    assert torch.equal(weight(two), before)
    assert shown(two) == {NAMES[0]: (12.0, 3), NAMES[1]: (8.0, 2)}


def test_a_table_is_shown_by_the_next_collection_when_the_first_has_another_weight() -> None:
    one, two = tied()
    train(one, two)
    put(one, nn.Parameter(torch.zeros(10, 4)))
    train(one)
    assert shown(one) == {NAMES[0]: (4.0, 1), NAMES[1]: (8.0, 2)}
    assert shown(two) == {NAMES[0]: (8.0, 2), NAMES[1]: (4.0, 1)}


@pytest.mark.parametrize("looked_at_between", [False, True])
def test_weights_that_change_places_are_both_shown(looked_at_between: bool) -> None:
    options = {"optimizer": "adagrad", "lr": 0.1}
    configs = [
        EmbeddingBagConfig(5, 2, name, feature_names=[name], **options) for name in ("t", "u")
    ]
    module = EmbeddingBagCollection(tables=configs)
    kjt = KeyedJaggedTensor.from_lists({"t": [[0], [0]], "u": [[0], []]})
    module(kjt).values().sum().backward()
    assert shown(module) == {NAMES[0]: (4.0, 1), NAMES[1]: (1.0, 1)}
    t, u = weight(module), weight(module, "u")
    put(module, u)
    if looked_at_between:  # then "u" trains both, and nobody the former weight of "t"
        assert shown(module) == {NAMES[0]: (1.0, 1)}
        assert module.fused_optimizer.params[NAMES[0]] is u
    put(module, t, "u")
    module(kjt).values().sum().backward()
    trained = 1.0 if looked_at_between else 5.0
    assert shown(module) == {NAMES[0]: (5.0, 2), NAMES[1]: (trained, 1 + (trained > 1))}


def test_a_weight_that_is_both_tables_is_shown_once() -> None:
    options = {"optimizer": "adagrad", "lr": 0.1}
    configs = [
        EmbeddingBagConfig(5, 2, name, feature_names=[name], **options) for name in ("t", "u")
    ]
    module = EmbeddingBagCollection(tables=configs)
    put(module, weight(module), "u")
    kjt = KeyedJaggedTensor.from_lists({"t": [[0], [0]], "u": [[0], []]})
    module(kjt).values().sum().backward()
    assert shown(module) == {NAMES[0]: (9.0, 1)}


@pytest.mark.parametrize("shared", [False, True])
def test_a_replaced_table_does_not_stay_in_memory(shared: bool) -> None:
    one, two = bags(), bags()
    train(one, two)
    former = weakref.ref(weight(two))
    put(two, weight(one) if shared else nn.Parameter(torch.zeros(10, 4)))
    train(two)
    gc.collect()
    assert former() is None


def test_a_weight_that_is_refused_stays_refused() -> None:
    one, two = bags(), bags(t={"optimizer": "sgd", "lr": 0.1})
    put(two, weight(one))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'t' and 't' have one weight"):
            two(KJT)


@pytest.mark.parametrize("kind", [EmbeddingBagCollection, EmbeddingCollection])
@pytest.mark.once
def test_lookups_of_ever_new_orders_of_keys_are_not_all_kept(kind):
    config = EmbeddingBagConfig if kind is EmbeddingBagCollection else EmbeddingConfig
    module = kind(tables=[config(10, 4, "t", feature_names=["f"], optimizer="sgd", lr=0.5)])

    def look_up(number: int) -> torch.Tensor:
        keys = [f"x{number}", "f"] if number % 2 else ["f", f"x{number}"]
        lengths = T([0, 1]) if number % 2 else T([1, 0])
        output = module(KeyedJaggedTensor(keys, T([number % 10]), lengths=lengths))
        return output["f"] if kind is EmbeddingBagCollection else output["f"].values()

    def kept() -> int:
        gc.collect()
        return sum(type(thing) is LookupSpec for thing in gc.get_objects())

    weight = next(module.parameters())
    before = kept()
    for number in [*range(140), *range(5), 139]:  # those at the start were forgotten meanwhile
        row = weight[number % 10].detach().clone()
        output = look_up(number)
        assert torch.equal(output[0], row)
        output.sum().backward()
        assert torch.equal(weight[number % 10], row - 0.5)
    assert kept() - before <= 2 * 64  # a spec, and that of its fused group
    made = kept()
    look_up(139)
    assert kept() == made


@pytest.mark.parametrize("training", [None, {}], ids=["fused", "plain"])
def test_a_weight_that_is_taken_away_is_named(training):
    module = bags(training, training)
    module(KJT)
    module.embedding_bags["u"].weight = None
    with pytest.raises(
        TypeError, match=r"The weight of table 'u' should be a Tensor\. Received None\."
    ):
        module(KJT)
    with pytest.raises(
        TypeError, match=r"The weight of table 'u' should be a Tensor\. Received None\."
    ):
        module.to(torch.float64)
