"""A program that torchrun starts: it trains, is killed on one rank perhaps, and goes on from its last checkpoint.

python -m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 restarted.py FOLDER KILLED_IN_STEP
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.test_model_parallel import batch, fused, plan_of
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.checkpoint import ShardedCheckpoints
from torchrec.distributed.unshard import unshard
from torchrec.optim.optimizers import in_backward_optimizer_filter

STEPS, EVERY = 6, 2


def main(folder: str, killed_in: int) -> None:
    """Train, from the last checkpoint on if there is one, and write the model to a file."""
    model = fused()
    plan = plan_of(model, user=("row_wise",), item=("column_wise", [0, 1]))
    sharded = DistributedModelParallel(model, plan=plan)
    dense = [p for _, p in in_backward_optimizer_filter(sharded.named_parameters())]
    optimizer = torch.optim.Adam(dense, lr=0.01)
    checkpoints = ShardedCheckpoints(f"{folder}/checkpoints")

    def state():
        return {
            "model": sharded.state_dict(),
            "tables": sharded.fused_optimizer.state_dict(),
            "optimizer": optimizer.state_dict(),
        }

    first = checkpoints.latest() or 0
    if first:
        # What an optimizer keeps is there after its first step only.
        sharded(batch(sharded.rank, 0))[0].backward()
        optimizer.step()
        loaded = checkpoints.load(first, state())
        sharded.load_state_dict(loaded["model"])
        sharded.fused_optimizer.load_state_dict(loaded["tables"])
        optimizer.load_state_dict(loaded["optimizer"])
    for step in range(first, STEPS):
        first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if step == killed_in and first_attempt and sharded.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        sharded(batch(sharded.rank, step))[0].backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            checkpoints.save(step + 1, state())
    plain = unshard(sharded, rank=0)
    if plain is not None:
        torch.save({"from": first, "model": plain.state_dict()}, Path(folder) / "model.pt")


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    main(sys.argv[1], int(sys.argv[2]))
    dist.destroy_process_group()
