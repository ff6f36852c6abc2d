"""JaggedTensor: one list of values for each sample of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.ops.jagged import (
    jagged_to_padded,
    lengths_to_offsets,
    offsets_to_lengths,
)
from torchrec.sparse._checks import check_jagged
from torchrec.sparse._text import jagged_text
from torchrec.streamable import Pipelineable


class JaggedTensor(Pipelineable):
    """A batch of bags of different lengths: all values in one tensor, and where each bag ends.

    Bag b is ``values[offsets[b] : offsets[b + 1]]``, and ``lengths[b]`` values long. Lengths and offsets say the same;
    give one, and the other is computed when it is asked for.

    Args:
        values: ``[N, ...]`` values (ids, floats, or one embedding a row), any dtype.
        weights: ``[N]`` one weight a value. Default: unweighted.
        lengths: ``[B]`` number of values of each bag, int32 or int64.
        offsets: ``[B + 1]`` where each bag starts, and the end of the last, int32 or int64.

    Raises:
        ValueError: neither lengths nor offsets given, or they do not fit the values.
        TypeError: lengths or offsets that are not int32 or int64.

    Example:
        >>> jt = JaggedTensor(torch.tensor([5, 7, 1]), lengths=torch.tensor([1, 2]))
        >>> jt.offsets()
        tensor([0, 1, 3])
        >>> jt.to_dense()
        [tensor([5]), tensor([7, 1])]
        >>> print(jt)
        JaggedTensor({
            [[5], [7, 1]]
        })
    """

    _values: Tensor
    _weights: Tensor | None
    _lengths: Tensor | None
    _offsets: Tensor | None

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        check_jagged(values, weights, lengths, offsets)
        self._values = values
        self._weights = weights
        self._lengths = lengths
        self._offsets = offsets

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int32,
    ) -> JaggedTensor:
        """Make a jagged tensor of no bags."""
        return JaggedTensor(
            torch.empty(0, dtype=values_dtype or torch.int64, device=device),
            torch.empty(0, dtype=weights_dtype, device=device) if is_weighted else None,
            torch.empty(0, dtype=lengths_dtype, device=device),
        )

    @staticmethod
    def empty_like(jt: JaggedTensor, device: torch.device | None = None) -> JaggedTensor:
        """Make a jagged tensor of no bags, with the dtypes (and the device) of another."""
        weights = jt._weights
        return JaggedTensor.empty(
            weights is not None,
            device or jt.device(),
            jt._values.dtype,
            None if weights is None else weights.dtype,
            jt.lengths().dtype,
        )

    @staticmethod
    def from_dense(values: list[Tensor], weights: list[Tensor] | None = None) -> JaggedTensor:
        """Join one tensor a bag.

        Example:
            >>> jt = JaggedTensor.from_dense([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
            >>> jt.lengths()
            tensor([2, 1], dtype=torch.int32)
        """
        if not values:
            return JaggedTensor.empty(weights is not None, values_dtype=torch.float32)
        lengths = torch.tensor(
            [v.size(0) for v in values], dtype=torch.int32, device=values[0].device
        )
        return JaggedTensor(
            torch.cat(values), None if weights is None else torch.cat(weights), lengths
        )

    @staticmethod
    def from_dense_lengths(
        values: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> JaggedTensor:
        """Take the first ``lengths[b]`` values of each row b."""
        mask = torch.arange(values.size(1), device=values.device) < lengths[:, None]
        return JaggedTensor(values[mask], None if weights is None else weights[mask], lengths)

    def values(self) -> Tensor:
        """Return the values of all bags, ``[N, ...]``."""
        return self._values

    def weights(self) -> Tensor:
        """Return the weights, ``[N]``."""
        if self._weights is None:
            raise ValueError("`weights` should be given to be read. This JaggedTensor has none.")
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        """Return the weights, or None."""
        return self._weights

    def lengths(self) -> Tensor:
        """Return the number of values of each bag, ``[B]``."""
        if self._lengths is None:
            assert self._offsets is not None
            self._lengths = offsets_to_lengths(self._offsets)
        return self._lengths

    def lengths_or_none(self) -> Tensor | None:
        """Return the lengths if they were given or computed before, or None."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Return where each bag starts, and the end of the last, ``[B + 1]``."""
        if self._offsets is None:
            assert self._lengths is not None
            self._offsets = lengths_to_offsets(self._lengths)
        return self._offsets

    def offsets_or_none(self) -> Tensor | None:
        """Return the offsets if they were given or computed before, or None."""
        return self._offsets

    def device(self) -> torch.device:
        """Return the device of the values."""
        return self._values.device

    def to_dense(self) -> list[Tensor]:
        """Return one tensor a bag: views of the values."""
        return list(torch.split_with_sizes(self._values, self.lengths().tolist()))

    def to_dense_weights(self) -> list[Tensor] | None:
        """Return one tensor of weights a bag, or None without weights."""
        if self._weights is None:
            return None
        return list(torch.split_with_sizes(self._weights, self.lengths().tolist()))

    def _longest(self) -> int:
        lengths = self.lengths()
        return int(lengths.max()) if lengths.numel() else 0

    def to_padded_dense(
        self, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor:
        """Return bag b in row b of a dense tensor, cut or padded to one length."""
        width = self._longest() if desired_length is None else desired_length
        return jagged_to_padded(self._values, self.offsets(), width, padding_value)

    def to_padded_dense_weights(
        self, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor | None:
        """Return the weights of bag b in row b of a dense tensor, or None without weights."""
        if self._weights is None:
            return None
        width = self._longest() if desired_length is None else desired_length
        return jagged_to_padded(self._weights, self.offsets(), width, padding_value)

    def _map(self, function: object) -> JaggedTensor:
        raise NotImplementedError

    def to(self, device: torch.device, non_blocking: bool = False) -> JaggedTensor:
        """Return this jagged tensor on ``device``."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, non_blocking=non_blocking)

        return make_jagged(
            self._values.to(device, non_blocking=non_blocking),
            move(self._weights),
            move(self._lengths),
            move(self._offsets),
        )

    def copy_(self, jt: JaggedTensor, non_blocking: bool = False) -> JaggedTensor:
        """Copy another jagged tensor of the same sizes into this one's tensors."""
        self._values.copy_(jt._values, non_blocking)
        if self._weights is not None:
            self._weights.copy_(jt.weights(), non_blocking)
        if self._lengths is not None:
            self._lengths.copy_(jt.lengths(), non_blocking)
        if self._offsets is not None:
            self._offsets.copy_(jt.offsets(), non_blocking)
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        for t in (self._values, self._weights, self._lengths, self._offsets):
            if t is not None:
                t.record_stream(stream)

    def size_in_bytes(self) -> int:
        """Return the size of the tensors held, in bytes."""
        tensors = (self._values, self._weights, self._lengths, self._offsets)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def __str__(self) -> str:
        return jagged_text(self._values, self._weights, self.offsets().tolist())


def make_jagged(
    values: Tensor, weights: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
) -> JaggedTensor:
    """Make a JaggedTensor of parts that were checked before."""
    jt = object.__new__(JaggedTensor)
    jt._values = values
    jt._weights = weights
    jt._lengths = lengths
    jt._offsets = offsets
    return jt


JaggedTensor.__module__ = "torchrec.sparse.jagged_tensor"
