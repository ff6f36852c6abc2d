"""KeyedJaggedTensor: one bag of values for each key and sample, all in one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrec.ops.jagged import jagged_index_select
from torchrec.ops.permute import permute_jagged
from torchrec.sparse import _keyed_dist
from torchrec.sparse._checks import check_keyed_jagged
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._layout import Inverse, JaggedLayout, Strides
from torchrec.sparse._text import keyed_jagged_text
from torchrec.streamable import Pipelineable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


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
        if stride_per_key_per_rank is None and stride_per_key is not None:
            stride_per_key_per_rank = [[s] for s in stride_per_key]
        check_keyed_jagged(keys, values, weights, lengths, offsets)
        self._keys = keys
        self._values = values
        self._weights = weights
        self._lengths = lengths if lengths is None or lengths.dim() == 1 else lengths.reshape(-1)
        self._offsets = offsets
        if not keys:
            self._stride = stride or 0
        if stride_per_key_per_rank is not None:
            self._strides_per_rank = stride_per_key_per_rank
        if inverse_indices is not None:
            self._inverse_indices = inverse_indices
        if length_per_key is not None:
            self._length_per_key = length_per_key
        if offset_per_key is not None:
            self._offset_per_key = offset_per_key
        if lengths_offset_per_key is not None:
            self._lengths_offset_per_key = lengths_offset_per_key
        if index_per_key is not None:
            self._index_per_key = index_per_key
        if jt_dict is not None:
            self._jt_dict = jt_dict

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
        """Join the keys of several over the same batch."""
        if not kjt_list:
            raise ValueError("`kjt_list` should hold at least one KeyedJaggedTensor. Received none.")
        keys = [key for kjt in kjt_list for key in kjt._keys]
        weighted = kjt_list[0]._weights is not None
        variable = any(kjt.variable_stride_per_key() for kjt in kjt_list)
        return KeyedJaggedTensor(
            keys,
            torch.cat([kjt._values for kjt in kjt_list]),
            torch.cat([kjt.weights() for kjt in kjt_list]) if weighted else None,
            torch.cat([kjt.lengths() for kjt in kjt_list]),
            stride_per_key=[s for kjt in kjt_list for s in kjt.stride_per_key()]
            if variable
            else None,
        )

    # ---- by key

    def __getitem__(self, key: str) -> JaggedTensor:
        if self._jt_dict is not None:
            return self._jt_dict[key]
        i = self.index_per_key().get(key)
        if i is None:
            raise KeyError(f"Key should be one of {self._keys}. Received '{key}'.")
        start, length = self.offset_per_key()[i], self.length_per_key()[i]
        bags = self.lengths_offset_per_key()
        weights = self._weights
        return make_jagged(
            self._values.narrow(0, start, length),
            None if weights is None else weights.narrow(0, start, length),
            self.lengths().narrow(0, bags[i], bags[i + 1] - bags[i]),
            None,
        )

    def to_dict(self, compute_offsets: bool = True) -> dict[str, JaggedTensor]:
        """Return one JaggedTensor a key: views of this one's tensors."""
        return {key: self[key] for key in self._keys}

    def split(self, segments: list[int]) -> list[KeyedJaggedTensor]:
        """Cut the keys into runs of ``segments[i]`` keys: views of this one's tensors."""
        parts = []
        start = 0
        offsets, bags, lengths = self.offset_per_key(), self.lengths_offset_per_key(), self.lengths()
        for n in segments:
            end = start + n
            a, b = offsets[start], offsets[end]
            part = make_keyed_jagged(
                self._keys[start:end],
                self._values[a:b],
                None if self._weights is None else self._weights[a:b],
                lengths[bags[start] : bags[end]],
            )
            part._length_per_key = self.length_per_key()[start:end]
            self._hand_down(part, list(range(start, end)))
            parts.append(part)
            start = end
        return parts

    def permute(
        self, indices: list[int], indices_tensor: Tensor | None = None
    ) -> KeyedJaggedTensor:
        """Take keys by position, in the order given; a key may be left out or taken several times."""
        length_per_key = self.length_per_key()
        taken = [length_per_key[i] for i in indices]
        values, weights, lengths = permute_jagged(
            self.lengths(),
            self._values,
            self._weights,
            self.stride_per_key(),
            indices,
            length_per_key,
        )
        part = make_keyed_jagged(
            [self._keys[i] for i in indices],
            values,
            weights,
            lengths,
        )
        part._length_per_key = taken
        self._hand_down(part, indices)
        return part

    def _hand_down(self, part: KeyedJaggedTensor, indices: Sequence[int]) -> None:
        """Give a KeyedJaggedTensor of some of the keys its strides and inverse indices."""
        if not part._keys:
            part._stride = self.stride()
        if self._strides_per_rank is not None:
            strides = self._strides_per_rank
            part._strides_per_rank = (
                strides[list(indices)]
                if isinstance(strides, Tensor)
                else [strides[i] for i in indices]
            )
        if self._inverse_indices is not None:
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
