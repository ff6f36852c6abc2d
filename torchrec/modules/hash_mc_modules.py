"""Maps from ids without bounds to the rows of a table by multi-probe hashing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from torchrec.fx.proxies import LeafModule, holds_proxy
from torchrec.modules._recomputation import is_recomputation, may_be_recomputed
from torchrec.modules.collision.changed_rows import ChangedRows, FirstPasses, random_states
from torchrec.modules.collision.features import (
    ids_of,
    joined_ids,
    require_count,
    require_counts,
    split_values,
    values_of,
    without_missing,
)
from torchrec.modules.collision.hash_buckets import (
    Buckets,
    TrainInputMapper,
    lay_out,
    refuse_options,
    reserved_rows,
)
from torchrec.modules.collision.hash_learning import HashLearning, HashState, check_saved, new_state
from torchrec.modules.collision.hash_search import HashSearch, RowNumbers
from torchrec.modules.collision.homes import Homes
from torchrec.modules.collision.interface import JaggedDict, ManagedCollisionModule, MappedKeys
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.modules.hash_mc_evictions import (
    HashZchEvictionConfig,
    HashZchEvictionPolicyName,
    eviction_module_of,
    get_kernel_from_policy,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["HashZchManagedCollisionModule", "TrainInputMapper"]

logger = logging.getLogger(__name__)


class HashZchManagedCollisionModule(ManagedCollisionModule, LeafModule):
    """Gives each new id a row near the one that its hash names, and takes rows back from old ids.

    The rows are divided into buckets, and an id belongs to one of them. It may have any of
    ``max_probe`` rows of its bucket, from the one that its hash names on. While training, an id that
    has no row gets the first of these that is free; if none is, it takes the row of another id, where
    the policy lets it. An id that gets none shares the row that its hash names with the id that
    holds it. In evaluation nothing changes.

    The map is the ids of the rows and, for a policy, an hour for each: there is no index and no
    count, so it takes 8 or 12 bytes a row. The id -1 stands for a free row, and has none of its own.

    Args:
        zch_size: rows.
        device: of the state.
        total_num_buckets: into how many parts the rows are divided that no id crosses.
        max_probe: how many rows an id may have.
        input_hash_size: range of the ids, which are divided into as many side by side for each
            bucket. Default 0: any id, which belongs to bucket ``id % total_num_buckets``.
        output_segments: where each bucket starts, and the end. Default: all have the same size. Or
            where each rank's rows start, which has to be where a bucket does.
        is_inference: never learn an id, and keep no hours.
        name: of the table, for messages.
        tb_logging_frequency: log what `stats` says every so many training batches. Default 0: never.
        eviction_policy_name: which ids lose their rows. Default: none ever does.
        eviction_config: lifetimes of ids, for the policy.
        inference_dispatch_div_train_world_size: know ids by ``id // total_num_buckets`` or ``id % (ids of a bucket)``.
        start_bucket: the first bucket of this map, where it is a part of a larger one.
        end_bucket: the one behind the last. Default: all.
        opt_in_prob: per cent of a batch's new ids that may get a row; others share reserved ones. Default -1: all.
        percent_reserved_slots: per cent of each bucket's rows that no id holds, below 100; for
            ``opt_in_prob``.
        disable_fallback: leave ids without a row of their own out, instead of sharing one.
        track_id_freq: count how often an id came while it had its row; see `lookup_custom_runtime_meta`.
        read_only_suffix: features whose name ends with it are looked up, and their ids never learnt.
        enable_per_feature_lookups: must be False: one look-up of all features gives the same rows.
        no_bag: must be False: ids without a row leave their bag, or stay as -1, see `remap`.
        write_runtime_meta_dim: int64 numbers kept for each row; see `update_runtime_meta`. Default 0.
        persist_hash_zch_bucket: whether the number of buckets is in ``state_dict``.

    Raises:
        TypeError: for numbers that are not integers.
        ValueError: for numbers out of range, or options that would have no effect.

    Example:
        >>> from torchrec import JaggedTensor
        >>> mcm = HashZchManagedCollisionModule(6, torch.device("cpu"), total_num_buckets=2)
        >>> ids = torch.tensor([-5, 10**15, -5, 8, 12])
        >>> batch = {"user": JaggedTensor(ids, lengths=torch.tensor([4, 1]))}
        >>> mcm(batch)["user"].values()  # 10**15 and 8 belong to the first bucket, of rows 0 to 2
        tensor([4, 1, 4, 2, 0])
        >>> print(mcm.stats())
        4 of 6 rows held, 20.0 % of 5 ids had one, 4 inserted, 0 evicted, 0 rejected
    """

    _hash_zch_identities: Tensor
    _hash_zch_metadata: Tensor | None
    _hash_zch_runtime_meta: Tensor | None
    _hash_zch_bucket: Tensor

    def __init__(
        self,
        zch_size: int,
        device: torch.device | str,
        total_num_buckets: int,
        max_probe: int = 128,
        input_hash_size: int = 0,
        output_segments: list[int] | None = None,
        is_inference: bool = False,
        name: str | None = None,
        tb_logging_frequency: int = 0,
        eviction_policy_name: HashZchEvictionPolicyName | None = None,
        eviction_config: HashZchEvictionConfig | None = None,
        inference_dispatch_div_train_world_size: bool = False,
        start_bucket: int = 0,
        end_bucket: int | None = None,
        opt_in_prob: int = -1,
        percent_reserved_slots: float = 0,
        disable_fallback: bool = False,
        track_id_freq: bool = False,
        read_only_suffix: str = "_readonly",
        enable_per_feature_lookups: bool = False,
        no_bag: bool = False,
        write_runtime_meta_dim: int = 0,
        persist_hash_zch_bucket: bool = True,
    ) -> None:
        self._name = name or "unnamed"
        end_bucket = total_num_buckets if end_bucket is None else end_bucket
        require_counts(
            self._name,
            zch_size=(zch_size, 1),
            total_num_buckets=(total_num_buckets, 1),
            max_probe=(max_probe, 1),
            start_bucket=(start_bucket, 0),
            input_hash_size=(input_hash_size, 0),
            tb_logging_frequency=(tb_logging_frequency, 0),
            write_runtime_meta_dim=(write_runtime_meta_dim, 0),
        )
        require_count("end_bucket", end_bucket, self._name, start_bucket + 1, total_num_buckets)
        both = track_id_freq and write_runtime_meta_dim > 0
        refuse_options(self._name, enable_per_feature_lookups, no_bag, both)
        here = range(start_bucket, end_bucket)
        bounds = lay_out(self._name, zch_size, total_num_buckets, here, output_segments)
        buckets = Buckets(self._name, bounds, start_bucket, end_bucket, input_hash_size)
        reserved = reserved_rows(self._name, opt_in_prob, percent_reserved_slots, buckets.smallest)
        local = inference_dispatch_div_train_world_size
        search = HashSearch(buckets, local, reserved, max_probe, not disable_fallback)
        super().__init__(device, list(output_segments or bounds), False, read_only_suffix)
        self._buckets, self._search = buckets, search
        self._is_inference = is_inference
        self._logging_frequency, self._num_batches = tb_logging_frequency, 0
        self._policy, self._config = eviction_policy_name, eviction_config
        self._opt_in_prob, self._percent_reserved = opt_in_prob, percent_reserved_slots
        self._track_id_freq, self._runtime_meta_dim = track_id_freq, write_runtime_meta_dim
        self._learning = HashLearning(
            search,
            eviction_module_of(self._name, eviction_policy_name, eviction_config, self._device),
            opt_in_prob,
            read_only_suffix,
            track_id_freq,
        )
        self._persists_bucket = persist_hash_zch_bucket
        self._changed = ChangedRows(zch_size)
        self._first_passes = FirstPasses(self._name, zch_size)
        timed = eviction_policy_name is not None and not is_inference
        width = 1 if track_id_freq else write_runtime_meta_dim
        state = new_state(zch_size, timed, width, self._device)
        self.register_buffer("_hash_zch_identities", state.identities)
        self.register_buffer("_hash_zch_metadata", state.hours)
        self.register_buffer("_hash_zch_runtime_meta", state.numbers)
        bucket = torch.tensor([[total_num_buckets]], device=self._device)
        self.register_buffer("_hash_zch_bucket", bucket, persistent=persist_hash_zch_bucket)
        self.train(not is_inference)

    @property
    def _state(self) -> HashState:
        hours = self._hash_zch_metadata
        return HashState(
            self._hash_zch_identities.view(-1),
            None if hours is None else hours.view(-1),
            self._hash_zch_runtime_meta,
        )

    @property
    def device(self) -> torch.device:
        """The device of the state."""
        return self._hash_zch_identities.device

    @property
    def output_offset(self) -> int:
        """The first row."""
        return self._buckets.first_row

    @property
    def max_probe(self) -> int:
        """How many rows an id may have."""
        return self._search.probing.max_probe

    @property
    def disable_fallback(self) -> bool:
        """Whether ids without a row of their own are left out."""
        return not self._search.probing.fallback

    @property
    def preprocesses_ids(self) -> bool:
        """False: ids are looked up as they are."""
        return False

    @property
    def eviction_flag(self) -> int:
        """The number of the policy; see `get_kernel_from_policy`."""
        return get_kernel_from_policy(self._policy)

    @property
    def is_sharded(self) -> bool:
        """Whether this has a part of the buckets only."""
        return self._buckets.here < self._buckets.total

    def input_size(self) -> int:
        """Return the range of the ids, as it was given."""
        return self._buckets.input_hash_size

    def output_size(self) -> int:
        """Return the number of rows."""
        return self._hash_zch_identities.shape[0]

    def buckets(self) -> int:
        """Return into how many parts the rows of the whole map are divided that no id crosses."""
        return self._buckets.total

    def open_slots(self) -> Tensor:
        """Return how many rows an id could hold and none does, ``(1,)``."""
        return self._search.num_open(self._state.identities)

    def get_reserved_slots_per_bucket(self) -> int:
        """Return how many rows of each bucket no id may hold; -1 without ``opt_in_prob``."""
        return self._search.probing.reserved or -1

    def get_indices_of_reserved_slots_per_bucket(self) -> Tensor | None:
        """Return these rows, counted from the first of the map, ascending; None without ``opt_in_prob``.

        Example:
            >>> mcm = HashZchManagedCollisionModule(
            ...     8, "cpu", 2, opt_in_prob=50, percent_reserved_slots=25
            ... )
            >>> mcm.get_indices_of_reserved_slots_per_bucket()
            tensor([3, 7])
        """
        return self._search.reserved_slots() if self._search.probing.reserved else None

    # Looking ids up.

    def preprocess(self, features: JaggedDict) -> JaggedDict:
        """Return the features as they are.

        Args:
            features: by name.
        """
        return features

    def remap(
        self,
        features: JaggedDict,
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> JaggedDict:
        """Return the features with rows in place of ids; while training, give rows to new ids first.

        Args:
            features: by name.
            mutate_miss_lengths: with ``disable_fallback``, whether ids without a row leave their bags.
                False: they stay, as -1.
            write_weights: numbers to keep for the rows; see `update_runtime_meta`. Default: none.

        Raises:
            TypeError: for ids that are not integers.
            ValueError: for ids out of range, or of buckets elsewhere.
        """
        return self._mapped(features, mutate_miss_lengths, write_weights, learn=True)

    def find(self, features: JaggedDict, mutate_miss_lengths: bool = True) -> JaggedDict:
        """Return the features with rows in place of ids, and learn nothing, while training too.

        Args:
            features: by name.
            mutate_miss_lengths: see `remap`.
        """
        return self._mapped(features, mutate_miss_lengths, None, learn=False)

    def forward(self, features: JaggedDict, mutate_miss_lengths: bool = True) -> JaggedDict:
        """Do what `remap` does.

        Args:
            features: by name.
            mutate_miss_lengths: see `remap`.
        """
        if holds_proxy(features):
            traced: JaggedDict = self.recorded(features, mutate_miss_lengths)
            return traced
        return self.remap(self.profile(self.preprocess(features)), mutate_miss_lengths)

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
            mutate_miss_lengths: without effect: -1 stands for an id that is left out.
        """
        rows = self._rows(ids, joined_ids(ids, self.device, self._name), learn=True)
        sizes = [part.numel() for part in ids.values()]
        return MappedKeys(rows.split(sizes), self._changed.take() if self.training else None)

    def _mapped(
        self, features: JaggedDict, mutate: bool, write_weights: Tensor | None, learn: bool
    ) -> JaggedDict:
        parts = values_of(features, self._name)
        joined = joined_ids(parts, self.device, self._name)
        numbers = None if write_weights is None else self._numbers().checked(joined, write_weights)
        rows = self._rows(parts, joined, learn)
        if numbers is not None:
            self._numbers().write(joined, rows, numbers)
        mapped = split_values(features, rows)
        if self.disable_fallback and mutate:
            return {name: without_missing(jt) for name, jt in mapped.items()}
        return mapped

    def _rows(self, parts: dict[str, Tensor], joined: Tensor, learn: bool) -> Tensor:
        """Return the rows of the ids of several features, one behind the other."""
        ids = dict(zip(parts, joined.split([p.numel() for p in parts.values()]), strict=True))
        self._buckets.check(ids)
        if not self.training or self._is_inference:
            return self._found(joined, counted=not (is_compiling() or is_recomputation()))
        if is_exporting():
            raise NotImplementedError(
                f"Map '{self._name}' should be in evaluation mode to be exported, call `eval()`: in "
                "training it learns from the ids, which no graph can."
            )
        if is_recomputation():
            return self._first_passes.find(joined)
        before = random_states(self.device) if may_be_recomputed() else None
        rows = self._learnt(ids, joined) if learn else self._found(joined)
        if before is not None:
            self._first_passes.add(joined, rows, before)
        return rows

    def _found(self, ids: Tensor, counted: bool = True) -> Tensor:
        """Return rows; nothing is learnt."""
        return self._search.rows_of(self._search.find(self._state.identities, ids, counted))

    def _learnt(self, parts: dict[str, Tensor], joined: Tensor) -> Tensor:
        """Return rows, after ids without one were given some."""
        slots, evicted = self._learning.learn(self._state, parts, joined)
        if evicted.numel():
            changed = evicted + self.output_offset
            # Whatever fails from here on, these rows are known until somebody is told.
            self._changed.add(changed)
            self._first_passes.change(changed)
        self._num_batches += 1
        if self._logging_frequency and self._num_batches % self._logging_frequency == 0:
            stats = self.stats(reset=False)
            logger.info("Map '%s' after %d batches: %s", self._name, self._num_batches, stats)
        return self._search.rows_of(slots)

    # Rows by id.

    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the row that each id holds, -1 for an id that holds none.

        Args:
            ids: ``(N,)``, integers.
        """
        ids = ids_of(ids, "ids", self._name)
        self._buckets.check({"ids": ids})
        slots = self._search.find_own(self._state.identities, ids)
        return torch.where(slots < 0, slots, slots + self.output_offset)

    def held(self) -> tuple[Tensor, Tensor]:
        """Return the rows that an id holds, ascending, and these ids."""
        slots, ids = self._search.held(self._state.identities)
        return slots + self.output_offset, ids

    def give_rows(self, ids: Tensor) -> Tensor:
        """Give free rows to ids that hold none, and return these rows, which are to be reset.

        Args:
            ids: ``(N,)``, integers, distinct.

        Raises:
            ValueError: if an id can have none of the rows that are free.
        """
        ids = ids_of(ids, "ids", self._name)
        self._buckets.check({"ids": ids})
        slots = self._learning.give(self._state, ids)
        rows = slots + self.output_offset
        self._first_passes.change(rows)
        return rows

    # Numbers of the caller's, by row.

    def update_runtime_meta(self, raw_ids: Tensor, remapped_ids: Tensor, weights: Tensor) -> None:
        """Keep numbers for the rows of ids that hold them; those of other ids are passed over.

        They are 0 at the start and whenever a row changes hands.

        Args:
            raw_ids: ``(N,)``, integers.
            remapped_ids: ``(N,)``, their rows.
            weights: ``(N, write_runtime_meta_dim)``, integers, or ``(N,)`` for the same in all columns.

        Raises:
            ValueError: for a map that keeps none, or another shape.
        """
        self._numbers().write(raw_ids, remapped_ids, weights)

    def lookup_runtime_meta(self, features: Tensor, remapped_ids: Tensor) -> Tensor:
        """Return what is kept for ids.

        Args:
            features: ids, ``(N,)``.
            remapped_ids: ``(N,)``, their rows.

        Returns:
            Int64 ``(N, write_runtime_meta_dim)``, -1 for an id that does not hold the row; all -1,
            ``(N,)``, where nothing is kept.
        """
        if self._hash_zch_runtime_meta is None:
            return torch.full_like(features, -1)
        return self._numbers().of_ids(features, remapped_ids)

    def lookup_custom_runtime_meta(self, remapped_ids: Tensor) -> Tensor:
        """Return what is kept for rows: ``(N, write_runtime_meta_dim)``, or their counts, ``(N, 1)``.

        Args:
            remapped_ids: rows, ``(N,)``.

        Raises:
            ValueError: for a map that keeps nothing.
            IndexError: for a row that it does not have.
        """
        return self._numbers().of_rows(remapped_ids)

    def _numbers(self) -> RowNumbers:
        state = self._state
        return RowNumbers(self._search, state.identities, state.numbers)

    # What has happened.

    def evict(self) -> Tensor | None:
        """Return the rows that were taken from an id since the last call, or None if there were none.

        In calls of `forward` and `remap`, that is; who calls `map_keys` is told at once.
        """
        return self._changed.take()

    def stats(self, reset: bool = True) -> ManagedCollisionStats:
        """Return how full the map is, and what it has done since the last call with ``reset``."""
        return self._search.stats(self._state.identities, reset)

    def validate_state(self) -> None:
        """Raise a ValueError unless each id is found where it lies."""
        self._search.validate(self._state.identities)

    # State, and shards.

    def reset_inference_mode(self) -> None:
        """Go over to inference: no id is learnt any more, not while training either."""
        self._is_inference = True
        self.eval()

    def reset_intrainer_bulk_eval_mode(self) -> None:
        """Do what `reset_inference_mode` does, until `reset_training_mode`."""
        self.reset_inference_mode()

    def reset_training_mode(self) -> None:
        """Learn ids again; a ValueError for a map with a policy that was made for inference."""
        if self._policy is not None and self._hash_zch_metadata is None:
            raise ValueError(
                f"`is_inference` of map '{self._name}' should be False for one that is to be trained with "
                "a policy. Received True: the hours of its ids are not there."
            )
        self._is_inference = False
        self.train()

    def homes(self) -> Homes:
        """Say which part of the map each id belongs to: the one that has its bucket."""
        return self._buckets

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int] | torch.device | None = None,
        device: torch.device | None = None,
    ) -> HashZchManagedCollisionModule:
        """Return a new, empty map like this one for some of its buckets.

        Args:
            output_id_range: the first row, and the one behind the last, where buckets begin and end.
            output_segments: where the rows of each rank start, which has to be where a bucket does.
            device: of its state. Default: that of this one.

        Raises:
            ValueError: where a bucket would be divided.

        Example:
            >>> mcm = HashZchManagedCollisionModule(12, torch.device("cpu"), total_num_buckets=4)
            >>> part = mcm.rebuild_with_output_id_range((3, 9), [0, 3, 9, 12])
            >>> part.output_offset, part.output_size(), part.buckets()
            (3, 6, 4)
        """
        if isinstance(output_segments, torch.device):
            output_segments, device = None, output_segments
        buckets = self._buckets
        start, end = buckets.part(output_id_range, output_segments)
        return HashZchManagedCollisionModule(
            buckets.bounds[end] - buckets.bounds[start],
            device or self.device,
            buckets.total,
            self.max_probe,
            buckets.input_hash_size,
            list(buckets.bounds),
            self._is_inference,
            self._name,
            self._logging_frequency,
            self._policy,
            self._config,
            self._search.probing.local_ids,
            start,
            end,
            self._opt_in_prob,
            self._percent_reserved,
            self.disable_fallback,
            self._track_id_freq,
            self._read_only_suffix,
            write_runtime_meta_dim=self._runtime_meta_dim,
            persist_hash_zch_bucket=self._persists_bucket,
        )

    def sync_identities(
        self,
        is_root_node: bool,
        num_replica_gp: int,
        replica_ranks: list[int],
        replica_pg: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        """Refuse with a NotImplementedError: maps are not replicated here."""
        raise NotImplementedError(
            f"Map '{self._name}' should be one of its kind: replicas on several ranks are not there yet."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        was_meta = self._hash_zch_identities.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self._hash_zch_identities.is_meta:
            # `to_empty` left the memory as it was.
            self._state.clear()
            self._hash_zch_bucket.fill_(self._buckets.total)
        self._changed.move(fn)
        self._first_passes.clear()
        return self

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
        timed = self._hash_zch_metadata is not None or not self._is_inference
        check_saved(state_dict, prefix, self._buckets, timed, self._persists_bucket, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._changed.take()
        self._first_passes.clear()
        if not self._hash_zch_identities.is_meta:
            try:
                self.validate_state()
            except ValueError as error:
                error_msgs.append(f"{prefix}_hash_zch_identities: {error}")
