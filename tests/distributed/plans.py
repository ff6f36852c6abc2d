"""Plans of one kind for every table of a module, and batches of other sizes on every rank."""

from __future__ import annotations

import torch

from torchrec import KeyedJaggedTensor
from torchrec.distributed import sharding_plan
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder

# What a table is given, by its number: neighbours of one kind lie differently.
KINDS = {
    "table_wise": lambda t, ranks: sharding_plan.table_wise(t % ranks),
    "row_wise": lambda t, ranks: sharding_plan.row_wise(),
    "column_wise": lambda t, ranks: sharding_plan.column_wise(list(range(ranks))),
    "grid_shard": lambda t, ranks: sharding_plan.grid_shard([0]),
    "data_parallel": lambda t, ranks: sharding_plan.data_parallel(),
    "mixed": lambda t, ranks: sharding_plan.row_wise() if t % 2 else sharding_plan.data_parallel(),
}


def plan_of(
    module: torch.nn.Module, kind: str, ranks: int, sharder: ModuleSharder | None = None
) -> EmbeddingModuleShardingPlan:
    """Place every table of a module in one way; ``"mixed"`` in two ways, in turn."""
    sharder = sharder or sharding_plan.get_module_to_default_sharders()[type(module)]
    tables = list(sharder.shardable_parameters(module))
    return construct_module_sharding_plan(
        module,
        {name: KINDS[kind](t, ranks) for t, name in enumerate(tables)},
        sharder=sharder,
        local_size=ranks,
        world_size=ranks,
        device_type="cpu",
    )


def batch(rows: dict[str, int], rank: int, step: int, weighted: bool = False) -> KeyedJaggedTensor:
    """Bags of up to three ids of each feature; sizes differ by rank and step, and one batch is empty."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    size = 0 if (rank, step) == (1, 1) else 2 + rank + step
    lengths = torch.randint(0, 4, (len(rows) * size,), generator=generator)
    counts = lengths.view(len(rows), size).sum(1).tolist()
    values = torch.cat(
        [
            torch.randint(0, number, (count,), generator=generator)
            for number, count in zip(rows.values(), counts, strict=True)
        ]
    )
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return KeyedJaggedTensor(list(rows), values, weights, lengths=lengths)
