"""Tables whose columns lie on several ranks, updated by rules that look at a row as a whole."""

from __future__ import annotations

import copy
import time
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.layout import Shard, spec_of
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.testing import assert_same_training
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingPlan
from torchrec.ops.embedding import SplitUpdate
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def decayed(frozen):
    """Weights of two tables, one frozen perhaps, after a step whose rule moves rows that no id chose."""
    options = {"weight_decay": 0.5, "optimizer_options": {"lazy": False}}
    tables = [
        EmbeddingBagConfig(
            3,
            4,
            name,
            feature_names=["f"],
            optimizer="rowwise_adagrad",
            lr=0.1,
            enable_grad=name not in frozen,
            init_fn=torch.nn.init.ones_,
            **options,
        )
        for name in ("a", "b")
    ]
    model = EmbeddingBagCollection(tables)
    plan = construct_module_sharding_plan(
        model, {name: column_wise([0, 1]) for name in ("a", "b")}, device_type="cpu"
    )
    model = DistributedModelParallel(model, plan=ShardingPlan({"": plan}))
    features = KeyedJaggedTensor.from_lists({"f": [[dist.get_rank()]]})
    model(features).values().sum().backward()
    return {name: bool((param == 1).all()) for name, param in model.module.named_parameters()}


def test_a_frozen_table_stays_as_it_is():
    a, b = "embedding_bags.a.weight", "embedding_bags.b.weight"
    assert run(decayed, 2, ()) == [{a: False, b: False}] * 2
    assert run(decayed, 2, ("a",)) == [{a: True, b: False}] * 2


def on_two_of_three(copied, who):
    """Tables on ranks 1 and 2 that get rules for rows when they are sharded, against one process."""
    tables = [EmbeddingBagConfig(5, 4, name, feature_names=[name]) for name in ("a", "b")]
    torch.manual_seed(2)
    plain = EmbeddingBagCollection(tables)
    plan = construct_module_sharding_plan(
        plain, {name: column_wise([1, 2]) for name in ("a", "b")}, device_type="cpu"
    )
    model = DistributedModelParallel(copy.deepcopy(plain), plan=ShardingPlan({"": plan}))
    model = copy.deepcopy(model) if copied else model
    for name, optimizer in (("a", "rowwise_adagrad"), ("b", "lamb")):
        for each in (plain, model):
            params = [p for n, p in each.named_parameters() if f".{name}." in n]
            if each is plain or dist.get_rank() in who:
                apply_optimizer_in_backward(optimizer, params, {"lr": 0.1})
    batches = [KeyedJaggedTensor.from_lists({"a": [[r], [4]], "b": [[r, 3], []]}) for r in range(3)]
    for _ in range(2):
        (sum(plain(each).values().square().sum() for each in batches) / 3).backward()
        model(batches[dist.get_rank()]).values().square().sum().backward()
    for name, whole in plain.state_dict().items():
        for part in model.state_dict()[name].local_shards():
            column, columns = part.metadata.shard_offsets[1], part.metadata.shard_sizes[1]
            torch.testing.assert_close(part.tensor, whole[:, column : column + columns])
    return True


@pytest.mark.parametrize("copied", [False, True], ids=["model", "copy"])
def test_rules_for_rows_may_come_when_tables_are_sharded(copied):
    assert run(on_two_of_three, 3, copied, [0, 1, 2]) == [True] * 3


@pytest.mark.parametrize("who", [[1, 2], [1]], ids=["owners alone", "one of the owners"])
def test_rules_for_rows_that_not_all_ranks_give_are_refused_on_all(who):
    for error in run(on_two_of_three, 3, False, who, timeout=30):
        assert isinstance(error, ValueError)
        assert str(error).startswith(
            "All ranks should give tables whose columns are on several ranks the same optimizers, those too "
            f"that have nothing of them. Received rules that ask for {[2 * (r in who) for r in range(3)]} sums"
        )


class TwoTables(nn.Module):
    def __init__(self):
        super().__init__()
        options = {"optimizer": "rowwise_adagrad", "lr": 0.1}
        self.tables = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(9, 4, "columns", feature_names=["f"], **options),
                EmbeddingBagConfig(9, 4, "rows", feature_names=["g"], **options),
            ]
        )

    def forward(self, features):
        return self.tables(features).values().square().sum()


