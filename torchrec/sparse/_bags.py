"""The parts of a KeyedJaggedTensor: keys, tensors, and the numbers on the host that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops import is_readable
from torchrec.ops.jagged import sum_groups
from torchrec.ops.jagged.schema import sum_equal_groups  # itself: lengths are checked
from torchrec.sparse._checks import check_metadata, check_same_sizes
from torchrec.sparse._lengths import BagLengths, bound_pairs

Strides = list[list[int]] | Tensor
Inverse = tuple[list[str], Tensor]


def running_sums(lengths: Sequence[int]) -> list[int]:
    """Sum up from 0: ``[2, 3]`` gives ``[0, 2, 5]``."""
    return list(accumulate(lengths, initial=0))


def _largest(sizes: list[int]) -> int:
    # Sizes in a graph may be numbers yet to come, which `max` cannot compare.
    return reduce(torch.sym_max, sizes, 0) if is_compiling() else max(sizes, default=0)


class KeyedBags(BagLengths):
    """The one record of what a KeyedJaggedTensor consists of, and the only place that computes from it.

    Nothing is checked here; see ``checked_bags``. The numbers on the host (length, offset and index of each key) are
    computed when they are first asked for and kept, but for while a graph is traced, as lengths and offsets are.

    Args:
        keys: F keys.
        values: ``[N]`` values of all bags.
        weights: ``[N]``, or None.
        lengths: ``[F * B]``, or None.
        offsets: ``[F * B + 1]``, or None.
        stride: B; only where nothing else tells it: without keys, and where batches vary by key.
        strides_per_rank: ``[F][W]``, as lists or a tensor; only where batches vary by key.
        inverse_indices: keys, and ``[F, B]`` places in each key's own batch.
        stride_per_key: size of each key's batch where they vary, if known.
        length_per_key: number of values of each key, if known.
    """

    # Computed when asked for.
    _computed: str | None = None
    _offset_per_key: list[int] | None = None
    _lengths_offset_per_key: list[int] | None = None
    _index_per_key: dict[str, int] | None = None

    def __init__(
        self,
        keys: list[str],
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        stride: int | None = None,
        strides_per_rank: Strides | None = None,
        inverse_indices: Inverse | None = None,
        stride_per_key: list[int] | None = None,
        length_per_key: list[int] | None = None,
    ) -> None:
        self.keys = keys
        self.values = values
        self.weights = weights
        self._lengths = lengths
        self._offsets = offsets
        self._stride = stride
        self.strides_per_rank = strides_per_rank
        self.inverse_indices = inverse_indices
        self._stride_per_key = stride_per_key
        self._length_per_key = length_per_key

    # ---- tensors

    def num_bags(self) -> int:
        """Return the number of bags of all keys together: the number of lengths."""
        if self._lengths is not None:
            return self._lengths.size(0)
        assert self._offsets is not None
        return self._offsets.size(0) - 1

    def tensors(self) -> list[Tensor]:
        """Return every tensor held."""
        held = [self.values, self.weights, self._lengths, self._offsets]
        if isinstance(self.strides_per_rank, Tensor):
            held.append(self.strides_per_rank)
        if self.inverse_indices is not None:
            held.append(self.inverse_indices[1])
        return [tensor for tensor in held if tensor is not None]

    def clear_storage(self) -> int:
        """Free the memory of every tensor, views of it included, and return how many bytes that was."""
        freed = 0
        for tensor in self.tensors():
            storage = tensor.untyped_storage()
            freed += storage.nbytes()
            storage.resize_(0)
        return freed

    def require_weights(self) -> Tensor:
        """Return the weights; see ``KeyedJaggedTensor.weights``."""
        if self.weights is None:
            raise ValueError(
                "`weights` should be given to be read. This KeyedJaggedTensor has none."
            )
        return self.weights

    def require_inverse(self) -> Inverse:
        """Return the inverse indices; see ``KeyedJaggedTensor.inverse_indices``."""
        if self.inverse_indices is None:
            raise ValueError(
                "`inverse_indices` should be given to be read. This KeyedJaggedTensor has none."
            )
        return self.inverse_indices

    # ---- numbers of each key, on the host

    def stride(self) -> int:
        """Return the size of the batch, B; see ``KeyedJaggedTensor.stride``."""
        if self.strides_per_rank is not None:
            if self.inverse_indices is not None:
                return self.inverse_indices[1].size(-1)
            if self._stride is None:
                return _largest(self.stride_per_key())
        if self._stride is not None:
            return self._stride
        return self.num_bags() // len(self.keys)

    def stride_or_none(self) -> int | None:
        """Return the size of the batch where nothing else tells it, or None."""
        return self._stride

    def stride_per_key(self) -> list[int]:
        """Return the size of each key's batch."""
        per_rank = self.strides_per_rank
        if per_rank is None:
            return [self.stride()] * len(self.keys)
        strides = self._stride_per_key
        if strides is None:
            strides = (
                per_rank.sum(1).tolist()
                if isinstance(per_rank, Tensor)
                else [sum(row) for row in per_rank]
            )
            if not is_compiling():
                self._stride_per_key = strides
        return strides

    def stride_per_key_per_rank(self) -> list[list[int]]:
        """Return the size of each key's batch on each rank, ``[F][W]``; empty unless the batch varies by key."""
        per_rank = self.strides_per_rank
        if per_rank is None:
            return []
        if isinstance(per_rank, Tensor):
            per_rank = per_rank.tolist()
            if not is_compiling():
                self.strides_per_rank = per_rank
        return per_rank

    def strides_tensor(self) -> Tensor | None:
        """Return the size of each key's batch on each rank as a tensor ``[F, W]`` on the host, or None."""
        per_rank = self.strides_per_rank
        if per_rank is None or isinstance(per_rank, Tensor):
            return per_rank
        ranks = len(per_rank[0]) if per_rank else 0
        return torch.tensor(per_rank, dtype=torch.int64, device="cpu").view(len(per_rank), ranks)

    def index_per_key(self) -> dict[str, int]:
        """Return the position of each key."""
        index = self._index_per_key
        if index is None:
            index = {key: i for i, key in enumerate(self.keys)}
            if not is_compiling():
                self._index_per_key = index
        return index

    def length_per_key(self) -> list[int]:
        """Return the number of values of each key. On an accelerator this waits for the lengths, once."""
        lengths = self._length_per_key
        if lengths is None:
            if not self.keys:
                return []
            if self.values.is_meta:
                raise ValueError(
                    "`length_per_key` should be given where it is needed on the meta device, "
                    f"whose lengths hold no numbers. Received none for keys {self.keys}."
                )
            if self.strides_per_rank is None:
                of_bags = self.lengths() if self._lengths is None else self._lengths
                lengths = sum_equal_groups(of_bags, len(self.keys))
            else:
                lengths = sum_groups(self.lengths(), self.stride_per_key())
            if not is_compiling():
                self._length_per_key = lengths
        return lengths

    def length_per_key_or_none(self) -> list[int] | None:
        """Return the number of values of each key if it is known on the host, or None."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """Return where each key starts in the values, and the end of the last."""
        offsets = self._offset_per_key
        if offsets is None:
            offsets = running_sums(self.length_per_key())
            if not is_compiling():
                self._offset_per_key = offsets
        return offsets

    def offset_per_key_or_none(self) -> list[int] | None:
        """Return where each key starts in the values if it is known on the host, or None."""
        return self._offset_per_key

    def lengths_offset_per_key(self) -> list[int]:
        """Return where each key starts in the lengths, and the end of the last."""
        offsets = self._lengths_offset_per_key
        if offsets is None:
            offsets = running_sums(self.stride_per_key())
            if not is_compiling():
                self._lengths_offset_per_key = offsets
        return offsets

    def set_metadata(
        self,
        length_per_key: list[int] | None,
        lengths_offset_per_key: list[int] | None,
        offset_per_key: list[int] | None,
        index_per_key: dict[str, int] | None,
    ) -> None:
        """Set numbers that could be computed; on a CPU, where it costs little, only if they are right."""
        if is_readable(self.values):
            for name, given, computed in (
                ("length_per_key", length_per_key, self.length_per_key),
                ("offset_per_key", offset_per_key, self.offset_per_key),
                ("lengths_offset_per_key", lengths_offset_per_key, self.lengths_offset_per_key),
                ("index_per_key", index_per_key, self.index_per_key),
            ):
                if given is not None:
                    check_metadata(name, given, computed())
        if length_per_key is None and offset_per_key is not None:
            length_per_key = [b - a for a, b in pairwise(offset_per_key)]
        self._length_per_key = length_per_key
        self._lengths_offset_per_key = lengths_offset_per_key
        self._offset_per_key = offset_per_key
        self._index_per_key = index_per_key

    def sync(self) -> None:
        """Bring the numbers of each key to the host, so that nothing waits for them later. On meta there are none."""
        self.stride_per_key_per_rank()
        if not self.values.is_meta:
            self.offset_per_key()

    def unsync(self) -> None:
        """Forget the numbers of each key that were computed from the lengths."""
        self._length_per_key = self._offset_per_key = None

    # ---- other records of the same bags

    def of_keys(
        self,
        order: Sequence[int],
        values: Tensor,
        weights: Tensor | None,
        lengths: Tensor,
        length_per_key: list[int] | None,
    ) -> KeyedBags:
        """Return a record of the keys at ``order``, with their tensors and what only this one knows of the batch."""
        keys = list(map(self.keys.__getitem__, order))
        per_rank = self.strides_per_rank
        # A part of keys whose batches vary is a part of the same full batch.
        stride = None if order and per_rank is None else self.stride()
        if per_rank is None:
            return KeyedBags(
                keys, values, weights, lengths, None, stride, None, None, None, length_per_key
            )
        strides = self._stride_per_key
        return KeyedBags(
            keys,
            values,
            weights,
            lengths,
            None,
            stride,
            per_rank[list(order)] if isinstance(per_rank, Tensor) else [per_rank[i] for i in order],
            self.inverse_indices,  # they name their keys, so that they stay right for any selection
            None if strides is None else [strides[i] for i in order],
            length_per_key,
        )

    def emptied(self) -> KeyedBags:
        """Return a record of no keys, over the same batch and of the same dtypes."""
        weights = None if self.weights is None else self.weights[:0]
        return self.of_keys([], self.values[:0], weights, self.lengths()[:0], [])

    def map(self, function: Callable[[Tensor], Tensor]) -> KeyedBags:
        """Return a record with a function applied to every tensor of data, and the same numbers on the host."""
        weights, inverse = self.weights, self.inverse_indices
        other = self.replace(function(self.values), None if weights is None else function(weights))
        if other._lengths is not None:
            other._lengths = function(other._lengths)
        if other._offsets is not None:
            other._offsets = function(other._offsets)
        if inverse is not None:
            other.inverse_indices = inverse[0], function(inverse[1])
        return other

    def replace(self, values: Tensor, weights: Tensor | None) -> KeyedBags:
        """Return a record of the same bags with other values and weights, and with caches of its own."""
        other = object.__new__(KeyedBags)
        other.__dict__.update(self.__dict__)
        other.values, other.weights = values, weights
        return other

    def copy_(self, other: KeyedBags, non_blocking: bool) -> None:
        """Copy the tensors of another record of the same keys and sizes into those of this one."""
        if self.keys != other.keys:
            raise ValueError(f"`kjt` should have the keys {self.keys}. Received {other.keys}.")
        pairs = [(self.values, other.values), *bound_pairs(self, other)]
        if self.weights is not None and other.weights is not None:
            pairs.append((self.weights, other.weights))
        if self.inverse_indices is not None:
            pairs.append((self.inverse_indices[1], other.require_inverse()[1]))
        check_same_sizes("kjt", pairs, other.weights, self.weights)
        for own, given in pairs:
            own.copy_(given, non_blocking)
        self._stride = other._stride
        self.strides_per_rank = other.strides_per_rank
        self._stride_per_key = other._stride_per_key
        self._lengths_offset_per_key = other._lengths_offset_per_key
        self.unsync()

    # ---- saved forms

    def state(self) -> dict[str, object]:
        """Return all that is held, under the names that it has in files; see ``from_state``."""
        return {f"_{name.removeprefix('_')}": value for name, value in vars(self).items()}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> KeyedBags:
        """Build a record from its saved state; what could be computed may be missing."""
        bags = KeyedBags(
            state["_keys"],
            state["_values"],
            state["_weights"],
            state["_lengths"],
            state["_offsets"],
            state.get("_stride"),
            state.get("_strides_per_rank"),
            state.get("_inverse_indices"),
            state.get("_stride_per_key"),
            state.get("_length_per_key"),
        )
        bags._computed = state.get("_computed")
        bags._offset_per_key = state.get("_offset_per_key")
        bags._lengths_offset_per_key = state.get("_lengths_offset_per_key")
        bags._index_per_key = state.get("_index_per_key")
        return bags
