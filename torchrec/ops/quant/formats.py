"""How the rows of a quantised table lie in memory.

A row of codes begins with its scale and its bias, float16, low byte first; the codes follow, the first of a byte in its
low bits, and number i is ``code * scale + bias``. A row of floats is those alone. Rows are padded to a multiple of the
alignment. ``csrc/quant/quant.h`` has the same.
"""

from __future__ import annotations

from enum import IntEnum

import torch

HEAD = 4
"""Bytes of scale and bias."""


class RowFormat(IntEnum):
    """What the numbers of a quantised table are. The values are those that kernels are told."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    INT8 = 3
    INT4 = 4
    INT2 = 5

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return _BITS[self]

    @property
    def has_codes(self) -> bool:
        """Whether numbers are codes, with a scale and a bias a row."""
        return self >= RowFormat.INT8

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of rows of floats.

        Raises:
            ValueError: for codes, which have none.
        """
        if self.has_codes:
            raise ValueError(f"{self.name} should be a format of floats.")
        return _DTYPES[self]

    def row_bytes(self, dim: int, alignment: int = 1) -> int:
        """Return the bytes of a row: ``ceil((4 + D * bits / 8) / alignment) * alignment``, floats without the 4.

        Args:
            dim: D.
            alignment: what it is padded to a multiple of.

        Example:
            >>> RowFormat.INT8.row_bytes(64, 16), RowFormat.INT4.row_bytes(5), RowFormat.FP16.row_bytes(5, 16)
            (80, 7, 16)
        """
        size = HEAD * self.has_codes + (dim * self.bits + 7) // 8
        return -(-size // alignment) * alignment


_BITS = {
    RowFormat.FP32: 32,
    RowFormat.FP16: 16,
    RowFormat.BF16: 16,
    RowFormat.INT8: 8,
    RowFormat.INT4: 4,
    RowFormat.INT2: 2,
}
_DTYPES = {
    RowFormat.FP32: torch.float32,
    RowFormat.FP16: torch.float16,
    RowFormat.BF16: torch.bfloat16,
}


def checked_format(number: int) -> RowFormat:
    """Return the format of a number.

    Raises:
        ValueError: there is none.
    """
    if not 0 <= number < len(RowFormat):
        raise ValueError(f"`format` should be below {len(RowFormat)}. Received {number}.")
    return RowFormat(number)
