"""Messages between ranks of one host, through memory that they share.

Gloo carries a message through sockets, and threads that wake one another, even between two processes of one host: it is
copied twice more, and a small one takes as long as a look-up. Here each rank has one piece of memory that all others
map. A rank packs what it sends in its own, and writes a number there; who waits for that number reads the message where
it is. Nothing is left behind when a process is killed: the memory has no name.

Messages are counted, the same on all ranks: each exchange is one message from each rank to each. What is small stands
in the *ring* beside its number, `_RING` exchanges long; what is large in a *buffer*, which its sender takes again once
nobody reads it any more, as tensors of it tell by their end.
"""

from __future__ import annotations

import mmap
import os
import secrets
import select
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from time import monotonic
from weakref import ReferenceType, finalize, ref

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.ops.routing import new_vector
from torchrec.ops.signals import can_signal, post, wait
from torchrec.process_groups.lost_ranks import ended

__all__ = ["SharedMemory", "share_memory"]

ENVIRONMENT_VARIABLE = "ROWWISE_SHARED_MEMORY"

_RING = 32  # exchanges that may be under way
_SMALL = 512  # bytes of a message that stands in the ring
# Numbers at the head of a rank's memory: messages it has sent, has read, whether it has left, what it sleeps by.
_POSTED, _READ, _CLOSED, _BELL, _HEAD = 0, 8, 9, 16, 64
# Of a message in the ring: its bytes; where it is, 0: right behind these; where readers say that they are done.
_BYTES, _START, _DONE, _LINE = 0, 1, 2, 8
_LOOK = timedelta(seconds=0.05)  # how often a rank that waits looks whether others are still there
_SPIN_US = 50
_IDLE = 1024  # exchanges after which memory that none of them has used is given back


class _Segment:
    """Memory of one rank, mapped by all.

    Args:
        file: that is the memory.
        size: bytes.
        ranks: that share memory.
    """

    def __init__(self, file: int, size: int, ranks: int) -> None:
        self._process, self._map = os.getpid(), mmap.mmap(file, size)
        self.bytes = np.frombuffer(self._map, dtype=np.uint8)
        self.words = self.bytes.view(np.int64)
        self.address = self.bytes.ctypes.data
        line = _LINE + _SMALL // 8
        # For each rank that reads, its messages.
        self.ring = self.words[_HEAD : _HEAD + ranks * _RING * line].reshape(ranks, _RING, line)
        self.small = self.ring[:, :, _LINE:].view(np.uint8)
        self.first = _rounded_up(8 * (_HEAD + self.ring.size), mmap.PAGESIZE)

    @property
    def is_own(self) -> bool:
        """Whether this process has mapped the memory, and not one that it was forked from."""
        return os.getpid() == self._process

    def word(self, number: int) -> int:
        """Return the address of a number."""
        return self.address + 8 * number

    def give_back(self, start: int, end: int) -> None:
        """Give the memory between two bytes back to the system, as far as it is whole pages: it is zero from now on."""
        start, end = _rounded_up(start, mmap.PAGESIZE), end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_REMOVE, start, end - start)

    def write(self, number: int, value: int, bells: Sequence[int] = ()) -> None:
        """Write a number, which others see after all that was written before.

        A forked process has the objects of this one, and what becomes of them there says nothing of this one.
        """
        if self.is_own:
            post([self.word(number)], [value], bells)


@dataclass(eq=False)
class _Buffer:
    """A part of this rank's memory that holds one message at a time.

    Attributes:
        done: where its readers say that they are done: the numbers of messages, by rank.
        start: of the message.
        size: bytes.
        number: of the message that it has held last.
        readers: of that.
        lent: what is packed here, or was.
        has_memory: whether its bytes may be in memory.
    """

    done: int
    start: int
    size: int
    number: int = 0
    readers: list[int] = field(default_factory=list)
    lent: ReferenceType[np.ndarray[tuple[int], np.dtype[np.uint8]]] | None = None
    has_memory: bool = True


class _SharedWork:
    """An exchange through shared memory.

    Args:
        memory: of the ranks.
        number: of the exchange.
        own: what this rank sends itself.
        expected: elements from each rank.
        received: see `SharedMemory.start`.
    """

    def __init__(
        self,
        memory: SharedMemory,
        number: int,
        own: Tensor,
        expected: Sequence[int],
        received: Tensor | None,
    ) -> None:
        self._memory, self._number = memory, number
        self._own, self._expected, self._received = own, expected, received
        self._parts: list[Tensor] | None = None

    def done_within(self, time: timedelta) -> bool:
        """See `Work.done_within`."""
        return self._parts is not None or self._memory.arrives(self._number, time)

    def parts(self) -> list[Tensor]:
        """See `Work.parts`."""
        if self._parts is None:
            self._parts = self._memory.read(self._number, self._own, self._expected)
        return self._parts

    def whole(self) -> Tensor:
        """See `Work.whole`."""
        received = self._received
        if received is None:
            received = new_vector(sum(self._expected), self._own)
        return torch.cat(self.parts(), out=received)


