"""The maps that one rank has: under which names, and what a state shows of the whole maps that they are parts of."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from torchrec.distributed.map_exchange import MapExchange
from torchrec.distributed.map_layout import MapLayout, MapPart
from torchrec.distributed.map_moves import RowMoves, settle, with_rows_moved
from torchrec.distributed.map_state import SavedMap
from torchrec.modules.collision.divided_state import Strays
from torchrec.modules.collision.interface import ManagedCollisionModule

__all__ = ["MapParts", "MapStates"]


class MapParts:
    """The parts of maps that a rank has.

    Args:
        exchange: of the maps.
        modules: the parts, by `name_of`.
    """

    def __init__(self, exchange: MapExchange, modules: nn.ModuleDict) -> None:
        self._exchange, self._modules = exchange, modules

    def name_of(self, table: str, part: MapPart) -> str:
        """Return the name of a part of this rank, which is that of its table but for a second one."""
        first = next(p for p in self._parts(table) if p.rank == part.rank)
        return table if part is first else f"{table}@{part.rows.start}"

    def _parts(self, table: str) -> list[MapPart]:
        return next(each.parts for each in self._exchange.layouts if table in each.tables)

    def map_of(self, part: MapPart) -> ManagedCollisionModule:
        """Return a part of this rank."""
        table = self._exchange.layout_of[part.number].tables[0]
        return self._modules[self.name_of(table, part)]  # type: ignore[return-value]

    def keys_of(self, part: MapPart) -> list[str]:
        """Return the features whose ids a part gives rows to."""
        return self._exchange.layout_of[part.number].keys

    def of_layout(self, layout: MapLayout) -> list[tuple[MapPart, ManagedCollisionModule]]:
        """Return the parts of one map that this rank has."""
        mine = [part for part in layout.parts if part.rank == self._exchange.rank]
        return [(part, self.map_of(part)) for part in mine]

    def by_table(self) -> dict[str, list[ManagedCollisionModule]]:
        """Return the maps of this rank by table, in order of their rows; none for a table that it has none of."""
        return {
            table: [module for _, module in self.of_layout(layout)]
            for layout in self._exchange.layouts
            for table in layout.tables
        }


class MapStates:
    """Shows whole maps in a state, and loads the parts of a rank from them.

    Args:
        exchange: of the maps.
        saved: what is saved of each of them.
        parts: of this rank.
    """

    def __init__(self, exchange: MapExchange, saved: list[SavedMap], parts: MapParts) -> None:
        self._wire, self._saved, self._parts = exchange.wire, saved, parts
        self.row_moves: dict[str, RowMoves] = {}
        # Of a state that is being loaded, until all of its parts are.
        self._strays: dict[int, Strays] = {}
        self._error: Exception | None = None

    @property
    def _settles(self) -> bool:
        return any(each.moves_rows for each in self._saved)

    def show_wholes(self, state: dict[str, Any], prefix: str) -> None:
        """Have a state show the whole maps that this rank's are parts of.

        Args:
            state: changed in place.
            prefix: of the maps.
        """
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        for saved in self._saved:
            shown = saved.show(self._parts.of_layout(saved.layout), self._wire)
            first, *others = saved.layout.tables
            state.update({f"{prefix}{first}.{name}": value for name, value in shown.items()})
            for table in others:  # writers of files want memory of its own for each name
                copied = {f"{prefix}{table}.{n}": copy.deepcopy(v) for n, v in shown.items()}
                state.update(copied)

    def take_parts(self, state: dict[str, Any], prefix: str) -> None:
        """Replace whole maps that are loaded by this rank's parts.

        Args:
            state: changed in place.
            prefix: of the maps.
        """
        # Kept until `settle`, which PyTorch calls once all parts are loaded.
        self._strays, self._error = {}, None
        try:
            self._take_parts(state, prefix)
        except Exception as failed:
            if not self._settles:
                raise
            self._error = failed

    def _take_parts(self, state: dict[str, Any], prefix: str) -> None:
        for saved in self._saved:
            for table in saved.layout.tables:
                start = f"{prefix}{table}."
                names = [name for name in state if name.startswith(start)]
                whole = {name.removeprefix(start): state.pop(name) for name in names}
                for part, module in self._parts.of_layout(saved.layout) if whole else ():
                    own, strays = saved.part_of(whole, part, module)
                    name = f"{prefix}{self._parts.name_of(table, part)}."
                    state.update({f"{name}{key}": value for key, value in own.items()})
                    if strays is not None:
                        self._strays[part.number] = strays

    def with_rows_moved(self, table: str, value: Tensor) -> Tensor:
        """Return a table, or its state, with rows where `row_moves` say that they are; all ranks call this.

        Args:
            table: its name.
            value: all of it; or sharded: then this rank's parts are written to.
        """
        if table not in self.row_moves:
            return value
        return with_rows_moved(value, self.row_moves[table], self._wire)

    def settle(self) -> None:
        """Give ids of parts that were loaded and belong to others to these; all ranks call this."""
        self.row_moves = {}
        if not self._settles:
            return
        if self._wire is not None:
            self._wire.agree(self._error, "maps that are loaded")
        elif self._error is not None:
            raise self._error
        divided = [saved for saved in self._saved if saved.moves_rows]
        modules: dict[int, Any] = {
            part.number: module
            for each in divided
            for part, module in self._parts.of_layout(each.layout)
        }
        strays, self._strays = self._strays, {}
        for saved, moves in zip(divided, settle(divided, strays, modules, self._wire), strict=True):
            self.row_moves.update(dict.fromkeys(saved.layout.tables, moves) if moves else {})
