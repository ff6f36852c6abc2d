"""Ranks that work for long are waited for; those that have stopped are named, with what they were at."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from datetime import timedelta
from threading import Event

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.checkpoint import SafetensorsWriter, ShardedCheckpoints
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.signs_of_life import LifeWatch, Stopped
from torchrec.training.ranks import Ranks

pytestmark = pytest.mark.once


def watched(*signs, patience=10):
    """Return what is made of signs of two ranks that are seen at several seconds."""
    watch = LifeWatch(timedelta(seconds=patience))
    found = ({r: sign for r, sign in enumerate(each) if sign is not None} for _, each in signs)
    return [watch.stopped(each, now) for each, (now, _) in zip(found, signs, strict=True)]


def test_ranks_stop_whose_signs_do_not_change():
    runs = [(now, (f"{now} {100 + now} reading", "")) for now in (4, 8)]
    assert watched(*runs, (9, ("", ""))) == [None] * 3
    # One never gave a sign; what the other was at is over, and then nothing comes.
    assert watched(*runs, (15, ("15 115 reading", "")))[-1] == Stopped([1], "", False)
    assert watched(*runs, (9, ("", "1 1 x")), (18.5, ("", "2 2 x")))[-1] is None
    assert watched(*runs, (9, ("", "1 1 x")), (19.5, ("", "2 2 x")))[-1] == Stopped([0], "", False)
    # It has waited itself in between.
    waited = [(4, ("", "")), (12, (None, "1 1 x")), (16, ("", "2 2 x"))]
    assert watched(*waited) == [None] * 3
    assert watched(*waited, (27, ("", "3 3 x")))[-1] == Stopped([0], "", False)


def test_threads_that_do_not_run_are_told_from_processes_that_do_not():
    idle = [(now, (f"{now} 100 reading", f"{now} {now} reading")) for now in (4, 8, 12)]
    assert watched(*idle, (15, ("15 100 reading", "15 15 reading")))[-1] == Stopped(
        [0], "reading", True
    )
    assert watched(*idle, (15, ("15 101 reading", "15 15 reading")))[-1] is None
    assert watched(*idle, (15, ("15 100 writing", "15 15 reading")))[-1] is None
    both = [(now, ("1 100 reading", f"{now} 100 reading")) for now in (4, 8, 12)]
    assert watched(*both, (15, ("1 100 reading", "15 100 reading")))[-1] == Stopped(
        [0], "reading", False
    )


def stop(seconds):
    """Stop this process, and have another one wake it up."""
    if os.fork() == 0:
        time.sleep(seconds)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)


def works():
    end = time.monotonic() + 9
    while time.monotonic() < end:
        time.sleep(0.1)
    return "done"


def waits():
    Event().wait(8)


def alone(act, seconds):
    ranks = Ranks(dist.new_group(timeout=timedelta(seconds=seconds)))
    return ranks.first(act, "reading the data")


@pytest.mark.slow
def test_who_works_for_long_is_waited_for():
    assert run(alone, 2, works, 5) == ["done", "done"]


def stops():
    stop(8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "received"),
    [
        (stops, "no sign of life from rank 0 in the middle of reading the data: it has stopped"),
        (
            waits,
            "signs of life alone from rank 0: for so long, nothing has gone on in the middle of reading the data",
        ),
    ],
)
def test_a_first_rank_that_stops_is_named(act, received):
    _, error = run(alone, 2, act, 3)
    assert isinstance(error, RuntimeError)
    assert str(error).startswith(
        "All ranks should take part in reading the data within 3 s, the `timeout` of their process group. "
        f"Received {received}"
    )


def plan(act, seconds):
    """Plan on the first rank, which does something meanwhile; return where a table is."""
    group = dist.new_group(timeout=timedelta(seconds=seconds))

    def search(options):
        act()
        return options

    tables = [EmbeddingBagConfig(10, 4, "user", feature_names=["user"])]
    topology = Topology(world_size=2, compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology, callbacks=[search])
    model = EmbeddingBagCollection(tables, device="meta")
    return list(planner.collective_plan(model, pg=group).plan[""])


@pytest.mark.slow
def test_a_search_for_a_plan_is_waited_for():
    assert run(plan, 2, works, 5) == [["user"]] * 2


@pytest.mark.slow
def test_a_first_rank_that_stops_as_it_plans_is_named():
    _, error = run(plan, 2, stops, 3)
    assert isinstance(error, RuntimeError)
    assert str(error) == (
        "All ranks should take part in finding a plan within 3 s, the `timeout` of their process group. "
        "Received no sign of life from rank 0 in the middle of finding a plan: it has stopped."
    )


def stops_as_it_writes(folder):
    group = dist.new_group(timeout=timedelta(seconds=3))
    checkpoints = ShardedCheckpoints(folder, process_group=group)
    if dist.get_rank() == 1:
        SafetensorsWriter.write_data = lambda *_: stops()
    checkpoints.save(2, {"weight": torch.ones(2)})


@pytest.mark.slow
def test_a_rank_that_stops_as_it_writes_a_checkpoint_is_named():
    with tempfile.TemporaryDirectory() as folder:
        first, _, third = run(stops_as_it_writes, 3, folder)
    for error in (first, third):
        assert isinstance(error, OSError)
        assert str(error).count("The checkpoint of step 2 should be written to") == 1
        assert (
            "Received: All ranks should take part in writing a checkpoint within 3 s, the `timeout` of their process "
            "group. Received no sign of life from rank 1 in the middle of writing a checkpoint: it has stopped"
        ) in str(error)
