"""KeyedJaggedTensor: one bag of values for each key and sample, all in one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops.jagged import jagged_index_select
from torchrec.ops.permute import permute_jagged
from torchrec.sparse import _keyed_dist
from torchrec.sparse._checks import (
    check_inverse_indices,
    check_keyed_jagged,
    check_known,
    repeated,
    strides_of_ranks,
)
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._layout import Inverse, JaggedLayout, Strides, running_sums
from torchrec.sparse._text import keyed_jagged_text
from torchrec.streamable import Pipelineable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class KeyedJaggedTensor(JaggedLayout, Pipelineable):
    """A batch of sparse features: for each key and sample a bag of ids.

    Args:
        keys: F distinct keys.
        values: ``[N]`` values of all bags: key after key, and sample after sample within a key.
        weights: ``[N]`` one weight a value. Default: unweighted.
        lengths: ``[F * B]`` number of values of each bag, int32 or int64.
        offsets: ``[F * B + 1]`` where each bag starts, and the end of the last. Give lengths, offsets or both.
        stride: B; needed only without keys.
        stride_per_key_per_rank: ``[F][W]`` size of each key's batch on each rank, when they differ.
        stride_per_key: size of each key's batch, when they differ.
        length_per_key: number of values of each key, if known.
        lengths_offset_per_key: where each key starts in the lengths, if known.
        offset_per_key: where each key starts in the values, if known.
        index_per_key: position of each key, if known.
        jt_dict: the same data by key, if known.
        inverse_indices: keys and ``[F, B]`` positions: which sample of a key's own batch stands at each place of the
            full batch.

    Example:
        >>> kjt = KeyedJaggedTensor(
        ...     keys=["product", "user"],
        ...     values=torch.tensor([1, 2, 1, 5, 2, 3, 4, 1]),
        ...     lengths=torch.tensor([3, 1, 2, 2]),
        ... )
        >>> print(kjt)
        KeyedJaggedTensor({
            "product": [[1, 2, 1], [5]],
            "user": [[2, 3], [4, 1]]
        })
        >>> kjt["user"].lengths()
        tensor([2, 2])
    """

    _jt_dict: dict[str, JaggedTensor] | None = None

    def __init__(
        self,
        keys: list[str],
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: Strides | None = None,
        stride_per_key: list[int] | None = None,
        length_per_key: list[int] | None = None,
        lengths_offset_per_key: list[int] | None = None,
        offset_per_key: list[int] | None = None,
        index_per_key: dict[str, int] | None = None,
        jt_dict: dict[str, JaggedTensor] | None = None,
        inverse_indices: Inverse | None = None,
    ) -> None:
        self._keys = keys = keys if type(keys) is list else list(keys)
        self._values = values
        self._weights = weights
        self._lengths = lengths
        self._offsets = offsets
        if stride_per_key_per_rank is not None or stride_per_key is not None:
            self._set_strides(stride_per_key_per_rank, stride_per_key)
        if not keys:
            self._stride = stride or 0
        if not is_compiling():
            strides = self._stride_per_key
            check_keyed_jagged(keys, values, weights, lengths, offsets, stride, strides)
        if lengths is not None and lengths.dim() != 1:
            self._lengths = lengths.reshape(-1)
        if inverse_indices is not None:
            self._inverse_indices = inverse_indices
            if not is_compiling():
                check_inverse_indices(keys, self.stride_per_key(), inverse_indices)
        if length_per_key is not None or offset_per_key is not None:
            self._set_known(length_per_key, offset_per_key)
        if lengths_offset_per_key is not None:
            self._lengths_offset_per_key = lengths_offset_per_key
        if index_per_key is not None:
            self._index_per_key = index_per_key
        if jt_dict is not None:
            self._jt_dict = jt_dict

    def _set_strides(
        self, per_rank: Strides | None, per_key: list[int] | None
    ) -> None:
        """Take a batch size for each key; sizes that are all the same are nothing special."""
        if per_rank is not None:
            self._strides_per_rank = per_rank
            if not is_compiling():
                self._stride_per_key = strides_of_ranks(self._keys, per_rank)
                if per_key is not None:
                    check_known("stride_per_key", list(per_key), self._stride_per_key)
        elif per_key is not None and len(set(per_key)) > 1:
            self._strides_per_rank = [[size] for size in per_key]
            self._stride_per_key = list(per_key)

    def _set_known(
        self, length_per_key: list[int] | None, offset_per_key: list[int] | None
    ) -> None:
        """Take the sizes of the keys; on a CPU, where it costs little, only if they are true."""
        if not is_compiling() and type(self._values) is Tensor and self._values.is_cpu:
            true = self.length_per_key()
            if length_per_key is not None:
                check_known("length_per_key", list(length_per_key), true)
            if offset_per_key is not None:
                check_known("offset_per_key", list(offset_per_key), running_sums(true))
        if length_per_key is None and offset_per_key is not None:
            pairs = zip(offset_per_key, offset_per_key[1:], strict=False)
            length_per_key = [b - a for a, b in pairs]
        self._length_per_key = length_per_key
        self._offset_per_key = offset_per_key

    # ---- other ways to build one

    @staticmethod
    def from_lengths_sync(
        keys: list[str],
        values: Tensor,
        lengths: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: list[list[int]] | None = None,
        inverse_indices: Inverse | None = None,
    ) -> KeyedJaggedTensor:
        """Build one from lengths, and bring the numbers of each key to the host at once."""
        return KeyedJaggedTensor(
            keys,
            values,
            weights,
            lengths,
            stride=stride,
            stride_per_key_per_rank=stride_per_key_per_rank,
            inverse_indices=inverse_indices,
        ).sync()

    @staticmethod
    def from_offsets_sync(
        keys: list[str],
        values: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: list[list[int]] | None = None,
        inverse_indices: Inverse | None = None,
    ) -> KeyedJaggedTensor:
        """Build one from offsets, and bring the numbers of each key to the host at once."""
        return KeyedJaggedTensor(
            keys,
            values,
            weights,
            offsets=offsets,
            stride=stride,
            stride_per_key_per_rank=stride_per_key_per_rank,
            inverse_indices=inverse_indices,
        ).sync()

    @staticmethod
    def from_jt_dict(jt_dict: dict[str, JaggedTensor]) -> KeyedJaggedTensor:
        """Join one JaggedTensor a key. Batches of different sizes give a variable batch per key."""
        if not jt_dict:
            raise ValueError("`jt_dict` should hold at least one JaggedTensor. Received an empty dict.")
        jts = list(jt_dict.values())
        lengths = [jt.lengths() for jt in jts]
        strides = [t.size(0) for t in lengths]
        weights = [jt.weights() for jt in jts] if jts[0].weights_or_none() is not None else None
        return KeyedJaggedTensor(
            list(jt_dict),
            torch.cat([jt.values() for jt in jts]),
            None if weights is None else torch.cat(weights),
            torch.cat(lengths),
            stride_per_key=None if all(s == strides[0] for s in strides) else strides,
        )

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int32,
    ) -> KeyedJaggedTensor:
        """Build one of no keys and a batch of zero."""
        return KeyedJaggedTensor(
            [],
            torch.empty(0, dtype=values_dtype or torch.int64, device=device),
            torch.empty(0, dtype=weights_dtype, device=device) if is_weighted else None,
            torch.empty(0, dtype=lengths_dtype, device=device),
            stride=0,
        )

    @staticmethod
    def empty_like(kjt: KeyedJaggedTensor, device: torch.device | None = None) -> KeyedJaggedTensor:
        """Build one of no keys, with the batch size, dtypes and device of another."""
        device = device or kjt.device()
        weights = kjt._weights
        return KeyedJaggedTensor(
            [],
            torch.empty(0, dtype=kjt._values.dtype, device=device),
            None if weights is None else torch.empty(0, dtype=weights.dtype, device=device),
            torch.empty(0, dtype=kjt.lengths().dtype, device=device),
            stride=kjt.stride(),
        )

    @staticmethod
    def concat(kjt_list: list[KeyedJaggedTensor]) -> KeyedJaggedTensor:
        """Join the keys of several over the same batch. One without keys adds nothing.

        Args:
            kjt_list: at least one; all weighted or none; batches of one size, unless they vary by key.

        Raises:
            ValueError: nothing to join, batch sizes that differ, a key twice, or weights in some only.

        Example:
            >>> a = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]]})
            >>> b = KeyedJaggedTensor.from_lists({"b": [[], [4]]})
            >>> KeyedJaggedTensor.concat([a, b]).to_lists()
            {'a': [[1], [2, 3]], 'b': [[], [4]]}
        """
        return concat(kjt_list)

    # ---- by key

    def __getitem__(self, key: str) -> JaggedTensor:
        if self._jt_dict is not None:
            return self._jt_dict[key]
        try:
            i = self._keys.index(key)
        except ValueError:
            raise KeyError(f"Key should be one of {self._keys}. Received {key!r}.") from None
        sizes = self.length_per_key()
        start = sum(sizes[:i])
        end = start + sizes[i]
        if self._strides_per_rank is None:
            stride = self.stride()
            first, last = i * stride, (i + 1) * stride
        else:
            first, last = self.lengths_offset_per_key()[i : i + 2]
        weights = self._weights
        return make_jagged(
            self._values[start:end],
            None if weights is None else weights[start:end],
            self.lengths()[first:last],
            None,
        )

    def to_dict(self, compute_offsets: bool = True) -> dict[str, JaggedTensor]:
        """Return one JaggedTensor a key: views of this one's tensors.

        Args:
            compute_offsets: without effect here: the offsets of each are computed when they are asked for.

        Example:
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> kjt.to_dict()["b"].to_dense()
            [tensor([], dtype=torch.int64), tensor([4])]
        """
        if self._jt_dict is not None:
            return self._jt_dict
        keys = self._keys
        sizes = self.length_per_key()
        values = split_rows(self._values, sizes)
        weights = [None] * len(keys) if self._weights is None else split_rows(self._weights, sizes)
        lengths = split_rows(self.lengths(), self.stride_per_key())
        return {
            key: make_jagged(v, w, n, None)
            for key, v, w, n in zip(keys, values, weights, lengths, strict=True)
        }

    def split(self, segments: list[int]) -> list[KeyedJaggedTensor]:
        """Cut the keys into runs of ``segments[i]`` keys: views of this one's tensors.

        Args:
            segments: number of keys of each part, 0 or more; together all keys.

        Raises:
            ValueError: segments do not sum to the number of keys.

        Example:
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> [part.keys() for part in kjt.split([1, 0, 1])]
            [['a'], [], ['b']]
        """
        keys = self._keys
        if sum(segments) != len(keys) or min(segments, default=0) < 0:
            raise ValueError(
                f"`segments` should not be negative and sum to the number of keys ({len(keys)}). "
                f"Received {segments}."
            )
        bounds = running_sums(segments)
        runs = list(zip(bounds, bounds[1:], strict=False))
        sizes = self.length_per_key()
        rows = [sum(sizes[a:b]) for a, b in runs]
        values = split_rows(self._values, rows)
        weights = [None] * len(runs) if self._weights is None else split_rows(self._weights, rows)
        plain = self._strides_per_rank is None
        if plain:
            stride = self.stride()
            bags = [stride * n for n in segments]
        else:
            strides = self.stride_per_key()
            bags = [sum(strides[a:b]) for a, b in runs]
        lengths = split_rows(self.lengths(), bags)
        parts = []
        for (a, b), v, w, n in zip(runs, values, weights, lengths, strict=True):
            part = make_keyed_jagged(keys[a:b], v, w, n)
            part._length_per_key = sizes[a:b]
            if a == b or not plain:
                self._hand_down(part, range(a, b))
            parts.append(part)
        return parts

    def permute(
        self, indices: list[int], indices_tensor: Tensor | None = None
    ) -> KeyedJaggedTensor:
        """Take keys by position, in the order given; a key may be left out or taken several times.

        Args:
            indices: positions of the keys.
            indices_tensor: the same as a tensor; without effect here.

        Raises:
            IndexError: there is no key at a position.

        Example:
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> kjt.permute([1, 0]).to_lists()
            {'b': [[], [4]], 'a': [[1], [2, 3]]}
        """
        keys = self._keys
        sizes = self.length_per_key()
        plain = self._strides_per_rank is None
        values, weights, lengths = permute_jagged(
            self.lengths(),
            self._values,
            self._weights,
            self.stride() if plain else self.stride_per_key(),
            indices,
            sizes,
        )
        part = make_keyed_jagged([keys[i] for i in indices], values, weights, lengths)
        part._length_per_key = [sizes[i] for i in indices]
        if not plain or not indices:
            self._hand_down(part, indices)
        return part

    def _hand_down(self, part: KeyedJaggedTensor, indices: Sequence[int]) -> None:
        """Give a KeyedJaggedTensor of some of the keys what its tensors do not say of its batch."""
        if not part._keys:
            part._stride = self.stride()
        if self._strides_per_rank is not None:
            strides = self._strides_per_rank
            part._strides_per_rank = (
                strides[list(indices)]
                if isinstance(strides, Tensor)
                else [strides[i] for i in indices]
            )
            if self._stride_per_key is not None:
                part._stride_per_key = [self._stride_per_key[i] for i in indices]
            # They name their keys, so that they stay right for any selection.
            part._inverse_indices = self._inverse_indices

    def expand_inverse(self) -> KeyedJaggedTensor:
        """Gather every key to the full batch by its inverse indices."""
        keys, inverse = self.inverse_indices()
        rows = inverse[[keys.index(key) for key in self._keys]]
        starts = torch.tensor(self.lengths_offset_per_key()[:-1], device=inverse.device)
        bags = (rows + starts[:, None]).reshape(-1)
        values, lengths = jagged_index_select(self._values, self.lengths(), bags)
        weights = None
        if self._weights is not None:
            weights, _ = jagged_index_select(self._weights, self.lengths(), bags)
        return make_keyed_jagged(self._keys, values, weights, lengths)

    def flatten_lengths(self) -> KeyedJaggedTensor:
        """Return this with one-dimensional lengths, as they always are here."""
        return self._map(lambda t: t)

    # ---- host numbers

    def sync(self) -> KeyedJaggedTensor:
        """Bring the numbers of each key to the host, so that nothing waits for them later."""
        self.stride_per_key_per_rank()
        self.length_per_key()
        self.offset_per_key()
        return self

    def unsync(self) -> KeyedJaggedTensor:
        """Forget the numbers of each key."""
        self._length_per_key = self._offset_per_key = None
        return self

    # ---- moving and copying

    def _map(self, function: Callable[[Tensor], Tensor]) -> KeyedJaggedTensor:
        """Apply a function to every tensor of data, and keep what is known on the host."""

        def apply(t: Tensor | None) -> Tensor | None:
            return None if t is None else function(t)

        other = make_keyed_jagged(
            self._keys,
            function(self._values),
            apply(self._weights),
            apply(self._lengths),
            apply(self._offsets),
        )
        other._stride = self._stride
        other._strides_per_rank = self._strides_per_rank
        if self._inverse_indices is not None:
            keys, inverse = self._inverse_indices
            other._inverse_indices = keys, function(inverse)
        other._stride_per_key = self._stride_per_key
        other._length_per_key = self._length_per_key
        other._offset_per_key = self._offset_per_key
        other._lengths_offset_per_key = self._lengths_offset_per_key
        other._index_per_key = self._index_per_key
        return other

    def to(
        self, device: torch.device, non_blocking: bool = False, dtype: torch.dtype | None = None
    ) -> KeyedJaggedTensor:
        """Return this on ``device``; ``dtype`` is that of the weights."""
        other = self._map(lambda t: t.to(device, non_blocking=non_blocking))
        if dtype is not None and other._weights is not None:
            other._weights = other._weights.to(dtype)
        return other

    def pin_memory(self) -> KeyedJaggedTensor:
        """Return this in pinned memory."""
        return self._map(lambda t: t.pin_memory())

    def copy_(self, kjt: KeyedJaggedTensor, non_blocking: bool = False) -> KeyedJaggedTensor:
        """Copy another of the same keys and sizes into this one's tensors."""
        self._values.copy_(kjt._values, non_blocking)
        if self._weights is not None:
            self._weights.copy_(kjt.weights(), non_blocking)
        if self._lengths is not None:
            self._lengths.copy_(kjt.lengths(), non_blocking)
        if self._offsets is not None:
            self._offsets.copy_(kjt.offsets(), non_blocking)
        return self.unsync()

    def _tensors(self) -> list[Tensor]:
        tensors = [self._values, self._weights, self._lengths, self._offsets]
        if self._inverse_indices is not None:
            tensors.append(self._inverse_indices[1])
        return [t for t in tensors if t is not None]

    def clear_storage(self) -> int:
        """Free the memory of every tensor and return how many bytes that was."""
        freed = 0
        for t in self._tensors():
            freed += t.untyped_storage().nbytes()
            t.untyped_storage().resize_(0)
        return freed

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        for t in self._tensors():
            t.record_stream(stream)

    def size_in_bytes(self) -> int:
        """Return the size of the tensors held, in bytes."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    # ---- between ranks

    def dist_labels(self) -> list[str]:
        """Name what is sent between ranks, in order."""
        return _keyed_dist.labels(self)

    def dist_tensors(self) -> list[Tensor]:
        """Return the tensors that are sent between ranks, in the order of ``dist_labels``."""
        return _keyed_dist.tensors(self)

    def dist_splits(self, key_splits: list[int]) -> list[list[int]]:
        """Return how many rows of each tensor go to each rank, if rank r gets ``key_splits[r]`` keys."""
        return _keyed_dist.splits(self, key_splits)

    @staticmethod
    def dist_init(
        keys: list[str],
        tensors: list[Tensor],
        variable_stride_per_key: bool,
        num_workers: int,
        recat: Tensor | None,
        stride_per_rank: list[int] | None,
        stagger: int = 1,
    ) -> KeyedJaggedTensor:
        """Put together what was received from the ranks."""
        raise NotImplementedError

    # ---- lists and tables

    @staticmethod
    def from_lists(
        lists: Mapping[str, Sequence[Any]],
        weights: Mapping[str, Sequence[Any]] | None = None,
        dtype: torch.dtype = torch.int64,
    ) -> KeyedJaggedTensor:
        """Build one from lists of lists by key."""
        from torchrec.sparse import convert

        return KeyedJaggedTensor(*_reorder(convert.kjt_parts_from_lists(lists, weights, dtype)))

    def to_lists(self) -> dict[str, list[list[Any]]]:
        """Return the values as lists of lists by key."""
        return {key: [t.tolist() for t in jt.to_dense()] for key, jt in self.to_dict().items()}

    def __str__(self) -> str:
        return keyed_jagged_text(
            self._keys,
            self._values,
            self._weights,
            self.offsets().tolist(),
            self.lengths_offset_per_key(),
        )


def _reorder(
    parts: tuple[list[str], Tensor, Tensor, Tensor | None],
) -> tuple[list[str], Tensor, Tensor | None, Tensor]:
    keys, values, lengths, weights = parts
    return keys, values, weights, lengths


def split_rows(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Cut a tensor into views of ``sizes`` rows.

    Of integers the "unsafe" kind is meant: it only leaves out the bookkeeping of views for autograd, which has no use
    for integers, and that is a third of the time.
    """
    if rows.is_floating_point() or is_compiling():
        return torch.split_with_sizes(rows, sizes)
    return torch.unsafe_split_with_sizes(rows, sizes)


