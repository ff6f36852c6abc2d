"""Memory of a process that trains on the CPU, as tensors come and go in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Block", "Heap", "on_whole_pages"]

_RECYCLED = 1 << 20  # bytes of a vector whose memory is kept for later ones
_LEAST_KEPT = 1 << 12
_HUGE_PAGE = 1 << 21

Span = tuple[float, float]
"""Bytes, from and to."""


@dataclass(eq=False)
class Block:
    """Memory of a tensor.

    Attributes:
        written: bytes of it that have been written to: others take no memory.
        size: bytes, where it is kept when the tensor dies; 0: it is not.
        spans: where these bytes are, in order, if it is kept.
    """

    written: float
    size: int = 0
    spans: list[Span] = field(default_factory=list)


class Heap:
    """Counts bytes.

    What kernels work in, and vectors of 1 MB or more, have blocks of powers of two bytes that are kept: what needs as
    large a block takes one that is free. Those of 2 MB or more have pages of 2 MB, which are there as a whole when one
    of their bytes is written.

    Attributes:
        peak: most bytes that there were.

    Example:
        >>> heap = Heap()
        >>> heap.free(heap.tensor(1000.0), heap.vector(3.0 * 2**20))
        >>> heap.peak - 1000 == 4 * 2**20, heap.left == 4 * 2**20
        (True, True)
    """

    def __init__(self) -> None:
        self.peak = self.left = 0.0
        self._free: list[Block] = []

    def tensor(self, num_bytes: float) -> Block:
        """Take memory that the system has back when the tensor dies."""
        self._add(num_bytes)
        return Block(num_bytes)

    def vector(self, num_bytes: float) -> Block:
        """Take memory for what a look-up or an exchange gives."""
        return self.tensor(num_bytes) if num_bytes < _RECYCLED else self.kept([(0.0, num_bytes)])

    def kept(self, written: Sequence[Span]) -> Block:
        """Take a block that is kept.

        Args:
            written: which of its bytes are; it is as large as the last of them needs.
        """
        size = _LEAST_KEPT
        while size < written[-1][1]:
            size *= 2
        block = next((block for block in self._free if block.size == size), None)
        if block is None:
            block = Block(0.0, size)
        else:
            self._free.remove(block)
        # What an earlier tensor has written elsewhere in the block is there as well.
        block.spans = _united([*block.spans, *(_whole_pages(span, size) for span in written)])
        before, block.written = block.written, sum(end - begin for begin, end in block.spans)
        self._add(block.written - before)
        return block

    def free(self, *blocks: Block) -> None:
        """Have tensors die."""
        for block in blocks:
            if block.size:
                self._free.append(block)
            else:
                self.left -= block.written

    def _add(self, num_bytes: float) -> None:
        self.left += num_bytes
        self.peak = max(self.peak, self.left)


def on_whole_pages(num_bytes: int) -> int:
    """Return what a table takes in memory: large ones lie on whole pages of 2 MB, where these are little more.

    Args:
        num_bytes: of its weights.

    Example:
        >>> on_whole_pages(7_000_000), on_whole_pages(8_000_000)
        (7000000, 8388608)
    """
    pages = -(-num_bytes // _HUGE_PAGE) * _HUGE_PAGE
    return pages if num_bytes >= _HUGE_PAGE and pages - num_bytes < num_bytes // 16 else num_bytes


def _whole_pages(span: Span, size: int) -> Span:
    """Return what is in memory of a block of some size when bytes of it are written."""
    if size < _HUGE_PAGE:
        return span
    begin, end = span
    return begin // _HUGE_PAGE * _HUGE_PAGE, -(-end // _HUGE_PAGE) * _HUGE_PAGE


def _united(spans: Sequence[Span]) -> list[Span]:
    """Return spans that do not overlap, of the same bytes."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found
