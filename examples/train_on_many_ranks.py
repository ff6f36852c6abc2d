"""Train a small DLRM whose tables lie on several ranks, save it, and load it under another plan.

    python examples/train_on_many_ranks.py
    torchrun --standalone --nproc-per-node 2 examples/train_on_many_ranks.py checkpoint

Users and items have hidden tastes, and users click on what is close to theirs. The checkpoint goes
into the folder that is named, or into a temporary one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, OptimizerType
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.sharding_plan import (
    ParameterShardingGenerator,
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.optimizers import in_backward_optimizer_filter

USERS, ITEMS, TASTES, DIM = 500, 200, 4, 16
BATCH, STEPS, REPORT = 256, 300, 100
TABLES = "model.sparse_arch.embedding_bag_collection"  # the path of the collection in the model


def batches(rank: int, number: int) -> Iterator[Batch]:
    """Yield random clicks: of one world, but other ones on each rank."""
    world = torch.Generator().manual_seed(0)
    user_taste = torch.randn(USERS, TASTES, generator=world)
    item_taste = torch.randn(ITEMS, TASTES, generator=world)
    draw = torch.Generator().manual_seed(1 + rank)
    for _ in range(number):
        user = torch.randint(0, USERS, (BATCH,), generator=draw)
        item = torch.randint(0, ITEMS, (BATCH,), generator=draw)
        liking = (user_taste[user] * item_taste[item]).sum(1)
        yield Batch(
            dense_features=torch.rand(BATCH, 1, generator=draw),
            sparse_features=KeyedJaggedTensor(
                ["user", "item"],
                torch.cat([user, item]),
                lengths=torch.ones(2 * BATCH, dtype=torch.int64),
            ),
            labels=torch.bernoulli(liking.sigmoid(), generator=draw),
        )


def table(name: str, rows: int, feature: str) -> EmbeddingBagConfig:
    """A table that updates itself during the backward pass."""
    return EmbeddingBagConfig(
        rows, DIM, name, feature_names=[feature], optimizer=OptimizerType.ROWWISE_ADAGRAD, lr=0.1
    )


def sharded_model(tables: dict[str, ParameterShardingGenerator]) -> DistributedModelParallel:
    """Return a model whose tables lie where they should; no rank has more than its parts."""
    torch.manual_seed(0)
    collection = EmbeddingBagCollection(
        [table("user_table", USERS, "user"), table("item_table", ITEMS, "item")],
        device=torch.device("meta"),
    )
    model = DLRMTrain(DLRM(collection, 1, [32, DIM], [64, 1]))
    return DistributedModelParallel(
        model, plan=ShardingPlan({TABLES: construct_module_sharding_plan(collection, tables)})
    )


def loss_of(model: DistributedModelParallel) -> Tensor:
    """Return the loss on clicks that nobody has trained on, the same ones on every rank."""
    with torch.no_grad():
        losses = [model(batch)[0] for batch in batches(rank=-1, number=4)]
    return torch.stack(losses).mean()


def main(folder: str) -> None:
    """Train, save, load under another plan, and say what comes of it."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    model = sharded_model({"user_table": row_wise(), "item_table": table_wise(rank=ranks - 1)})
    say(model, f"{model.world_size} ranks\n{model.plan}\n")

    # The tables update themselves; this optimizer drives the rest.
    dense = [p for _, p in in_backward_optimizer_filter(model.named_parameters())]
    pipeline = TrainPipelineSparseDist(
        model, torch.optim.Adam(dense, lr=0.003), torch.device("cpu")
    )
    data = batches(model.rank, STEPS - 5 * model.rank)  # ranks may have more and less
    losses: list[float] = []
    while True:
        try:
            loss, _, _ = pipeline.progress(data)
        except StopIteration:  # on all ranks, when none has a batch
            break
        losses.append(loss.item())
        if len(losses) % REPORT == 0:
            say(model, f"step {len(losses):4d}   loss {sum(losses[-REPORT:]) / REPORT:.4f}")

    say(model, f"before   {loss_of(model):.6f}")
    dcp.save(model.state_dict(), checkpoint_id=folder)
    other = sharded_model({"user_table": column_wise(list(range(ranks))), "item_table": row_wise()})
    state = other.state_dict()
    dcp.load(state, checkpoint_id=folder)
    other.load_state_dict(state)
    say(model, f"after    {loss_of(other):.6f}")


def say(model: DistributedModelParallel, line: str) -> None:
    """Print a line, on one rank."""
    if model.rank == 0:
        print(line)


def shared_folder() -> str:
    """Return a new folder, the same on all ranks."""
    folder = [tempfile.mkdtemp()]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)
    return folder[0]


if __name__ == "__main__":
    if "RANK" in os.environ:  # as torchrun sets it
        dist.init_process_group("gloo")
    main(sys.argv[1] if len(sys.argv) > 1 else shared_folder())
    if dist.is_initialized():
        dist.destroy_process_group()  # the models are gone with `main`, and nobody else has the group
