"""Fused tables in a training loop: learning rates, accumulation, inherited rates, later changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed
from torch import Tensor

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.optim import (
    CombinedOptimizer,
    KeyedOptimizerWrapper,
    RowWiseAdagrad,
    WarmupOptimizer,
    WarmupPolicy,
    WarmupStage,
    apply_optimizer_in_backward,
    in_backward_optimizer_filter,
)


def collection(*names: str, **options) -> EmbeddingBagCollection:
    """Tables of zeros, one for each name; every table looks at feature "f"."""
    configs = [
        EmbeddingBagConfig(4, 2, name, feature_names=["f"], init_fn=torch.nn.init.zeros_, **options)
        for name in names or ("t",)
    ]
    return EmbeddingBagCollection(tables=configs)


def backward(ebc: EmbeddingBagCollection, *ids: int) -> None:
    ebc(KeyedJaggedTensor.from_lists({"f": [list(ids or (1,))]})).values().sum().backward()


def weight(ebc: EmbeddingBagCollection, name: str = "t") -> Tensor:
    return ebc.embedding_bags[name].weight


def first(ebc: EmbeddingBagCollection, name: str = "t") -> float:
    return round(weight(ebc, name)[1, 0].item(), 6)


SGD = {"optimizer": OptimizerType.SGD, "lr": 1.0}
INHERITED = {"optimizer": OptimizerType.SGD}

# ---- learning rates


def test_learning_rate_by_hand() -> None:
    ebc = collection("t", "u", **SGD)
    optimizer = ebc.fused_optimizer
    backward(ebc)
    optimizer.param_groups[0]["lr"] = 0.5
    backward(ebc)
    assert (first(ebc, "t"), first(ebc, "u")) == (-1.5, -2.0)
    optimizer.update_hyper_parameters({"lr": 0.25})
    backward(ebc)
    assert (first(ebc, "t"), first(ebc, "u")) == (-1.75, -2.25)
    optimizer.param_groups[1].update(lr=torch.tensor(2.0), weight_decay=0.1)
    backward(ebc)
    assert (first(ebc, "t"), first(ebc, "u")) == (-2.0, round(-2.25 - 2 * (1 - 0.225), 6))


def test_learning_rate_by_scheduler() -> None:
    ebc = collection(**SGD)
    optimizer = ebc.fused_optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(3):
        backward(ebc)
        optimizer.step()
        scheduler.step()
    assert first(ebc) == -1.75


def test_learning_rate_by_warmup() -> None:
    ebc = collection(**SGD)
    stages = [WarmupStage(WarmupPolicy.LINEAR, max_iters=4, value=0.0)]
    optimizer = WarmupOptimizer(ebc.fused_optimizer, stages, lr=1.0)
    course = []
    for _ in range(4):
        before = first(ebc)
        backward(ebc)
        optimizer.step()
        course.append(before - first(ebc))
    # The rate counts from the next backward pass on; the course begins when it is made.
    assert course == [0.0, 0.25, 0.5, 0.75]


def test_a_refused_rate_is_not_kept() -> None:
    ebc = collection(**SGD)
    (group,) = ebc.fused_optimizer.param_groups
    with pytest.raises(ValueError, match=r"`lr` should be at least 0. Received -1"):
        group["lr"] = -1
    assert group["lr"] == 1.0


def test_groups_are_written_through_in_every_way() -> None:
    ebc = collection(**SGD)
    (group,) = ebc.fused_optimizer.param_groups
    group |= {"lr": 0.5}
    backward(ebc)
    assert first(ebc) == -0.5


# ---- accumulation


@pytest.mark.parametrize("kind", OptimizerType, ids=lambda kind: kind.value)
@pytest.mark.parametrize("collector", [EmbeddingBagCollection, EmbeddingCollection])
def test_accumulated_gradients_are_one_update(kind: OptimizerType, collector: type) -> None:
    make = EmbeddingConfig if collector is EmbeddingCollection else EmbeddingBagConfig
    config = make(8, 3, "t", feature_names=["f"], optimizer=kind, lr=0.1)

    def loss(module: torch.nn.Module, lists: list[list[int]]) -> Tensor:
        out = module(KeyedJaggedTensor.from_lists({"f": lists}))
        values = out["f"].values() if isinstance(out, dict) else out.values()
        return (values * torch.arange(3)).sum() + values.sin().sum()

    parts, whole = collector(tables=[config]), collector(tables=[config])
    whole.load_state_dict(parts.state_dict())
    for _ in range(2):
        with parts.fused_optimizer.accumulate():
            loss(parts, [[1, 2]]).backward()
            loss(parts, [[2], [5, 5]]).backward()
        loss(parts, [[7]]).backward()
        sum(loss(whole, lists) for lists in ([[1, 2], [2], [5, 5], [7]],)).backward()
    ours, theirs = next(parts.parameters()), next(whole.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name, state in parts.fused_optimizer.state[ours].items():
        torch.testing.assert_close(state, whole.fused_optimizer.state[theirs][name])


def test_accumulation_of_many_backward_passes() -> None:
    ebc = collection(**SGD)
    with ebc.fused_optimizer.accumulate():
        for _ in range(99):
            backward(ebc)
    backward(ebc)
    assert first(ebc) == -100.0


def test_accumulation_nests_and_ends_after_an_error() -> None:
    ebc = collection(**SGD)

    def fail() -> None:
        with ebc.fused_optimizer.accumulate():
            with ebc.fused_optimizer.accumulate():
                backward(ebc)
            backward(ebc)
            assert first(ebc) == 0.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    backward(ebc)
    assert first(ebc) == -3.0


# ---- lr=None: the rate of the optimizer that is given the parameter


def keyed(module: torch.nn.Module, lr: float) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(
        dict(module.named_parameters()), lambda p: torch.optim.SGD(p, lr=lr)
    )


DRIVERS: dict[str, Callable] = {
    "sgd": lambda ebc: torch.optim.SGD(ebc.parameters(), lr=0.5),
    "adam": lambda ebc: torch.optim.Adam(ebc.parameters(), lr=0.5),
    "keyed": lambda ebc: keyed(ebc, 0.5),
    "combined": lambda ebc: CombinedOptimizer(
        [("tables", keyed(ebc, 0.5)), ("dense", keyed(torch.nn.Linear(1, 1), 9.0))]
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_inherited_rate(driver: str) -> None:
    ebc = collection("t", "u", **INHERITED)
    optimizer = DRIVERS[driver](ebc)
    backward(ebc, 1, 1, 2)
    assert first(ebc) == 0.0  # until the step
    optimizer.step()
    for name in ("t", "u"):
        assert weight(ebc, name)[:, 0].tolist() == [0.0, -1.0, -0.5, 0.0]
    optimizer.step()  # nothing is left to be done
    assert first(ebc) == -1.0


def test_inherited_rate_of_groups_and_schedulers() -> None:
    ebc = collection("t", "u", **INHERITED)
    optimizer = torch.optim.SGD(
        [
            {"params": [weight(ebc, "t")], "lr": 1.0},
            {"params": [weight(ebc, "u")], "lr": 0.25},
        ]
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        backward(ebc)
        optimizer.step()
        scheduler.step()
    assert (first(ebc, "t"), first(ebc, "u")) == (-1.5, -0.375)


def test_inherited_rate_of_a_warmup() -> None:
    ebc = collection(**INHERITED)
    plain = torch.nn.Parameter(torch.zeros(1))
    stages = [WarmupStage(WarmupPolicy.LINEAR, max_iters=4, value=0.0)]

    def warm(params: dict[str, Tensor]) -> WarmupOptimizer:
        inner = KeyedOptimizerWrapper(params, lambda p: torch.optim.SGD(p, lr=1.0))
        return WarmupOptimizer(inner, stages, lr=1.0)

    ours, theirs = warm(dict(ebc.named_parameters())), warm({"plain": plain})
    for _ in range(5):
        backward(ebc)
        ours.step()
        plain.grad = torch.ones(1)
        theirs.step()
        assert first(ebc) == plain.item()


def test_inherited_rate_accumulates_until_the_step() -> None:
    ebc = collection(optimizer="rowwise_adagrad")
    optimizer = torch.optim.SGD(ebc.parameters(), lr=0.5)
    for _ in range(3):
        backward(ebc)
    optimizer.step()
    # One update with the sum: the gradient 3 is divided by its own root mean square.
    assert first(ebc) == -0.5
    assert ebc.fused_optimizer.state[weight(ebc)]["sum"][1].item() == 9.0
    assert ebc.fused_optimizer.state[weight(ebc)]["step"].item() == 1


def test_zero_grad_drops_what_waits() -> None:
    ebc = collection(**INHERITED)
    optimizer = torch.optim.SGD(ebc.parameters(), lr=0.5)
    backward(ebc)
    optimizer.zero_grad()
    optimizer.step()
    assert first(ebc) == 0.0


def test_gradients_that_wait_are_ordinary_ones() -> None:
    """They are in ``grad``, where clipping, accumulation and a forgotten step can be seen."""
    ebc = collection(**INHERITED)
    for _ in range(3):
        backward(ebc, 1, 1, 2)
    grad = weight(ebc).grad
    assert grad.is_sparse
    assert grad.to_dense()[:, 0].tolist() == [0, 6, 3, 0]
    torch.optim.SGD(ebc.parameters(), lr=0.5).step()
    assert weight(ebc)[:, 0].tolist() == [0, -3.0, -1.5, 0]
    assert first(ebc) == -3.0


def test_inherited_and_own_rates_together() -> None:
    configs = [
        EmbeddingBagConfig(
            4, 2, name, feature_names=["f"], init_fn=torch.nn.init.zeros_, optimizer=kind, lr=lr
        )
        for name, kind, lr in [("own", "sgd", 1.0), ("lent", "sgd", None), ("plain", None, None)]
    ]
    ebc = EmbeddingBagCollection(tables=configs)
    optimizer = torch.optim.SGD(ebc.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        backward(ebc)
        optimizer.step()
    assert [first(ebc, n) for n in ("own", "lent", "plain")] == [-2.0, -1.0, -1.0]
    assert list(ebc.fused_optimizer.params) == [
        "embedding_bags.own.weight", "embedding_bags.lent.weight"
    ]  # fmt: skip


# ---- apply_optimizer_in_backward


def test_optimizer_is_applied_to_all_tables() -> None:
    ebc = collection("t", "u")
    apply_optimizer_in_backward(RowWiseAdagrad, ebc.parameters(), {"lr": 0.5})
    apply_optimizer_in_backward(RowWiseAdagrad, ebc.parameters(), {"lr": 0.5})  # again: the same
    backward(ebc)
    assert (first(ebc, "t"), first(ebc, "u")) == (-0.5, -0.5)
    assert weight(ebc).grad is None
    assert sorted(ebc.fused_optimizer.state_dict()["state"]["embedding_bags.t.weight"]) == [
        "step", "sum"
    ]  # fmt: skip
    others = dict(in_backward_optimizer_filter(ebc.named_parameters()))
    assert others == {}


def test_optimizer_is_applied_to_some_tables_after_some_training() -> None:
    ebc = collection("t", "u", "v", "w")
    for name, lr in (("t", 1.0), ("v", 2.0)):
        apply_optimizer_in_backward(torch.optim.Adagrad, [weight(ebc, name)], {"lr": lr})
    plain = torch.optim.SGD([weight(ebc, "u"), weight(ebc, "w")], lr=4.0)
    backward(ebc)
    plain.step()
    assert [first(ebc, n) for n in "tuvw"] == [-1, -4, -2, -4]
    sums = ebc.fused_optimizer.state[weight(ebc, "t")]["sum"].clone()
    apply_optimizer_in_backward(torch.optim.SGD, [weight(ebc, "u")], {"lr": 8.0})
    state = ebc.fused_optimizer.state
    assert torch.equal(state[weight(ebc, "t")]["sum"], sums)
    assert [state[weight(ebc, n)]["step"].item() for n in "tuv"] == [1, 0, 1]
    plain.zero_grad()
    backward(ebc)
    assert weight(ebc, "u").grad is None
    assert first(ebc, "u") == -12.0
    assert first(ebc, "t") == pytest.approx(-1 - 1 / 2**0.5, abs=1e-5)


def test_another_optimizer_for_a_table_that_has_one_is_refused() -> None:
    ebc = collection()
    apply_optimizer_in_backward(torch.optim.SGD, ebc.parameters(), {"lr": 1.0})
    with pytest.raises(ValueError, match="should have one optimizer in the backward pass"):
        apply_optimizer_in_backward(torch.optim.Adagrad, ebc.parameters(), {"lr": 1.0})
    other = collection()
    with pytest.raises(ValueError, match="should be one that can be fused"):
        apply_optimizer_in_backward(torch.optim.RMSprop, other.parameters(), {"lr": 1.0})


def test_optimizer_is_applied_to_a_model_around_a_collection() -> None:
    ebc = collection()
    dense = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(dense.weight)
    model = torch.nn.Sequential(ebc, dense)
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 1.0})
    out = ebc(KeyedJaggedTensor.from_lists({"f": [[1]]})).values() + 1
    dense(out).sum().backward()
    assert first(ebc) == -1.0
    assert dense.weight.tolist() == [[0.0, 0.0]]


def test_a_scheduler_survives_an_optimizer_for_another_table() -> None:
    ebc = collection("t", "u")
    apply_optimizer_in_backward(torch.optim.SGD, [weight(ebc, "t")], {"lr": 1.0})
    scheduler = torch.optim.lr_scheduler.LambdaLR(ebc.fused_optimizer, lambda _: 0.5)
    apply_optimizer_in_backward(torch.optim.SGD, [weight(ebc, "u")], {"lr": 1.0})
    ebc.fused_optimizer.step()
    scheduler.optimizer.step()
    scheduler.step()
    backward(ebc)
    assert first(ebc, "t") == -0.5


# ---- several look-ups in one step


def test_two_lookups_of_one_step_are_one_update() -> None:
    ebc = collection(**SGD)
    kjt = KeyedJaggedTensor.from_lists({"f": [[1]]})
    (ebc(kjt).values().sum() + 2 * ebc(kjt).values().sum()).backward()
    assert first(ebc) == -3.0
    assert ebc.fused_optimizer.state[weight(ebc)]["step"].item() == 1


def test_step_and_zero_grad_have_nothing_to_do() -> None:
    ebc = collection(**SGD)
    optimizer = ebc.fused_optimizer
    backward(ebc)
    optimizer.zero_grad()
    optimizer.step()
    assert first(ebc) == -1.0
    assert optimizer.step(lambda: backward(ebc)) is None
    assert first(ebc) == -2.0


def test_optimizer_state_of_a_step_to_start_with() -> None:
    ebc = collection(optimizer="adam", lr=0.1)
    ebc.fused_optimizer.set_optimizer_step(1000)
    backward(ebc)
    assert ebc.fused_optimizer.state[weight(ebc)]["step"].item() == 1001
    mean, square = 0.1 / (1 - 0.9**1001), 0.001 / (1 - 0.999**1001)
    assert first(ebc) == pytest.approx(-0.1 * mean / square**0.5, rel=1e-4)


@pytest.mark.parametrize("odd", [None, (1, 2), "x", [1.0], torch.ones(2)], ids=repr)
def test_rates_and_steps_that_are_no_numbers_are_named(odd) -> None:
    ebc = collection(**SGD)
    optimizer = ebc.fused_optimizer
    with pytest.raises(TypeError, match=r"`lr` should be a number. Received"):
        optimizer.param_groups[0]["lr"] = odd
    with pytest.raises(TypeError, match=r"`step` should be an integer. Received"):
        optimizer.set_optimizer_step(odd)
    with pytest.raises(ValueError, match=r"`step` should be at least 0. Received -1"):
        optimizer.set_optimizer_step(-1)
    backward(ebc)
    assert first(ebc) == -1.0


# ---- several processes


@pytest.fixture
def one_rank(tmp_path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_fused_tables_are_refused_where_ranks_add_gradients_up(one_rank: None) -> None:
    ebc = collection("t", **SGD)
    around = torch.nn.parallel.DistributedDataParallel(ebc)
    kjt = KeyedJaggedTensor.from_lists({"f": [[1]]})
    with pytest.raises(RuntimeError, match="Table 't' should have no `lr`, so that the ranks add"):
        around(kjt)
    with torch.no_grad():
        assert around(kjt).values().shape == (1, 2)
    backward(ebc)  # by itself it is what it was
    assert first(ebc) == -1.0


def test_fused_tables_that_ranks_keep_for_themselves_are_trained(one_rank: None) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ebc, self.over = collection("t", **SGD), torch.nn.Linear(2, 1)

        def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
            return self.over(self.ebc(kjt).values())

    model = Model()
    ignored = ["ebc.embedding_bags.t.weight"]
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, ignored
    )
    around = torch.nn.parallel.DistributedDataParallel(model)
    for number in (1, 2):
        around(KeyedJaggedTensor.from_lists({"f": [[1]]})).sum().backward()
        assert model.ebc.fused_optimizer.state[weight(model.ebc)]["step"].item() == number


@pytest.mark.parametrize(
    "options", [{"sparse": True}, INHERITED, {}], ids=["sparse", "lent", "dense"]
)
@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_gradients_that_ranks_add_up(one_rank: None, kind: str, options: dict) -> None:
    bags = kind == "bags"
    config = EmbeddingBagConfig if bags else EmbeddingConfig
    module = (EmbeddingBagCollection if bags else EmbeddingCollection)(
        tables=[config(4, 2, "t", feature_names=["f"], **options)]
    )
    around = torch.nn.parallel.DistributedDataParallel(module)
    (weight,) = module.parameters()
    for number in (1, 2):
        out = around(KeyedJaggedTensor.from_lists({"f": [[1, 1, 3]]}))
        (out.values() if bags else out["f"].values()).sum().backward()
        assert weight.grad.is_sparse == bool(options)
        dense = weight.grad.to_dense() if options else weight.grad
        assert dense[:, 0].tolist() == [0.0, 2.0 * number, 0.0, 1.0 * number]
