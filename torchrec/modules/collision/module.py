"""Maps from ids without bounds to the rows of a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_exporting

from torchrec.fx.proxies import LeafModule, holds_proxy
from torchrec.modules._recomputation import is_recomputation, may_be_recomputed
from torchrec.modules.collision.changed_rows import ChangedRows, FirstPasses, random_states
from torchrec.modules.collision.features import (
    ids_of,
    joined_ids,
    require_count,
    split_values,
    values_of,
    with_values,
)
from torchrec.modules.collision.homes import HashedHomes, HashFunction, apply_hash
from torchrec.modules.collision.interface import JaggedDict, ManagedCollisionModule, MappedKeys
from torchrec.modules.collision.policies import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
)
from torchrec.modules.collision.policy_rows import PolicyRows
from torchrec.modules.collision.rows import MappedRows
from torchrec.modules.collision.saved_state import (
    LoadReport,
    Sizes,
    fit,
    move_map,
    sort_by_id,
    translate,
)
from torchrec.modules.collision.scored_rows import ScoredRows
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.ops.collision import MAX_ROWS
from torchrec.ops.hashing import hash_ids
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_BUILT_IN = (LFU_EvictionPolicy, LRU_EvictionPolicy, DistanceLFU_EvictionPolicy)


class MCHManagedCollisionModule(ManagedCollisionModule, LeafModule):
    """Gives the rows of a table to the ids that a policy chooses, and takes them back.

    Any int64 is an id. The first ``zch_size - 1`` rows are each held by one id. All other ids share
    the last row, the *unknown* row; or, with ``mch_size``, the first ``zch_size`` rows are held, and
    other ids are hashed into ``mch_size`` further rows, the *residual zone*. So every id has a row,
    in training and evaluation alike, and an id with a row of its own shares it with none.

    While training, ids are counted; every ``eviction_interval``-th batch the policy exchanges ids,
    before that batch is looked up. In evaluation nothing changes.

    The state (ids by row, metadata of the policy, ids that came since the last eviction) is in
    ``state_dict``. It can be loaded into a map of another size, see `load_report`.

    Args:
        zch_size: rows with an id each, including the unknown row where there is no ``mch_size``.
        device: of the state.
        eviction_policy: which ids hold the rows.
        eviction_interval: how many training batches there are from one eviction to the next.
        input_hash_size: range of the ids, passed to ``input_hash_func``.
        input_hash_func: ``(ids, input_hash_size) -> ids``, applied first. Default: ids as they are.
        mch_size: rows of the residual zone. Default: none; other ids share the unknown row.
        mch_hash_func: ``(ids, mch_size) -> rows`` in ``[0, mch_size)``. Default: a hash of all 64
            bits.
        name: of the table, for messages.
        output_global_offset: added to all rows, where they are a part of a larger table.
        output_segments: where each shard starts, and the end. Default: one shard.
        buckets: without effect but for `buckets`, which returns it: a shard may begin at any row.

    Raises:
        TypeError: for a policy that is none, or numbers that are not integers.
        ValueError: for numbers out of range.

    Example:
        >>> from torchrec import JaggedTensor
        >>> mcm = MCHManagedCollisionModule(
        ...     zch_size=3, device=torch.device("cpu"), eviction_policy=LFU_EvictionPolicy(),
        ...     eviction_interval=1,
        ... )
        >>> ids = torch.tensor([-5, 2**62, -5, 7, 2**62, -5])
        >>> batch = {"user": JaggedTensor(ids, lengths=torch.tensor([4, 2]))}
        >>> mcm(batch)["user"].values()  # 7 came least and finds both rows taken
        tensor([0, 1, 0, 2, 1, 0])
        >>> mcm.evict()  # rows with a new id
        tensor([0, 1])
        >>> print(mcm.stats())
        2 of 2 rows held, 0.0 % of 6 ids had one, 2 inserted, 0 evicted, 0 rejected
    """

    _rows: MappedRows

    def __init__(
        self,
        zch_size: int,
        device: torch.device | str,
        eviction_policy: MCHEvictionPolicy,
        eviction_interval: int,
        input_hash_size: int = 2**63 - 1,
        input_hash_func: HashFunction | None = None,
        mch_size: int | None = None,
        mch_hash_func: HashFunction | None = None,
        name: str | None = None,
        output_global_offset: int = 0,
        output_segments: list[int] | None = None,
        buckets: int = 1,
    ) -> None:
        self._name = name or "unnamed"
        require_count("zch_size", zch_size, self._name, 1 if mch_size is not None else 2, MAX_ROWS)
        require_count("eviction_interval", eviction_interval, self._name, 1)
        require_count("input_hash_size", input_hash_size, self._name, 1)
        require_count("output_global_offset", output_global_offset, self._name, 0)
        require_count("buckets", buckets, self._name, 1)
        if mch_size is not None:
            require_count("mch_size", mch_size, self._name, 1)
        elif mch_hash_func is not None:
            raise ValueError(f"`mch_hash_func` of map '{self._name}' should come with `mch_size`.")
        if not isinstance(eviction_policy, MCHEvictionPolicy):
            raise TypeError(
                f"`eviction_policy` of map '{self._name}' should be an MCHEvictionPolicy. "
                f"Received {eviction_policy!r}."
            )
        end = output_global_offset + zch_size + (mch_size or 0)
        super().__init__(device, output_segments or [output_global_offset, end])
        self._zch_size = zch_size
        self._mch_size = mch_size
        self._eviction_policy = eviction_policy
        self._eviction_interval = eviction_interval
        self._input_hash_size = input_hash_size
        self._input_hash_func = input_hash_func
        self._mch_hash_func = mch_hash_func
        self._output_global_offset = output_global_offset
        self._buckets = buckets
        size = zch_size - (mch_size is None)
        # What the operators put for an id without a row: the unknown row where there is one.
        self._missing = size if mch_size is None else -1
        if type(eviction_policy) in _BUILT_IN:
            self._rows = ScoredRows(size, eviction_policy, self._device, self._name)  # type: ignore[arg-type]
        else:
            self._rows = PolicyRows(size, eviction_policy, self._device, self._name)
        self._rows_are_final = mch_size is None and output_global_offset == 0
        self._current_iter = 0
        self._changed = ChangedRows(zch_size)
        self._first_passes = FirstPasses(self._name, zch_size)
        self._load_report: LoadReport | None = None

    # Sizes.

    @property
    def device(self) -> torch.device:
        """The device of the state."""
        return self._rows.ids.device

    @property
    def output_offset(self) -> int:
        """The first row."""
        return self._output_global_offset

    @property
    def preprocesses_ids(self) -> bool:
        """Whether there is an ``input_hash_func``."""
        return self._input_hash_func is not None

    @property
    def input_hash_func(self) -> HashFunction | None:
        """What is applied to ids first, as it was given; None: nothing."""
        return self._input_hash_func

    def input_size(self) -> int:
        """Return the range of the ids, as it was given."""
        return self._input_hash_size

    def output_size(self) -> int:
        """Return the number of rows: of ``zch_size`` and the residual zone together."""
        return self._zch_size + (self._mch_size or 0)

    def buckets(self) -> int:
        """Return what was given."""
        return self._buckets

    def open_slots(self) -> Tensor:
        """Return how many rows no id holds, ``(1,)``."""
        return (self._rows.size - self._rows.occupied.count_nonzero()).reshape(1)

    # Looking ids up.

    def preprocess(self, features: JaggedDict) -> JaggedDict:
        """Apply ``input_hash_func``.

        Args:
            features: by name.
        """
        if self._input_hash_func is None:
            return features
        values = values_of(features, self._name)
        return {
            name: with_values(jt, self.hashed(ids_of(values[name], name, self._name)))
            for name, jt in features.items()
        }

    def hashed(self, ids: Tensor) -> Tensor:
        """Return ids as the map knows them: what ``input_hash_func`` makes of them.

        Args:
            ids: int64 ``(N,)``.
        """
        if self._input_hash_func is None:
            return ids
        return apply_hash(self._input_hash_func, self._input_hash_size, self._name, ids)

    def profile(self, features: JaggedDict) -> JaggedDict:
        """Count the ids of a training batch, and evict when it is time. In evaluation: nothing.

        Args:
            features: by name, preprocessed.
        """
        if self.training:
            self._advance(self._joined(features))
        return features

    def remap(
        self,
        features: JaggedDict,
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> JaggedDict:
        """Return the features with rows in place of ids.

        Args:
            features: by name, preprocessed.
            mutate_miss_lengths: without effect: every id has a row.
            write_weights: must be None.
        """
        if write_weights is not None:
            raise ValueError(
                f"`write_weights` of map '{self._name}' should be None: it keeps no such metadata."
            )
        return split_values(features, self._look_up(self._joined(features)))

    def forward(self, features: JaggedDict, mutate_miss_lengths: bool = True) -> JaggedDict:
        """Preprocess, profile if in training, and remap.

        Args:
            features: by name.
            mutate_miss_lengths: without effect: every id has a row.

        Returns:
            The features with rows, int64, in place of ids.

        Raises:
            TypeError: for ids that are not integers.
        """
        if holds_proxy(features):
            traced: JaggedDict = self.recorded(features, mutate_miss_lengths)
            return traced
        features = self.preprocess(features)
        if not self.training:
            return self.remap(features)
        return split_values(features, self._advance(self._joined(features)))

    def map_keys(
        self,
        features: KeyedJaggedTensor,
        ids: dict[str, Tensor],
        mutate_miss_lengths: bool = True,
    ) -> MappedKeys:
        """Map some keys of a batch, and return which rows changed hands.

        With them come those that changed hands in calls of `forward` since the last `evict`.

        Args:
            features: without effect: ids are all that counts.
            ids: the values of those features that this map is for, by key.
            mutate_miss_lengths: without effect: every id has a row.
        """
        joined = joined_ids(ids, self._rows.ids.device, self._name)
        if self._input_hash_func is not None:
            joined = self.hashed(joined)
        training = self.training
        rows = self._advance(joined) if training else self._look_up(joined)
        parts = (rows,) if len(ids) == 1 else rows.split([part.numel() for part in ids.values()])
        return MappedKeys(parts, self._changed.take() if training else None)

    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the row that each id holds, -1 for an id that holds none.

        Args:
            ids: ``(N,)``, integers, not hashed yet.
        """
        rows = self._rows.find(self.hashed(ids_of(ids, "ids", self._name)), -1)
        return torch.where(rows < 0, rows, rows + self._output_global_offset)

    def held(self) -> tuple[Tensor, Tensor]:
        """Return the rows that an id holds, ascending, and these ids as ``input_hash_func`` left them."""
        rows, ids = self._rows.held()
        return rows + self._output_global_offset, ids

    def give_rows(self, ids: Tensor) -> Tensor:
        """Give free rows to ids that hold none, and return these rows, which are to be reset.

        Args:
            ids: ``(N,)``, integers, distinct, not hashed yet.

        Raises:
            ValueError: if there are not enough free rows.
        """
        ids = self.hashed(ids_of(ids, "ids", self._name))
        free = int(self.open_slots())
        if ids.numel() > free:
            raise ValueError(
                f"`ids` of table '{self._name}' without a row should be at most as many as free rows "
                f"({free}). Received {ids.numel()}."
            )
        rows = self._rows.give(ids, self._current_iter) + self._output_global_offset
        self._first_passes.change(rows)
        return rows

    def _joined(self, features: JaggedDict) -> Tensor:
        return joined_ids(values_of(features, self._name), self.device, self._name)

    def _advance(self, ids: Tensor) -> Tensor:
        """Count a training batch, evict if it is time, and return its rows."""
        if is_exporting():
            raise NotImplementedError(
                f"Map '{self._name}' should be in evaluation mode to be exported, call `eval()`: in "
                "training it learns from the ids, which no graph can."
            )
        if is_recomputation():
            return self._first_passes.find(ids)
        before = random_states(ids.device) if may_be_recomputed() else None
        self._current_iter = now = self._current_iter + 1
        is_time = now % self._eviction_interval == 0
        rows, changed = self._rows.learn(ids, now, self._missing, is_time)
        if changed is not None:
            if self._output_global_offset:
                changed = changed + self._output_global_offset
            # Whatever fails from here on, these rows are known until somebody is told.
            self._changed.add(changed)
            self._first_passes.change(changed)
        if self._rows_are_final and before is None:
            return rows
        return self._resolve(ids, rows, before)

    def _look_up(self, ids: Tensor) -> Tensor:
        """Return the rows of ids; nothing is learnt, but in evaluation it is counted who had one."""
        if not is_recomputation():
            if not self.training:
                return self._resolve(ids, self._rows.look_up(ids, self._missing))
            before = random_states(ids.device) if may_be_recomputed() else None
            return self._resolve(ids, self._rows.find(ids, self._missing), before)
        if self.training:
            return self._first_passes.find(ids)
        return self._resolve(ids, self._rows.find(ids, self._missing))

    def _resolve(self, ids: Tensor, rows: Tensor, before: list[Tensor] | None = None) -> Tensor:
        """Send ids without a row to the residual zone, and add the offset.

        Args:
            ids: the ids.
            rows: of each, or what stands for none.
            before: `random_states` before a training pass that may run again, which is remembered.
        """
        if self._mch_size is not None:
            others = (rows < 0).nonzero().squeeze(1)
            rows[others] = self._zch_size + self._residual(ids[others], self._mch_size)
        if self._output_global_offset:
            rows = rows + self._output_global_offset
        if before is not None:
            self._first_passes.add(ids, rows, before)
        return rows

    def _residual(self, ids: Tensor, size: int) -> Tensor:
        if self._mch_hash_func is None:
            return hash_ids(ids, size)
        rows = self._mch_hash_func(ids, size)
        if bool(((rows < 0) | (rows >= size)).any()):
            raise ValueError(
                f"`mch_hash_func` of map '{self._name}' should return rows in [0, {size}). "
                f"Received {int(rows.min())} to {int(rows.max())}."
            )
        return rows

    # What has happened.

    def evict(self) -> Tensor | None:
        """Return the rows that changed hands since the last call, or None if there was no eviction.

        It evicts nothing itself: that happened in calls of `forward` and `profile`. Who calls `map_keys` is told at
        once, and not here.
        """
        return self._changed.take()

    def stats(self, reset: bool = True) -> ManagedCollisionStats:
        """Return how full the map is, and what it has done since the last call.

        Args:
            reset: start to count anew.
        """
        return self._rows.stats(reset)

    @property
    def load_report(self) -> LoadReport | None:
        """What became of the ids when a state of another size was loaded; None: there was none."""
        return self._load_report

    def validate_state(self) -> None:
        """Raise if two rows are held by one id.

        Raises:
            ValueError: naming the id.
        """
        ids = self._rows.held()[1].sort().values
        twice = ids[1:][ids[1:] == ids[:-1]]
        if twice.numel():
            raise ValueError(
                f"Rows of map '{self._name}' should be held by different ids. "
                f"Received {int(twice[0])} twice."
            )

    # State, and shards.

    def reset_inference_mode(self) -> None:
        """Go over to evaluation: the map does not change any more."""
        self.eval()

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int] | torch.device | None = None,
        device: torch.device | None = None,
    ) -> MCHManagedCollisionModule:
        """Return a new, empty map like this one for a part of the rows.

        Any range will do. Where there is a residual zone, the part has its share of it.

        Args:
            output_id_range: the first row, and the one behind the last.
            output_segments: where each shard starts, and the end.
            device: of its state. Default: that of this one.

        Example:
            >>> mcm = MCHManagedCollisionModule(10, torch.device("cpu"), LFU_EvictionPolicy(), 1)
            >>> part = mcm.rebuild_with_output_id_range((3, 10), [0, 3, 10])
            >>> part.output_offset, part.output_size()
            (3, 7)
        """
        if isinstance(output_segments, torch.device):
            output_segments, device = None, output_segments
        first, end = output_id_range
        mch_size = None
        if self._mch_size is not None:
            mch_size = max(1, self._mch_size * (end - first) // self.output_size())
        return MCHManagedCollisionModule(
            end - first - (mch_size or 0),
            device or self.device,
            self._eviction_policy,
            self._eviction_interval,
            self._input_hash_size,
            self._input_hash_func,
            mch_size,
            self._mch_hash_func,
            self._name,
            first,
            output_segments,
            self._buckets,
        )

    def describe(self) -> str:
        """Return what has to be the same of a map on all ranks that share it, as a text."""
        policy = type(self._eviction_policy).__name__
        what = f"residual zone {self._mch_size}, {policy} every {self._eviction_interval} batches"
        return f"{super().describe()}, {what}"

    def homes(self) -> HashedHomes:
        """Say which part of the map each id belongs to: a hash of the id names one of all rows."""
        first, function = self._output_global_offset, self._input_hash_func
        hashed = None
        if function is not None:  # which goes where the map does not
            hashed = partial(apply_hash, function, self._input_hash_size, self._name)
        return HashedHomes(range(first, first + self.output_size()), hashed)

    def sizes(self) -> Sizes:
        """Return the sizes of the two zones."""
        return Sizes(self._zch_size, self._mch_size)

    def ranking(self, metadata: dict[str, Tensor]) -> Tensor:
        """Return scores of ids by which those are chosen that have a row, where there are not enough.

        Args:
            metadata: what is saved of each id, by name.
        """
        return self._rows.ranking(metadata, self._current_iter)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._changed.move(fn)
        self._first_passes.clear()
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}current_iter"] = torch.tensor(self._current_iter, device="cpu")
        destination[f"{prefix}sizes"] = self.sizes().tensor()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._load_report = self.fit(state_dict, prefix)
        keys = [f"{prefix}{name}" for name in ("current_iter", "sizes")]
        missing_keys += [key for key in keys if key not in state_dict]
        found = [state_dict.pop(key, None) for key in keys]
        self._current_iter = self._current_iter if found[0] is None else int(found[0])
        self._changed.take()
        self._first_passes.clear()
        report = self._load_report
        if report is not None:
            move_map(state_dict, f"{prefix}_rows.", report)
            if report.dropped.numel() or not report.shared_rows_kept:
                warnings.warn(f"Map '{self._name}' has another size now: {report}.", stacklevel=2)

    def sort_saved(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Bring the saved map into the form that TorchRec loads: sorted by id.

        Args:
            state_dict: of a module that this one is a part of; changed in place.
            prefix: of the map.
        """
        sort_by_id(state_dict, prefix, self._output_global_offset, self._output_segments)

    def fit(self, state_dict: dict[str, Any], prefix: str) -> LoadReport | None:
        """Say where each row of a saved map would go in this one; None: where it was.

        Args:
            state_dict: holds the saved map; brought into our form if it is in the one sorted by id.
            prefix: of the map.
        """
        translate(state_dict, prefix, self._output_global_offset)
        if f"{prefix}sizes" not in state_dict:
            return None
        return fit(state_dict, prefix, self._rows, self.sizes(), self._output_global_offset)
