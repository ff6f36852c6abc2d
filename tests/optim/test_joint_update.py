"""All that one backward pass brings to a fused table is one update, with the sum of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.ops.embedding import BagGradient
from torchrec.optim import apply_optimizer_in_backward
from torchrec.types import DataType

SIZES = {"t": (10, 4), "u": (7, 3), "v": (5, 4)}
KJT = KeyedJaggedTensor.from_lists({"a": [[1, 2], [3]], "b": [[3, 3], []]})
OTHER = KeyedJaggedTensor.from_lists({"a": [[], [1, 4]], "b": [[0], [3]]})


def bags(plain: str = "v", **options) -> EmbeddingBagCollection:
    """Tables of uneven sizes, one of them plain, one looked up by two features."""
    torch.manual_seed(0)
    features = {"t": ["a", "b"], "u": ["b"], "v": ["a"]}
    configs = [
        EmbeddingBagConfig(
            rows, dim, name, feature_names=features[name], **({} if name == plain else options)
        )
        for name, (rows, dim) in SIZES.items()
    ]
    return EmbeddingBagCollection(tables=configs)


def weight(module: EmbeddingBagCollection, name: str = "t") -> nn.Parameter:
    return module.embedding_bags[name].weight


def pooled(module: EmbeddingBagCollection, kjt: KeyedJaggedTensor = KJT) -> Tensor:
    out = module(kjt).values()
    return (out * torch.arange(out.shape[1])).sum() + out.square().sum()


USES: dict[str, Callable[[EmbeddingBagCollection], Tensor]] = {
    "one look-up": pooled,
    "two look-ups": lambda m: pooled(m) + 2 * pooled(m, OTHER),
    "the same look-up twice": lambda m: pooled(m) + pooled(m),
    "penalty": lambda m: pooled(m) + 0.5 * weight(m)[2:6].square().sum(),
    "penalty alone": lambda m: 0.5 * weight(m)[1:3].square().sum(),
    "penalty of the other table": lambda m: pooled(m) + weight(m, "u")[0].sum(),
    "functional embedding": lambda m: (
        pooled(m) + functional.embedding(torch.tensor([1, 1, 6]), weight(m)).sin().sum()
    ),
    "sparse functional embedding": lambda m: (
        pooled(m)
        + functional.embedding(torch.tensor([1, 1, 6]), weight(m), sparse=True).sin().sum()
    ),
    "only a sparse functional embedding": lambda m: (
        functional.embedding(torch.tensor([1, 1, 6]), weight(m), sparse=True).sin().sum()
    ),
    "everything": lambda m: (
        pooled(m) + pooled(m, OTHER) + weight(m).square().sum() + weight(m, "u").sum()
    ),
}
USES["tied logits"] = lambda m: pooled(m) + (m(KJT).values()[:, :4] @ weight(m).T).sin().sum()
LIKE = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch's Adagrad
@pytest.mark.parametrize("applied", [False, True], ids=["configured", "applied"])
@pytest.mark.parametrize("rule", LIKE)
@pytest.mark.parametrize("use", USES)
def test_equals_an_ordinary_optimizer_on_the_sum(use: str, rule: str, applied: bool) -> None:
    """For rules that leave rows alone whose gradient is zero."""
    fused = bags(**({} if applied else {"optimizer": rule, "lr": 0.1}))
    if applied:
        both = [weight(fused, "t"), weight(fused, "u")]
        apply_optimizer_in_backward(LIKE[rule], both, {"lr": 0.1})
    ordinary = bags()
    optimizer = LIKE[rule](ordinary.parameters(), lr=0.1)
    rest = LIKE[rule]([weight(fused, "v")], lr=0.1)
    for _ in range(3):
        for module, step in ((fused, rest), (ordinary, optimizer)):
            step.zero_grad()
            USES[use](module).backward()
            step.step()
        assert weight(fused, "t").grad is None
        for name in SIZES:
            torch.testing.assert_close(weight(fused, name), weight(ordinary, name))
    steps = {n: s["step"].item() for n, s in fused.fused_optimizer.state_dict()["state"].items()}
    untouched = "alone" in use or "only" in use
    assert steps == {
        "embedding_bags.t.weight": 3,
        "embedding_bags.u.weight": 0 if untouched else 3,
    }


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch's Adagrad
@pytest.mark.parametrize("plain", ["v", "none"])
@pytest.mark.parametrize("use", ["one look-up", "two look-ups", "penalty", "everything"])
def test_a_table_may_be_frozen_between_the_passes(use: str, plain: str) -> None:
    """Or thawed: as with any parameter, a gradient needs both passes."""
    fused, ordinary = bags(plain, optimizer="adagrad", lr=0.1), bags(plain)
    optimizer = torch.optim.Adagrad(ordinary.parameters(), lr=0.1)
    rest = torch.optim.Adagrad(fused.parameters(), lr=0.1)
    for before, behind in (("", "t"), ("t", "tu"), ("tu", "u"), ("u", "")):
        for module, step in ((fused, rest), (ordinary, optimizer)):
            step.zero_grad()
            for frozen in (before, behind):
                for name in SIZES:
                    weight(module, name).requires_grad_(name not in frozen)
                if frozen is before:
                    loss = USES[use](module)
            loss.backward()
            step.step()
        for name in SIZES:
            torch.testing.assert_close(weight(fused, name), weight(ordinary, name))
    steps = {n: s["step"].item() for n, s in fused.fused_optimizer.state_dict()["state"].items()}
    assert (steps["embedding_bags.t.weight"], steps["embedding_bags.u.weight"]) == (1, 1)


@pytest.mark.parametrize("kind", OptimizerType, ids=lambda kind: kind.value)
def test_two_lookups_are_one_look_up_of_both(kind: OptimizerType) -> None:
    apart, together = (bags(optimizer=kind, lr=0.1) for _ in range(2))
    one = KeyedJaggedTensor.from_lists({"a": [[1, 2], [3]], "b": [[3, 3], [1]]})
    two = KeyedJaggedTensor.from_lists({"a": [[2]], "b": [[6]]})
    both = KeyedJaggedTensor.from_lists({"a": [[1, 2], [3], [2]], "b": [[3, 3], [1], [6]]})
    for _ in range(2):
        (apart(one).values().sin().sum() + apart(two).values().sin().sum()).backward()
        together(both).values().sin().sum().backward()
        for name in SIZES:
            torch.testing.assert_close(weight(apart, name), weight(together, name))


@pytest.mark.parametrize("again", ["t", "u", "v"])
def test_a_copy_that_gets_one_optimizer_anew_shows_steps_and_takes_rates(again: str) -> None:
    options = {"plain": "", "optimizer": "adam", "lr": 0.1}
    module, expected = copy.deepcopy(bags(**options)), bags(**options)
    apply_optimizer_in_backward(torch.optim.Adam, [weight(module, again)], {"lr": 0.1})
    for each in (module, expected):
        for group in each.fused_optimizer.param_groups:
            group["lr"] = 0.05
        for _ in range(2):
            pooled(each).backward()
        states = each.fused_optimizer.state_dict()["state"].values()
        assert [float(state["step"]) for state in states] == [2.0] * 3
    for name in SIZES:
        assert torch.equal(weight(module, name), weight(expected, name))


@pytest.mark.parametrize("how", ["two look-ups", "accumulated"])
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_tables_of_different_types_wait_together(optimizer: str, how: str) -> None:
    found = []
    for kinds in (("fp32", "fp16", "bf16"), ("fp32",), ("fp16",), ("bf16",)):
        configs = [
            EmbeddingBagConfig(
                10,
                4,
                kind,
                DataType[kind.upper()],
                ["a", "b"],
                optimizer=optimizer,
                lr=0.1,
                init_fn=lambda w: w.copy_(torch.arange(w.numel()).view_as(w) / 64),
            )
            for kind in kinds
        ]
        module = EmbeddingBagCollection(tables=configs)
        optimizer_ = module.fused_optimizer
        with optimizer_.accumulate() if how == "accumulated" else nullcontext():
            sum(module(kjt).values().sum() for kjt in (KJT, OTHER)).backward()
        optimizer_.step()
        found.append({kind: weight(module, kind).detach() for kind in kinds})
    together, *alone = found
    for mine in alone:
        for kind, expected in mine.items():
            assert torch.equal(together[kind], expected)
            assert not torch.equal(expected.float(), torch.arange(40).view(10, 4) / 64)


def test_one_look_up_takes_the_direct_way_to_the_last_bit() -> None:
    """And so it is with gradients that were handed over before: none are."""
    direct, other = (bags(optimizer="rowwise_adagrad", lr=0.1) for _ in range(2))
    for seed in range(3):
        torch.manual_seed(seed)
        kjt = KeyedJaggedTensor(["a", "b"], torch.randint(5, (40,)), lengths=torch.full((8,), 5))
        pooled(direct, kjt).backward()
        with other.fused_optimizer.accumulate():
            pooled(other, kjt).backward()
        other.fused_optimizer.step()
        assert torch.equal(weight(direct), weight(other))


# ---- passes that nest, fail, or come again


class Broken(torch.autograd.Function):
    """Fails in the backward pass, once."""

    failed = False

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        if not Broken.failed:
            Broken.failed = True
            raise KeyError("broken")
        return grad


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    module = bags(optimizer="sgd", lr=0.1)
    before = copy.deepcopy(module.state_dict())
    x = torch.ones(1, requires_grad=True)
    Broken.failed = False
    # The look-up was made later, so its gradient comes first.
    early = Broken.apply(x)
    loss = pooled(module) * early.sum()
    with pytest.raises(KeyError, match="broken"):
        loss.backward()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    pooled(module, OTHER).backward()
    expected = bags(optimizer="sgd", lr=0.1)
    pooled(expected, OTHER).backward()
    assert torch.equal(weight(module), weight(expected))


class Late(torch.autograd.Function):
    """Fails in the backward pass, which comes to it last where it was made first."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        raise KeyError("late")


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("plain", ["v", "none"])
@pytest.mark.parametrize("use", USES)
def test_nothing_of_a_pass_that_fails_comes_with_the_next(
    use: str, plain: str, accumulated: bool
) -> None:
    module, expected = (bags(plain, optimizer="adagrad", lr=0.1) for _ in range(2))
    failing = Late.apply(torch.ones(1, requires_grad=True))
    with module.fused_optimizer.accumulate() if accumulated else nullcontext():
        loss = USES[use](module) + failing.sum()
        with pytest.raises(KeyError, match="late"):
            loss.backward()
    assert weight(module, "t").grad is None
    assert weight(module, "u").grad is None
    for each in (module, expected):
        (pooled(each, OTHER) + weight(each)[9].sum()).backward()
    for name in ("t", "u"):
        assert torch.equal(weight(module, name), weight(expected, name))


