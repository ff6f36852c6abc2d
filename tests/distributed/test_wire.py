"""Ranks that exchange something."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec.distributed.channel import Channel, use_channel
from torchrec.distributed.wire import Wire
from torchrec.process_groups import default_store

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def kept():
    wire = Wire(dist.group.WORLD)
    for write in (pickle.dumps, lambda value: torch.save({"wire": value}, "/dev/null")):
        with pytest.raises(TypeError, match=r"saved by its `state_dict\(\)`"):
            write(wire)
    return copy.deepcopy([wire])[0] is wire


def test_it_is_copied_as_it_is_and_not_pickled():
    assert run(kept, 2) == [True, True]


def met(times):
    """Meet again and again, with nothing in between: who is ahead takes nothing away that another looks for."""
    wire, numbers = Wire(dist.group.WORLD), []
    for count in (1, times):
        for number in range(count):
            wire.meet([0, 1], f"meeting {number}")
        dist.barrier()
        numbers.append(default_store().num_keys())
        dist.barrier()
    return numbers[1] - numbers[0]


def test_ranks_may_meet_again_at_once():
    # Of each rank the key of the last meeting stays.
    assert run(met, 2, 200, timeout=20) == [0, 0]


def counted():
    wire, rank = Wire(dist.group.WORLD), dist.get_rank()
    sizes, before = [3, 5], (wire.sent_bytes, wire.sent_messages)
    wire.swap(torch.zeros(8, dtype=torch.int32), sizes, [sizes[rank]] * 2)
    return wire.sent_bytes - before[0], wire.sent_messages - before[1]


def test_what_goes_to_others_is_counted():
    assert run(counted, 2) == [(20, 1), (12, 1)]


class Watched(Channel):
    """Keeps what is sent."""

    def start(self, sent, *rest):
        self.last = sent
        return super().start(sent, *rest)


def replaced():
    group = dist.group.WORLD
    channel = Watched(group)
    use_channel(group, channel)
    sent = torch.arange(2, dtype=torch.int32)
    Wire(group).swap(sent, [1, 1], [1, 1])
    with pytest.raises(ValueError, match=r"before the ranks.*after 1 messages"):
        use_channel(group, Watched(group))
    return torch.equal(channel.last, sent)


def test_ranks_exchange_through_a_channel_that_is_given():
    assert run(replaced, 2) == [True, True]