def beside_rows():
    """Rank 0 looks up columns of one table and rows of another; rank 1 has columns only."""
    torch.manual_seed(1)
    model = TwoTables()
    kinds = {
        "columns": column_wise([0, 1]),
        "rows": row_wise(sizes_placement=([5, 0, 4], "cpu")),
    }
    plan = construct_module_sharding_plan(model.tables, kinds, device_type="cpu")
    batches = [
        [
            KeyedJaggedTensor.from_lists({"f": [[rank], [8]], "g": [[rank + step], [8]]})
            for rank in range(3)
        ]
        for step in range(2)
    ]
    assert_same_training(model, ShardingPlan({"tables": plan}), batches)
    return True


def test_ranks_with_columns_agree_on_an_update_whatever_else_they_look_up():
    assert run(beside_rows, 3, timeout=20) == [True] * 3


def some_rows_on_one_rank():
    """Rows of a table, of which rank 0 has some whole, and ranks 1 and 2 the columns of the others."""
    torch.manual_seed(1)
    model = TwoTables()
    shards = [
        Shard(0, range(5), range(4)),
        Shard(1, range(5, 9), range(3)),
        Shard(2, range(5, 9), range(3, 4)),
    ]
    sharding = ParameterSharding("grid_shard", "fused", [0, 1, 2], spec_of(shards))
    kinds = {"columns": lambda *_: sharding, "rows": table_wise(0)}
    plan = construct_module_sharding_plan(model.tables, kinds, device_type="cpu")
    batch = KeyedJaggedTensor.from_lists({"f": [[1, 6], [8]], "g": [[2], [8]]})
    assert_same_training(model, ShardingPlan({"tables": plan}), [[batch] * 3] * 2)
    return True


def test_some_rows_may_lie_on_one_rank_where_others_have_their_columns_split():
    assert run(some_rows_on_one_rank, 3, timeout=20) == [True] * 3