@pytest.mark.parametrize("method", ["rows", "apply_waiting"])
def test_nothing_of_an_update_that_fails_comes_with_the_next(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the second look-up cannot be made rows, or the rows cannot be put together."""
    module, expected = (bags(optimizer="adagrad", lr=0.1) for _ in range(2))
    calls = []

    def fail_at_second(original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(args)
            if len(calls) == 2:
                raise MemoryError("no memory")
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if method == "rows":
            patch.setattr(BagGradient, "rows", fail_at_second(BagGradient.rows))
        loss = pooled(module) + pooled(module, OTHER)
        if method == "apply_waiting":
            patch.setattr(torch, "cat", fail_at_second(torch.cat))
        with pytest.raises(MemoryError, match="no memory"):
            loss.backward()
    module.fused_optimizer.step()
    for each in (module, expected):
        pooled(each, OTHER).backward()
    for name in ("t", "u"):
        assert torch.equal(weight(module, name), weight(expected, name))


@pytest.mark.parametrize("plain", ["v", "none"])
def test_a_gradient_that_somebody_put_there_is_not_that_of_a_look_up(plain: str) -> None:
    module, expected = (bags(plain, optimizer="sgd", lr=0.1) for _ in range(2))
    weight(module).grad = torch.ones(10, 4)
    for each in (module, expected):
        pooled(each).backward()
    assert torch.equal(weight(module), weight(expected))
    module.fused_optimizer.zero_grad()
    assert weight(module).grad is None


def test_an_error_of_an_update_is_one_of_the_pass() -> None:
    module = bags(optimizer="adagrad", lr=0.1)
    loss = pooled(module)
    module.fused_optimizer.state[weight(module)]["sum"].resize_(3)
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_look_ups(reentrant: bool) -> None:
    """A reentrant checkpoint runs a backward pass of its own, which is an update of its own."""
    plain, module = (bags(optimizer="adagrad", lr=0.1) for _ in range(2))
    x = torch.ones(1, requires_grad=True)

    def inner(x: Tensor) -> Tensor:
        return pooled(module, OTHER) * x

    # Made last, so its gradient comes first, and its update before that of the other look-up.
    first = pooled(module)
    again = torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=reentrant)
    (again.sum() + first).backward()
    if reentrant:
        other = pooled(plain)
        pooled(plain, OTHER).backward()
        other.backward()
    else:
        (pooled(plain, OTHER) + pooled(plain)).backward()
    torch.testing.assert_close(weight(module), weight(plain))
    steps = [values["step"].item() for values in module.fused_optimizer.state.values()]
    assert steps == [2 if reentrant else 1] * 2


PARTIAL: dict[str, Callable[[Tensor, Tensor], object]] = {
    "grad": lambda loss, other: torch.autograd.grad(loss, [other]),
    "backward": lambda loss, other: loss.backward(inputs=[other]),
    "grad, to be differentiated again": lambda loss, other: torch.autograd.grad(
        loss, [other], create_graph=True
    ),
}


@pytest.mark.parametrize("how", PARTIAL)
@pytest.mark.parametrize(
    ("of", "plain"),
    [
        ("plain table", "v"),
        ("plain table", "t"),
        *((of, plain) for of in ("sample weights", "sequences") for plain in ("v", "t")),
        ("sample weights", "none"),
    ],
)
def test_a_pass_for_other_tensors_leaves_fused_tables_alone(plain: str, how: str, of: str) -> None:
    module: EmbeddingBagCollection | EmbeddingCollection = bags(plain, optimizer="sgd", lr=0.1)
    kjt = KJT
    if of == "plain table":
        other: Tensor = weight(module, plain)
    elif of == "sample weights":
        configs = module.embedding_bag_configs()
        module = EmbeddingBagCollection(tables=configs, is_weighted=True)
        other = torch.ones(5, requires_grad=True)
        kjt = KeyedJaggedTensor(["a", "b"], KJT.values(), weights=other, lengths=KJT.lengths())
    else:
        fused = {"optimizer": "sgd", "lr": 0.1}
        configs = [
            EmbeddingConfig(10, 4, "s", feature_names=["a"], **({} if plain == "v" else fused)),
            EmbeddingConfig(6, 2, "own", feature_names=["b"], **({} if plain == "t" else fused)),
        ]
        module = EmbeddingCollection(tables=configs)
        other = module.embeddings["s" if plain == "v" else "own"].weight

    def loss() -> Tensor:
        out = module(kjt)
        each = out.values() if isinstance(out, dict) else [out]
        return torch.stack([jagged.values().square().sum() for jagged in each]).sum()

    before = copy.deepcopy(module.state_dict())
    PARTIAL[how](loss(), other)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(state["step"] == 0 for state in module.fused_optimizer.state.values())
    loss().backward()
    assert all(state["step"] == 1 for state in module.fused_optimizer.state.values())


def test_a_second_backward_pass_through_one_look_up_is_refused() -> None:
    for module, kjt in ((bags(optimizer="sgd", lr=0.1), KJT), (sequences(), KJT)):
        out = module(kjt)
        values = out["a"].values() if isinstance(out, dict) else out.values()
        loss = values.sum()
        loss.backward()
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])


def test_a_graph_that_is_kept_gives_an_update_each_time() -> None:
    module = bags(optimizer="sgd", lr=0.1)
    before = weight(module).detach().clone()
    loss = module(KJT).values().sum()
    loss.backward(retain_graph=True)
    once = weight(module).detach().clone()
    loss.backward()
    torch.testing.assert_close(weight(module) - once, once - before)


# ---- one weight in two collections


def sequences(**options) -> EmbeddingCollection:
    torch.manual_seed(1)
    options = options or {"optimizer": "sgd", "lr": 0.1}
    configs = [
        EmbeddingConfig(6, 2, "own", feature_names=["b"], **options),
        EmbeddingConfig(10, 4, "s", feature_names=["a"], **options),
    ]
    return EmbeddingCollection(tables=configs)


def tie(
    first: dict, second: dict, looked_up_first: bool = False
) -> tuple[EmbeddingBagCollection, EmbeddingCollection]:
    one, two = bags(**first), sequences(**second)
    if looked_up_first:
        two(KJT)
    two.embeddings["s"].weight = one.embedding_bags["t"].weight
    return one, two


def tied_loss(one: EmbeddingBagCollection, two: EmbeddingCollection) -> Tensor:
    out = two(KJT)
    return pooled(one) + out["a"].values().sin().sum() + out["b"].values().sin().sum()


ADAGRAD = {"optimizer": "adagrad", "lr": 0.1}
TIES = {
    "both": (ADAGRAD, ADAGRAD),
    "only the first": (ADAGRAD, {"sparse": False}),
    "only the first, sparse": (ADAGRAD, {"sparse": True}),
    "only the second": ({}, ADAGRAD),
}


@pytest.mark.parametrize("looked_up_first", [False, True])
@pytest.mark.parametrize("which", TIES)
def test_a_shared_weight_is_updated_once(which: str, looked_up_first: bool) -> None:
    first, second = TIES[which]
    ours = tie(first, second, looked_up_first)
    theirs = tie({}, {"sparse": False})
    params = [*theirs[0].parameters(), theirs[1].embeddings["own"].weight]
    optimizer = torch.optim.Adagrad(params, lr=0.1)
    fused = {id(p) for m in ours for p in m.fused_optimizer.params.values()}
    ours[1](KJT)  # meets the weight
    fused |= {id(p) for m in ours for p in m.fused_optimizer.params.values()}
    rest = [p for m in ours for p in m.parameters() if id(p) not in fused]
    outer = torch.optim.Adagrad(list(dict.fromkeys(rest)), lr=0.1) if rest else None
    for _ in range(3):
        optimizer.zero_grad()
        tied_loss(*theirs).backward()
        optimizer.step()
        if outer is not None:
            outer.zero_grad()
        tied_loss(*ours).backward()
        if outer is not None:
            outer.step()
        for mine, other in zip(ours, theirs, strict=True):
            for name, value in mine.state_dict().items():
                torch.testing.assert_close(value, other.state_dict()[name])
    shown = [n for m in ours for n, p in m.fused_optimizer.params.items() if p is weight(ours[0])]
    assert shown == ["embedding_bags.t.weight"]
    assert ours[0].fused_optimizer.state[weight(ours[0])]["step"].item() == 3


def test_a_shared_weight_takes_one_learning_rate_and_waits_once() -> None:
    one, two = tie(ADAGRAD, ADAGRAD)
    two(KJT)
    one.fused_optimizer.param_groups[0]["lr"] = 0.0
    before = weight(one).detach().clone()
    tied_loss(one, two).backward()
    assert torch.equal(weight(one), before)
    one.fused_optimizer.param_groups[0]["lr"] = 0.1
    with one.fused_optimizer.accumulate():
        two(KJT)["a"].values().sum().backward()
    assert torch.equal(weight(one), before)
    two.zero_grad()
    one.fused_optimizer.step()
    assert torch.equal(weight(one), before)


def test_a_shared_weight_that_takes_the_rate_of_who_steps() -> None:
    rule = {"optimizer": "adagrad"}
    ours, theirs = tie(rule, rule), tie({}, {"sparse": False})
    for pair in (ours, theirs):
        params = dict.fromkeys(p for module in pair for p in module.parameters())
        optimizer = (torch.optim.SGD if pair is ours else torch.optim.Adagrad)(params, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (pooled(pair[0]) + pair[1](KJT)["a"].values().sin().sum()).backward()
            optimizer.step()
    torch.testing.assert_close(weight(ours[0]), weight(theirs[0]))


def test_one_weight_with_two_rules_is_refused() -> None:
    one, two = tie(ADAGRAD, {"optimizer": "sgd", "lr": 0.1})
    with pytest.raises(ValueError, match=r"'t' and 's' have one weight.*ADAGRAD.*SGD"):
        two(KJT)
    one, two = tie(ADAGRAD, {"optimizer": "adagrad", "lr": 0.2})
    pooled(one).backward()
    with pytest.raises(ValueError, match="same optimizer with the same options"):
        two(KJT)


def test_copies_of_collections_that_share_a_weight_share_theirs() -> None:
    model = nn.ModuleList(tie(ADAGRAD, ADAGRAD))
    model[1](KJT)
    other = copy.deepcopy(model)
    alone = copy.deepcopy(model[1])
    before = copy.deepcopy(model.state_dict())
    tied_loss(*other).backward()
    alone(KJT)["a"].values().sum().backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    tied_loss(*model).backward()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])
    assert weight(other[0]) is other[1].embeddings["s"].weight
    assert not torch.equal(alone.embeddings["s"].weight, before["1.embeddings.s.weight"])


def test_a_collection_whose_weight_is_no_longer_shared_has_its_own_state() -> None:
    one, two = tie(ADAGRAD, ADAGRAD)
    tied_loss(one, two).backward()
    sums = one.fused_optimizer.state[weight(one)]["sum"].clone()
    two.embeddings["s"].weight = nn.Parameter(torch.zeros(10, 4))
    two(KJT)["a"].values().sum().backward()
    assert torch.equal(one.fused_optimizer.state[weight(one)]["sum"], sums)
    assert list(two.fused_optimizer.params) == ["embeddings.own.weight", "embeddings.s.weight"]
    assert two.embeddings["s"].weight[1, 0].item() == pytest.approx(-0.1)


def test_the_first_collection_gets_another_weight() -> None:
    one, two = tie(ADAGRAD, ADAGRAD)
    tied_loss(one, two).backward()
    shared = two.embeddings["s"].weight
    one.embedding_bags["t"].weight = nn.Parameter(torch.zeros(10, 4))
    pooled(one).backward()
    before = shared.detach().clone()
    two(KJT)["a"].values().sum().backward()
    assert not torch.equal(shared, before)
    assert "embeddings.s.weight" in two.fused_optimizer.params
