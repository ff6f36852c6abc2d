"""States there and back between the form of the original and ours."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, init_from_local_shards

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.compat import original_state_dict
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

FEATURES = KeyedJaggedTensor.from_lists({"f": [[1, 2], [2]], "g": [[3], []]})


def collection(optimizer: str, **options) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(5, 2, table, feature_names=[key], optimizer=optimizer, lr=0.1, **options)
        for table, key in (("t", "f"), ("u", "g"))
    ]
    return EmbeddingBagCollection(tables=tables)


def train(module: EmbeddingBagCollection) -> None:
    for _ in range(2):
        (module(FEATURES).values() ** 2).sum().backward()


def states(module: EmbeddingBagCollection) -> dict[str, dict[str, list]]:
    saved = module.fused_optimizer.state_dict()["state"]
    return {
        name: {key: value.tolist() for key, value in values.items()}
        for name, values in saved.items()
    }


@pytest.mark.parametrize(
    ("optimizer", "names", "shape"),
    [
        ("sgd", [], None),
        ("adagrad", ["t.momentum1"], (5, 2)),
        ("rowwise_adagrad", ["t.momentum1"], (5,)),
    ],
)
def test_fused_state_goes_by_the_names_of_kernels(optimizer, names, shape):
    module = collection(optimizer)
    train(module)
    saved = original_state_dict(module.fused_optimizer)
    assert list(saved) == ["state"]
    of_table = saved["state"]["embedding_bags.t.weight"]
    assert list(of_table) == names
    assert all(value.shape == shape for value in of_table.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("combined", [False, True], ids=["alone", "combined"])
def test_fused_state_comes_back(optimizer, combined):
    module, other = collection(optimizer), collection(optimizer)
    train(module)
    train(other)
    train(other)

    def whole(part: EmbeddingBagCollection) -> CombinedOptimizer:
        layer = torch.nn.Linear(2, 1)
        layer.weight.grad = torch.ones(1, 2)
        dense = KeyedOptimizerWrapper({"w": layer.weight}, lambda p: torch.optim.Adam(p, lr=0.1))
        dense.step()
        return CombinedOptimizer([("sparse", part.fused_optimizer), ("dense", dense)])

    source, target = (
        (whole(part) if combined else part.fused_optimizer) for part in (module, other)
    )
    target.load_state_dict(original_state_dict(source))
    for table, own in states(other).items():
        given = states(module)[table]
        assert {k: v for k, v in own.items() if k != "step"} == {
            k: v for k, v in given.items() if k != "step"
        }


def test_names_without_what_stands_before_the_table():
    module = collection("rowwise_adagrad")
    sums = torch.arange(5.0)
    module.fused_optimizer.load_state_dict(
        {
            "state": {
                f"{table}.weight": {f"{table}.weight.momentum_1": sums + n}
                for n, table in enumerate("tu")
            }
        }
    )
    found = module.fused_optimizer.state_dict()["state"]
    assert found["embedding_bags.t.weight"]["sum"].tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]
    assert found["embedding_bags.u.weight"]["sum"].tolist() == [[1.0], [2.0], [3.0], [4.0], [5.0]]


def test_adam_needs_its_step_count():
    module = collection("adam")
    train(module)
    with pytest.raises(ValueError, match=r"State of 'embedding_bags.t.weight' should be .*'step'"):
        module.fused_optimizer.load_state_dict(original_state_dict(module.fused_optimizer))


def test_a_table_that_is_not_named_is_missed():
    module = collection("adagrad")
    saved = original_state_dict(module.fused_optimizer)
    del saved["state"]["embedding_bags.u.weight"]
    with pytest.raises(ValueError, match=r"should hold state of 'embedding_bags.u.weight'"):
        module.fused_optimizer.load_state_dict(saved)


def test_a_state_of_another_size_is_refused():
    module = collection("rowwise_adagrad")
    saved = original_state_dict(module.fused_optimizer)
    saved["state"]["embedding_bags.u.weight"]["u.momentum1"] = torch.zeros(6)
    with pytest.raises(ValueError, match=r"State 'sum' of 'embedding_bags.u.weight'.*\(5, 1\)"):
        module.fused_optimizer.load_state_dict(saved)


def test_a_checkpoint_of_pieces_is_put_together(tmp_path, one_rank):
    module, other = collection("rowwise_adagrad"), collection("rowwise_adagrad")
    train(module)
    state = original_state_dict(module.fused_optimizer)
    pieces = {
        name: {key: in_pieces(value) for key, value in values.items()}
        for name, values in state["state"].items()
    }
    with pytest.raises(
        ValueError,
        match=r"State 'sum' of 'embedding_bags.t.weight' should be a whole tensor. "
        "Received ShardedTensor",
    ):
        other.fused_optimizer.load_state_dict({"state": pieces})
    checkpoint.save({"state": pieces}, checkpoint_id=tmp_path)
    empty = original_state_dict(other.fused_optimizer)
    checkpoint.load(empty, checkpoint_id=tmp_path)
    other.fused_optimizer.load_state_dict(empty)
    for table, own in states(module).items():
        assert states(other)[table]["sum"] == own["sum"]


def in_pieces(value: torch.Tensor) -> ShardedTensor:
    shard = Shard.from_tensor_and_offsets(value, shard_offsets=[0] * value.dim(), rank=0)
    return init_from_local_shards([shard], *value.shape)


@pytest.fixture
def one_rank(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()
