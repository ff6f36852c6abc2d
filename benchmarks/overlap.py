"""How much of the exchange of ids `TrainPipelineSparseDist` hides, between ranks of one machine and on slower links.

    python -m benchmarks.overlap [--world-size 2] [--length 1] [--links 0,0 1,10 ...]

A link is the milliseconds that each message takes and the Gbit/s at which messages of a rank leave, one behind the
other; 0: no more than it takes by itself. Ids, vectors and gradients of vectors go through it alike; gradients of
layers, which are another process group's, do not. Two pipelines have their turns with the same DLRM, row-wise: one
that sends nothing ahead, whose exchange of ids is what there is to hide, and one that does. What is hidden is that
exchange without what the second one still waits for, ids and sizes both. With one thread a rank, what ids cost the
processor is hidden by nothing: look at the time of a step as well.

``ROWWISE_SHARED_MEMORY=0`` measures gloo's sockets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks import models
from benchmarks.links import Link, SlowChannel
from benchmarks.ranks_worker import batches, sharded
from benchmarks.work import features
from torchrec.datasets.utils import Batch
from torchrec.distributed.channel import use_channel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain

SAMPLES, STEPS, WARM = 1024, 20, 5
HEAD = "ms a message|Gbit/s|ms a step, nothing ahead|ms a step|exchange of ids|waited for|hidden"


def data(length: int, rank: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(rank)
    inputs = torch.randn(SAMPLES, models.DENSE, generator=generator)
    labels = torch.randint(2, (SAMPLES,), generator=generator)
    given = [
        Batch(inputs, features(each, SAMPLES), labels) for each in batches(SAMPLES, length, rank)
    ]
    return itertools.cycle(given)


def pipelines(world: int) -> list[TrainPipelineSparseDist[Batch, Any]]:
    """Return two for one model, of which the first sends nothing ahead."""
    made = DLRMTrain(models.make_model("dlrm", models.optimizer_in_backward()))
    model = sharded(made, "model.sparse_arch.embedding_bag_collection", "row_wise", world)
    dense = [p for n, p in model.named_parameters() if "embedding_bags" not in n]
    optimizer = torch.optim.SGD(dense, lr=0.01)
    found = [TrainPipelineSparseDist(model, optimizer, torch.device("cpu")) for _ in range(2)]
    found[0].attach(sparse_dist=False)
    return found


def spent(pipeline: TrainPipelineSparseDist[Batch, Any]) -> float:
    """Return the seconds that ranks have spent on the exchange of ids, and on nothing else meanwhile."""
    (tables,) = pipeline.report().exchanges
    return tables.not_ahead_seconds + tables.waited + tables.sizes_waited


def _rank(rank: int, world: int, folder: str, length: int, link: tuple[float, float]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    group = dist.group.WORLD
    assert group is not None
    if any(link):
        use_channel(group, SlowChannel(group, Link(*link)))
    sides = [(each, data(length, rank)) for each in pipelines(world)]
    for _, (pipeline, given) in itertools.product(range(WARM), sides):
        pipeline.progress(given)
    before = [spent(pipeline) for pipeline, _ in sides]
    steps: list[list[float]] = [[], []]
    for _, (times, (pipeline, given)) in itertools.product(
        range(STEPS), zip(steps, sides, strict=True)
    ):
        began = time.perf_counter()
        pipeline.progress(given)
        times.append(time.perf_counter() - began)
    after = [spent(pipeline) for pipeline, _ in sides]
    found: list[float] = [1e3 * statistics.median(times) for times in steps]
    found += [1e3 * (b - a) / STEPS for a, b in zip(before, after, strict=True)]
    if rank == 0:
        (Path(folder) / "found").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Print a table of links."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=1, help="ids a bag")
    parser.add_argument("--links", nargs="+", default=["0,0", "1,0", "5,0", "1,1"])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"| {HEAD.replace('|', ' | ')} |\n|" + "---|" * (HEAD.count("|") + 1), flush=True)
    for text in options.links:
        ms, gbits = map(float, text.split(","))
        with tempfile.TemporaryDirectory() as folder:
            arguments = (options.world_size, folder, options.length, (ms, gbits))
            start_processes(_rank, arguments, options.world_size, start_method="spawn")
            plain, ahead, exchange, waited = json.loads((Path(folder) / "found").read_text())
        hidden = 1 - waited / exchange
        cells = [f"{each:.2f}" for each in (plain, ahead, exchange, waited)]
        print(f"| {ms:g} | {gbits:g} | {' | '.join(cells)} | {hidden:.0%} |", flush=True)


if __name__ == "__main__":
    main()
