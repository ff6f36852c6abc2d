"""What happens to the other ranks when one fails, and how ranks end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import NoneType

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run
from tests.distributed.test_model_parallel import batch, fused, plan_of
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import DMPCollection
from torchrec.distributed.types import ShardingEnv
from torchrec.distributed.wire import Wire

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


def step_and_forget():
    model = fused()
    kinds = {"user": ("row_wise",), "item": ("column_wise", [0, 1])}
    sharded = DistributedModelParallel(model, plan=plan_of(model, **kinds))
    dense = torch.optim.SGD([p for n, p in sharded.named_parameters() if n.startswith("over")], 0.1)
    sharded(batch(sharded.rank, 0))[0].backward()
    dense.step()
    return weakref.ref(sharded)


def end_without_garbage_collection():
    gc.disable()
    model = step_and_forget()
    gone = model() is None
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    return gone, group() is None


def test_nobody_holds_the_process_group_when_the_model_is_gone():
    """Else its threads outlive Python, and the process aborts at times."""
    assert run(end_without_garbage_collection, 2) == [(True, True)] * 2


def use_after_the_end():
    wire = Wire(dist.group.WORLD)
    dist.destroy_process_group()
    wire.states(0, "a test")


def test_ranks_whose_process_group_is_gone_say_so():
    (error,) = run(use_after_the_end, 1)
    assert isinstance(error, RuntimeError)
    assert str(error) == (
        "The process group of a sharded model should last as long as it is used. Received one that rank 0 "
        "has destroyed."
    )


def ended(folder, how):
    """One rank ends in one way, while the others train; they write down what they hear, and when."""
    rank, model = dist.get_rank(), fused()
    sharded = DistributedModelParallel(
        model, plan=plan_of(model, user=("row_wise",), item=("table_wise", 1))
    )
    sharded(batch(rank, 0))[0].backward()
    if rank == 2 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 2 and how == "exit":
        os._exit(3)
    start = time.monotonic()
    try:
        tables = sharded.module.tables(batch(rank, 1))
        if rank == 2 and how == "forward":
            raise KeyError("in code of the user, after the exchange")
        if rank == 2:
            tables.values().register_hook(lambda _: 1 / 0)
        tables.values().sum().backward()
    except RuntimeError as error:
        (Path(folder) / str(rank)).write_text(f"{time.monotonic() - start} {error}")
        time.sleep(1)  # so that the other one finds this one still there
        raise


@pytest.mark.parametrize("how", ["killed", "exit", "forward", "backward"])
def test_a_rank_that_ends_is_named_by_all_others_at_once(how, tmp_path):
    killed = how in ("killed", "exit")
    with pytest.raises(ChildProcessError, match="Rank 2") if killed else nullcontext():
        run(ended, 3, str(tmp_path), how, timeout=30)
    for rank in range(2):
        waited, message = (tmp_path / str(rank)).read_text().split(" ", 1)
        assert float(waited) < 10
        assert message == (
            "All ranks should take part until the last step. Received nothing more from rank 2, which has "
            "ended: what was written there last says why."
        )


def alone(how):
    """The other rank has ended when this one asks for what it has; return the error."""
    model = fused()
    if how == "sync":
        plan = plan_of(model, user=("table_wise", 0), item=("table_wise", 0))
        sharded = DMPCollection(model, torch.device("cpu"), plan, 2, 1, dist.group.WORLD)
    else:
        plan = plan_of(model, user=("row_wise",), item=("table_wise", 1))
        sharded = DistributedModelParallel(model, plan=plan)
    tables = sharded.module.tables
    table = sharded.state_dict()["tables.embedding_bags.user.weight"]
    dist.barrier()
    if dist.get_rank() == 1:
        os._exit(3)
    if how == "sync":
        sharded.sync()
    elif how == "full_tensor":
        table.full_tensor()
    elif how == "gather":
        table.gather(0, torch.empty(table.shape))
    else:
        tables.table_store().export_rows("user")


@pytest.mark.parametrize("how", ["sync", "full_tensor", "gather", "export_rows"])
def test_a_rank_that_has_ended_is_named_where_parts_are_brought_together(how, tmp_path):
    with pytest.raises(ChildProcessError, match="Rank 1"):
        run(written_down, 2, str(tmp_path), alone, how, timeout=30)
    assert (tmp_path / "0").read_text() == (
        "All ranks should take part until the last step. Received nothing more from rank 1, which has "
        "ended: what was written there last says why."
    )


def written_down(folder, function, *args):
    try:
        function(*args)
    except RuntimeError as error:
        (Path(folder) / str(dist.get_rank())).write_text(str(error))
        raise


def stuck(how):
    group = dist.new_group(timeout=timedelta(seconds=2))
    model = fused()
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(group),
        plan=plan_of(model, user=("row_wise",), item=("row_wise",)),
    )
    if dist.get_rank() == 1 and how == "sleeps":
        time.sleep(8)
        return
    if dist.get_rank() == 1:
        dist.barrier()  # of the program, which the other rank comes to after its step
    sharded(batch(0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sleeps", "waits at a barrier"])
def test_a_rank_that_does_not_answer_ends_the_others_after_the_timeout_of_the_group(how):
    error, other = run(stuck, 2, how, timeout=30)
    assert isinstance(error, RuntimeError)
    # Who waits at a barrier is not left there: the other rank has ended.
    assert isinstance(other, RuntimeError if how == "waits at a barrier" else NoneType)
    assert str(error) == (
        "All ranks should take part in the beginning of forward pass 0 of the model within 2 s, the `timeout` of "
        "their process group. Received nothing from rank 1: it has stopped, or has left out what others do."
    )


def elsewhere(how):
    """Rank 1 has stopped; rank 0 waits for it in a checkpoint, and rank 2 is at the next step already."""
    waiting, next_step = (Wire(dist.new_group(timeout=timedelta(seconds=s))) for s in (60, 6))
    if dist.get_rank() == 0:
        waiting.share("written", 0, "a checkpoint")
    if dist.get_rank() == 1:
        time.sleep(12)
    if dist.get_rank() == 2 and how == "exchange":
        next_step.states(0, "a step")
    if dist.get_rank() == 2 and how == "meet":
        next_step.together(lambda: None, "a step")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "meet"])
def test_who_waits_in_another_exchange_is_not_taken_for_stopped(how):
    *_, error = run(elsewhere, 3, how, timeout=30)
    assert str(error) == (
        "All ranks should take part in a step within 6 s, the `timeout` of their process group. Received nothing "
        "from rank 1: it has stopped, or has left out what others do."
    )


def launched(folder, killed_in):
    """Run the program `restarted` under torchrun, and return the model that it leaves."""
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command += [
        "--max-restarts",
        "1",
        "-m",
        "tests.distributed.restarted",
        str(folder),
        str(killed_in),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        # Else ranks that start anew may read from the store where those before them listened.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "model.pt")


@pytest.mark.slow
def test_a_job_whose_rank_is_killed_is_restarted_and_goes_on_from_its_checkpoint(tmp_path):
    whole = launched(tmp_path / "whole", -1)
    restarted = launched(tmp_path / "restarted", 5)
    assert whole["from"] == 0
    assert restarted["from"] == 4
    for name, weight in whole["model"].items():
        assert torch.equal(restarted["model"][name], weight), name


UNDESTROYED = """
import sys

import torch.distributed as dist

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel

dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
table = EmbeddingBagConfig(10, 4, "t", feature_names=["f"], optimizer="sgd", lr=0.1)
model = DistributedModelParallel(EmbeddingBagCollection([table]))
output = model(KeyedJaggedTensor.from_lists({"f": [[1, 2]] * 200}))
output.values().sum().backward()
"""


@pytest.mark.slow
def test_a_program_that_destroys_no_process_group_ends_without_complaints(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", UNDESTROYED, str(tmp_path / "store"), rank],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert "Exception ignored" not in said
        assert "Traceback" not in said
