"""What one rank does for all."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from tests.distributed.ranks import Workers
from torchrec.distributed.collective_utils import (
    invoke_on_rank_and_broadcast_result,
    is_leader,
    run_on_leader,
)
from torchrec.distributed.global_settings import get_propogate_device, set_propogate_device


@pytest.fixture(scope="module")
def workers():
    with Workers() as found:
        yield found


def on_leader(leader):
    pg, calls = dist.group.WORLD, []

    @run_on_leader(pg, leader)
    def told(number, more=0):
        """Says who."""
        calls.append(number)
        return dist.get_rank(), number + more

    assert told.__doc__ == "Says who."
    result = told(3, more=4)
    assert calls == [3] * is_leader(pg, leader)
    assert invoke_on_rank_and_broadcast_result(pg, leader, dist.get_rank) == leader
    with pytest.raises(ValueError, match=r"`rank` should be from 0 to 1\. Received 2"):
        invoke_on_rank_and_broadcast_result(pg, 2, dist.get_rank)
    return result


@pytest.mark.once
@pytest.mark.parametrize("leader", [0, 1])
def test_all_ranks_get_what_the_leader_returns(workers, leader):
    assert workers.run(on_leader, 2, leader) == [(leader, 7)] * 2


def failing(leader):
    def fail():
        raise KeyError("nothing here")

    invoke_on_rank_and_broadcast_result(dist.group.WORLD, leader, fail)


@pytest.mark.once
def test_all_ranks_raise_what_fails_on_the_leader(workers):
    for error in workers.run(failing, 2, 1):
        assert isinstance(error, KeyError)
        assert "On rank 1" in str(error)
        assert "nothing here" in str(error)


def not_picklable(leader):
    with pytest.raises(RuntimeError, match=f"On rank {leader}: .*local object"):
        invoke_on_rank_and_broadcast_result(dist.group.WORLD, leader, lambda: lambda: None)
    return True


@pytest.mark.once
def test_all_ranks_raise_what_cannot_be_pickled_on_the_leader(workers):
    assert workers.run(not_picklable, 2, 1) == [True, True]


def test_without_a_group_there_is_one_rank():
    assert is_leader(None)
    assert is_leader(None, 3)


def test_the_device_is_that_of_the_input():
    set_propogate_device(False)
    assert get_propogate_device() is False
    with pytest.raises(ValueError, match="`val` should be False"):
        set_propogate_device(True)
