"""What a map from ids without bounds to the rows of a table is, whichever ids it chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchrec.checks import checked_device, require_type
from torchrec.modules._recomputation import is_recomputation
from torchrec.modules.collision.homes import Homes
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

JaggedDict = dict[str, JaggedTensor]


class MappedKeys(NamedTuple):
    """What a map made of some keys of a batch.

    Attributes:
        rows: in place of the ids of each key.
        changed: rows that another id holds than before, int64, distinct, to be reset before they are
            looked up; None: there was no eviction.
    """

    rows: Sequence[Tensor]
    changed: Tensor | None


@runtime_checkable
class FindsRows(Protocol):
    """A map that can say who holds which row, give rows to ids, and tell what it has been doing."""

    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the row that each id holds, -1 for an id that holds none."""
        ...

    def held(self) -> tuple[Tensor, Tensor]:
        """Return the rows that an id holds, ascending, and these ids."""
        ...

    def give_rows(self, ids: Tensor) -> Tensor:
        """Give free rows to ids that hold none, and return these rows, which are to be reset."""
        ...

    def stats(self, reset: bool = True) -> ManagedCollisionStats:
        """Return how full the map is, and what it has done since the last call."""
        ...


@runtime_checkable
class KeepsNumbers(Protocol):
    """A map that may keep numbers of the caller's for each row."""

    def lookup_runtime_meta(self, features: Tensor, remapped_ids: Tensor) -> Tensor:
        """Return what is kept for ids that hold these rows."""
        ...

    def lookup_custom_runtime_meta(self, remapped_ids: Tensor) -> Tensor:
        """Return what is kept for rows."""
        ...


class ManagedCollisionModule(nn.Module, ABC):
    """A map from ids to rows: what derives from it says which id gets which row.

    Args:
        device: of its state.
        output_segments: where each shard of the rows starts, and the end.
        skip_state_validation: without effect here: for maps that can leave a check of their state out.
        read_only_suffix: what the names of a read-only copy end with.
        enable_per_feature_lookups: without effect here: for maps that tell features apart.
    """

    def __init__(
        self,
        device: torch.device | str,
        output_segments: list[int] | None = None,
        skip_state_validation: bool = False,
        read_only_suffix: str = "_readonly",
        enable_per_feature_lookups: bool = False,
    ) -> None:
        super().__init__()
        require_type(read_only_suffix, "`read_only_suffix`", str)
        self._device = checked_device(device)
        self._output_segments = list(output_segments or [])
        self._skip_state_validation = skip_state_validation
        self._read_only_suffix = read_only_suffix
        self._enable_per_feature_lookups = enable_per_feature_lookups

    @property
    def device(self) -> torch.device:
        """The device of the state."""
        return self._device

    @property
    def readable_suffix(self) -> str:
        """What the names of a read-only copy end with."""
        return self._read_only_suffix

    @property
    def output_offset(self) -> int:
        """The first row."""
        return 0

    @property
    def disable_fallback(self) -> bool:
        """Whether ids without a row are left out: -1 stands for them in `map_keys`."""
        return False

    @property
    def preprocesses_ids(self) -> bool:
        """Whether `preprocess` changes ids, or may do so."""
        return True

    @abstractmethod
    def preprocess(self, features: JaggedDict) -> JaggedDict:
        """Return the features with ids as the map takes them.

        Args:
            features: by name.
        """

    def profile(self, features: JaggedDict) -> JaggedDict:
        """Learn from a batch which ids come, and return it as it is.

        Args:
            features: by name, preprocessed.
        """
        return features

    @abstractmethod
    def remap(
        self,
        features: JaggedDict,
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> JaggedDict:
        """Return the features with rows in place of ids.

        Args:
            features: by name, preprocessed.
            mutate_miss_lengths: for maps that leave ids out: whether their lengths become 0.
            write_weights: for maps that keep metadata of the caller's.
        """

    def find(self, features: JaggedDict, mutate_miss_lengths: bool = True) -> JaggedDict:
        """Do what `remap` does, and learn nothing, while training too.

        Args:
            features: by name, preprocessed.
            mutate_miss_lengths: see `remap`.
        """
        return self.remap(features, mutate_miss_lengths)

    @abstractmethod
    def forward(self, features: JaggedDict, mutate_miss_lengths: bool = True) -> JaggedDict:
        """Preprocess, profile if in training, and remap.

        Args:
            features: by name.
            mutate_miss_lengths: see `remap`.
        """

    def map_keys(
        self,
        features: KeyedJaggedTensor,
        ids: dict[str, Tensor],
        mutate_miss_lengths: bool = True,
    ) -> MappedKeys:
        """Do what `forward` does for some keys of a batch, and return at once which rows changed hands.

        Collections of tables call this. Here it is made of `forward` and `evict`, for a map that has
        no more; and of `remap` where activation checkpointing runs a forward pass again.

        Args:
            features: of all tables.
            ids: the values of those features that this map is for, by key.
            mutate_miss_lengths: see `remap`.
        """
        mine = {key: features[key] for key in ids}
        if is_recomputation():
            mapped, changed = self.remap(self.preprocess(mine), mutate_miss_lengths), None
        else:
            mapped = self(mine, mutate_miss_lengths)
            changed = self.evict() if self.training else None
        return MappedKeys([mapped[key].values() for key in ids], changed)

    @abstractmethod
    def evict(self) -> Tensor | None:
        """Return the rows that changed hands since the last call, or None if there was no eviction.

        For callers of `forward` and `profile`, who are expected to reset them: `map_keys` returns
        them itself.
        """

    @abstractmethod
    def input_size(self) -> int:
        """Return the range of the ids."""

    @abstractmethod
    def output_size(self) -> int:
        """Return the number of rows."""

    def buckets(self) -> int:
        """Return into how many parts the rows are divided that no id crosses."""
        return 1

    @abstractmethod
    def open_slots(self) -> Tensor:
        """Return how many rows no id holds, ``(1,)``."""

    def validate_state(self) -> None:
        """Raise if the state contradicts itself."""

    def describe(self) -> str:
        """Return what has to be the same of a map on all ranks that share it, as a text."""
        rows = range(self.output_offset, self.output_offset + self.output_size())
        return f"{type(self).__name__} of {rows}, for ids up to {self.input_size()}, in {self.buckets()} parts"

    def homes(self) -> Homes | None:
        """Say which part of the map each id belongs to, where `rebuild_with_output_id_range` makes parts of it.

        Default None: nobody knows, so that the map has to stay whole.
        """
        return None

    @abstractmethod
    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int] | torch.device | None = None,
        device: torch.device | None = None,
    ) -> ManagedCollisionModule:
        """Return a new map like this one for a part of the rows.

        Args:
            output_id_range: the first row, and the one behind the last.
            output_segments: where each shard starts, and the end.
            device: of its state. Default: that of this one.
        """
