"""How many threads to compute on: what the system grants, and which number is faster here.

Two threads are not faster than one where another program has the second processor, or where a quota
stops both when one of them has used it up: they wait for each other in every layer, and the same
job takes ten times as long. Nothing but the clock tells, and it has to be watched for a while: beside
a neighbour most steps are as fast as alone, and one in ten waits for the other's time slice.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter

import torch

_BLOCK = (
    4  # steps on one number of threads at a time; the first, which wakes the others, does not count
)
_ENOUGH = 9  # steps on each number, three blocks,
_LONG = 0.25  # and seconds, many time slices of the system;
_MANY = 100  # so many steps are enough, however short
_CLEAR = 1.5  # times as fast as several should one be to be chosen after a block on each, if that is so long
_WORTH = 1.05  # times as fast as one thread should several be, which keep other programs waiting
_WINDOW = 16  # steps whose time tells that something has changed
_COLLAPSE = 2.0  # times as slow as when the number was chosen
_PAUSE = 200  # steps on the chosen number, at least,
_PAUSE_SECONDS = 10.0  # or seconds: long steps are where a wrong number costs most
_AGAIN = 5_000  # steps after which it is measured anew, whatever happened


def cpu_quota(
    memberships: str | os.PathLike[str] = "/proc/self/cgroup",
    root: str | os.PathLike[str] = "/sys/fs/cgroup",
) -> float | None:
    """Return how many processors the control groups of this process grant; None without a limit.

    Args:
        memberships: where Linux tells which groups the process is in.
        root: where it shows the groups, of version 1 or 2.

    Returns:
        The least of the quotas of the group and those around it, such as 1.5.
    """
    try:
        lines = Path(memberships).read_text("utf-8", "replace").splitlines()
    except OSError:  # another system
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            base, read = Path(root), _quota_of_version_2
        elif "cpu" in controllers.split(","):
            base, read = Path(root) / "cpu", _quota_of_version_1
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *group.parents):  # in a container, the path may be that outside of it
            quotas += read(folder)
            if folder == base:
                break
    return min(quotas, default=None)


def _quota_of_version_2(group: Path) -> list[float]:
    return _ratio(_words(group / "cpu.max"))


def _quota_of_version_1(group: Path) -> list[float]:
    return _ratio(_words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us"))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").split()
    except OSError:
        return []


def _ratio(words: list[str]) -> list[float]:
    """Return quota by period; nothing for "max" and -1, which are none."""
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return []
    return [int(words[0]) / int(words[1])]


def usable_processors() -> int:
    """Return how many processors this process may keep busy, at least 1.

    That is how many it is allowed to run on, and no more than its quota: 2 for one of 1.5.

    Example:
        >>> usable_processors() >= 1
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Let PyTorch and our kernels compute on so many threads while inside.

    Args:
        number: of threads.

    Example:
        >>> with using_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if number == before:
        yield
        return
    torch.set_num_threads(number)  # a tenth of a microsecond
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class ThreadChoice:
    """Which number of threads was faster.

    Attributes:
        threads: the number.
        instead_of: what it was measured against.
        speedup: how many times as fast it was; below 1, several were not enough faster than one.

    Example:
        >>> str(ThreadChoice(1, 2, 2.08))
        '1 thread: 2.1 times as fast as 2 here'
        >>> str(ThreadChoice(1, 2, 0.98))
        '1 thread: about as fast as 2 here'
    """

    threads: int
    instead_of: int
    speedup: float

    def __str__(self) -> str:
        how = f"{self.speedup:.1f} times" if self.speedup >= _WORTH else "about"
        what = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{what}: {how} as fast as {self.instead_of} here"


