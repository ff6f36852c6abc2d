"""How one exchange of all ranks travels: what has been begun, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

from torchrec.ops.routing import new_vector
from torchrec.process_groups import done_within

__all__ = ["SwapWork", "Work"]


class Work(Protocol):
    """An exchange on its way, in which each rank has sent each other one a part."""

    def done_within(self, time: timedelta) -> bool:
        """Wait for so long at most, and return whether all parts are here.

        Raises:
            RuntimeError: if the exchange has failed.
        """

    def parts(self) -> list[Tensor]:
        """Return what each rank has sent here, in order of ranks; not to be written to."""

    def whole(self) -> Tensor:
        """Return the parts one behind the other, in memory that is the caller's."""


class SwapWork:
    """An exchange by one call of ``all_to_all_single``.

    Args:
        group: of the ranks.
        sent: a part for each rank, ``(sum(sizes),)``.
        sizes: elements for each rank.
        expected: elements from each rank.
        received: written to, ``(sum(expected),)``. Default: new memory.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        sent: Tensor,
        sizes: Sequence[int],
        expected: Sequence[int],
        received: Tensor | None,
    ) -> None:
        self._sent, self._expected = sent, list(expected)  # what is sent lasts until it is done
        self._received = new_vector(sum(expected), sent) if received is None else received
        self._work = dist.all_to_all_single(
            self._received, sent, self._expected, list(sizes), group=group, async_op=True
        )

    def done_within(self, time: timedelta) -> bool:
        """See `Work.done_within`."""
        return done_within(self._work, time)

    def parts(self) -> list[Tensor]:
        """See `Work.parts`."""
        return list(self._received.split(self._expected))

    def whole(self) -> Tensor:
        """See `Work.whole`."""
        return self._received
