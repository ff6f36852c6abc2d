"""Links between ranks that are slower than those of one machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from torchrec.distributed.channel import Channel
from torchrec.distributed.transport import Work

__all__ = ["Link", "SlowChannel"]


@dataclass(frozen=True)
class Link:
    """How fast messages of a rank travel.

    Attributes:
        ms: that each takes.
        gbits: a second, at which they leave one behind the other. Default 0: any number.
    """

    ms: float
    gbits: float = 0.0


class SlowChannel(Channel):
    """A channel whose messages travel over a link; see `torchrec.distributed.channel.use_channel`.

    Args:
        beside: the group of the program, which all its ranks are in.
        link: what carries the messages.
    """

    def __init__(self, beside: dist.ProcessGroup, link: Link) -> None:
        super().__init__(beside)
        self._seconds, self._free = 1e-3 * link.ms, 0.0
        self._byte_seconds = 8e-9 / link.gbits if link.gbits else 0.0

    def start(
        self,
        sent: Tensor,
        sizes: Sequence[int],
        expected: Sequence[int],
        received: Tensor | None = None,
    ) -> Work:
        """See `Channel.start`."""
        before = self.sent_bytes
        work = super().start(sent, sizes, expected, received)
        leaves = max(self._free, time.monotonic())
        self._free = leaves + self._byte_seconds * (self.sent_bytes - before)
        return _Late(work, self._free + self._seconds)


@dataclass
class _Late:
    """An exchange that is done when the link has carried it."""

    work: Work
    arrival: float

    def done_within(self, time_left: timedelta) -> bool:
        missing, most = self.arrival - time.monotonic(), time_left.total_seconds()
        if missing > 0:
            time.sleep(min(missing, most))
        return missing <= most and self.work.done_within(time_left)

    def parts(self) -> list[Tensor]:
        return self.work.parts()

    def whole(self) -> Tensor:
        return self.work.whole()