def by_an_outer_rate():
    """Rules that look at rows as a whole, whose updates wait for the step of an optimizer around the model."""
    torch.manual_seed(1)
    kinds = {
        "rowwise_adagrad": column_wise([0, 1]),
        "lamb": column_wise([2, 0, 2]),  # no part on rank 1
        "partial_rowwise_adam": column_wise([1, 2]),
        "adam": row_wise(),
    }
    tables = [
        EmbeddingBagConfig(5, 6, name, feature_names=["f", name], optimizer=name) for name in kinds
    ]
    plain = EmbeddingBagCollection(tables)
    plan = construct_module_sharding_plan(plain, kinds, device_type="cpu")
    model = DistributedModelParallel(copy.deepcopy(plain), plan=ShardingPlan({"": plan}))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (plain, model)]

    def batch(rank, step):
        ids = {"f": [[rank], [4, step]]} | {name: [[rank + step // 2], []] for name in kinds}
        return KeyedJaggedTensor.from_lists(ids)

    for step in range(4):
        if step % 2 == 0:  # else gradients of two passes are one update
            for optimizer in optimizers:
                optimizer.zero_grad()
        whole = [plain(batch(rank, step)).values().square().sum() for rank in range(3)]
        (sum(whole) / 3).backward()
        model(batch(dist.get_rank(), step)).values().square().sum().backward()
        if step % 2:
            for optimizer in optimizers:
                optimizer.step()
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].full_tensor(), expected)
    states = [each.fused_optimizer.state_dict()["state"] for each in (plain, model)]
    for name, state in states[0].items():
        for kind, expected in state.items():
            found = states[1][name][kind]
            if kind != "step":
                torch.testing.assert_close(found.full_tensor(), expected)
            elif type(found) is torch.Tensor:
                assert found == expected == 2
    return True


def test_rules_for_rows_by_the_rate_of_an_outer_optimizer_see_whole_rows():
    assert run(by_an_outer_rate, 3, timeout=30) == [True] * 3


def frozen_beside_rows():
    """A frozen table is pooled while one that is trained is looked up by rows: nothing comes to the first."""
    torch.manual_seed(1)
    options = {"optimizer": "adagrad", "lr": 0.1}
    tables = EmbeddingBagCollection(
        [
            EmbeddingBagConfig(9, 4, "frozen", feature_names=["f"], enable_grad=False, **options),
            EmbeddingBagConfig(9, 4, "rows", feature_names=["g"], **options),
        ]
    )
    before = tables.embedding_bags["frozen"].weight.clone()
    plan = construct_module_sharding_plan(
        tables, {"frozen": table_wise(0), "rows": row_wise()}, device_type="cpu"
    )
    sharded = DistributedModelParallel(tables, plan=ShardingPlan({"": plan}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharded(KeyedJaggedTensor.from_lists({"f": [[1]], "g": [[2]]})).values().sum().backward()
    weight = sharded.module.embedding_bags["frozen"].weight
    return torch.equal(weight, before[: len(weight)])


def test_a_frozen_table_may_be_looked_up_beside_one_that_is_trained():
    assert run(frozen_beside_rows, 2, timeout=20) == [True, True]


class BesideLookUps(nn.Module):
    """Two tables whose columns lie on ranks of their own, one of which the loss uses itself as well."""

    def __init__(self):
        super().__init__()
        options = {"optimizer": "rowwise_adagrad", "lr": 0.1}
        names = ("looked_up", "used")
        self.tables = EmbeddingBagCollection(
            [EmbeddingBagConfig(6, 4, name, feature_names=[name], **options) for name in names]
        )

    def shard(self, ranks):
        kinds = {name: column_wise(each) for name, each in ranks.items()}
        plan = construct_module_sharding_plan(self.tables, kinds, device_type="cpu")
        return DistributedModelParallel(self, plan=ShardingPlan({"tables": plan}))

    def forward(self, features):
        return self.tables(features).values().square().sum()


def ids_of(rank):
    return {"looked_up": [[0, 1], [rank]], "used": [[rank], [3, 3]]}


def used_on_some_ranks():
    """Rank 1 has nothing of the table that the loss uses itself, rank 0 has parts of both."""
    torch.manual_seed(1)
    plain = BesideLookUps()
    model = copy.deepcopy(plain).shard({"looked_up": [0, 1], "used": [0, 2]})
    rank, batches = dist.get_rank(), [KeyedJaggedTensor.from_lists(ids_of(r)) for r in range(3)]
    loss = sum(plain(each) for each in batches) / 3
    (loss + plain.tables.embedding_bags["used"].weight.square().sum()).backward()
    mine = model(batches[rank])
    (
        mine + dict(model.named_parameters())["tables.embedding_bags.used.weight"].square().sum()
    ).backward()
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].full_tensor(), expected)
    return True


def test_a_table_may_be_used_itself_beside_one_that_other_ranks_have():
    assert run(used_on_some_ranks, 3, timeout=30) == [True] * 3


def used_on_one_rank():
    """The part of one rank gets a gradient that those of the same rows elsewhere do not get."""
    torch.manual_seed(1)
    model = BesideLookUps().shard({"looked_up": [0, 1], "used": [0, 1]})
    loss = model(KeyedJaggedTensor.from_lists(ids_of(0)))
    if dist.get_rank() == 0:
        loss = loss + dict(model.named_parameters())["tables.embedding_bags.used.weight"].sum()
    loss.backward()


def test_gradients_of_other_rows_on_one_rank_are_refused_on_all():
    for error in run(used_on_one_rank, 2, timeout=30):
        assert isinstance(error, ValueError)
        assert str(error).startswith(
            "Ranks that hold columns of table 'used' should have gradients of the same rows:"
        )
        assert str(error).endswith("Received rows on ranks [0] unlike those on ranks [1].")


def without_kernels_on_one_rank():
    torch.manual_seed(1)
    before = SplitUpdate.takes
    SplitUpdate.takes = lambda weights: dist.get_rank() == 0 and before(weights)
    ranks = {name: [0, 1] for name in ("looked_up", "used")}
    try:
        plain = BesideLookUps()
        model = copy.deepcopy(plain).shard(ranks)
        batches = [KeyedJaggedTensor.from_lists(ids_of(r)) for r in range(2)]
        (sum(plain(each) for each in batches) / 2).backward()
        model(batches[dist.get_rank()]).backward()
    finally:
        SplitUpdate.takes = before
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].full_tensor(), expected)
    return True