def concat(kjt_list: list[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """See ``KeyedJaggedTensor.concat``."""
    if not kjt_list:
        raise ValueError("`kjt_list` should hold at least one KeyedJaggedTensor. Received none.")
    keys: list[str] = []
    values: list[Tensor] = []
    weights: list[Tensor] = []
    lengths: list[Tensor] = []
    sizes: list[int] | None = []
    variable = False
    parts = [kjt for kjt in kjt_list if kjt._keys] or kjt_list[:1]
    for part in parts:
        keys += part._keys
        values.append(part._values)
        lengths.append(part.lengths() if part._lengths is None else part._lengths)
        if part._weights is not None:
            weights.append(part._weights)
        if part._strides_per_rank is not None:
            variable = True
        if sizes is not None:
            known = part._length_per_key
            sizes = None if known is None else sizes + known
    if weights and len(weights) != len(parts):
        raise ValueError(
            "`kjt_list` should be weighted in all parts or in none. "
            f"Received {len(weights)} of {len(parts)} with weights."
        )
    if len(set(keys)) != len(keys):
        raise ValueError(f"`kjt_list` should hold each key once. Received {repeated(keys)} again.")
    joined = make_keyed_jagged(
        keys, torch.cat(values), torch.cat(weights) if weights else None, torch.cat(lengths)
    )
    joined._length_per_key = sizes
    if variable:
        _join_strides(joined, parts)
    elif not keys:
        joined._stride = parts[0].stride()
    elif not is_compiling():
        _require_one_stride(parts, lengths)
    return joined


def _require_one_stride(parts: list[KeyedJaggedTensor], lengths: list[Tensor]) -> None:
    stride = lengths[0].numel() // len(parts[0]._keys)
    for part, own in zip(parts, lengths, strict=True):
        if own.numel() != stride * len(part._keys):
            raise ValueError(
                f"`kjt_list` should have batches of one size ({stride}, of keys {parts[0]._keys}). "
                f"Received {part.stride()} for keys {part._keys}."
            )


def _join_strides(joined: KeyedJaggedTensor, parts: list[KeyedJaggedTensor]) -> None:
    """Put together the batch sizes and inverse indices of parts whose batches vary by key."""
    per_rank = [
        part.stride_per_key_per_rank() or [[stride] for stride in part.stride_per_key()]
        for part in parts
    ]
    if len({len(row) for rows in per_rank for row in rows}) > 1:
        raise ValueError(
            "`kjt_list` should have batch sizes for one number of ranks. "
            f"Received {per_rank}."
        )
    joined._strides_per_rank = [row for rows in per_rank for row in rows]
    inverse = [part._inverse_indices for part in parts]
    given = [pair for pair in inverse if pair is not None]
    if not given:
        return
    if len(given) != len(parts):
        raise ValueError(
            "`kjt_list` should have inverse indices in all parts or in none. "
            f"Received {len(given)} of {len(parts)} with them."
        )
    if all([pair is given[0] for pair in given]):
        joined._inverse_indices = given[0]
        return
    if len({tensor.size(-1) for _, tensor in given}) > 1:
        raise ValueError(
            "`kjt_list` should have inverse indices for one size of the full batch. "
            f"Received {[tensor.size(-1) for _, tensor in given]}."
        )
    joined._inverse_indices = (
        [name for names, _ in given for name in names],
        torch.cat([tensor for _, tensor in given]),
    )


def make_keyed_jagged(
    keys: list[str],
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None = None,
) -> KeyedJaggedTensor:
    """Make a KeyedJaggedTensor of parts that were checked before."""
    kjt = object.__new__(KeyedJaggedTensor)
    kjt._keys = keys
    kjt._values = values
    kjt._weights = weights
    kjt._lengths = lengths
    kjt._offsets = offsets
    return kjt


KeyedJaggedTensor.__module__ = "torchrec.sparse.jagged_tensor"
