"""What a table's training keeps between steps: gradients, hyper-parameters, state; and rows that start anew."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

SIZES = {"a": (4, 1), "b": (6, 2), "c": (5, 1), "d": (3, 3)}
TRAINED = {
    "fused": {"optimizer": "sgd", "lr": 1.0},
    "waits for a rate": {"optimizer": "sgd"},
    "sparse": {"sparse": True},
    "dense": {},
}
BATCH = {"f": [[0], [0, 2]]}


def bags(*kinds: str) -> EmbeddingBagCollection:
    """Tables of zeros, uneven, each trained in its own way."""
    configs = [
        EmbeddingBagConfig(
            rows, dim, name, feature_names=["f"], init_fn=nn.init.zeros_, **TRAINED[kind]
        )
        for kind, (name, (rows, dim)) in zip(kinds, SIZES.items(), strict=False)
    ]
    return EmbeddingBagCollection(tables=configs)


def backward(module: EmbeddingBagCollection, lists: dict | None = None) -> None:
    module(KeyedJaggedTensor.from_lists(lists or BATCH)).values().sum().backward()


def column(module: EmbeddingBagCollection, table: str) -> list[float]:
    return module.embedding_bags[table].weight[:3, 0].tolist()


# ---- rows that start anew while gradients wait

ORDERS = [
    ("fused", "fused", "fused"),
    ("dense", "fused", "fused"),
    ("waits for a rate", "fused", "dense", "fused"),
    ("fused", "sparse", "waits for a rate", "dense"),
    ("sparse", "waits for a rate", "fused"),
]


@pytest.mark.parametrize("evicted", ["a", "b", "c"])
@pytest.mark.parametrize("kinds", ORDERS, ids="-".join)
def test_only_the_gradients_of_that_row_are_dropped(kinds: tuple[str, ...], evicted: str) -> None:
    module = bags(*kinds)
    rest = torch.optim.SGD(module.parameters(), lr=1.0)
    with module.fused_optimizer.accumulate():
        backward(module)
        backward(module)
    module.reset_rows(evicted, torch.tensor([0]))
    backward(module)
    rest.step()
    for name in list(SIZES)[: len(kinds)]:
        kept = 2.0 if name == evicted else 6.0
        assert column(module, name) == [-kept, 0.0, -3.0], name


@pytest.mark.parametrize("kind", TRAINED)
def test_gradients_of_a_direct_use_are_dropped_too(kind: str) -> None:
    module = bags("dense", kind)
    rest = torch.optim.SGD(module.parameters(), lr=1.0)
    with module.fused_optimizer.accumulate():
        module.embedding_bags["b"].weight[:3].sum().backward()
    module.reset_rows("b", torch.tensor([2, 1]))
    rest.step()
    module.fused_optimizer.step()
    assert column(module, "b") == [-1.0, 0.0, 0.0]


def test_no_rows_change_nothing() -> None:
    module = bags("fused", "dense")
    with module.fused_optimizer.accumulate():
        backward(module)
    module.reset_rows("a", torch.empty(0, dtype=torch.int64))
    module.fused_optimizer.step()
    assert column(module, "a") == [-2.0, 0.0, -1.0]


# ---- gradients that are collected

LEAVES: dict[str, Callable[[EmbeddingBagCollection], object]] = {
    "zero_grad of the optimizer": lambda m: m.fused_optimizer.zero_grad(),
    "zero_grad of the collection": lambda m: m.zero_grad(),
    "load_state_dict": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())),
    "load_state_dict, assigned": lambda m: m.load_state_dict(
        copy.deepcopy(m.state_dict()), assign=True
    ),
    "load_state_dict of a model": lambda m: nn.ModuleList([m]).load_state_dict(
        {f"0.{n}": v.clone() for n, v in m.state_dict().items()}
    ),
    "load_state_dict of the optimizer": lambda m: m.fused_optimizer.load_state_dict(
        copy.deepcopy(m.fused_optimizer.state_dict())
    ),
    "reset_parameters": lambda m: m.reset_parameters(),
}


@pytest.mark.parametrize(
    ("how", "wrapped"),
    [(how, wrapped) for how in LEAVES for wrapped in (False, True)][:-1],  # fused: not reset
)
def test_collected_gradients_are_dropped(how: str, wrapped: bool) -> None:
    if wrapped:
        configs = [
            EmbeddingBagConfig(
                rows, dim, name, feature_names=["f"], init_fn=nn.init.zeros_
            )
            for name, (rows, dim) in SIZES.items()
        ]  # fmt: skip
        module = FusedEmbeddingBagCollection(configs, torch.optim.SGD, {"lr": 1.0})
    else:
        module = bags("fused", "fused")
    with module.fused_optimizer.accumulate():
        backward(module)
        module.embedding_bags["a"].weight.sum().backward()
    LEAVES[how](module)
    module.fused_optimizer.step()
    backward(module, {"f": [[1]]})
    assert column(module, "a") == [0.0, -1.0, 0.0]
    assert column(module, "b") == [0.0, -1.0, 0.0]


def test_step_applies_what_was_collected_as_one_update() -> None:
    module = bags("fused", "dense", "fused")
    optimizer = module.fused_optimizer
    for number in (1, 2, 3):
        with optimizer.accumulate():
            backward(module)
            backward(module)
        optimizer.step()
        optimizer.step()  # nothing is left
        assert column(module, "a") == [-4.0 * number, 0.0, -2.0 * number]
        steps = [values["step"].item() for values in optimizer.state.values()]
        assert steps == [number, number]


def test_a_rate_written_before_the_step_counts_for_what_was_collected() -> None:
    module = bags("fused")
    with module.fused_optimizer.accumulate():
        backward(module)
    module.fused_optimizer.param_groups[0]["lr"] = 0.5
    module.fused_optimizer.step()
    assert column(module, "a") == [-1.0, 0.0, -0.5]


def test_a_copy_has_collected_what_its_original_had() -> None:
    module = bags("fused", "fused")
    with module.fused_optimizer.accumulate():
        backward(module)
    other = copy.deepcopy(module)
    module.fused_optimizer.zero_grad()
    other.fused_optimizer.step()
    module.fused_optimizer.step()
    assert column(other, "a") == [-2.0, 0.0, -1.0]
    assert column(module, "a") == [0.0, 0.0, 0.0]


def test_what_was_collected_for_a_weight_is_not_for_the_one_in_its_place() -> None:
    module = bags("fused", "fused")
    with module.fused_optimizer.accumulate():
        backward(module)
    module.embedding_bags["a"].weight = nn.Parameter(torch.zeros(4, 1))
    module.fused_optimizer.step()
    assert column(module, "a") == [0.0, 0.0, 0.0]
    assert column(module, "b") == [-2.0, 0.0, -1.0]


def test_a_copy_made_while_its_original_collects_does_not_collect() -> None:
    module = bags("fused", "fused")
    with module.fused_optimizer.accumulate():
        other = copy.deepcopy(module)
        backward(module)
    backward(other)
    assert column(other, "a") == [-2.0, 0.0, -1.0]
    assert column(module, "a") == [0.0, 0.0, 0.0]


def test_collecting_goes_on_when_the_tables_are_converted() -> None:
    module = bags("fused", "fused")
    with module.fused_optimizer.accumulate():
        backward(module)
        module.to(torch.float64)
        backward(module)
    module.fused_optimizer.step()
    assert column(module, "b") == [-4.0, 0.0, -2.0]


# ---- hyper-parameters


def test_hyper_parameters_of_each_table_are_its_own() -> None:
    configs = [
        EmbeddingBagConfig(
            4, 2, name, feature_names=["f"], init_fn=nn.init.ones_, optimizer="sgd", lr=lr
        )
        for name, lr in [("a", 1.0), ("b", 2.0), ("c", 4.0)]
    ]
    module = EmbeddingBagCollection(tables=configs)
    first, second, third = module.fused_optimizer.param_groups
    backward(module, {"f": [[1]]})
    assert [column(module, name)[1] for name in "abc"] == [0.0, -1.0, -3.0]
    second["lr"] = 0.5
    third["weight_decay"] = 0.5
    backward(module, {"f": [[1]]})
    assert [column(module, name)[1] for name in "abc"] == [-1.0, -1.5, -3 - 4 * (1 - 1.5)]
    first.update(lr=torch.tensor(0.25), max_gradient=0.5)
    backward(module, {"f": [[1]]})
    assert column(module, "a")[1] == -1.125


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", -1, "`lr` should be at least 0. Received -1"),
        ("lr", float("nan"), "`lr` should be at least 0. Received nan"),
        ("lr", float("inf"), "`lr` should be finite. Received inf"),
        ("lr", torch.tensor(float("inf")), "`lr` should be finite. Received inf"),
        ("weight_decay", float("inf"), "`weight_decay` should be finite. Received inf"),
        ("weight_decay", -1.0, "`weight_decay` should be at least 0"),
        ("momentum", 0.9, r"`momentum` of table 'a' should need the state that there is, \[\]"),
    ],
)
def test_a_value_that_is_refused_is_not_kept(key: str, value: float, message: str) -> None:
    module = bags("fused")
    (group,) = module.fused_optimizer.param_groups
    before = group[key]
    with pytest.raises(ValueError, match=message):
        group[key] = value
    assert group[key] == before
    backward(module)
    assert column(module, "a") == [-2.0, 0.0, -1.0]


def test_other_hyper_parameters_may_be_written_in_place_as_well() -> None:
    module = bags("fused", "fused")
    first, second = module.fused_optimizer.param_groups
    bound, rate = torch.tensor(8.0), np.array(1.0)
    first["max_gradient"], second["lr"] = bound, rate
    for value, expected in [(8.0, [-2.0, -16.0]), (0.5, [-2.5, -17.0]), (0.25, [-2.75, -17.5])]:
        bound.fill_(value)
        rate[...] = value
        backward(module)
        assert [column(module, "a")[0], column(module, "b")[0]] == expected
    first["max_gradient"] = None
    bound.fill_(9.0)
    backward(module)
    assert column(module, "a")[0] == -4.75


def test_betas_in_a_list_may_be_written_in_place() -> None:
    config = EmbeddingBagConfig(4, 1, "a", feature_names=["f"], optimizer="adam", lr=0.1)
    modules = [EmbeddingBagCollection(tables=[config]) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    betas = [0.9, 0.999]
    groups = [module.fused_optimizer.param_groups[0] for module in modules]
    groups[0]["betas"] = betas
    for first, second in [(0.9, 0.999), (0.5, 0.6)]:
        betas[:] = first, second
        groups[1]["betas"] = first, second
        for module in modules:
            backward(module)
        assert column(modules[0], "a") == column(modules[1], "a")


def test_a_rate_that_is_a_tensor_may_be_written_in_place() -> None:
    module = bags("fused", "fused")
    rate = torch.tensor(1.0)
    first, second = module.fused_optimizer.param_groups
    first["lr"] = rate
    for value, expected in [(1.0, -2.0), (0.0, -2.0), (0.5, -3.0)]:
        rate.fill_(value)
        backward(module)
        assert column(module, "a")[0] == expected
    first["lr"] = 0.0
    rate.fill_(9.0)
    backward(module)
    assert column(module, "a")[0] == -3.0
    assert column(module, "b")[0] == -8.0
    second["lr"] = rate
    rate.fill_(-1.0)
    with pytest.raises(ValueError, match=r"`lr` should be at least 0. Received -1"):
        backward(module)


@pytest.mark.parametrize("rate", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_the_rate_that_a_schedule_shows_is_the_one_that_counts(rate: float | Tensor) -> None:
    module = bags("fused")
    optimizer = module.fused_optimizer
    optimizer.param_groups[0]["lr"] = rate
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for expected in (-2.0, -3.0, -3.5):
        backward(module)
        optimizer.step()
        schedule.step()
        assert column(module, "a")[0] == expected


def test_a_rate_that_is_not_finite_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"`lr` of table 'a' should be finite. Received inf"):
        EmbeddingBagConfig(4, 1, "a", feature_names=["f"], optimizer="sgd", lr=float("inf"))
    module = bags("waits for a rate")
    optimizer = torch.optim.SGD(module.parameters(), lr=float("inf"))
    backward(module)
    with pytest.raises(ValueError, match=r"`lr` should be finite. Received inf"):
        optimizer.step()


def test_keys_of_schedulers_are_kept_and_mean_nothing_to_the_update() -> None:
    module = bags("fused")
    (group,) = module.fused_optimizer.param_groups
    group["initial_lr"] = 7.0
    backward(module)
    assert column(module, "a") == [-2.0, 0.0, -1.0]
    assert module.fused_optimizer.param_groups[0]["initial_lr"] == 7.0


# ---- where rows start


def spread(module: EmbeddingBagCollection, rows: Tensor) -> float:
    return module.embedding_bags["t"].weight[rows].std().item()


INITS: dict[str, Callable | None] = {
    "default": None,
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "kaiming": nn.init.kaiming_normal_,
    "normal": nn.init.normal_,
    "own": lambda w: w.normal_(std=1.0 / len(w) ** 0.5),
    "returned": lambda w: torch.randn(w.shape) / len(w),
}


@pytest.mark.parametrize("init", INITS)
def test_rows_start_as_rows_of_the_whole_table(init: str) -> None:
    config = EmbeddingBagConfig(20_000, 8, "t", feature_names=["f"], init_fn=INITS[init])
    module = EmbeddingBagCollection(tables=[config])
    rows = torch.arange(0, 20_000, 40)
    whole, before = spread(module, torch.arange(20_000)), module.state_dict()
    before = copy.deepcopy(before)["embedding_bags.t.weight"]
    module.reset_rows("t", rows)
    assert spread(module, rows) == pytest.approx(whole, rel=0.1)
    now = module.embedding_bags["t"].weight
    rest = torch.ones(20_000, dtype=torch.bool)
    rest[rows] = False
    assert torch.equal(now[rest], before[rest])
    assert (now[rows] != before[rows]).any(1).all()


@pytest.mark.parametrize("init", INITS)
def test_the_same_rows_start_the_same_way_and_disturb_nobody(init: str) -> None:
    config = EmbeddingBagConfig(50, 8, "t", feature_names=["f"], init_fn=INITS[init])
    one, two = (EmbeddingBagCollection(tables=[config]) for _ in range(2))
    rows = torch.tensor([4, 40, 7])
    one.reset_rows("t", rows)
    torch.manual_seed(77)
    expected = torch.rand(3)
    torch.manual_seed(77)
    two.reset_rows("t", rows)
    assert torch.equal(torch.rand(3), expected)
    for each in (one, two):
        _, vectors = each.export_rows("t", rows)
        assert torch.equal(vectors, one.export_rows("t", rows)[1])


def test_rows_of_a_pretrained_table_start_from_it() -> None:
    pretrained = torch.randn(10, 4)
    config = EmbeddingBagConfig(
        10, 4, "t", feature_names=["f"], init_fn=lambda w: w.copy_(pretrained)
    )
    module = EmbeddingBagCollection(tables=[config])
    module.load_rows("t", torch.arange(10), torch.zeros(10, 4))
    module.reset_rows("t", torch.tensor([7, 1]))
    _, vectors = module.export_rows("t")
    assert torch.equal(vectors[[7, 1]], pretrained[[7, 1]])
    assert vectors.count_nonzero() == 8


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            torch.tensor([0, 4]),
            IndexError,
            r"`rows` of table 'a' should be in \[0, 4\). Received 4",
        ),
        (torch.tensor([-1]), IndexError, r"\[0, 4\). Received -1"),
        (torch.tensor([1.0]), TypeError, "should be int64 of shape .*float32"),
        (torch.tensor([[1]]), TypeError, r"Received torch.int64 of shape \(1, 1\)"),
    ],
)
def test_rows_that_there_are_not(rows: Tensor, error: type[Exception], message: str) -> None:
    module = bags("fused", "dense")
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=message):
        module.reset_rows("a", rows)
    with pytest.raises(ValueError, match=r"`table` should be one of \['a', 'b'\]. Received 'x'"):
        module.reset_rows("x", rows)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_of_fused_rows_starts_anew_and_that_of_others_stays() -> None:
    configs = [
        EmbeddingBagConfig(
            5, dim, name, feature_names=["f"], optimizer="adagrad", lr=0.1,
            optimizer_options={"initial_accumulator_value": 0.25},
        )
        for name, dim in [("a", 1), ("b", 3)]
    ]  # fmt: skip
    module = EmbeddingBagCollection(tables=configs)
    backward(module)
    module.reset_rows("b", torch.tensor([2]))
    state = module.fused_optimizer.state_dict()["state"]
    assert state["embedding_bags.a.weight"]["sum"][:3, 0].tolist() == [4.25, 0.25, 1.25]
    assert state["embedding_bags.b.weight"]["sum"][:3, 2].tolist() == [4.25, 0.25, 0.25]
    assert state["embedding_bags.b.weight"]["step"].item() == 1
