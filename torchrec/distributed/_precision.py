"""How vectors are written with fewer bits: rounded one by one, or as small numbers times a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.distributed._codecs import QuantizedCommCodec, VectorContext

_SCALE_BYTES = 4
_NAN = -128  # of int8, whose numbers are from -127 to 127
_TOP = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


class CastCodec(QuantizedCommCodec[object]):
    """Rounds each element to a dtype of 16 bits.

    Args:
        dtype: float16 or bfloat16.
        scale: what elements are multiplied by before, and divided by afterwards.
    """

    def __init__(self, dtype: torch.dtype, scale: float) -> None:
        self._dtype, self._scale = dtype, scale

    def encode(self, input_tensor: Tensor, ctx: object = None) -> Tensor:
        """Return the elements, rounded. What is too large for float16 becomes infinite."""
        scaled = input_tensor if self._scale == 1 else input_tensor * self._scale
        return scaled.to(self._dtype)

    def decode(self, input_grad: Tensor, ctx: object = None) -> Tensor:
        """Return the elements in float32."""
        found = input_grad.float()
        return found if self._scale == 1 else found / self._scale

    @property
    def quantized_dtype(self) -> torch.dtype:
        """The dtype that elements are rounded to."""
        return self._dtype

    def calc_quantized_size(self, input_len: int, ctx: object = None) -> int:
        """Return ``input_len``."""
        return input_len

    def padded_size(
        self, input_tensor: Tensor, dim_per_rank: list[int], my_rank: int, qcomm_ctx: object
    ) -> tuple[int, int]:
        """Return the columns of this rank, and 0: nothing is filled up."""
        return dim_per_rank[my_rank], 0

    def create_context(self) -> None:
        """Return None."""
        return

    def __repr__(self) -> str:
        return f"CastCodec({self._dtype}, scale={self._scale})"


class ScaledCodec(QuantizedCommCodec[object]):
    """Writes each vector as its largest number, in float32, and 8 bits an element: its share of that.

    First come the scales of all vectors, then the elements.

    Args:
        dtype: int8, float8_e4m3fn or float8_e5m2.
        columns: how many neighbours of a vector share a scale. Default: all.
    """

    def __init__(self, dtype: torch.dtype, columns: int | None = None) -> None:
        self._dtype, self._columns = dtype, columns

    def _groups(self, ctx: object, size: int) -> Tensor:
        """Return how many elements share each scale."""
        lengths = _lengths_of(ctx)
        lengths = torch.tensor([size]) if lengths is None else lengths
        if int(lengths.sum()) != size:
            raise ValueError(
                f"The lengths of vectors should sum to what there is of them, {size}. "
                f"Received a sum of {int(lengths.sum())}."
            )
        lengths = lengths[lengths > 0]
        if self._columns is None:
            return lengths
        counts = (lengths + self._columns - 1) // self._columns
        groups = torch.full((int(counts.sum()),), self._columns)
        groups[counts.cumsum(0) - 1] = lengths - (counts - 1) * self._columns
        return groups

    def encode(self, input_tensor: Tensor, ctx: object = None) -> Tensor:
        """Return scales and elements. What is not finite becomes NaN."""
        values = input_tensor.float().flatten()
        groups = self._groups(ctx, len(values))
        lines, of = _lines(values, groups)
        largest = _largest(lines, of, len(groups))
        finite: Tensor | None = None
        if not largest.isfinite().all():
            finite = lines.isfinite()
            largest = _largest(lines.where(finite, 0.0), of, len(groups))
        # A scale that is no normal number would lose the bits of its vector, or be 0.
        scales = (largest / _TOP[self._dtype]).clamp_min(torch.finfo(torch.float32).tiny)
        shares = lines / (scales.unsqueeze(1) if of is None else scales[of])
        top = _TOP[self._dtype]
        shares = shares.round_() if self._dtype is torch.int8 else shares.clamp_(-top, top)
        if finite is not None:
            shares = shares.where(finite, _NAN if self._dtype is torch.int8 else torch.nan)
        written = shares.flatten().to(self._dtype)
        return torch.cat([scales.view(torch.uint8), written.view(torch.uint8)])

    def decode(self, input_grad: Tensor, ctx: object = None) -> Tensor:
        """Return the elements in float32, ``(N,)``."""
        lengths, sent = _lengths_of(ctx), len(input_grad)
        if lengths is None:  # one vector, whose scales and elements fill what was sent
            scales_of_one = (
                1 if self._columns is None else -(-sent // (self._columns + _SCALE_BYTES))
            )
            size = max(sent - _SCALE_BYTES * scales_of_one, 0)
        else:
            size = int(lengths.sum())
        groups = self._groups(ctx, size)
        head = _SCALE_BYTES * len(groups)
        # Copied: memory of float32 has to begin at a multiple of 4 bytes.
        scales = input_grad[:head].clone().view(torch.float32)
        written = input_grad[head:].view(self._dtype)
        lines, of = _lines(written.float(), groups)
        found = lines.mul_(scales.unsqueeze(1) if of is None else scales[of]).flatten()
        if self._dtype is torch.int8 and len(written) and int(written.min()) == _NAN:
            found.masked_fill_(written == _NAN, torch.nan)
        return found

    @property
    def quantized_dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8

    def calc_quantized_size(self, input_len: int, ctx: object = None) -> int:
        """Return the bytes of so many elements: one each, and four for each scale."""
        return input_len + _SCALE_BYTES * len(self._groups(ctx, input_len))

    def padded_size(
        self, input_tensor: Tensor, dim_per_rank: list[int], my_rank: int, qcomm_ctx: object
    ) -> tuple[int, int]:
        """Return the columns of this rank, and 0: nothing is filled up."""
        return dim_per_rank[my_rank], 0

    def create_context(self) -> VectorContext:
        """Return that it is to be told where vectors begin."""
        return VectorContext()

    def __repr__(self) -> str:
        return f"ScaledCodec({self._dtype}, columns={self._columns})"


def _lengths_of(ctx: object) -> Tensor | None:
    return ctx.lengths if isinstance(ctx, VectorContext) else None


def _lines(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return values a group a line, if all are of one size; else as they are, and the group of each."""
    if len(groups) and int(groups.min()) == int(groups.max()):
        return values.view(len(groups), -1), None
    return values, torch.arange(len(groups)).repeat_interleave(groups)


def _largest(lines: Tensor, of: Tensor | None, num_groups: int) -> Tensor:
    """Return the largest magnitude of each group."""
    if of is None:
        return lines.abs().amax(1)
    return lines.new_zeros(num_groups).scatter_reduce_(0, of, lines.abs(), "amax")
