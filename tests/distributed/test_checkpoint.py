"""Checkpoints in a folder: whole or not there, under any plan, while training goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.four_tables import TABLES, assert_same, sharded, steps_of, train, wholes
from tests.distributed.ranks import run
from tests.distributed.test_state import results, state_of
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, files
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.checkpoint import SafetensorsWriter, ShardedCheckpoints
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
)
from torchrec.distributed.types import ShardingPlan

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def save(folder, plan):
    model, checkpoints = sharded(plan), ShardedCheckpoints(folder)
    train(model, 0)
    checkpoints.save(1, state_of(model))
    train(model, 1)
    checkpoints.save(2, state_of(model))
    train(model, 2)
    saved = wholes(model)
    for group in model.fused_optimizer.param_groups:
        group["lr"] *= 0.5
    written = checkpoints.save_later(3, {**state_of(model), "seen": 12})
    train(model, 3, 4)  # changes nothing of what is written
    path = written.result()
    return saved, path, checkpoints.steps(), wholes(model)


def load(folder, plan):
    model = sharded(plan, device="meta")
    checkpoints = ShardedCheckpoints(folder)
    state = checkpoints.load(checkpoints.latest(), {**state_of(model), "seen": 0})
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    loaded, rates = wholes(model), [group["lr"] for group in model.fused_optimizer.param_groups]
    steps = set(steps_of(model).values())
    train(model, 3, 4)
    return loaded, rates, steps, state["seen"], wholes(model)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (("many", 2), ("rows", 2)),
        (("rows", 2), ("rows", 2)),
        (("columns", 2), ("alone", 1)),
        pytest.param(("grid", 4), ("columns", 3), marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{value[0]} on {value[1]}",
)
def test_training_goes_on_from_a_checkpoint(saved_by, loaded_by):
    (plan, world_size), (other, other_size) = saved_by, loaded_by
    with tempfile.TemporaryDirectory() as folder:
        saved = results(save, world_size, folder, plan)
        loaded = results(load, other_size, folder, other)
        assert json.loads((saved[0][1] / "state.json").read_text())["seen"] == 12
    expected, _, steps, trained_on = saved[0]
    assert steps == [2, 3]
    assert set[float]().union(*(counts for _, _, counts, *_ in loaded)) == {3.0}
    for found, rates, counts, seen, trained in loaded:
        assert_same(found, expected)
        assert rates == [table["lr"] * 0.5 for table in TABLES.values()]
        assert (counts - {3.0}, seen) == (set(), 12)
        if saved_by == loaded_by:
            assert_same(trained, trained_on)


@pytest.mark.slow
def test_a_checkpoint_of_four_ranks_loads_on_fewer_and_more():
    with tempfile.TemporaryDirectory() as folder:
        expected = results(save, 4, folder, "grid")[0][0]
        for plan, world_size in (("alone", 1), ("columns", 3), ("rows", 8)):
            for found, _, counts, seen, _ in results(load, world_size, folder, plan):
                assert_same(found, expected)
                assert (counts - {3.0}, seen) == (set(), 12)


def killed(folder, when):
    """Write a checkpoint, and begin another, in which a rank is killed."""
    model, checkpoints = sharded("rows"), ShardedCheckpoints(folder)
    train(model, 0)
    checkpoints.save(1, state_of(model))
    train(model, 1)
    if when != "naming" and dist.get_rank() == 1:
        write_data = SafetensorsWriter.write_data

        def written_in_part(self, plan, planner):
            write_data(self, replace(plan, items=plan.items[:2]), planner)
            os.kill(os.getpid(), signal.SIGKILL)

        SafetensorsWriter.write_data = written_in_part
    if when == "naming" and dist.get_rank() == 0:
        files.digest_of = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    try:
        if when == "later":
            checkpoints.save_later(2, state_of(model))
            with suppress(RuntimeError):  # once the other rank is gone
                train(model, *range(2, 1000))
            checkpoints.wait()
        checkpoints.save(2, state_of(model))
    except Exception as error:
        Path(folder, "error.txt").write_text(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("when", ["writing", "naming", "later"])
def test_killed_while_saving_leaves_the_last_one_whole(when):
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ChildProcessError, match="It ended"):
            run(killed, 2, folder, when, timeout=30)
        left = Path(folder, ".step-00000002.writing")
        if when != "naming":  # the first rank has heard, and cleared away
            assert "should be written" in Path(folder, "error.txt").read_text()
            assert not left.exists()
        else:
            assert list(left.glob("*.safetensors"))
        results(goes_on, 1, folder)
        assert sorted(path.name for path in Path(folder).glob("*step*")) == [
            "step-00000001",
            "step-00000002",
        ]


def goes_on(folder):
    model, checkpoints = sharded("alone"), ShardedCheckpoints(folder)
    assert checkpoints.steps() == [1]
    state = checkpoints.load(1, state_of(model))
    assert set(steps_of(model).values()) == {1.0}
    checkpoints.save(2, state)


def refused(folder):
    model, checkpoints = sharded("rows"), ShardedCheckpoints(folder)
    state = state_of(model)
    path = checkpoints.save(1, state)
    with pytest.raises(ValueError, match=r"`step` should be one of \[1\].* Received 5"):
        checkpoints.load(5, state)
    with pytest.raises(ValueError, match="should have 'other', which is wanted"):
        checkpoints.load(1, {"other": torch.zeros(2)})
    with pytest.raises(ValueError, match="should have 'seen', which is wanted"):
        checkpoints.load(1, {"seen": 0})
    with pytest.raises(ValueError, match=r"should have a parameter group of \['a'\]"):
        checkpoints.load(1, {"optimizer": {"param_groups": [{"params": ["a"]}]}})
    with pytest.raises(ValueError, match=r"should be readable.*mismatch"):
        checkpoints.load(1, {"model": {"over.bias": torch.zeros(2)}})
    part = {"sum": torch.zeros(3 + dist.get_rank(), 2)}
    with pytest.raises(ValueError, match=r"'sum' should be sharded, .* \[\(3, 2\), \(4, 2\)\]"):
        checkpoints.save(2, part)
    with pytest.raises(TypeError, match="Received set at 'a'"):
        checkpoints.save(2, {"a": {1}})
    dist.barrier()
    if dist.get_rank() == 1:
        file = next(iter(sorted(path.glob("*.safetensors"))))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    dist.barrier()
    with pytest.raises(ValueError, match="It is damaged: it has other contents"):
        checkpoints.load(1, state)
    # What only one rank sees, as a full disk, all ranks raise.
    if dist.get_rank() == 1:
        SafetensorsWriter.write_data = full
    checkpoints.save_later(2, state)
    with pytest.raises(OSError, match=r"should be written to .* Received: On rank 1: .*No space"):
        checkpoints.wait()
    return checkpoints.steps()


def full(self, plan, planner):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_read_or_written_is_an_error_on_all_ranks():
    with tempfile.TemporaryDirectory() as folder:
        assert results(refused, 2, folder) == [[1], [1]]
    with pytest.raises(ValueError, match="`keep` should be at least 1"):
        ShardedCheckpoints("folder", keep=0)


def memory_mb(reset=False):
    """The most memory that this process has had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def large(generator):
    tables = [
        EmbeddingBagConfig(65536, 128, f"t{i}", feature_names=[f"f{i}"], optimizer="adam", lr=0.1)
        for i in range(3)
    ]
    collection = EmbeddingBagCollection(tables, device=torch.device("meta"))
    generators = {table.name: generator for table in tables}
    plan = construct_module_sharding_plan(
        collection, generators, local_size=2, world_size=2, device_type="cpu"
    )
    return DistributedModelParallel(collection, plan=ShardingPlan({"": plan}))