class ThreadChooser:
    """Runs the first steps on one thread and on several in turn, and all others on the faster number.

    The steps are those that are to be made anyway: for a quarter of a second, or a hundred steps, on
    either number some are slower than they could be. When they become twice as slow later, and now
    and then, it is measured again. Several threads may make steps at once.

    Args:
        most: the number to measure against one. Default: as many as PyTorch has, but no more than
            there are `usable_processors`.
        least: steps of a smaller size run on one thread and are not measured. Default 1: none.
        tell: is told, in a sentence, when another number is chosen than before. Default: nobody is.
        clock: seconds that have passed. Default: ``time.perf_counter``.

    Attributes:
        most: the same.
        choice: the last; None before the first, and where there is nothing to choose.

    Raises:
        ValueError: if ``most`` is below 1.

    Example:
        >>> chooser = ThreadChooser(most=1)
        >>> with chooser.step():
        ...     torch.get_num_threads()
        1
        >>> chooser.choice is None, chooser.threads
        (True, 1)
    """

    def __init__(
        self,
        most: int | None = None,
        *,
        least: int = 1,
        tell: Callable[[str], object] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.most = min(torch.get_num_threads(), usable_processors()) if most is None else most
        if self.most < 1:
            raise ValueError(f"`most` should be at least 1. Received {most}.")
        self.choice: ThreadChoice | None = None
        self._least = least
        self._tell = tell
        self._clock = clock
        self._lock = Lock()
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._usual, self._since, self._chosen_at = 0.0, 0, 0.0
        self._measure()

    @property
    def threads(self) -> int:
        """What was chosen; before that, the most."""
        return self.most if self.choice is None else self.choice.threads

    @contextmanager
    def step(self, size: int = 1) -> Iterator[None]:
        """Make a step inside, on the number of threads that is chosen or being measured.

        Args:
            size: how much work it is, such as samples; steps are compared by time per size. Default 1.
        """
        if self.most == 1 or size < self._least:
            with using_threads(1):
                yield
            return
        number, counts = self._next()
        with using_threads(number):
            began = self._clock()
            yield
            seconds = self._clock() - began
        if counts:
            with self._lock:
                self._note(number, seconds, size)

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Compute on the chosen number of threads inside; nothing is measured."""
        with using_threads(self.threads):
            yield

    def _measure(self) -> None:
        """Begin to measure."""
        self._measuring = self.most > 1
        self._begun = 0
        self._measured: dict[int, list[tuple[float, int]]] = {1: [], self.most: []}

    def _next(self) -> tuple[int, bool]:
        """Return the number of threads of the next step, and whether its time counts."""
        if not self._measuring:
            return self.threads, True
        with self._lock:
            block, place = divmod(self._begun, _BLOCK)
            self._begun += 1
        # One, several, several, one...: what grows slower or faster by itself does so for both.
        return (self.most if block % 4 in (1, 2) else 1), place > 0

    def _note(self, number: int, seconds: float, size: int) -> None:
        if self._measuring:
            self._measured[number].append((seconds, size))
            self._choose()
            return
        self._recent.append((seconds, size))
        self._since += 1
        slow = len(self._recent) == _WINDOW and _rate(self._recent) > _COLLAPSE * self._usual
        stayed = self._since >= _PAUSE or self._clock() - self._chosen_at >= _PAUSE_SECONDS
        if (slow and stayed) or self._since >= _AGAIN:
            self._measure()

    def _choose(self) -> None:
        """Choose, once there is enough to tell."""
        one, several = self._measured[1], self._measured[self.most]
        steps = min(len(one), len(several))
        if steps < _BLOCK - 1:
            return
        if steps < _MANY and min(sum(t for t, _ in each) for each in (one, several)) < _LONG:
            return
        speedup = _rate(one) / max(_rate(several), 1e-12)  # of several over one
        if steps < _ENOUGH and speedup > 1 / _CLEAR:  # several may just have been lucky
            return
        self._measuring = False
        before = self.choice
        if speedup >= _WORTH:
            self.choice = ThreadChoice(self.most, 1, speedup)
        else:
            self.choice = ThreadChoice(1, self.most, 1 / speedup)
        self._usual, self._since = _rate(self._measured[self.choice.threads]), 0
        self._chosen_at = self._clock()
        self._recent.clear()
        if self._tell and (before is None or before.threads != self.choice.threads):
            self._tell(f"{self.choice}.")


def _rate(steps: Iterable[tuple[float, int]]) -> float:
    """Return seconds a unit of size: the mean, as the steps that stall are what a busy machine costs."""
    seconds, units = 0.0, 0
    for passed, size in steps:
        seconds += passed
        units += size
    return seconds / max(units, 1)


def measured_choice() -> ThreadChoice | None:
    """Return which number of threads multiplies matrices faster now; None with one processor.

    It takes some tenths of a second.
    """
    chooser = ThreadChooser()
    rows, weight = torch.ones(1024, 256), torch.ones(256, 256)
    while chooser.most > 1 and chooser.choice is None:
        with chooser.step():
            for _ in range(4):  # layers: threads wait for each other after each
                rows.matmul(weight)
    return chooser.choice
