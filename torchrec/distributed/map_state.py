"""Maps that are spread over ranks, in a state and in checkpoints: as the whole maps that their parts are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec.distributed.map_layout import MapLayout, MapPart
from torchrec.distributed.parts import Part, fill_parts
from torchrec.distributed.state import ShardedTable
from torchrec.distributed.types import (
    Shard,
    ShardedTensorMetadata,
    ShardMetadata,
    TensorProperties,
)
from torchrec.distributed.wire import Wire
from torchrec.modules.collision.divided_state import (
    HISTORY,
    ROWS,
    WAITING,
    State,
    Strays,
    divide,
    padded,
    waiting_of,
)
from torchrec.modules.collision.homes import HashedHomes
from torchrec.modules.collision.interface import ManagedCollisionModule
from torchrec.modules.mc_modules import MCHManagedCollisionModule

__all__ = ["SavedMap"]

_SIZES = "sizes"


@dataclass(frozen=True)
class SavedMap:
    """What is saved of a whole map, which all ranks know.

    Attributes:
        layout: its parts.
        rows: of the table, those that are saved: all of the whole map's that an id could hold, or hold in some part.
        wholes: of what shape and type each tensor is, on ``meta``, by name.
        by_row: the names of tensors of which each part has some rows.
        sizes: of the whole map, where its parts save their own.
        held: rows that ids can hold in the whole map; 0 where all can.
    """

    layout: MapLayout
    rows: range
    wholes: dict[str, Tensor]
    by_row: frozenset[str]
    sizes: Tensor | None
    held: int = 0

    @staticmethod
    def of(module: ManagedCollisionModule, layout: MapLayout) -> SavedMap:
        """Look at a whole map.

        Args:
            module: the map.
            layout: its parts.
        """
        saved: State = module.state_dict()
        wholes = {name: torch.empty_like(value, device="meta") for name, value in saved.items()}
        if isinstance(module, MCHManagedCollisionModule):
            rows = layout.rows
            if module.sizes().mch_size is None:
                rows = rows[:-1]  # the last one is no id's, however the others are divided
            names = frozenset(name for name in saved if name.startswith(ROWS))
            wholes.update({n: wholes[n].new_empty(len(rows)) for n in names})
            wholes[WAITING] = wholes[WAITING].new_empty(len(rows), 2)
            sizes = module.sizes()
            return SavedMap(layout, rows, wholes, names, sizes.tensor(), sizes.held)
        names = frozenset()
        if not layout.is_whole:
            names = frozenset(
                n for n, v in wholes.items() if v.dim() and len(v) == len(layout.rows)
            )
        return SavedMap(layout, layout.rows, wholes, names, None)

    def rows_of(self, part: MapPart) -> range:
        """Return the rows that a part saves, counted from the first that is saved."""
        first, end = part.rows.start - self.rows.start, part.rows.stop - self.rows.start
        return range(min(first, len(self.rows)), min(end, len(self.rows)))

    # Saving.

    def show(
        self, parts: Sequence[tuple[MapPart, ManagedCollisionModule]], wire: Wire | None
    ) -> dict[str, Tensor]:
        """Return what ``state_dict()`` shows of the map.

        Args:
            parts: of this rank.
            wire: the ranks; None: this one alone.
        """
        table = self.layout.tables[0]
        own: list[tuple[MapPart, State]] = []
        for part, module in parts:
            state: State = module.state_dict()
            if self.held:
                state = padded(state, len(self.rows_of(part)), table)
            own.append((part, state))
        return {name: self._shown(name, own, wire) for name in self.wholes}

    def _shown(self, name: str, own: Sequence[tuple[MapPart, State]], wire: Wire | None) -> Tensor:
        whole = self.wholes[name]
        if name == _SIZES and self.sizes is not None:
            return self.sizes.clone()
        parts = self.layout.parts
        if name not in self.by_row:  # all parts have it alike: the first writes it
            parts, own = parts[:1], own[:1]
        mine = [Shard(state[name].detach(), self._metadata(name, part)) for part, state in own]
        known = [self._metadata(name, part) for part in parts]
        metadata = ShardedTensorMetadata(
            shards_metadata=known,
            size=whole.shape,
            tensor_properties=TensorProperties(dtype=whole.dtype),
        )
        like = torch.empty(0, dtype=whole.dtype)
        title = f"'{name}' of the map of table '{self.layout.tables[0]}'"
        return ShardedTable(title, mine, metadata, like, wire)

    def _metadata(self, name: str, part: MapPart) -> ShardMetadata:
        shape = list(self.wholes[name].shape)
        offsets = [0] * len(shape)
        if name in self.by_row:
            rows = self.rows_of(part)
            offsets[0], shape[0] = rows.start, len(rows)
        return ShardMetadata(offsets, shape, f"rank:{part.rank}/cpu")

    # Loading.

    def part_of(
        self, saved: Mapping[str, Tensor], part: MapPart, module: ManagedCollisionModule
    ) -> tuple[State, Strays | None]:
        """Return the state of one part of this rank, and what belongs to other parts.

        Args:
            saved: of the whole map, as it or its parts save it.
            part: which.
            module: the part.

        Raises:
            ValueError: for a map of another size, or where this rank lacks what the part needs.
        """
        table = self.layout.tables[0]
        found = dict(saved)
        if not self.held:
            return {name: self._value(name, value, part) for name, value in found.items()}, None
        if (
            self.sizes is not None
            and _SIZES in found
            and not torch.equal(found[_SIZES], self.sizes)
        ):
            raise ValueError(
                f"The map of table '{table}' should have the sizes {self.sizes.tolist()}, as it is spread over "
                f"ranks. Received a saved one of {found[_SIZES].tolist()}: load it in one process first."
            )
        is_by_row = WAITING in found and found[WAITING].dim() == 2
        values = {
            name: value
            if name.startswith(HISTORY) and not is_by_row
            else self._value(name, value, part)
            for name, value in found.items()
        }
        waiting = waiting_of(values)
        own: State = module.state_dict()
        held = len(own[f"{ROWS}ids"])
        number = self.layout.parts.index(part)
        state, strays = divide(
            values, part.rows.start, held, self._owners(values[f"{ROWS}ids"]) == number
        )
        here = self._owners(waiting[f"{HISTORY}ids"]) == number if waiting else None
        for name, value in waiting.items():
            assert here is not None
            state[name] = value[here]
            # Each rank has all ids that waited in a map that was whole.
            strays.waiting[name] = value[~here] if is_by_row else value[:0]
        rest = {name: value for name, value in values.items() if not name.startswith(ROWS)}
        return {**rest, **state, _SIZES: own[_SIZES]}, strays

    def _value(self, name: str, value: Tensor, part: MapPart) -> Tensor:
        """Return what a part needs of a tensor that was saved."""
        whole = self.wholes.get(name)
        if whole is None or name not in self.by_row:
            parts = getattr(value, "local_shards", None)
            if parts is None:
                return value
            if not parts():
                raise ValueError(
                    f"'{name}' of the map of table '{self.layout.tables[0]}' should be at hand on rank "
                    f"{part.rank}, which has the map. Received what another rank has saved."
                )
            return parts()[0].tensor  # type: ignore[no-any-return]
        rows = self.rows_of(part)
        target = torch.zeros((len(rows), *whole.shape[1:]), dtype=whole.dtype)
        matrix = target if target.dim() == 2 else target.unsqueeze(1)
        count = len(whole)
        if self.held and len(value) == self.held:
            # A map that was not divided saves no rows of its residual zone, where parts may have ids.
            count = self.held
            rows = range(min(rows.start, count), min(rows.stop, count))
            matrix = matrix[: len(rows)]
        title = f"'{name}' of the map of table '{self.layout.tables[0]}'"
        columns = matrix.shape[1]
        fill_parts(title, [Part(rows, range(columns), matrix)], value, (count, columns))
        return target

    def _owners(self, ids: Tensor) -> Tensor:
        """Return which part each id belongs to, as the map knows it."""
        homes = self.layout.homes
        if self.layout.is_whole:
            return torch.zeros_like(ids)
        assert isinstance(homes, HashedHomes)
        return self.layout.owners_of(homes.homes_of_hashed(ids))

    def owners(self, strays: Strays) -> tuple[Tensor, Tensor]:
        """Return which part entries belong to, and ids that wait: positions among the parts."""
        waiting = strays.waiting.get(f"{HISTORY}ids", torch.zeros(0, dtype=torch.int64))
        return self._owners(strays.entries[f"{ROWS}ids"]), self._owners(waiting)

    @property
    def moves_rows(self) -> bool:
        """Whether ids may have other rows in other parts: each rank has to look whether they do.

        One that is whole now may have been divided: its parts then had ids in rows that it gives to none.
        """
        return self.held > 0
