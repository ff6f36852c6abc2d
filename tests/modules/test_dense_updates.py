"""Tables whose every row is updated in every step, against the optimizers of PyTorch on a dense gradient."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchrec import (
    DataType,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.optim import SGD, AdamW, apply_optimizer_in_backward
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import KeyedOptimizerWrapper

ROWS = {"a": 90, "b": 7, "c": 300}
DIMS = {"a": 4, "b": 17, "c": 16}
# Both compute each number in float32 in the same way; only sums over a batch have another order.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def tables(kind: type = EmbeddingBagConfig, **options: Any) -> list[Any]:
    """Three tables of uneven sizes, whose features are `a`, `b`, `c`."""
    return [
        kind(ROWS[name], DIMS[name], name, feature_names=[name], **options)
        for name in ("a", "b", "c")
    ]


def batch(step: int, samples: int = 6) -> KeyedJaggedTensor:
    """A batch of few ids, each in two to three bags now and then."""
    generator = torch.Generator().manual_seed(step)
    bags = {
        name: [
            torch.randint(
                rows, (int(torch.randint(3, (), generator=generator)),), generator=generator
            ).tolist()
            for _ in range(samples)
        ]
        for name, rows in ROWS.items()
    }
    return KeyedJaggedTensor.from_lists(bags)


def loss_of(collection: EmbeddingBagCollection, features: KeyedJaggedTensor) -> Tensor:
    """A loss whose gradient depends on the weights and differs from column to column."""
    pooled = collection(features).values()
    return (pooled * torch.linspace(-1, 1, pooled.shape[1])).sum() + (pooled**2).mean()


def weights(collection: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in collection.state_dict().items()}


def assert_same(ours: Any, theirs: Any) -> None:
    for (name, mine), wanted in zip(weights(ours).items(), weights(theirs).values(), strict=True):
        torch.testing.assert_close(mine, wanted, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def twins(optimizer: str, **options: Any) -> tuple[EmbeddingBagCollection, EmbeddingBagCollection]:
    """The same tables with fused dense updates, and with a gradient."""
    decay = options.pop("weight_decay", None)
    options.setdefault("lazy", False)
    fused = EmbeddingBagCollection(
        tables=tables(optimizer=optimizer, lr=0.05, weight_decay=decay, optimizer_options=options)
    )
    plain = EmbeddingBagCollection(tables=tables())
    plain.load_state_dict(fused.state_dict())
    return fused, plain


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": ("adam", {}, lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam_l2": (
        "adam",
        {"weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    ),
    "adamw": (
        "adamw",
        {"weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    ),
    "adam_betas": (
        "adam",
        {"betas": (0.5, 0.7), "eps": 1e-3},
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.5, 0.7), eps=1e-3),
    ),
    "sgd_momentum": (
        "sgd",
        {"momentum": 0.9, "nesterov": True},
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "sgd_l2": (
        "sgd",
        {"weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    ),
    "sgd": ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.05)),
    "adagrad_l2": (
        "adagrad",
        {"weight_decay": 0.1},
        lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1, eps=1e-8),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_torch_on_a_dense_gradient(case: str) -> None:
    name, options, make = CASES[case]
    fused, plain = twins(name, **options)
    optimizer = make(plain.parameters())
    for step in range(12):
        for group in [*fused.fused_optimizer.param_groups, *optimizer.param_groups]:
            group["lr"] = 0.05 / (1 + step % 4)
        loss_of(fused, batch(step)).backward()
        optimizer.zero_grad()
        loss_of(plain, batch(step)).backward()
        optimizer.step()
        assert_same(fused, plain)


def test_a_learning_rate_may_be_a_schedules() -> None:
    fused, plain = twins("adamw", weight_decay=0.2)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=0.2)
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(each, 7)
        for each in (fused.fused_optimizer, optimizer)
    ]
    for step in range(10):
        loss_of(fused, batch(step)).backward()
        fused.fused_optimizer.step()
        step_plainly(plain, optimizer, [batch(step)])
        for schedule in schedules:
            schedule.step()
    assert_same(fused, plain)


def step_plainly(plain: Any, optimizer: torch.optim.Optimizer, passes: list[Any]) -> None:
    optimizer.zero_grad()
    for features in passes:
        loss_of(plain, features).backward()
    optimizer.step()


def test_an_empty_batch_is_a_step() -> None:
    fused, plain = twins("adam")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    nothing = KeyedJaggedTensor.from_lists({name: [[], []] for name in ROWS})
    for features in (batch(0), nothing, batch(1)):
        loss_of(fused, features).backward()
        step_plainly(plain, optimizer, [features])
    assert_same(fused, plain)


def test_accumulated_passes_are_one_step_of_all_rows() -> None:
    fused, plain = twins("adam")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for step in range(0, 6, 2):
        with fused.fused_optimizer.accumulate():
            loss_of(fused, batch(step)).backward()
        loss_of(fused, batch(step + 1)).backward()
        step_plainly(plain, optimizer, [batch(step), batch(step + 1)])
        assert_same(fused, plain)


def test_without_a_rate_it_is_the_step_of_the_optimizer_around() -> None:
    fused = EmbeddingBagCollection(
        tables=tables(optimizer="adam", optimizer_options={"lazy": False})
    )
    plain = EmbeddingBagCollection(tables=tables())
    plain.load_state_dict(fused.state_dict())
    around = torch.optim.SGD(fused.parameters(), lr=0.05)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for step in range(5):
        around.zero_grad()
        loss_of(fused, batch(step)).backward()
        around.step()
        step_plainly(plain, optimizer, [batch(step)])
        assert_same(fused, plain)


@pytest.mark.parametrize("clipping", list(GradientClipping))
def test_without_a_rate_gradients_are_clipped_before_the_step(clipping: GradientClipping) -> None:
    """With those of other parameters, and never by what the decay or the moments add to them."""
    fused = EmbeddingBagCollection(
        tables=tables(optimizer="adamw", weight_decay=0.1, optimizer_options={"lazy": False})
    )
    plain = EmbeddingBagCollection(tables=tables())
    plain.load_state_dict(fused.state_dict())
    # Whose parameter has a gradient of its own in the common norm.
    layers = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [
        GradientClippingOptimizer(
            KeyedOptimizerWrapper(
                {**dict(module.named_parameters()), "layer": layer},
                lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.1),
            ),
            clipping,
            max_gradient=0.3,
        )
        for module, layer in zip((fused, plain), layers, strict=True)
    ]
    for step in range(8):
        for module, layer, optimizer in zip((fused, plain), layers, optimizers, strict=True):
            optimizer.zero_grad()
            (loss_of(module, batch(step)) + 0.5 * layer.square().sum()).backward()
            optimizer.step()
    assert_same(fused, plain)
    torch.testing.assert_close(*layers, **CLOSE)
    assert not torch.equal(layers[0], torch.ones(3))


def test_tables_of_both_kinds_in_one_collection() -> None:
    """Lazy ones beside dense ones keep what they do alone."""
    options = [{"lazy": False}, {}, {"lazy": False}]
    mixed = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                ROWS[name], DIMS[name], name, feature_names=[name], optimizer="adam", lr=0.05,
                optimizer_options=each,
            )
            for name, each in zip(ROWS, options, strict=True)
        ]
    )  # fmt: skip
    alone = {lazy: twins("adam", lazy=lazy)[0] for lazy in (True, False)}
    for each in alone.values():
        each.load_state_dict(mixed.state_dict())
    before = mixed.embedding_bags["b"].weight.detach().clone()
    for step in range(6):
        for each in (mixed, *alone.values()):
            loss_of(each, batch(step % 2)).backward()
    for name, each in zip(ROWS, options, strict=True):
        expected = alone[each.get("lazy", True)].embedding_bags[name].weight
        assert torch.equal(mixed.embedding_bags[name].weight, expected)
    seen = {int(i) for step in (0, 1) for i in batch(step)["b"].values()}
    unseen = [row for row in range(ROWS["b"]) if row not in seen]
    assert unseen
    assert torch.equal(mixed.embedding_bags["b"].weight[unseen], before[unseen])


def test_sequences() -> None:
    fused = EmbeddingCollection(
        tables=tables(
            EmbeddingConfig, optimizer="adamw", lr=0.05, optimizer_options={"lazy": False}
        )
    )
    plain = EmbeddingCollection(tables=tables(EmbeddingConfig))
    plain.load_state_dict(fused.state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05)
    for step in range(6):
        for each in (fused, plain):
            output = each(batch(step))
            optimizer.zero_grad()
            sum((value.values() ** 2).sum() for value in output.values()).backward()
        optimizer.step()
        assert_same(fused, plain)


@pytest.mark.parametrize(
    "policy",
    [{"id_policy": "hash"}, {"id_policy": "unknown"}, {"id_policy": "ignore"}, {"hash_size": 5}],
    ids=str,
)
def test_rows_of_ids_out_of_range(policy: dict[str, Any]) -> None:
    def config(**training: Any) -> EmbeddingBagCollection:
        return EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(9, 4, "t", feature_names=["f"], **policy, **training)]
        )

    fused = config(optimizer="adam", lr=0.05, optimizer_options={"lazy": False})
    plain = config()
    plain.load_state_dict(fused.state_dict())
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for ids in ([[1, 77], [-4]], [[2], [3]], [[1000], []]):
        features = KeyedJaggedTensor.from_lists({"f": ids})
        loss_of(fused, features).backward()
        step_plainly(plain, optimizer, [features])
        assert_same(fused, plain)


def test_rows_that_start_anew_have_no_moments() -> None:
    """As others take over evicted rows: these then go on as rows of a table that nobody trained."""
    fused, plain = twins("adam")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    rows = torch.tensor([int(batch(0)["a"].values()[0]), 3])
    for step in range(4):
        if step == 2:
            fused.reset_rows("a", rows)
            plain.reset_rows("a", rows)
        loss_of(fused, batch(step)).backward()
        step_plainly(plain, optimizer, [batch(step)])
    assert_same(fused, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tables_of_16_bits(dtype: torch.dtype) -> None:
    """Each step rounds once: within a bit of a float32 step from the same weights."""
    table = EmbeddingBagConfig(
        40, 20, "t", feature_names=["f"], optimizer="adam", lr=0.05,
        data_type={torch.float16: DataType.FP16, torch.bfloat16: DataType.BF16}[dtype],
        optimizer_options={"lazy": False},
    )  # fmt: skip
    fused = EmbeddingBagCollection(tables=[table])
    weight = fused.embedding_bags["t"].weight
    wide = torch.nn.Parameter(weight.detach().float())
    optimizer = torch.optim.Adam([wide], lr=0.05)
    for step in range(4):
        fused(KeyedJaggedTensor.from_lists({"f": [[step], [7]]})).values().sum().backward()
        wide.grad = torch.zeros_like(wide)
        wide.grad[[step, 7]] = 1.0
        optimizer.step()
        torch.testing.assert_close(weight.detach(), wide.detach().to(dtype))
        wide.data.copy_(weight.detach())


@pytest.mark.parametrize("rule", [SGD, AdamW], ids=lambda rule: rule.__name__)
def test_optimizers_outside_take_sparse_gradients_for_dense_ones(rule: type[Any]) -> None:
    options = {"momentum": 0.9} if rule is SGD else {}
    one, other = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3)) for _ in range(2))
    optimizers = [rule([p], lr=0.1, lazy=False, **options) for p in (one, other)]
    for rows in ([1, 1, 2], [0], [3]):
        for param, optimizer, sparse in zip((one, other), optimizers, (True, False), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.embedding(torch.tensor(rows), param, sparse=sparse).sum().backward()
            optimizer.step()
    torch.testing.assert_close(one, other)
    lazy = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3))
    optimizer = rule([lazy], lr=0.1, **options)
    for rows in ([1, 1, 2], [0], [3]):
        optimizer.zero_grad()
        torch.nn.functional.embedding(torch.tensor(rows), lazy, sparse=True).sum().backward()
        optimizer.step()
    assert not torch.allclose(lazy, one)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_lazy_is_dense_where_no_gradient_moves_no_row(optimizer: str) -> None:
    dense, lazy = (twins(optimizer, lazy=lazy)[0] for lazy in (False, True))
    lazy.load_state_dict(dense.state_dict())
    for step in range(3):
        for each in (dense, lazy):
            loss_of(each, batch(step)).backward()
    for name, weight in weights(dense).items():
        assert torch.equal(weight, weights(lazy)[name])


def test_given_to_tables_of_a_model() -> None:
    """`apply_optimizer_in_backward` takes it among the arguments."""
    fused, plain = EmbeddingBagCollection(tables=tables()), EmbeddingBagCollection(tables=tables())
    plain.load_state_dict(fused.state_dict())
    apply_optimizer_in_backward(torch.optim.Adam, fused.parameters(), {"lr": 0.05, "lazy": False})
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for step in range(5):
        loss_of(fused, batch(step)).backward()
        step_plainly(plain, optimizer, [batch(step)])
    assert_same(fused, plain)


def test_switched_on_and_off_while_training() -> None:
    fused, plain = twins("adam")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for step in range(3):
        loss_of(fused, batch(step)).backward()
        step_plainly(plain, optimizer, [batch(step)])
    for group in fused.fused_optimizer.param_groups:
        group["lazy"] = True
    before = fused.embedding_bags["c"].weight.detach().clone()
    loss_of(fused, batch(3)).backward()
    seen = batch(3)["c"].values().unique()
    changed = (fused.embedding_bags["c"].weight != before).any(1).nonzero().flatten()
    assert torch.equal(changed, seen)


def test_what_is_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`lazy` should be True or False. Received 'no'"):
        twins("adam", lazy="no")
    fused, _ = twins("adam")
    with pytest.raises(ValueError, match=r"`lazy` should be True or False. Received 1"):
        fused.fused_optimizer.param_groups[0]["lazy"] = 1


def test_does_not_depend_on_threads() -> None:
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            fused = EmbeddingBagCollection(
                tables=[
                    EmbeddingBagConfig(
                        rows, 20, name, feature_names=["f"], optimizer=rule, lr=0.05,
                        optimizer_options={"lazy": False},
                    )
                    for name, rows, rule in (("t", 20_001, "adam"), ("u", 5_000, "lamb"))
                ]
            )  # fmt: skip
            for step in range(3):
                generator = torch.Generator().manual_seed(step)
                ids = torch.randint(5_000, (300,), generator=generator)
                features = KeyedJaggedTensor(["f"], ids, lengths=torch.ones(300, dtype=torch.int64))
                loss_of(fused, features).backward()
            results.append(weights(fused))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_state_that_is_saved_goes_on_to_the_last_bit() -> None:
    fused, _ = twins("adamw")
    for step in range(4):
        loss_of(fused, batch(step)).backward()
    other, _ = twins("adamw")
    other.load_state_dict(fused.state_dict())
    other.fused_optimizer.load_state_dict(fused.fused_optimizer.state_dict())
    copied = copy.deepcopy(fused)
    for step in range(4, 8):
        for each in (fused, other, copied):
            loss_of(each, batch(step)).backward()
    for name, weight in weights(fused).items():
        assert torch.equal(weight, weights(other)[name])
        assert torch.equal(weight, weights(copied)[name])


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 0.2),  # the learning rate
        st.lists(st.lists(st.integers(0, 8), max_size=3), min_size=1, max_size=3),  # the ids
        st.booleans(),  # whether the pass is only collected
    ),
    min_size=1,
    max_size=25,
)


@given(
    steps=STEPS,
    decoupled=st.booleans(),
    decay=st.sampled_from([0.0, 0.3]),
    betas=st.sampled_from([(0.9, 0.999), (0.5, 0.6), (0.0, 0.9)]),
    dim=st.sampled_from([1, 5, 16, 33]),
)
def test_any_history_is_that_of_adam_on_dense_gradients(
    steps: list[tuple[float, list[list[int]], bool]],
    decoupled: bool,
    decay: float,
    betas: tuple[float, float],
    dim: int,
) -> None:
    """Rates that change, rows that stay away for long, empty batches, passes that wait for others."""

    def collection(**training: Any) -> EmbeddingBagCollection:
        return EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(9, dim, "t", feature_names=["f"], **training)]
        )

    fused = collection(
        optimizer="adamw" if decoupled else "adam",
        lr=0.1,
        weight_decay=decay,
        optimizer_options={"lazy": False, "betas": betas, "eps": 1e-4},
    )
    plain = collection()
    plain.load_state_dict(fused.state_dict())
    rule = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs = rule(plain.parameters(), lr=0.1, betas=betas, eps=1e-4, weight_decay=decay)
    for rate, bags, collected in steps:
        features = KeyedJaggedTensor.from_lists({"f": bags})
        for group in [*fused.fused_optimizer.param_groups, *theirs.param_groups]:
            group["lr"] = rate
        with fused.fused_optimizer.accumulate() if collected else nullcontext():
            loss_of(fused, features).backward()
        loss_of(plain, features).backward()
        if not collected:
            theirs.step()
            theirs.zero_grad()
        torch.testing.assert_close(
            fused.embedding_bags["t"].weight.detach(),
            plain.embedding_bags["t"].weight.detach(),
            rtol=1e-4,
            atol=2e-5,
        )


def test_state_that_was_saved_before_there_was_a_choice() -> None:
    """It lacks these options: they stay what the tables say."""
    fused, _ = twins("adam", batch_l2=0.5)
    saved = fused.fused_optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["lazy"], group["batch_l2"]
    fused.fused_optimizer.load_state_dict(saved)
    for group in fused.fused_optimizer.param_groups:
        assert (group["lazy"], group["batch_l2"]) == (False, 0.5)


def test_a_frozen_table_stays() -> None:
    fused, _ = twins("adam")
    loss_of(fused, batch(0)).backward()
    fused.embedding_bags["c"].weight.requires_grad_(False)
    before = weights(copy.deepcopy(fused))
    loss_of(fused, batch(1)).backward()
    after = weights(fused)
    changed = {name.split(".")[1] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"a", "b"}


def test_another_look_up_in_the_same_pass_is_the_same_step() -> None:
    fused, plain = twins("adam")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for step in range(3):
        (loss_of(fused, batch(step)) + loss_of(fused, batch(step + 9))).backward()
        step_plainly(plain, optimizer, [batch(step), batch(step + 9)])
        assert_same(fused, plain)


def test_a_penalty_on_the_weight_reaches_all_rows() -> None:
    fused, plain = twins("adam")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    for step in range(3):
        penalty = (fused.embedding_bags["a"].weight ** 4).sum()
        (loss_of(fused, batch(step)) + penalty).backward()
        optimizer.zero_grad()
        penalty = (plain.embedding_bags["a"].weight ** 4).sum()
        (loss_of(plain, batch(step)) + penalty).backward()
        optimizer.step()
        assert_same(fused, plain)
