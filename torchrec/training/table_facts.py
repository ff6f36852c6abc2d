"""What a report says of the tables in the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.datasets.transform import FeatureTransform
from torchrec.modules.collection import TableShard, collections_in
from torchrec.modules.mc_modules import ManagedCollisionStats
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.runs import TableFacts
from torchrec.training.id_counts import managed_stats

_CHUNK = 1 << 20  # elements worked on at once


@torch.no_grad()
def table_facts(
    model: nn.Module, transform: FeatureTransform, optimizer: KeyedOptimizer
) -> list[TableFacts]:
    """Describe each table: its size, how much of it is in use, and the norms of its rows.

    A row is dead that no training step has touched, as the state of its optimizer tells; without
    such a state (plain SGD) it is not known, and None. Ids out of range and hashed are those of all
    training batches; `torchrec.training.id_counts.IdCounts` keeps evaluations out.
    """
    specs = {spec.features: spec for spec in transform.tables}
    maps = managed_stats(model)
    found = []
    for _, collection in collections_in(model):
        store = collection.table_store()
        counts = store.out_of_range_counts()
        for config in store.table_configs():
            shards = store.table_shards(config.name)
            rows = max(shard.rows.stop for shard in shards)  # with one for unknown ids
            spec, count = specs.get(tuple(config.feature_names)), counts[config.name]
            hashed = spec is not None and spec.ids == "hash"
            norms = _norms(rows, shards)
            trained = _trained_rows(rows, shards, optimizer)
            facts: dict[str, float | int | None] = {
                "rows": rows,
                "dim": config.embedding_dim,
                "bytes": sum(s.weight.numel() * s.weight.element_size() for s in shards),
                "ids_seen": None if spec is None else spec.distinct,
                "occupancy": _occupancy(maps.get(config.name), trained, rows),
                "out_of_range": 0 if hashed else count,
                "hashed": count if hashed else 0,
                "norm_mean": float(norms.mean()),
                "norm_max": float(norms.max()),
                "dead_rows": None if trained is None else rows - trained,
            }
            found.append(TableFacts(config.name, facts))
    return found


def _occupancy(stats: ManagedCollisionStats | None, trained: int | None, rows: int) -> float | None:
    """Return the share of the rows that ids hold now, or else that were ever trained."""
    if stats is not None:
        return stats.occupancy
    return None if trained is None else trained / rows


def _norms(rows: int, shards: Sequence[TableShard]) -> Tensor:
    """Return the norm of each row of a table."""
    norms = torch.zeros(rows)
    for shard in shards:
        weight = shard.weight.detach()
        step = max(_CHUNK // weight.shape[1], 1)
        own = torch.cat([part.float().norm(dim=1) for part in weight.split(step)]).cpu()
        # Of a row in several parts, one beside the other; of one that is whole, exactly its own.
        norms[_slice(shard)] = torch.hypot(norms[_slice(shard)], own)
    return norms


def _trained_rows(rows: int, shards: Sequence[TableShard], optimizer: KeyedOptimizer) -> int | None:
    """Count the rows that some state has changed for; None if there is no state by row."""
    trained = torch.zeros(rows, dtype=torch.bool)
    for shard in shards:
        touched = _touched(shard.weight, optimizer)
        if touched is None:
            return None
        trained[_slice(shard)] |= touched.cpu()
    return int(trained.sum())


def _touched(weight: Tensor, optimizer: KeyedOptimizer) -> Tensor | None:
    """Return which rows some state has changed for; None if there is no state by row."""
    touched: Tensor | None = None
    for state in optimizer.state.get(weight, {}).values():
        if isinstance(state, Tensor) and state.dim() and len(state) == len(weight):
            step = max(_CHUNK // max(state[0].numel(), 1), 1)
            parts = [
                part.flatten(1).any(1) if part.dim() > 1 else part != 0
                for part in state.split(step)
            ]
            changed = torch.cat(parts)
            touched = changed if touched is None else touched | changed
    return touched


def _slice(shard: TableShard) -> slice:
    return slice(shard.rows.start, shard.rows.stop)
