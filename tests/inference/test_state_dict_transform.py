"""States of sharded models gathered, and moved to a device."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.four_tables import Model, sharded, train, wholes
from tests.distributed.test_state import results
from torchrec.inference.state_dict_transform import (
    state_dict_all_gather_keys,
    state_dict_gather,
    state_dict_to_device,
)

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def gathered():
    rank, group = dist.get_rank(), dist.group.WORLD
    model = sharded("rows")
    train(model, 0)
    expected, plain = wholes(model), Model()
    before = plain.state_dict()["tables.embedding_bags.user.weight"].clone()
    state_dict_gather(model.state_dict(), plain.state_dict())
    for name, value in plain.state_dict().items():
        if rank == 0 or name.startswith("over"):
            assert torch.equal(value, expected[name]), name
    if rank == 1:
        assert torch.equal(plain.state_dict()["tables.embedding_bags.user.weight"], before)
    with pytest.raises(KeyError, match="nope"):
        state_dict_gather(model.state_dict(), {"nope": torch.zeros(1)})
    state = model.state_dict()
    moved = state_dict_to_device(state, group, torch.device("meta"))
    assert list(moved) == sorted(state)
    user = moved["tables.embedding_bags.user.weight"]
    (shard,) = user.local_shards()
    assert (tuple(user.size()), tuple(shard.tensor.shape)) == ((30, 8), (15, 8))
    assert (user.device.type, shard.tensor.device.type) == ("meta", "meta")
    assert shard.metadata.shard_offsets == [15 * rank, 0]
    assert str(shard.metadata.placement) == f"rank:{rank}/meta"
    with pytest.raises(
        ValueError, match="should have '1', as on other ranks" if rank == 0 else "'0'"
    ):
        state_dict_to_device({str(rank): torch.zeros(1)}, group, torch.device("cpu"))
    return state_dict_all_gather_keys({str(rank): 0, "a": 1}, group)


def test_states_are_gathered_and_moved():
    assert results(gathered, 2) == [["0", "1", "a"], ["0", "1", "a"]]
