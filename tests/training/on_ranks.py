"""A training on several ranks, for tests: each rank gives its share of the batches of one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.training.clicks import ClickModel, NormedModel, Notes, Source, make_batch, make_trainer
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.batch_norm import convert_sync_batchnorm
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.distributed.unshard import unshard
from torchrec.training import Trainer
from torchrec.training.rank_checkpoints import RankCheckpoints
from torchrec.training.ranks import Ranks
from torchrec.training.world import ALONE, World

PLANS = {
    "rows": {"user": row_wise(), "item": row_wise()},
    "columns": {"user": column_wise([0, 1]), "item": row_wise()},
    "whole": {"user": table_wise(0), "item": table_wise(1)},
    "copies": {"user": data_parallel(), "item": table_wise(0)},
}


def share(batch: Batch, world: World) -> Batch:
    """Return every so-many-th sample of a batch."""
    size = len(batch.dense_features)
    mine = torch.arange(size)[world.rank :: world.size]
    return batch.select_batches(mine, [len(mine)])[0]


class Shares(Source):
    """This rank's share of the batches of a source."""

    def __init__(self, world: World, **options: int) -> None:
        super().__init__(**options)
        self._world = world

    @property
    def samples(self) -> int:
        return len(range(self._world.rank, super().samples, self._world.size))

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            yield share(batch, self._world)


def valid_shares(world: World) -> list[Batch]:
    """The last batch is of one sample: other ranks have none of it."""
    batches = [make_batch(size, 99, number) for number, size in enumerate((50, 31, 1))]
    return [share(batch, world) for batch in batches]


def trainer(plan: str | None, folder: Path | None = None, **options: Any) -> tuple[Trainer, Notes]:
    """Return a trainer of a model that is sharded by a plan, and what it is told."""
    torch.manual_seed(0)
    world: World = ALONE
    kind = NormedModel if options.pop("batch_norm", False) else ClickModel
    model: torch.nn.Module = kind(options.pop("rule", "adam"), dropout=options.pop("dropout", 0.0))
    if plan is not None and dist.is_initialized():
        assert dist.group.WORLD is not None
        world = Ranks(dist.group.WORLD)
        assert isinstance(model, ClickModel)
        tables = construct_module_sharding_plan(model.ebc, PLANS[plan])
        synced = convert_sync_batchnorm(model)
        model = DistributedModelParallel(synced, plan=ShardingPlan({"ebc": tables}))
    notes = Notes()
    made = make_trainer(
        model,
        checkpoints=None if folder is None else RankCheckpoints(folder),
        observers=[notes],
        rule=options.pop("dense", "adam"),
        world=world,
        **options,
    )
    return made, notes


def ended(made: Trainer) -> Mapping[str, torch.Tensor]:
    """Return the weights of a model, as those of one process."""
    model = made.model
    if isinstance(model, DistributedModelParallel):
        plain = unshard(model)
        assert plain is not None
        model = plain
    return {name: value.clone() for name, value in model.state_dict().items()}
