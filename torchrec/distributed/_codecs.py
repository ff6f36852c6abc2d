"""How vectors are written for the way between ranks: the interface, and to send them as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

QuantizationContext = TypeVar("QuantizationContext")


@dataclass(frozen=True)
class VectorContext:
    """Where in one rank's part of a message vectors begin, for codecs that look at vectors as a whole.

    Attributes:
        lengths: elements of each vector, in order, int64 ``(N,)``; None: what is sent is one vector.
    """

    lengths: Tensor | None = None


class QuantizedCommCodec(Generic[QuantizationContext]):
    """Writes vectors with fewer bits before they are sent, and reads them where they arrive."""

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Return what is sent.

        Args:
            input_tensor: float32, any shape; sharded collections give one rank's part, ``(N,)``.
            ctx: what `create_context` gave.
        """
        raise NotImplementedError

    def decode(self, input_grad: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Return the vectors that `encode` was given, as nearly as what was sent has them.

        Args:
            input_grad: what arrived.
            ctx: what `create_context` gave.
        """
        raise NotImplementedError

    @property
    def quantized_dtype(self) -> torch.dtype:
        """Of what is sent."""
        raise NotImplementedError

    def calc_quantized_size(self, input_len: int, ctx: QuantizationContext | None = None) -> int:
        """Return how many elements are sent for ``input_len`` of them."""
        raise NotImplementedError

    def padded_size(
        self,
        input_tensor: Tensor,
        dim_per_rank: list[int],
        my_rank: int,
        qcomm_ctx: QuantizationContext,
    ) -> tuple[int, int]:
        """Return how many columns this rank sends, and how many of them only fill up.

        Sharded collections do not ask: they hand over one rank's part of a message at a time, a vector behind the
        other, and `calc_quantized_size` says how long it gets.

        Args:
            input_tensor: the vectors, samples × columns.
            dim_per_rank: columns of each rank.
            my_rank: this one.
            qcomm_ctx: what `create_context` gave.
        """
        raise NotImplementedError

    def create_context(self) -> QuantizationContext | None:
        """Return what `encode` or `decode` of one rank's part shares with `calc_quantized_size`; None: nothing.

        A codec that wants to know where vectors begin returns a `VectorContext` without lengths, and is given one
        that has them.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return what ranks are to have alike: no address."""
        return f"{type(self).__qualname__}()"


class NoOpQuantizedCommCodec(QuantizedCommCodec[QuantizationContext]):
    """Sends vectors as they are.

    Example:
        >>> NoOpQuantizedCommCodec().encode(torch.ones(2))
        tensor([1., 1.])
    """

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Return the tensor itself."""
        return input_tensor

    def decode(self, input_grad: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """Return the tensor itself."""
        return input_grad

    @property
    def quantized_dtype(self) -> torch.dtype:
        """float32."""
        return torch.float32

    def calc_quantized_size(self, input_len: int, ctx: QuantizationContext | None = None) -> int:
        """Return ``input_len``."""
        return input_len

    def padded_size(
        self,
        input_tensor: Tensor,
        dim_per_rank: list[int],
        my_rank: int,
        qcomm_ctx: QuantizationContext,
    ) -> tuple[int, int]:
        """Return the columns of this rank, and 0: nothing is filled up."""
        return dim_per_rank[my_rank], 0

    def create_context(self) -> QuantizationContext | None:
        """Return None."""
        return None


_AS_IT_IS: QuantizedCommCodec[object] = NoOpQuantizedCommCodec()


@dataclass
class QuantizedCommCodecs:
    """How vectors are sent in the forward pass and their gradients in the backward pass.

    Attributes:
        forward: for vectors. Default: as they are.
        backward: for gradients. Default: as they are.
    """

    forward: QuantizedCommCodec[object] = _AS_IT_IS
    backward: QuantizedCommCodec[object] = _AS_IT_IS
