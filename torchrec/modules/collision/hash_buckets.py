"""Buckets of a hash map: parts of its rows that no id crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.checks import require_list
from torchrec.fx.proxies import is_proxy
from torchrec.modules.collision.features import require_count


def _ids_per_bucket(input_hash_size: int, total_num_buckets: int) -> int:
    """Return how many ids side by side belong to a bucket; 0: each id to bucket ``id % buckets``."""
    return -(-input_hash_size // total_num_buckets)


def _bucket_of(ids: Tensor, input_hash_size: int, total_num_buckets: int) -> tuple[Tensor, Tensor]:
    """Return the bucket of each id, and what is left of the id within it."""
    span = _ids_per_bucket(input_hash_size, total_num_buckets) or total_num_buckets
    high, low = ids.div(span, rounding_mode="floor"), ids % span
    return (high, low) if input_hash_size else (low, high)


def _check_range(ids: Tensor, input_hash_size: int, what: str) -> None:
    if not input_hash_size or is_proxy(ids) or is_compiling() or not ids.numel():
        return
    least, most = torch.aminmax(ids)
    if least < 0 or most >= input_hash_size:
        wrong = least if least < 0 else most
        raise ValueError(
            f"Ids of {what} should be in [0, {input_hash_size}), its `input_hash_size` (0: any id). "
            f"Received {int(wrong)}."
        )


@dataclass(frozen=True)
class Buckets:
    """Which buckets a map has, and where.

    Attributes:
        name: of the map, for messages.
        bounds: the row at which each of all buckets starts, and the end.
        first: the first one here.
        end: the one behind the last.
        input_hash_size: range of the ids; 0: any.
    """

    name: str
    bounds: list[int]
    first: int
    end: int
    input_hash_size: int

    @property
    def total(self) -> int:
        """Buckets in all."""
        return len(self.bounds) - 1

    @property
    def here(self) -> int:
        """Buckets of this map."""
        return self.end - self.first

    @property
    def first_row(self) -> int:
        """The row at which this map starts."""
        return self.bounds[self.first]

    @property
    def smallest(self) -> int:
        """Rows of the smallest of all buckets, so that parts of a map agree on it."""
        return min(end - start for start, end in pairwise(self.bounds))

    @property
    def starts(self) -> list[int]:
        """Where each bucket here starts, and the end, counted from the first row."""
        return [bound - self.first_row for bound in self.bounds[self.first : self.end + 1]]

    @property
    def ids_per_bucket(self) -> int:
        """How many ids side by side belong to a bucket; 0: each id to bucket ``id % total``."""
        return _ids_per_bucket(self.input_hash_size, self.total)

    def check(self, ids: Mapping[str, Tensor]) -> None:
        """Raise unless ids are in range, and of buckets here.

        Args:
            ids: by feature, int64.

        Raises:
            ValueError: naming the id.
        """
        if not is_compiling():  # a program that was exported looks at no numbers
            for name, part in ids.items():
                self._check_feature(part, name)

    def _check_feature(self, ids: Tensor, feature: str) -> None:
        _check_range(ids, self.input_hash_size, f"feature '{feature}' of table '{self.name}'")
        if self.here == self.total:
            return
        buckets, _ = _bucket_of(ids, self.input_hash_size, self.total)
        outside = (buckets < self.first) | (buckets >= self.end)
        if bool(outside.any()):
            raise ValueError(
                f"Ids of feature '{feature}' of table '{self.name}' should be of the buckets of this "
                f"part, {self.first} to {self.end - 1}. Received {int(ids[outside][0])}, of bucket "
                f"{int(buckets[outside][0])}."
            )

    @property
    def least_rows(self) -> int:
        """How many rows a part has at least, as `Homes` say."""
        return 1

    def require_part(self, rows: range) -> None:
        """Raise a ValueError for rows that begin or end within a bucket."""
        self.part((rows.start, rows.stop))

    def require_ids(self, ids: Tensor, feature: str) -> None:
        """Raise a ValueError for ids out of range, naming the feature."""
        self._check_feature(ids, feature)

    def homes_of(self, ids: Tensor, feature: str) -> Tensor:
        """Return the first row of the bucket of each id, as `Homes` are.

        Args:
            ids: int64 ``(N,)``.
            feature: they are of, for messages.
        """
        starts = torch.tensor(self.bounds, device=ids.device)
        return starts[_bucket_of(ids, self.input_hash_size, self.total)[0]]

    def rests(self, ids: Tensor) -> Tensor:
        """Return what is left of ids within their buckets."""
        return _bucket_of(ids, self.input_hash_size, self.total)[1]

    def whole_ids(self, rests: Tensor, slots: Tensor) -> Tensor:
        """Return the ids of which these are left within their buckets.

        Args:
            rests: int64 ``(N,)``.
            slots: where they lie, counted from the first row.
        """
        starts = torch.tensor(self.starts, device=slots.device)
        buckets = torch.bucketize(slots, starts, right=True) - 1 + self.first
        span = self.ids_per_bucket
        return buckets * span + rests if span else rests * self.total + buckets

    def part(self, rows: tuple[int, int], segments: Sequence[int] | None = None) -> tuple[int, int]:
        """Return the first bucket of some rows, and the one behind the last.

        Args:
            rows: the first, and the one behind the last.
            segments: where the rows of each rank start.

        Raises:
            ValueError: where they begin or end within a bucket.
        """
        here = self.bounds[self.first : self.end + 1]
        if rows[0] not in here or rows[1] not in here or rows[0] >= rows[1]:
            raise ValueError(
                f"`output_id_range` of map '{self.name}' should begin and end where buckets do, at two "
                f"of the rows {here}. Received {tuple(rows)}."
            )
        if not set(segments or ()) <= set(self.bounds):
            raise ValueError(
                f"`output_segments` of map '{self.name}' should be among the rows where buckets start, "
                f"{self.bounds}. Received {list(segments or ())}."
            )
        return self.bounds.index(rows[0]), self.bounds.index(rows[1])


def lay_out(
    name: str, zch_size: int, total: int, range_here: range, segments: Sequence[int] | None
) -> list[int]:
    """Return the row at which each of all buckets starts, and the end.

    Args:
        name: of the map, for messages.
        zch_size: rows of the buckets here.
        total: buckets in all.
        range_here: numbers of the buckets here.
        segments: where each bucket starts, and the end, or where each rank's rows start.

    Raises:
        ValueError: where these do not fit.
    """
    owned = len(range_here)
    if segments is not None:
        require_list(segments, f"`output_segments` of map '{name}'", int)
    if segments is not None and len(segments) == total + 1:
        bounds = list(segments)
        sizes = [end - start for start, end in pairwise(bounds)]
        size = bounds[range_here.stop] - bounds[range_here.start]
        if bounds[0] != 0 or min(sizes) < 1 or size != zch_size:
            raise ValueError(
                f"`output_segments` of map '{name}' should be where each of its buckets starts, from 0 "
                f"on, ascending, and give it `zch_size` ({zch_size}) rows. Received {bounds}."
            )
        return bounds
    if zch_size % owned:
        raise ValueError(
            f"`zch_size` of map '{name}' should be a multiple of its {owned} buckets, or "
            f"`output_segments` say where each of them starts. Received {zch_size}."
        )
    bounds = [zch_size // owned * bucket for bucket in range(total + 1)]
    if not set(segments or ()) <= set(bounds):
        raise ValueError(
            f"`output_segments` of map '{name}' should begin where buckets do, of {zch_size // owned} "
            f"rows each. Received {list(segments or ())}."
        )
    return bounds


def refuse_options(name: str, per_feature: bool, no_bag: bool, two_numbers: bool) -> None:
    """Raise for options of a map that would have no effect, or not the one that they promise."""
    for option, given, why in (
        ("enable_per_feature_lookups", per_feature, "one look-up gives the same rows"),
        ("no_bag", no_bag, "ids without a row leave their bag, or stay as -1"),
        ("track_id_freq", two_numbers, "`write_runtime_meta_dim` keeps numbers where it counts"),
    ):
        if given:
            raise ValueError(f"`{option}` of map '{name}' should be False: {why}. Received True.")


def reserved_rows(name: str, opt_in_prob: int, share: float, smallest: int) -> int:
    """Return how many rows of each bucket no id may hold.

    Args:
        name: of the map, for messages.
        opt_in_prob: per cent of the ids without a row that may be given one; -1: all.
        share: per cent of each bucket's rows.
        smallest: rows of the smallest bucket.

    Raises:
        ValueError: where one comes without the other, or is out of range.

    Example:
        >>> reserved_rows("user", 50, 20, 8)
        1
    """
    require_count("opt_in_prob", opt_in_prob, name, -1, 100)
    if not isinstance(share, int | float):
        raise TypeError(
            f"`percent_reserved_slots` of map '{name}' should be a number. Received {share!r}."
        )
    if not 0 <= share < 100:
        raise ValueError(
            f"`percent_reserved_slots` of map '{name}' should be in [0, 100). Received {share}."
        )
    if opt_in_prob == 0 or (opt_in_prob < 0) != (share == 0):
        raise ValueError(
            f"`opt_in_prob` of map '{name}' should be from 1 to 100 and come with "
            "`percent_reserved_slots` above 0, or be -1 and come without. "
            f"Received {opt_in_prob} and {share}."
        )
    reserved = int(share * smallest / 100)
    if share and not reserved:
        raise ValueError(
            f"`percent_reserved_slots` of map '{name}' should be at least one row of a bucket of "
            f"{smallest}. Received {share}."
        )
    return reserved


class TrainInputMapper(nn.Module):
    """Says which rows the bucket of each id has. The maps do the same in their kernels.

    Without ``input_hash_size`` id i belongs to bucket ``i % total_num_buckets``. Otherwise ids are in
    ``[0, input_hash_size)``, and as many for each bucket lie side by side.

    Args:
        input_hash_size: range of the ids; 0: any.
        total_num_buckets: how many buckets there are.
        size_per_rank: int64 ``(total_num_buckets,)``, rows of each bucket.
        train_rank_offsets: int64 ``(total_num_buckets,)``, the first row of each.
        inference_dispatch_div_train_world_size: also turn ids into what is left of them within their
            bucket.
        name: of the table, for messages.

    Raises:
        ValueError: for another number of sizes or offsets than of buckets.

    Example:
        >>> mapper = TrainInputMapper(0, 2, torch.tensor([8, 5]), torch.tensor([0, 8]))
        >>> ids, sizes, offsets = mapper(torch.tensor([4, -1, 7]))
        >>> sizes.tolist(), offsets.tolist()
        ([8, 5, 5], [0, 8, 8])
    """

    _zch_size_per_training_rank: Tensor
    _train_rank_offsets: Tensor

    def __init__(
        self,
        input_hash_size: int,
        total_num_buckets: int,
        size_per_rank: Tensor,
        train_rank_offsets: Tensor,
        inference_dispatch_div_train_world_size: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self._name = name or "unnamed"
        require_count("input_hash_size", input_hash_size, self._name, 0)
        require_count("total_num_buckets", total_num_buckets, self._name, 1)
        for what, tensor in (
            ("size_per_rank", size_per_rank),
            ("train_rank_offsets", train_rank_offsets),
        ):
            if tensor.shape != (total_num_buckets,):
                raise ValueError(
                    f"`{what}` of map '{self._name}' should have a number for each of the "
                    f"{total_num_buckets} buckets. Received shape {tuple(tensor.shape)}."
                )
        self._input_hash_size = input_hash_size
        self._total_num_buckets = total_num_buckets
        self._divides = inference_dispatch_div_train_world_size
        self.register_buffer("_zch_size_per_training_rank", size_per_rank, persistent=False)
        self.register_buffer("_train_rank_offsets", train_rank_offsets, persistent=False)

    def forward(
        self, values: Tensor, output_offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the ids, and for each how many rows its bucket has and which is the first.

        Args:
            values: ids, int64 ``(N,)``.
            output_offset: ``(1,)``, the row to count from. Default: 0.

        Raises:
            ValueError: for ids outside of ``input_hash_size``.
        """
        _check_range(values, self._input_hash_size, f"table '{self._name}'")
        buckets, rest = _bucket_of(values, self._input_hash_size, self._total_num_buckets)
        offsets = self._train_rank_offsets[buckets]
        if output_offset is not None:
            offsets = offsets - output_offset
        ids = rest if self._divides else values
        return ids, self._zch_size_per_training_rank[buckets], offsets
