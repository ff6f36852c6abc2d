"""What a KeyedJaggedTensor holds: keys, tensors, and the host-side numbers derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops._eager import is_readable
from torchrec.ops.jagged import (
    lengths_to_offsets,
    offsets_to_lengths,
    sum_equal_groups,
    sum_groups,
)
from torchrec.sparse._checks import (
    check_inverse_indices,
    check_keyed_jagged,
    check_known,
    checked_keys,
    fits_at_a_glance,
    strides_of_ranks,
)
from torchrec.sparse._text import keyed_jagged_text

Strides = list[list[int]] | Tensor
Inverse = tuple[list[str], Tensor]
T = TypeVar("T")
Self = TypeVar("Self", bound="JaggedLayout")


def running_sums(lengths: Sequence[int]) -> list[int]:
    """Sum up from 0: ``[2, 3]`` gives ``[0, 2, 5]``."""
    return list(accumulate(lengths, initial=0))


class JaggedLayout:
    """The state of a KeyedJaggedTensor: how it is taken in, and every way to read it.

    Numbers that live on the host (length, offset and index of each key) are computed when first asked for and kept.
    While a graph is traced nothing is kept: it would change the inputs of the graph, and make the next call compile
    again.
    """

    _keys: list[str]
    _values: Tensor
    _weights: Tensor | None
    _lengths: Tensor | None
    _offsets: Tensor | None
    # Set only where they say something that the tensors do not.
    _stride: int | None = None  # without keys: nothing else tells the size of the batch
    _strides_per_rank: Strides | None = None  # variable batch: [F][W] or a tensor [F, W]
    _inverse_indices: Inverse | None = None
    # Caches.
    _stride_per_key: list[int] | None = None
    _length_per_key: list[int] | None = None
    _offset_per_key: list[int] | None = None
    _lengths_offset_per_key: list[int] | None = None
    _index_per_key: dict[str, int] | None = None
    _jt_dict: dict[str, Any] | None = None

    def _take(
        self,
        keys: list[str],
        values: Tensor,
        weights: Tensor | None,
        lengths: Tensor | None,
        offsets: Tensor | None,
        stride: int | None,
        strides_per_rank: Strides | None,
        stride_per_key: list[int] | None,
        inverse_indices: Inverse | None,
    ) -> None:
        """Take in what a KeyedJaggedTensor is built from, and check it."""
        self._keys = keys = keys if type(keys) is list else checked_keys(keys)
        self._values = values
        self._weights = weights
        self._lengths = lengths
        self._offsets = offsets
        if strides_per_rank is not None or stride_per_key is not None:
            self._set_strides(strides_per_rank, stride_per_key)
        elif (
            offsets is None
            and weights is None
            and inverse_indices is None
            and stride is None
            and not is_compiling()
            and fits_at_a_glance(keys, values, lengths)
        ):
            return  # the most common form, which every batch pays for
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

    def _set_strides(self, per_rank: Strides | None, per_key: list[int] | None) -> None:
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

    def _take_known(
        self,
        length_per_key: list[int] | None,
        lengths_offset_per_key: list[int] | None,
        offset_per_key: list[int] | None,
        index_per_key: dict[str, int] | None,
    ) -> None:
        """Take in what could be computed; on a CPU, where it costs little, only if it is true."""
        if is_readable(self._values):
            for name, given, true in (
                ("length_per_key", length_per_key, self.length_per_key),
                ("offset_per_key", offset_per_key, self.offset_per_key),
                ("lengths_offset_per_key", lengths_offset_per_key, self.lengths_offset_per_key),
                ("index_per_key", index_per_key, self.index_per_key),
            ):
                if given is not None:
                    check_known(name, given, true())
        if length_per_key is None and offset_per_key is not None:
            length_per_key = [b - a for a, b in pairwise(offset_per_key)]
        self._length_per_key = length_per_key
        self._lengths_offset_per_key = lengths_offset_per_key
        self._offset_per_key = offset_per_key
        self._index_per_key = index_per_key

    def _new(
        self: Self,
        keys: list[str],
        values: Tensor,
        weights: Tensor | None,
        lengths: Tensor | None,
        offsets: Tensor | None = None,
    ) -> Self:
        """Make one of parts that need no check."""
        other = object.__new__(type(self))
        other._keys = keys
        other._values = values
        other._weights = weights
        other._lengths = lengths
        other._offsets = offsets
        return other

    def keys(self) -> list[str]:
        """Return the F keys."""
        return self._keys

    def values(self) -> Tensor:
        """Return the values of all keys, ``[N]``: key after key, sample after sample."""
        return self._values

    def weights(self) -> Tensor:
        """Return the weights, ``[N]``.

        Raises:
            ValueError: there are none.
        """
        if self._weights is None:
            raise ValueError(
                "`weights` should be given to be read. This KeyedJaggedTensor has none."
            )
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        """Return the weights, or None."""
        return self._weights

    def lengths(self) -> Tensor:
        """Return the number of values of each bag, ``[F * B]``."""
        lengths = self._lengths
        if lengths is None:
            assert self._offsets is not None
            lengths = offsets_to_lengths(self._offsets)
            if not is_compiling():
                self._lengths = lengths
        return lengths

    def lengths_or_none(self) -> Tensor | None:
        """Return the lengths if they were given or computed before, or None."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Return where each bag starts in the values, and the end of the last, ``[F * B + 1]``."""
        offsets = self._offsets
        if offsets is None:
            assert self._lengths is not None
            offsets = lengths_to_offsets(self._lengths)
            if not is_compiling():
                self._offsets = offsets
        return offsets

    def offsets_or_none(self) -> Tensor | None:
        """Return the offsets if they were given or computed before, or None."""
        return self._offsets

    def device(self) -> torch.device:
        """Return the device of the values."""
        return self._values.device

    def variable_stride_per_key(self) -> bool:
        """Say whether the keys have batches of their own sizes."""
        return self._strides_per_rank is not None

    def num_bags(self) -> int:
        """Return the number of bags of all keys together: the number of lengths."""
        if self._lengths is not None:
            return self._lengths.size(0)
        assert self._offsets is not None
        return self._offsets.size(0) - 1

    def stride(self) -> int:
        """Return the size of the batch, B.

        With a variable batch per key: the size of the full batch if inverse indices tell it, or else of the largest.
        """
        if self._strides_per_rank is not None:
            if self._inverse_indices is not None:
                return self._inverse_indices[1].size(-1)
            return max(self.stride_per_key(), default=0)
        if self._stride is not None:
            return self._stride
        return self.num_bags() // len(self._keys)

    def stride_per_key(self) -> list[int]:
        """Return the size of each key's batch."""
        per_rank = self._strides_per_rank
        if per_rank is None:
            return [self.stride()] * len(self._keys)
        strides = self._stride_per_key
        if strides is None:
            strides = self._keep(
                "_stride_per_key",
                per_rank.sum(1).tolist()
                if isinstance(per_rank, Tensor)
                else [sum(row) for row in per_rank],
            )
        return strides

    def stride_per_key_per_rank(self) -> list[list[int]]:
        """Return the size of each key's batch on each rank, ``[F][W]``; empty unless the batch varies by key."""
        per_rank = self._strides_per_rank
        if per_rank is None:
            return []
        if isinstance(per_rank, Tensor):
            return self._keep("_strides_per_rank", per_rank.tolist())
        return per_rank

    def inverse_indices(self) -> Inverse:
        """Return, for each key, which of its samples stands at each place of the full batch.

        Returns:
            The keys, and a tensor ``[F, B]`` of positions in each key's own batch.

        Raises:
            ValueError: there are none.
        """
        if self._inverse_indices is None:
            raise ValueError(
                "`inverse_indices` should be given to be read. This KeyedJaggedTensor has none."
            )
        return self._inverse_indices

    def inverse_indices_or_none(self) -> Inverse | None:
        """Return the inverse indices, or None."""
        return self._inverse_indices

    def index_per_key(self) -> dict[str, int]:
        """Return the position of each key."""
        index = self._index_per_key
        if index is None:
            index = self._keep("_index_per_key", {k: i for i, k in enumerate(self._keys)})
        return index

    def length_per_key(self) -> list[int]:
        """Return the number of values of each key. On an accelerator this waits for the lengths, once."""
        lengths = self._length_per_key
        if lengths is None:
            if not self._keys:
                return []
            if self._strides_per_rank is None:
                lengths = sum_equal_groups(self.lengths(), len(self._keys))
            else:
                lengths = sum_groups(self.lengths(), self.stride_per_key())
            self._keep("_length_per_key", lengths)
        return lengths

    def length_per_key_or_none(self) -> list[int] | None:
        """Return the number of values of each key if it is known on the host, or None."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """Return where each key starts in the values, and the end of the last."""
        offsets = self._offset_per_key
        if offsets is None:
            offsets = self._keep("_offset_per_key", running_sums(self.length_per_key()))
        return offsets

    def offset_per_key_or_none(self) -> list[int] | None:
        """Return where each key starts in the values if it is known on the host, or None."""
        return self._offset_per_key

    def lengths_offset_per_key(self) -> list[int]:
        """Return where each key starts in the lengths, and the end of the last."""
        offsets = self._lengths_offset_per_key
        if offsets is None:
            offsets = self._keep("_lengths_offset_per_key", running_sums(self.stride_per_key()))
        return offsets

    def sync(self: Self) -> Self:
        """Bring the numbers of each key to the host, so that nothing waits for them later, and return this."""
        self.stride_per_key_per_rank()
        self.offset_per_key()
        return self

    def unsync(self: Self) -> Self:
        """Forget the numbers of each key that were computed from the lengths, and return this."""
        self._length_per_key = self._offset_per_key = None
        return self

    def tensors(self) -> list[Tensor]:
        """Return every tensor held."""
        held = [self._values, self._weights, self._lengths, self._offsets]
        if isinstance(self._strides_per_rank, Tensor):
            held.append(self._strides_per_rank)
        if self._inverse_indices is not None:
            held.append(self._inverse_indices[1])
        return [tensor for tensor in held if tensor is not None]

    def size_in_bytes(self) -> int:
        """Return the size of the tensors held, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def clear_storage(self) -> int:
        """Free the memory of every tensor, views of it included, and return how many bytes that was."""
        freed = 0
        for tensor in self.tensors():
            storage = tensor.untyped_storage()
            freed += storage.nbytes()
            storage.resize_(0)
        return freed

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        for tensor in self.tensors():
            tensor.record_stream(stream)

    def __str__(self) -> str:
        return keyed_jagged_text(
            self._keys,
            self._values,
            self._weights,
            self.offsets().tolist(),
            self.lengths_offset_per_key(),
        )

    def _keep(self, name: str, value: T) -> T:
        if not is_compiling():
            setattr(self, name, value)
        return value
