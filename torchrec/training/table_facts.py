"""What a report says of the tables in the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrec.datasets.transform import FeatureTransform
from torchrec.modules.mc_modules import ManagedCollisionStats
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.runs import TableFacts
from torchrec.training.id_counts import collections_of, managed_stats, out_of_range_counts

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
    specs = {spec.name: spec for spec in transform.tables}
    counts = out_of_range_counts(model)
    maps = managed_stats(model)
    found = []
    for collection in collections_of(model):
        for config, weight in zip(
            collection._tables.configs, collection._tables.weights(), strict=True
        ):
            spec = specs.get(config.name)
            hashed = spec is not None and spec.ids == "hash"
            norms = _norms(weight)
            rows = weight.shape[0]
            trained = _trained_rows(weight, optimizer)
            count = counts.get(config.name, 0)
            found.append(
                TableFacts(
                    config.name,
                    {
                        "rows": rows,
                        "dim": weight.shape[1],
                        "bytes": weight.numel() * weight.element_size(),
                        "ids_seen": None if spec is None else spec.distinct,
                        "occupancy": _occupancy(maps.get(config.name), trained, rows),
                        "out_of_range": 0 if hashed else count,
                        "hashed": count if hashed else 0,
                        "norm_mean": float(norms.mean()),
                        "norm_max": float(norms.max()),
                        "dead_rows": None if trained is None else rows - trained,
                    },
                )
            )
    return found


def _occupancy(stats: ManagedCollisionStats | None, trained: int | None, rows: int) -> float | None:
    """Return the share of the rows that ids hold now, or else that were ever trained."""
    if stats is not None:
        return stats.occupancy
    return None if trained is None else trained / rows


def _norms(weight: Tensor) -> Tensor:
    step = max(_CHUNK // weight.shape[1], 1)
    return torch.cat([part.float().norm(dim=1) for part in weight.detach().split(step)])


def _trained_rows(weight: Tensor, optimizer: KeyedOptimizer) -> int | None:
    """Count the rows that some state has changed for; None if there is no state by row."""
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
    return None if touched is None else int(touched.sum())
