"""The saved state of a map: from another library, or of another size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchrec.modules.collision.rows import MappedRows

_FREE = torch.iinfo(torch.int64).max  # what the older form has in place of an id


class Sizes(NamedTuple):
    """The zones of a map.

    Attributes:
        zch_size: rows with an id each, including the unknown row where there is no residual zone.
        mch_size: rows of the residual zone, if there is one.
    """

    zch_size: int
    mch_size: int | None

    @staticmethod
    def of(saved: Tensor) -> Sizes:
        """Read what `tensor` made."""
        zch_size, mch_size = saved.tolist()
        return Sizes(zch_size, mch_size or None)

    def tensor(self) -> Tensor:
        """Return both as int64, to be saved."""
        return torch.tensor([self.zch_size, self.mch_size or 0], device="cpu")

    @property
    def held(self) -> int:
        """Rows that ids can hold."""
        return self.zch_size - (self.mch_size is None)

    def shared(self) -> range:
        """Return the rows that ids without one of their own share."""
        return range(self.held, self.zch_size + (self.mch_size or 0))


@dataclass(frozen=True)
class LoadReport:
    """What became of a map's ids when it was loaded into one of another size.

    Attributes:
        saved: sizes of the map that was saved.
        loaded: sizes of the map that it was loaded into.
        dropped: ids that lost their rows because there are fewer now, int64.
        kept: how many ids have rows.
        shared_rows_kept: whether the unknown row, or the residual zone, is what it was; not so if
            its size has changed: its rows are then as in a new table.
        old_rows: rows of the map that were carried over, int64.
        new_rows: where to.
        offset: the first row of the map in its table.
    """

    saved: Sizes
    loaded: Sizes
    dropped: Tensor
    kept: int
    shared_rows_kept: bool
    old_rows: Tensor
    new_rows: Tensor
    offset: int = 0

    def move(self, old: Tensor, new: Tensor) -> Tensor:
        """Return ``new`` with the rows of ``old`` where they are now: of a table, or of its state.

        Args:
            old: ``(E, ...)`` as it was saved.
            new: ``(E', ...)``, what other rows are to be.
        """
        moved = new.clone()
        ends = [self.offset + s.zch_size + (s.mch_size or 0) for s in (self.saved, self.loaded)]
        # Rows of no map stay as they are.
        behind = max(0, min(len(old) - ends[0], len(new) - ends[1]))
        moved[: self.offset] = old[: self.offset].to(moved)
        moved[ends[1] : ends[1] + behind] = old[ends[0] : ends[0] + behind].to(moved)
        new_rows, old_rows = self.new_rows + self.offset, self.old_rows + self.offset
        moved[new_rows.to(moved.device)] = old[old_rows.to(old.device)].to(moved)
        return moved

    def __str__(self) -> str:
        shared = "" if self.shared_rows_kept else ", rows shared by other ids start anew"
        return f"{self.kept} ids kept, {self.dropped.numel()} dropped{shared}"


def translate(state_dict: dict[str, Any], prefix: str, offset: int) -> None:
    """Replace the entries of a map in the form sorted by id, as TorchRec has it, by those of ours.

    Args:
        state_dict: changed in place.
        prefix: of the map.
        offset: of its rows.
    """
    name = f"{prefix}_mch_sorted_raw_ids"
    if name not in state_dict:
        return
    ids = state_dict.pop(name)
    rows = state_dict.pop(f"{prefix}_mch_remapped_ids_mapping") - offset
    state_dict.pop(f"{prefix}_output_segments_tensor", None)
    size = ids.numel()
    # Its last entry stands for all other ids.
    held = (torch.arange(size, device=ids.device) < size - 1) & (ids != _FREE)
    occupied = torch.zeros(size - 1, dtype=torch.bool, device=ids.device)
    occupied[rows[held]] = True

    def by_row(values: Tensor) -> Tensor:
        found = torch.zeros(size - 1, dtype=torch.int64, device=values.device)
        found[rows[held]] = values[held]
        return found

    state_dict[f"{prefix}_rows.ids"] = by_row(ids)
    state_dict[f"{prefix}_rows.occupied"] = occupied
    for key in [key for key in state_dict if key.startswith(f"{prefix}_mch_")]:
        values = state_dict.pop(key)
        if values.shape == ids.shape:
            state_dict[f"{prefix}_rows.{key.removeprefix(f'{prefix}_mch_')}"] = by_row(values)
    batch = state_dict.pop(
        f"{prefix}_current_iter_tensor", torch.zeros(1, dtype=torch.int64, device="cpu")
    )
    state_dict[f"{prefix}current_iter"] = batch.reshape(())
    state_dict[f"{prefix}sizes"] = Sizes(size, None).tensor()


def sort_by_id(state_dict: dict[str, Any], prefix: str, offset: int, segments: list[int]) -> None:
    """Replace the entries of a map in our form by those that TorchRec has: what `translate` undoes.

    Args:
        state_dict: changed in place. Ids that wait for a row are left out.
        prefix: of the map.
        offset: of its rows.
        segments: where each shard starts, and the end.

    Raises:
        ValueError: for a map with a residual zone, or the one id that stands for none.
    """
    sizes = Sizes.of(state_dict.pop(f"{prefix}sizes"))
    own = {
        key: state_dict.pop(key) for key in list(state_dict) if key.startswith(f"{prefix}_rows.")
    }
    ids, occupied = (own[f"{prefix}_rows.{name}"] for name in ("ids", "occupied"))
    if sizes.mch_size is not None:
        raise ValueError(
            f"Map '{prefix}' should have no residual zone, as the form has no place for it."
        )
    if bool((ids[occupied] == _FREE).any()):
        raise ValueError(
            f"Map '{prefix}' should not hold the id {_FREE}: it stands for a free row."
        )
    keyed = torch.where(occupied, ids, _FREE)
    order = torch.cat([keyed.argsort(stable=True), torch.tensor([ids.numel()], device=ids.device)])
    batch = state_dict.pop(f"{prefix}current_iter").reshape(1)
    padded = torch.full((max(1025, len(segments)),), -1, device=ids.device)
    padded[: len(segments)] = torch.tensor(segments, device=ids.device)
    state_dict[f"{prefix}_output_segments_tensor"] = padded
    state_dict[f"{prefix}_current_iter_tensor"] = batch
    state_dict[f"{prefix}_mch_sorted_raw_ids"] = torch.cat([keyed, keyed.new_tensor([_FREE])])[
        order
    ]
    state_dict[f"{prefix}_mch_remapped_ids_mapping"] = order + offset
    for key, values in own.items():
        name = key.removeprefix(f"{prefix}_rows.")
        if values.shape == ids.shape and name not in ("ids", "occupied"):
            # The last entry stands for all other ids, and is never to be evicted.
            last = batch if "iter" in name else batch.new_tensor([_FREE])
            state_dict[f"{prefix}_mch_{name}"] = torch.cat([values, last.to(values)])[order]


def fit(
    state_dict: dict[str, Any], prefix: str, rows: MappedRows, loaded: Sizes, offset: int
) -> LoadReport | None:
    """Say which rows of a saved map go where in one of other sizes; None: each where it was.

    Where there are fewer rows, the ids with the highest scores keep one.

    Args:
        state_dict: with the saved map, in our form.
        prefix: of the map.
        rows: that it will be loaded into.
        loaded: their sizes.
        offset: the first of them in their table.
    """
    saved = Sizes.of(state_dict[f"{prefix}sizes"])
    needed = ["_rows.ids", "_rows.occupied", *(f"_rows.{name}" for name in rows.metadata_names)]
    if any(f"{prefix}{name}" not in state_dict for name in [*needed, "current_iter"]):
        return None  # PyTorch will say what is missing
    ids, occupied = state_dict[f"{prefix}_rows.ids"], state_dict[f"{prefix}_rows.occupied"]
    # A map that was divided saves all its rows: its parts have residual zones of their own.
    if saved == loaded and len(ids) == loaded.held:
        return None
    old = held = occupied.nonzero().squeeze(1)
    if held.numel() > loaded.held:
        metadata = {name: state_dict[f"{prefix}_rows.{name}"][held] for name in rows.metadata_names}
        scores = rows.ranking(metadata, int(state_dict[f"{prefix}current_iter"]))
        order = scores.sort(descending=True, stable=True).indices
        old = held[order[: loaded.held].sort().values]
    stays = old < loaded.held
    free = torch.ones(loaded.held, dtype=torch.bool, device=ids.device)
    free[old[stays]] = False
    new = old.clone()
    new[~stays] = free.nonzero().squeeze(1)[: int((~stays).sum())]
    lost = occupied.clone()
    lost[old] = False
    keeps_shared = saved.mch_size == loaded.mch_size and not bool(occupied[saved.held :].any())
    shared = [
        torch.tensor(s.shared() if keeps_shared else [], dtype=torch.int64, device=ids.device)
        for s in (saved, loaded)
    ]
    return LoadReport(
        saved,
        loaded,
        ids[lost],
        old.numel(),
        keeps_shared,
        torch.cat([old, shared[0]]),
        torch.cat([new, shared[1]]),
        offset,
    )


def move_map(state_dict: dict[str, Any], prefix: str, report: LoadReport) -> None:
    """Bring a saved map to other sizes.

    Args:
        state_dict: changed in place.
        prefix: of the rows.
        report: where each row goes.
    """
    held = report.new_rows < report.loaded.held
    old, new = report.old_rows[held], report.new_rows[held]
    by_row = state_dict[f"{prefix}ids"].shape
    for key in [key for key in state_dict if key.startswith(prefix)]:
        saved = state_dict[key]
        if not key.startswith(f"{prefix}history_") and saved.shape == by_row:
            state_dict[key] = saved.new_zeros(report.loaded.held)
            state_dict[key][new] = saved[old]