def test_a_rank_may_be_without_kernels():
    assert run(without_kernels_on_one_rank, 2, timeout=30) == [True] * 2


def waiting_columns(timeout=60):
    """A model whose columns wait for the step of an optimizer, after a backward pass, and its parameters."""
    tables = [
        EmbeddingBagConfig(5, 4, name, feature_names=["f"], optimizer="rowwise_adagrad")
        for name in ("a", "b")
    ]
    plain = EmbeddingBagCollection(tables)
    kinds = {name: column_wise([0, 1]) for name in ("a", "b")}
    plan = construct_module_sharding_plan(plain, kinds, device_type="cpu")
    group = dist.new_group(timeout=timedelta(seconds=timeout))
    env = ShardingEnv.from_process_group(group)
    model = DistributedModelParallel(plain, env, plan=ShardingPlan({"": plan}))
    features = KeyedJaggedTensor.from_lists({"f": [[1], [4]]})
    model(features).values().sum().backward()
    return model, features, list(model.parameters())


def stepped_in_another_order():
    _, _, parameters = waiting_columns()
    torch.optim.SGD(parameters if dist.get_rank() else parameters[::-1], lr=0.1).step()


def test_optimizers_that_step_with_columns_in_another_order_are_refused():
    for rank, error in enumerate(run(stepped_in_another_order, 2, timeout=30)):
        assert isinstance(error, ValueError)
        assert str(error) == (
            "Optimizers of all ranks should step with their tables in the same order. Received table "
            f"'{'ba'[rank]}' on rank {rank}, and others on some of the ranks [0, 1]."
        )


def step_left_out():
    """Rank 1 comes late to the first step, and rank 0 leaves the second one out, as a `GradScaler` may."""
    model, features, parameters = waiting_columns(timeout=5)
    optimizer, rank = torch.optim.SGD(parameters, lr=0.1), dist.get_rank()
    time.sleep(1.5 * rank)
    optimizer.step()
    assert all(each.grad is None for each in parameters)
    model(features).values().sum().backward()
    if rank:
        optimizer.step()
    model(features)


def test_a_step_that_one_rank_leaves_out_is_found_out_by_those_that_have_the_other_columns():
    began = time.monotonic()
    for error in run(step_left_out, 2, timeout=30):
        assert isinstance(error, RuntimeError)
        assert str(error) == (
            "All ranks should do the same in the same order. Received the step of an optimizer with columns of "
            "table 'a' on rank 1, look-up 2 of the collection of tables ['a', 'b'] on rank 0."
        )
    assert time.monotonic() - began < 20


def options_written(written, everywhere):
    """Options after a first step: that kernels cannot halve an update with, or that are others on one rank."""
    torch.manual_seed(1)
    plain = BesideLookUps()
    model = copy.deepcopy(plain).shard({name: [0, 1] for name in ("looked_up", "used")})
    batches = [KeyedJaggedTensor.from_lists(ids_of(r)) for r in range(2)]
    for step in range(2):
        (sum(plain(each) for each in batches) / 2).backward()
        model(batches[dist.get_rank()]).backward()
        if step == 0:
            plain.tables.fused_optimizer.param_groups[0].update(written)
            if everywhere or dist.get_rank() == 0:
                model.fused_optimizer.param_groups[0].update(written)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].full_tensor(), expected)
    return [
        update.states["sum"].tolist() for update in model.module.tables.tables.updates().values()
    ]


@pytest.mark.parametrize("written", [{"lazy": False, "weight_decay": 0.1}, {"lr": 0.5}], ids=str)
def test_options_may_be_written_between_steps(written):
    first, second = run(options_written, 2, written, True, timeout=30)
    assert first == second  # one state a row, whoever has its columns


@pytest.mark.parametrize(
    ("written", "before"), [({"weight_decay": 0.1}, "0.0"), ({"lr": 0.5}, "0.1")], ids=str
)
def test_options_that_are_others_on_one_rank_are_refused_by_name(written, before):
    ((name, value),) = written.items()
    for error in run(options_written, 2, written, False, timeout=30):
        assert isinstance(error, ValueError)
        assert str(error) == (
            f"All ranks should have `{name}` of table 'looked_up' alike. "
            f"Received {value} on rank 0, {before} on rank 1."
        )
