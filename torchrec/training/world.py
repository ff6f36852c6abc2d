"""What a training loop asks of the processes that train the same model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

_OF_RANKS = "$ranks"  # what a state has, by rank, where each has its own


class Sent(NamedTuple):
    """What a process has sent to others so far.

    Attributes:
        bytes: in all.
        messages: one for each other process in each exchange.
    """

    bytes: int = 0
    messages: int = 0


@dataclass
class Traffic:
    """What a process has sent to others in steps of a training.

    Attributes:
        steps: that it has made; not those before it went on from a checkpoint.
        bytes: in all of them.
        messages: likewise.
    """

    steps: int = 0
    bytes: int = 0
    messages: int = 0

    def count(self, before: Sent, after: Sent) -> None:
        """Count a step.

        Args:
            before: what had been sent before it.
            after: and after it.
        """
        self.steps += 1
        self.bytes += after.bytes - before.bytes
        self.messages += after.messages - before.messages


class World(Protocol):
    """The processes that train one model together, each on its share of every batch.

    All of them take the same steps, and call these methods in the same order. Whatever is decided in between
    (whether to stop, which weights are the best) follows from what they have told one another here, so that
    all decide the same.
    """

    @property
    def rank(self) -> int:
        """Which of the processes this is; the first one writes files and says how it goes."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    @property
    def waited(self) -> float:
        """Seconds in `total`, which begins a step: for the rank that is last."""
        ...

    @property
    def sent(self) -> Sent:
        """What this process has sent to others, but for gradients of layers."""
        ...

    def total(
        self, numbers: Sequence[float], what: str, error: Exception | None = None
    ) -> list[float]:
        """Return the sums of some numbers over all ranks.

        Args:
            numbers: of this rank; as many as on the others.
            what: they are about, in words that are the same on all ranks.
            error: what has failed here instead; raised on all ranks. Default: nothing.
        """
        ...

    def gather(self, value: T, what: str) -> list[T]:
        """Return on all ranks what each has, in order of ranks.

        Args:
            value: what this one has.
            what: it is about, in words that are the same on all ranks.
        """
        ...

    def each(self, act: Callable[[], T], what: str) -> list[T]:
        """Do something on every rank, and wait for those that are alive; return on all what came of it, by rank.

        Args:
            act: what is done; what fails is raised on all ranks.
            what: it is, in words that are the same on all ranks.
        """
        ...

    def first(self, act: Callable[[], T], what: str) -> T:
        """Do something on the first rank, while the others wait as long as it is alive; return on all what came of it.

        Args:
            act: what is done; what fails is raised on all ranks.
            what: it is, in words that are the same on all ranks.
        """
        ...


class Alone:
    """One process, which has nobody to ask.

    Example:
        >>> ALONE.total([3.0, 4.0], "samples"), ALONE.gather("mine", "names")
        ([3.0, 4.0], ['mine'])
    """

    rank = 0
    size = 1
    waited = 0.0
    sent = Sent()

    def total(
        self, numbers: Sequence[float], what: str, error: Exception | None = None
    ) -> list[float]:
        """Return the numbers, or raise the error."""
        if error is not None:
            raise error
        return list(numbers)

    def gather(self, value: T, what: str) -> list[T]:
        """Return the value."""
        return [value]

    def each(self, act: Callable[[], T], what: str) -> list[T]:
        """Do it."""
        return [act()]

    def first(self, act: Callable[[], T], what: str) -> T:
        """Do it."""
        return act()


ALONE = Alone()


def state_of_ranks(world: World, mine: Mapping[str, T], what: str) -> Mapping[str, Any]:
    """Return a state that differs from rank to rank as one that all have alike, for a checkpoint.

    Args:
        world: the ranks.
        mine: the state of this one.
        what: it is, in words that are the same on all ranks.
    """
    return mine if world.size == 1 else {_OF_RANKS: world.gather(mine, what)}


def own_state(world: World, saved: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return this rank's part of what `state_of_ranks` gave; None if there were another number of ranks.

    Args:
        world: the ranks.
        saved: from a checkpoint.

    Example:
        >>> own_state(ALONE, {"torch": 1}), own_state(ALONE, {"$ranks": [{"torch": 1}, {"torch": 2}]})
        ({'torch': 1}, None)
    """
    of_ranks = saved.get(_OF_RANKS)
    if not isinstance(of_ranks, list):
        return saved if world.size == 1 else None
    if len(of_ranks) != world.size:
        return None
    own: Mapping[str, Any] = of_ranks[world.rank]
    return own
