"""What is made of a KeyedJaggedTensor: parts of it, permutations, copies elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.ops.permute import permute_jagged
from torchrec.sparse._jagged import JaggedTensor, make_jagged
from torchrec.sparse._keyed_join import copy_into, expand_into
from torchrec.sparse._layout import JaggedLayout, running_sums

Self = TypeVar("Self", bound="KeyedParts")


def split_rows(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Cut a tensor into views of ``sizes`` rows.

    Of integers the "unsafe" kind is meant: it only leaves out the bookkeeping of views for autograd, which has no use
    for integers, and that is a third of the time.
    """
    if rows.is_floating_point() or is_compiling():
        return torch.split_with_sizes(rows, sizes)
    return torch.unsafe_split_with_sizes(rows, sizes)


class KeyedParts(JaggedLayout):
    """The operations of a KeyedJaggedTensor that make new ones of its own tensors.

    What they make of a checked one needs no check of its own.
    """

    _jt_dict: dict[str, JaggedTensor] | None = None

    def _new(
        self: Self,
        keys: list[str],
        values: Tensor,
        weights: Tensor | None,
        lengths: Tensor | None,
        offsets: Tensor | None = None,
    ) -> Self:
        kjt = object.__new__(type(self))
        kjt._keys = keys
        kjt._values = values
        kjt._weights = weights
        kjt._lengths = lengths
        kjt._offsets = offsets
        return kjt

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
            >>> from torchrec import KeyedJaggedTensor
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

    def split(self: Self, segments: list[int]) -> list[Self]:
        """Cut the keys into runs of ``segments[i]`` keys: views of this one's tensors.

        Args:
            segments: number of keys of each part, 0 or more; together all keys.

        Raises:
            ValueError: segments do not sum to the number of keys.

        Example:
            >>> from torchrec import KeyedJaggedTensor
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
            part = self._new(keys[a:b], v, w, n)
            part._length_per_key = sizes[a:b]
            if a == b or not plain:
                self._hand_down(part, range(a, b))
            parts.append(part)
        return parts

    def permute(self: Self, indices: list[int], indices_tensor: Tensor | None = None) -> Self:
        """Take keys by position, in the order given; a key may be left out or taken several times.

        Args:
            indices: positions of the keys.
            indices_tensor: the same as a tensor; without effect here.

        Raises:
            IndexError: there is no key at a position.

        Example:
            >>> from torchrec import KeyedJaggedTensor
            >>> kjt = KeyedJaggedTensor.from_lists({"a": [[1], [2, 3]], "b": [[], [4]]})
            >>> kjt.permute([1, 0]).to_lists()
            {'b': [[], [4]], 'a': [[1], [2, 3]]}
        """
        keys = self._keys
        plain = self._strides_per_rank is None
        # In a graph the sizes may be unknown, and if every key is taken once they need not be known.
        sizes = self._length_per_key if is_compiling() else self.length_per_key()
        values, weights, lengths = permute_jagged(
            self.lengths(),
            self._values,
            self._weights,
            self.stride() if plain and sizes is not None else self.stride_per_key(),
            indices,
            sizes,
        )
        part = self._new([keys[i] for i in indices], values, weights, lengths)
        part._length_per_key = None if sizes is None else [sizes[i] for i in indices]
        if not plain or not indices:
            self._hand_down(part, indices)
        return part

    def _hand_down(self, part: JaggedLayout, indices: Sequence[int]) -> None:
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

    def expand_inverse(self: Self) -> Self:
        """Gather every key to the full batch by its inverse indices, so that an ordinary look-up can follow.

        Returns:
            One with a batch of one size for all keys, and without inverse indices.

        Raises:
            ValueError: there are no inverse indices.

        Example:
            >>> from torchrec import KeyedJaggedTensor
            >>> kjt = KeyedJaggedTensor(
            ...     ["a", "b"],
            ...     torch.tensor([5, 6, 7]),
            ...     lengths=torch.tensor([1, 1, 1]),
            ...     stride_per_key_per_rank=[[2], [1]],
            ...     inverse_indices=(["a", "b"], torch.tensor([[0, 1, 0], [0, 0, 0]])),
            ... )
            >>> kjt.expand_inverse().to_lists()
            {'a': [[5], [6], [5]], 'b': [[7], [7], [7]]}
        """
        expanded = object.__new__(type(self))
        expand_into(expanded, self)
        return expanded

    def flatten_lengths(self: Self) -> Self:
        """Return this with one-dimensional lengths: they always are, so it is the same under a new object."""
        return self._map(lambda tensor: tensor)

    # ---- moving and copying

    def _map(self: Self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor of data, and keep what is known on the host."""

        def apply(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        other = self._new(
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
        self: Self,
        device: torch.device,
        non_blocking: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Return this on ``device``, with what is known on the host.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
            dtype: of the weights. Values are ids and keep theirs. Default: as it is.
        """
        other = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if dtype is not None and other._weights is not None:
            other._weights = other._weights.to(dtype)
        return other

    def pin_memory(self: Self) -> Self:
        """Return this in pinned memory, from which copies to an accelerator need not wait."""
        return self._map(lambda tensor: tensor.pin_memory())

    def copy_(self: Self, kjt: JaggedLayout, non_blocking: bool = False) -> Self:
        """Copy another of the same keys and sizes into this one's tensors, and return this.

        Args:
            kjt: what to copy.
            non_blocking: copy without waiting where memory is pinned. Default False.

        Raises:
            ValueError: keys or sizes differ.
        """
        copy_into(self, kjt, non_blocking)
        return self
