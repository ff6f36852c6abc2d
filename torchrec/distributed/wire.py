"""Ranks that exchange something, and all raise what fails on one of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from torchrec.distributed._awaitable import Awaitable, Deferred
from torchrec.distributed.channel import channel_of
from torchrec.distributed.transport import Work
from torchrec.errors import IdOutOfRangeError
from torchrec.process_groups import all_reduce, broadcast
from torchrec.process_groups.lost_ranks import ranks_in_words

__all__ = ["Meeting", "Wire"]

T = TypeVar("T")

_HEAD = 64  # numbers that ranks begin everything by
_EXCHANGE = "an exchange that they have begun"


class Meeting:
    """What ranks say to one another as they begin something together, while it is on its way.

    Args:
        wire: the ranks.
        topic: what they begin.
        lines: numbers for each rank.
        expected: how many numbers each rank has for this one.
    """

    def __init__(
        self, wire: Wire, topic: str, lines: Sequence[Sequence[int]], expected: int
    ) -> None:
        self._wire, self._topic, self._expected = wire, topic, expected
        mark, first = crc32(topic.encode()), _HEAD - 1
        # Of one size, whatever it is about: gloo ends a process that is sent more than it waits for.
        heads = [[mark, *line[:first], *[0] * (first - len(line))] for line in lines]
        self._rests = [line[first:] for line in lines]
        sizes = [_HEAD] * wire.world_size
        self._work = wire.start(torch.tensor(heads, dtype=torch.int64).view(-1), sizes, sizes)
        self._mark = mark

    def numbers(self) -> list[list[int]]:
        """Wait, and return what each rank has said, in order of ranks.

        Raises:
            ValueError: on all ranks, if they are not at the same.
        """
        wire, expected = self._wire, self._expected
        wire.finish(self._work, self._topic)
        lines: list[list[int]] = [part.tolist() for part in self._work.parts()]
        if any(line[0] != self._mark for line in lines):
            raise ValueError(_differing(wire.gather(self._topic)))
        if all(not rest for rest in self._rests) and expected < _HEAD:
            return [line[1 : 1 + expected] for line in lines]
        rests = [number for rest in self._rests for number in rest]
        num_rest = max(0, expected + 1 - _HEAD)
        received = wire.swap(
            torch.tensor(rests, dtype=torch.int64),
            [len(rest) for rest in self._rests],
            [num_rest] * wire.world_size,
        )
        parts = received.view(wire.world_size, num_rest).tolist()
        return [line[1 : 1 + expected] + rest for line, rest in zip(lines, parts, strict=True)]


def _differing(topics: list[str]) -> str:
    ranks_of: dict[str, list[int]] = {}
    for rank, topic in enumerate(topics):
        ranks_of.setdefault(topic, []).append(rank)
    received = ", ".join(f"{topic} on {ranks_in_words(r)}" for topic, r in ranks_of.items())
    return f"All ranks should do the same in the same order. Received {received}."


class Wire:
    """The ranks that exchange something.

    Args:
        group: of them, all of which make a wire. `torch.distributed` keeps it, until it is destroyed.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._channel = channel_of(group)
        self.world_size, self.rank = self._channel.world_size, self._channel.rank

    @property
    def group(self) -> dist.ProcessGroup:
        """Through which they do: of their own, beside the one that was given.

        Raises:
            RuntimeError: if it has been destroyed.
        """
        return self._channel.group

    @property
    def sent_bytes(self) -> int:
        """How much this rank has sent to others in exchanges, those of other wires of the same group too."""
        return self._channel.sent_bytes

    @property
    def sent_messages(self) -> int:
        """In how many messages, one for each other rank in each exchange."""
        return self._channel.sent_messages

    def message(self, size: int, like: Tensor) -> Tensor:
        """Return memory for what this rank sends: whatever is packed there is sent without another copy.

        Args:
            size: elements.
            like: a tensor of its dtype.
        """
        return self._channel.message(size, like)

    def start(self, sent: Tensor, sizes: Sequence[int], expected: Sequence[int]) -> Work:
        """Begin an exchange, which is to be finished by `finish`.

        Args:
            sent: see `swap`.
            sizes: see `swap`.
            expected: see `swap`.
        """
        return self._channel.start(sent, sizes, expected)

    def finish(self, work: Work, what: str) -> None:
        """Wait for an exchange.

        Args:
            work: the exchange.
            what: it is, for errors.
        """
        self._channel.wait(work, what)

    def meet(self, ranks: Sequence[int], what: str) -> None:
        """Wait until some of the ranks are all here.

        Args:
            ranks: which, this one among them.
            what: they are to do, for errors.
        """
        self._channel.meet(ranks, what)

    def begin(
        self, topic: str, lines: Sequence[Sequence[int]] | None = None, expected: int = 0
    ) -> Meeting:
        """Begin something that all ranks do together, with numbers for each of them.

        Args:
            topic: what it is, in words that are the same on all ranks.
            lines: numbers for each rank. Default: none.
            expected: how many numbers each rank has for this one. Default 0.
        """
        return Meeting(self, topic, [[]] * self.world_size if lines is None else lines, expected)

    def swap(
        self,
        sent: Tensor,
        sizes: Sequence[int],
        expected: Sequence[int],
        received: Tensor | None = None,
    ) -> Tensor:
        """Send each rank its part, and return what each has sent here, one behind the other.

        Args:
            sent: ``(sum(sizes),)``.
            sizes: elements for each rank.
            expected: elements from each rank.
            received: written to, ``(sum(expected),)``, and returned. Default: new memory.
        """
        work = self._channel.start(sent, sizes, expected, received)
        self.finish(work, _EXCHANGE)
        return work.whole()

    def start_swap(
        self, sent: Tensor, sizes: Sequence[int], expected: Sequence[int]
    ) -> Awaitable[list[Tensor]]:
        """Do what `swap` does, but return while it is on its way, and give each rank's part by itself.

        Args:
            sent: see `swap`; not to be written to before it is done.
            sizes: see `swap`.
            expected: see `swap`.

        Returns:
            what each rank has sent, in order of ranks: memory of others, so not to be written to.
        """
        work = self._channel.start(sent, sizes, expected)

        def finished() -> list[Tensor]:
            self.finish(work, _EXCHANGE)
            return work.parts()

        return Deferred(finished)

    def states(self, mine: int, topic: str) -> list[int]:
        """Send all ranks a number, and return those of all, in order of ranks.

        Args:
            mine: the number.
            topic: what it is about, in words that are the same on all ranks.
        """
        meeting = self.begin(topic, [[mine]] * self.world_size, 1)
        return [state for (state,) in meeting.numbers()]

    def share(self, value: Any, rank: int, topic: str) -> Any:
        """Return on all ranks what one of them has.

        Args:
            value: what it is, on that rank.
            rank: which.
            topic: what it is about, in words that are the same on all ranks.
        """
        return self._share_pickled(pickle.dumps(value) if self.rank == rank else b"", rank, topic)

    def _share_pickled(self, sent: bytes, rank: int, topic: str) -> Any:
        lines = self.begin(topic, [[len(sent)]] * self.world_size, 1).numbers()
        return self._objects(sent, [size for (size,) in lines])[rank]

    def broadcast(self, tensor: Tensor, rank: int | None, topic: str) -> Tensor:
        """Return a tensor, on all ranks with what it holds on one of them.

        Args:
            tensor: contiguous, of one size and type on all ranks; written to on the others.
            rank: which.
            topic: what it is about, in words that are the same on all ranks.
        """
        self.begin(topic).numbers()
        broadcast(tensor, rank, topic, self.group)
        return tensor

    def reduce(
        self, tensor: Tensor, topic: str, how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> Tensor:
        """Return a tensor, on all ranks with the sum, say, of what it holds on each.

        Args:
            tensor: contiguous, of one size and type on all ranks; written to.
            topic: what it is about, in words that are the same on all ranks.
            how: numbers are put together. Default: added.
        """
        self.begin(topic).numbers()
        all_reduce(tensor, topic, self.group, how)
        return tensor

    def tell(self, value: Any, topic: str) -> list[Any]:
        """Return on all ranks what each of them has, in order of ranks.

        Args:
            value: what this one has.
            topic: what it is about, in words that are the same on all ranks.
        """
        self.begin(topic).numbers()
        return self.gather(value)

    def gather(self, value: Any) -> list[Any]:
        """Do what `tell` does, in the middle of what the ranks have begun together.

        Args:
            value: what this one has.
        """
        sent = pickle.dumps(value)
        ones = [1] * self.world_size
        sizes = self.swap(torch.tensor([len(sent)] * self.world_size), ones, ones)
        return self._objects(sent, sizes.tolist())

    def _objects(self, sent: bytes, sizes: Sequence[int]) -> list[Any]:
        """Send all ranks the same object, pickled, and return what each has sent; None, of no bytes.

        Collectives of objects of `torch.distributed` do the same, but who waits in one says nowhere that it does.
        """
        message = torch.from_numpy(np.frombuffer(bytearray(sent * self.world_size), np.uint8))
        received = self.swap(message, [len(sent)] * self.world_size, sizes)
        parts = (part.numpy().tobytes() for part in received.split(list(sizes)))
        return [pickle.loads(part) if part else None for part in parts]

    def together(self, act: Callable[[], T], topic: str) -> T:
        """Do something that may take long, or fail, on one rank alone; return what came of it here.

        Others wait for as long as a rank gives signs of life.

        Args:
            act: what is done; what fails is raised on all ranks.
            topic: what it is, in words that are the same on all ranks.
        """
        with self._channel.alive(topic):
            results, error = _tried(act)
        self.meet(range(self.world_size), topic)
        self.agree(error, topic)
        return results[0]

    def attempt(self, act: Callable[[], T], topic: str) -> T:
        """Do something that takes no longer than an exchange, and return what came of it, as `together` does.

        Args:
            act: what is done; what fails is raised on all ranks.
            topic: what it is, in words that are the same on all ranks.
        """
        results, error = _tried(act)
        self.agree(error, topic)
        return results[0]

    def on_one(self, act: Callable[[], T], topic: str, rank: int = 0) -> T:
        """Do something on one rank, while the others wait as in `together`; return on all what came of it.

        Args:
            act: what is done; what it returns is picklable. What fails, pickling too, is raised on all ranks.
            topic: what it is, in words that are the same on all ranks.
            rank: which does it. Default: the first.
        """
        sent = self.together(lambda: pickle.dumps(act()) if self.rank == rank else b"", topic)
        result: T = self._share_pickled(sent, rank, topic)
        return result

    def agree(self, error: Exception | None, topic: str = "what may fail on one of them") -> None:
        """Go on if no rank has failed, else raise what did, on all of them; they all call this.

        Args:
            error: of this rank; None: it has none.
            topic: what may have failed, in words that are the same on all ranks. Default: not said.
        """
        self.start_agreeing(error, topic).wait()

    def start_agreeing(self, error: Exception | None, topic: str) -> Awaitable[None]:
        """Do what `agree` does, but return while it is on its way.

        Args:
            error: see `agree`.
            topic: see `agree`.
        """
        meeting = self.begin(topic, [[int(error is not None)]] * self.world_size, 1)

        def agreed() -> None:
            if any(state for (state,) in meeting.numbers()):
                self.raise_together(error)

        return Deferred(agreed)

    def raise_together(self, error: Exception | None) -> None:
        """Raise what failed on any rank, on all of them; they all call this.

        Args:
            error: of this rank; None: it has none.
        """
        of_ranks = self.gather(None if error is None else _description(error))
        for rank, found in enumerate(of_ranks):
            if found is not None:
                raise _error_of(rank, *found) from (error if rank == self.rank else None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled: there is no process group in a file."""
        raise TypeError(
            "A sharded model should be saved by its `state_dict()`, which loads into one that is sharded again: it "
            "cannot be pickled, as the ranks that it exchanges vectors with are those of this run."
        )

    def __deepcopy__(self, _: object) -> Wire:
        """Return itself: process groups cannot be copied."""
        return self


def _tried(act: Callable[[], T]) -> tuple[list[T], Exception | None]:
    """Return what came of something, or what it failed by."""
    try:
        return [act()], None
    except Exception as error:
        return [], error


_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ValueError, TypeError, IndexError, KeyError, OSError, RuntimeError)
}


def _description(error: Exception) -> tuple[str, tuple[Any, ...]]:
    if isinstance(error, IdOutOfRangeError):
        return IdOutOfRangeError.__name__, error.__reduce__()[1][:5]
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS]
    return (kinds or ["RuntimeError"])[0], (str(error),)


def _error_of(rank: int, kind: str, arguments: tuple[Any, ...]) -> Exception:
    if kind == IdOutOfRangeError.__name__:
        table, feature, sample, number, rows = arguments
        return IdOutOfRangeError(table, feature, sample, number, rows, rank)
    return _KINDS[kind](f"On rank {rank}: {arguments[0]}")