class SharedMemory:
    """What the ranks of one host send one another.

    Args:
        segments: the memory of each rank.
        rank: this one.
        processes: files that tell by being readable that the process of a rank has ended, by rank.
        timeout: how long exchanges may take.
    """

    def __init__(
        self,
        segments: Sequence[_Segment],
        rank: int,
        processes: dict[int, int],
        timeout: timedelta,
    ) -> None:
        self._segments, self._rank, self._timeout = list(segments), rank, timeout
        self._mine = segments[rank]
        self._others = [r for r in range(len(segments)) if r != rank]
        self._bells = [segments[r].word(_BELL) for r in self._others]
        self._posted = [segments[r].word(_POSTED) for r in self._others]
        self._number = 0
        self._unread: dict[int, _SharedWork] = {}
        self._buffers: list[_Buffer] = []
        self._end = self._mine.first  # of the buffers
        self._packed: dict[int, _Buffer] = {}  # buffers that are lent and not sent, by address
        # To look again and again is of use where nobody else wants the processor.
        cores = len(os.sched_getaffinity(0))
        self._spin = _SPIN_US if cores >= len(segments) else 0
        self._processes = processes
        self._poll = select.poll()
        for file in processes.values():
            self._poll.register(file, select.POLLIN)
        finalize(self, _end, self._segments, rank, list(processes.values())).atexit = False

    def _require_own_process(self) -> None:
        if not self._mine.is_own:
            raise RuntimeError(
                f"A process that was forked from rank {self._rank} should call no sharded model: others would take "
                "what it sends for that of the rank. Received a call from one."
            )

    def message(self, size: int, like: Tensor) -> Tensor:
        """Return memory for a message: it need not be copied to be sent.

        Args:
            size: elements.
            like: a tensor of its dtype.
        """
        self._require_own_process()
        size_in_bytes = size * like.element_size()
        if size_in_bytes <= _SMALL or not like.is_cpu:
            return new_vector(size, like)
        buffer = self._free_buffer(size_in_bytes)
        found = self._mine.bytes[buffer.start : buffer.start + size_in_bytes]
        buffer.lent = ref(found)
        self._packed[self._mine.address + buffer.start] = buffer
        return torch.from_numpy(found).view(like.dtype)

    def start(
        self, sent: Tensor, sizes: Sequence[int], expected: Sequence[int], received: Tensor | None
    ) -> _SharedWork:
        """Send each rank its part; all ranks call this, in the same order.

        Args:
            sent: contiguous, ``(sum(sizes),)``.
            sizes: elements for each rank.
            expected: elements from each rank.
            received: where the parts are to be brought together, ``(sum(expected),)``. Default: new memory.
        """
        starts = list(accumulate(sizes, initial=0))
        spans = [(starts[r], starts[r + 1]) for r in range(len(sizes))]
        own = sent.detach()[slice(*spans[self._rank])]
        return self._post(sent, spans, own, expected, received)

    def start_all_gather(self, sent: Tensor) -> _SharedWork:
        """Send all ranks the same; all call this, with as many elements, in the same order.

        Args:
            sent: contiguous, ``(size,)``.
        """
        ranks = len(self._segments)
        return self._post(sent, [(0, len(sent))] * ranks, sent.detach(), [len(sent)] * ranks, None)

    def _post(
        self,
        sent: Tensor,
        spans: Sequence[tuple[int, int]],
        own: Tensor,
        expected: Sequence[int],
        received: Tensor | None,
    ) -> _SharedWork:
        """Tell each rank where in what is sent its part is."""
        self._require_own_process()
        number, item = self._number, sent.element_size()
        self._make_room(number)
        if number % _IDLE == 0:
            self._give_back(number)
        self._number += 1
        in_bytes = {r: (spans[r][0] * item, spans[r][1] * item) for r in self._others}
        self._write(number, sent.detach(), in_bytes)
        self._mine.write(_POSTED, number + 1, self._bells)
        work = self._unread[number] = _SharedWork(self, number, own, expected, received)
        return work

    def _write(self, number: int, sent: Tensor, spans: Mapping[int, tuple[int, int]]) -> None:
        """Write a message to each rank, of the bytes between two, in the ring, or where it is."""
        slot = number % _RING
        if all(end - begin <= _SMALL for begin, end in spans.values()):
            written = sent.view(torch.uint8).numpy()
            for rank, (begin, end) in spans.items():
                self._mine.ring[rank, slot, : _DONE + 1] = end - begin, 0, 0
                self._mine.small[rank, slot, : end - begin] = written[begin:end]
            return
        buffer = self._packed.pop(sent.data_ptr(), None)
        if buffer is None or buffer.size < sent.nbytes:
            copy = self.message(len(sent), sent)
            copy.copy_(sent)
            buffer = self._packed.pop(copy.data_ptr())
        buffer.number = number
        buffer.readers = [rank for rank, (begin, end) in spans.items() if end > begin]
        for rank, (begin, end) in spans.items():
            line = end - begin, buffer.start + begin, buffer.done
            self._mine.ring[rank, slot, : _DONE + 1] = line

    def arrives(self, number: int, time: timedelta) -> bool:
        """Wait for so long at most for the messages of all ranks to this one, and return whether they are here.

        Args:
            number: of the exchange.
            time: how long.

        Raises:
            RuntimeError: naming ranks that have ended before.
        """
        values, end, spin = (
            [number + 1] * len(self._others),
            monotonic() + time.total_seconds(),
            self._spin,
        )
        bell = self._mine.word(_BELL)
        while not wait(self._posted, values, bell, _LOOK // timedelta(microseconds=1), spin):
            lost, spin = self._lost(), 0
            if wait(self._posted, values, bell, 0):  # it may have sent this as its last
                return True
            if lost:
                raise RuntimeError(ended(lost))
            if monotonic() >= end:
                return False
        return True

    def read(self, number: int, own: Tensor, expected: Sequence[int]) -> list[Tensor]:
        """Return the messages of all ranks to this one, which have arrived.

        Args:
            number: of the exchange.
            own: of this rank.
            expected: elements from each.

        Raises:
            RuntimeError: if one is not of the size that is expected.
        """
        parts = [
            own if rank == self._rank else self._part(rank, number, own, size)
            for rank, size in enumerate(expected)
        ]
        self._unread.pop(number, None)
        self._mine.write(_READ, next(iter(self._unread), self._number))
        return parts

    def _part(self, rank: int, number: int, like: Tensor, size: int) -> Tensor:
        segment, slot = self._segments[rank], number % _RING
        num_bytes, start, done = segment.ring[self._rank, slot, : _DONE + 1].tolist()
        if num_bytes != size * like.element_size():
            raise RuntimeError(
                "All ranks should do the same in the same order. Received a message of "
                f"{num_bytes} bytes from rank {rank} instead of {size * like.element_size()}."
            )
        if not num_bytes:
            return like.new_empty(0)
        if not start:
            copy = segment.small[self._rank, slot, :num_bytes].copy()
            return torch.from_numpy(copy).view(like.dtype)
        found = segment.bytes[start : start + num_bytes]
        # Its sender takes the memory again when no tensor has it any more.
        finalize(found, segment.write, done + self._rank, number + 1).atexit = False
        return torch.from_numpy(found).view(like.dtype)

    def _make_room(self, number: int) -> None:
        """Read, and have others read, what stands where the message of an exchange is to be written."""
        while next(iter(self._unread), number) <= number - _RING:
            first, work = next(iter(self._unread.items()))
            self._require(self.arrives(first, self._timeout))
            work.parts()
        read = [self._segments[rank].word(_READ) for rank in self._others]
        values = [number - _RING + 1] * len(read)
        end, bell = monotonic() + self._timeout.total_seconds(), self._mine.word(_BELL)
        while not wait(read, values, bell, 1000):  # nobody rings when he has read
            if self._lost():
                raise RuntimeError(ended(self._lost()))
            self._require(monotonic() < end)

    def _require(self, in_time: bool) -> None:
        if not in_time:
            raise RuntimeError(
                f"Rank {self._rank} should get an answer within {self._timeout.total_seconds():g} s, the "
                "`timeout` of its process group. Received none: another rank has stopped, or has left out "
                "what this one does."
            )

    def _free_buffer(self, size: int) -> _Buffer:
        """Return the smallest buffer that is large enough and holds nothing, or a new one."""
        for buffer in self._buffers:
            if buffer.size >= size and self._is_free(buffer):
                buffer.has_memory = True
                return buffer
        done, ranks = self._end, len(self._segments)
        start = done + _rounded_up(8 * ranks, 64)
        end = start + max(mmap.PAGESIZE, 1 << (size - 1).bit_length())
        if end > len(self._mine.bytes):
            raise MemoryError(
                f"Messages should fit into the memory of the machine, {len(self._mine.bytes)} bytes. Received one of "
                f"{size} bytes on rank {self._rank}, beside those that others have not read."
            )
        self._end = _rounded_up(end, mmap.PAGESIZE)
        made = _Buffer(done // 8, start, end - start)
        self._buffers.append(made)
        self._buffers.sort(key=lambda buffer: buffer.size)
        return made

    def _give_back(self, number: int) -> None:
        """Give back the memory of buffers that no message has needed for long, as after one batch that was large."""
        for buffer in self._buffers:
            if buffer.has_memory and number - buffer.number > _IDLE and self._is_free(buffer):
                self._mine.give_back(buffer.start, buffer.start + buffer.size)
                buffer.has_memory = False

    def _is_free(self, buffer: _Buffer) -> bool:
        if buffer.lent is not None and buffer.lent() is not None:
            return False
        words = [self._mine.word(buffer.done + rank) for rank in buffer.readers]
        return wait(words, [buffer.number + 1] * len(words), self._mine.word(_BELL), 0)

    def _lost(self) -> list[int]:
        """Return the ranks that have ended, or destroyed their process group."""
        files = {file for file, _ in self._poll.poll(0)}
        return [
            rank
            for rank, file in self._processes.items()
            if file in files or self._segments[rank].words[_CLOSED]
        ]

    def leave(self) -> None:
        """Tell all others that this rank sends nothing more."""
        _leave(self._segments, self._rank)


def share_memory(group: dist.ProcessGroup, timeout: timedelta) -> SharedMemory | None:
    """Return what the ranks of a group share, if they are all on one host; None: they are not, or cannot.

    All ranks call this, and get the same. Sharing takes the native library, Linux 5.3 or later, a Python that was
    built for it (`os.memfd_create`, `os.pidfd_open`), and that processes see one another, as those of one user in one
    container do.

    Args:
        group: the ranks, more than one.
        timeout: of their exchanges.
    """
    # Of addresses: memory is taken as it is written.
    name, size = f"rowwise-{secrets.token_hex(8)}", os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    file = _new_file(name, size) if _may_share() else None
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    try:
        offers: list[tuple[int, int, str, int] | None] = [None] * ranks
        offer = None if file is None else (os.getpid(), file, name, size)
        dist.all_gather_object(offers, offer, group)
        found = _shared(offers, ranks)
        can = torch.tensor(int(found is not None))
        dist.all_reduce(can, dist.ReduceOp.MIN, group)  # after which all have mapped the file
    finally:
        if file is not None:
            os.close(file)
    if found is None:
        return None
    segments, processes = found
    if not can:
        _close(list(processes.values()))
        return None
    os.close(processes.pop(rank))
    return SharedMemory(segments, rank, processes, timeout)


def _new_file(name: str, size: int) -> int | None:
    """Return a file in memory, which ends with the processes that have mapped it; None: the system allows none."""
    try:
        file = os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        os.ftruncate(file, size)
    except OSError:
        os.close(file)
        return None
    return file


def _may_share() -> bool:
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "1")
    if choice not in ("0", "1"):
        raise ValueError(f"{ENVIRONMENT_VARIABLE} should be '0' or '1'. Received {choice!r}.")
    # Pythons that were built on an older system than they run on, as conda's and uv's, lack some of these.
    has_calls = hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")
    return choice == "1" and can_signal() and has_calls


def _shared(
    offers: Sequence[tuple[int, int, str, int] | None], ranks: int
) -> tuple[list[_Segment], dict[int, int]] | None:
    """Return the memory of all ranks, and files that tell when their processes end; None: some is on another host."""
    segments, processes = list[_Segment](), dict[int, int]()
    given = [offer for offer in offers if offer is not None]
    if len(given) < len(offers):
        return None
    try:
        for rank, (process, number, name, size) in enumerate(given):
            path = f"/proc/{process}/fd/{number}"
            if os.readlink(path) != f"/memfd:{name} (deleted)":
                raise FileNotFoundError
            processes[rank] = os.pidfd_open(process)
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                segments.append(_Segment(file, size, ranks))
            finally:
                os.close(file)
    except OSError:  # there is no such process here, or not for this one to look into
        _close(list(processes.values()))
        return None
    return segments, processes


def _leave(segments: Sequence[_Segment], rank: int) -> None:
    bells = [segment.word(_BELL) for r, segment in enumerate(segments) if r != rank]
    segments[rank].write(_CLOSED, 1, bells)


def _end(segments: Sequence[_Segment], rank: int, files: Sequence[int]) -> None:
    _leave(segments, rank)  # who is still there would wait in vain
    _close(files)


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _rounded_up(size: int, to: int) -> int:
    return (size + to - 1) // to * to