def measured(folder):
    model, checkpoints = large(row_wise()), ShardedCheckpoints(folder)
    before = memory_mb(reset=True)
    checkpoints.save(1, state_of(model))
    saving = memory_mb() - before
    del model
    model = large(column_wise([0, 1]))
    before = memory_mb(reset=True)
    state = checkpoints.load(1, state_of(model))
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    return saving, memory_mb() - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux")
def test_reading_and_writing_need_no_more_memory_than_for_a_part_of_a_table():
    shard = 65536 * 128 * 4 / 2 / 2**20  # of nine tensors, in MB
    with tempfile.TemporaryDirectory() as folder:
        for saving, loading in results(measured, 2, folder):
            assert loading < 2 * shard
            assert saving < 3 * shard  # the parts are copied, as they are not all of their memory


def saved_and_wanted_otherwise():
    """What only one rank has wrong; the messages that each rank gets."""
    last = dist.get_rank() == 1
    with tempfile.TemporaryDirectory() as own:
        folders = [own]
        dist.broadcast_object_list(folders)
        checkpoints = ShardedCheckpoints(folders[0])
        tensor = torch.zeros(2)
        messages = []
        with pytest.raises((ValueError, TypeError)) as error:
            checkpoints.save(1, {"weight": tensor, "more": object() if last else 1})
        messages.append(str(error.value))
        checkpoints.save(2, {"weight": tensor, "seen": 1})
        for state in ({"bias": tensor}, {"rate": 1}):
            with pytest.raises(ValueError) as error:
                checkpoints.load(2, {"weight": tensor, **(state if last else {})})
            messages.append(str(error.value).replace(folders[0], "FOLDER"))
        found = checkpoints.steps(), checkpoints.load(2, {"seen": 0})["seen"]
        dist.barrier()
    return messages, found


def test_what_one_rank_cannot_save_or_find_is_an_error_on_all_ranks():
    for messages, found in run(saved_and_wanted_otherwise, 2, timeout=30):
        unknown, bias, rate = messages
        assert unknown.startswith("On rank 1: ")
        lacking = "On rank 1: Checkpoint 'FOLDER/step-00000002' should have '{}', which is wanted. Received none."
        assert (bias, rate) == (lacking.format("bias"), lacking.format("rate"))
        assert found == ([2], 1)
