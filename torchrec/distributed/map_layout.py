"""Where the maps of managed collision are: each part of one is on the rank that has its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec.distributed.placement import Band, TablePlacement
from torchrec.modules.collision.homes import Homes
from torchrec.modules.collision.interface import ManagedCollisionModule
from torchrec.modules.collision.mapped_features import MapGroup

__all__ = ["MapLayout", "MapPart", "layouts_of"]


@dataclass(frozen=True)
class MapPart:
    """Some rows of a table, whose map is on one rank.

    Attributes:
        number: position among the parts of all maps.
        rank: that has the map.
        rows: of the table.
        holders: all ranks that have some of these rows, in ascending order: several where columns are
            split, or where a table is copied to every rank.
    """

    number: int
    rank: int
    rows: range
    holders: tuple[int, ...]


@dataclass(frozen=True)
class MapLayout:
    """The parts of one map.

    Attributes:
        tables: that have this map.
        keys: of their features.
        rows: of the tables that the whole map has.
        parts: in order of their rows.
        homes: which part ids belong to; None: nobody knows, and the map is whole.
        is_whole: whether one part has all of it.
    """

    tables: list[str]
    keys: list[str]
    rows: range
    parts: list[MapPart]
    homes: Homes | None
    is_whole: bool

    def owners_of(self, homes: Tensor) -> Tensor:
        """Return which part has each of some rows, int64.

        A row of a band that is too small for a map belongs to the part behind it, or to the last one.

        Args:
            homes: rows of the whole map, int64 ``(N,)``.
        """
        ends = torch.tensor([part.rows.stop for part in self.parts[:-1]], device=homes.device)
        return torch.bucketize(homes, ends, right=True)


def layouts_of(
    groups: Sequence[MapGroup],
    maps: Mapping[str, ManagedCollisionModule],
    placements: Mapping[str, TablePlacement],
) -> list[MapLayout]:
    """Say where the parts of each map are.

    A map is divided as the rows of its table are; of tables that share one, as those of the first.

    Args:
        groups: the tables of each map.
        maps: by table.
        placements: of the tables.

    Raises:
        ValueError: for a map that cannot be divided so.
    """
    layouts: list[MapLayout] = []
    number = 0
    for g, group in enumerate(groups):
        table, module = group.tables[0], maps[group.tables[0]]
        rows = range(module.output_offset, module.output_offset + module.output_size())
        bands, homes = placements[table].bands, module.homes()
        if len(bands) > 1:
            bands = _divided(table, module, bands, rows, homes)
        parts: list[MapPart] = []
        for band in bands:
            mine = _common(rows, band.rows)
            holders = {
                rank
                for name in group.tables
                for other in placements[name].bands
                if _common(mine, other.rows)
                for rank in other.ranks
            }
            # Maps of tables that lie on the same ranks are spread over these.
            rank = band.ranks[g % len(band.ranks)]
            parts.append(MapPart(number + len(parts), rank, mine, tuple(sorted(holders))))
        is_whole = len(parts) == 1 and parts[0].rows == rows
        layouts.append(MapLayout(group.tables, group.keys, rows, parts, homes, is_whole))
        number += len(parts)
    return layouts


def _divided(
    table: str,
    module: ManagedCollisionModule,
    bands: Sequence[Band],
    rows: range,
    homes: Homes | None,
) -> list[Band]:
    """Return the bands that have enough rows of a map; raise, on all ranks, if it cannot be divided so."""
    least = 1 if homes is None else homes.least_rows
    found = [band for band in bands if len(_common(rows, band.rows)) >= least]
    if len(found) == 1 and _common(rows, found[0].rows) == rows:
        return found
    why = f"at least {least} rows of its map in one place"
    if found:
        why = f"all rows of its map, a {type(module).__name__}, in one place"
    if homes is None or not found:
        raise ValueError(
            f"Table '{table}' should have {why}. Received {[band.rows for band in bands]}."
        )
    for band in found:
        homes.require_part(_common(rows, band.rows))
    return found


def _common(one: range, other: range) -> range:
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))
