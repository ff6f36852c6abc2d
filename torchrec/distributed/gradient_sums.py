"""Gradients of layers that every rank has a copy of, added up over the ranks of one host.

Gloo adds up through sockets: a gradient is copied four times more, by threads that want the processor for which the
backward pass waits. Here each rank writes what it has where the others read it, and all add up the same numbers in the
same order, so that copies stay alike to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from torchrec.distributed.channel import Channel
from torchrec.distributed.transport import Work
from torchrec.optim.backward_pass import at_end_of_backward_pass, backward_pass_number

__all__ = ["Bucket", "GradientSums", "added_up"]


class Bucket(Protocol):
    """Gradients of some parameters, one behind the other, as `DistributedDataParallel` gives them to a hook."""

    def buffer(self) -> Tensor:
        """Return them, ``(size,)``."""


@dataclass
class _Pass:
    """What one backward pass has sent: the buckets, this rank's share of each, and the exchanges."""

    number: int = -1
    sent: list[tuple[Tensor, Tensor, Work]] = field(default_factory=list)


def added_up(group: dist.ProcessGroup, dtype: torch.dtype | None, bucket: Bucket) -> Future[Tensor]:
    """Add gradients up through the process group; PyTorch's own hook for bfloat16 does it on GPUs alone.

    Args:
        group: of the ranks.
        dtype: in which they are added up; None: their own.
        bucket: as `DistributedDataParallel` gives it.
    """
    buffer = bucket.buffer()
    share = buffer.to(buffer.dtype if dtype is None else dtype) / group.size()
    work = dist.all_reduce(share, group=group, async_op=True)

    def result(done: Future[list[Tensor]]) -> Tensor:
        total = done.value()[0]
        return total.to(buffer.dtype) if buffer.is_sparse else buffer.copy_(total)

    found: Future[Tensor] = work.get_future().then(result)
    return found


class GradientSums:
    """Adds up the buckets of a `DistributedDataParallel`, as its communication hook.

    A bucket is sent when it is full, and added up where the backward pass ends: nobody waits in the middle of it, where
    another rank may be waiting for something else. The bucket is returned as it is, and written to at the end. So it
    has to be what the gradients are parts of (``gradient_as_bucket_view=True``).

    Args:
        channel: of the ranks, for these gradients alone: when in a pass a bucket is full differs from rank to rank.
        dtype: in which they are added up. Default: their own.
        group: of the ranks, which adds up sparse gradients: each has a bucket of its own.
    """

    def __init__(
        self, channel: Channel, dtype: torch.dtype | None, group: dist.ProcessGroup
    ) -> None:
        self._channel, self._dtype, self._group = channel, dtype, group
        self._pass = _Pass()

    def __call__(self, bucket: Bucket) -> Future[Tensor]:
        """Send a bucket.

        Args:
            bucket: as `DistributedDataParallel` gives it.
        """
        buffer, number, ranks = bucket.buffer(), backward_pass_number(), self._channel.world_size
        if buffer.is_sparse:
            return added_up(self._group, self._dtype, bucket)
        if self._dtype is None:
            share = self._channel.message(len(buffer), buffer)
            torch.mul(buffer, 1 / ranks, out=share)  # as PyTorch does without a hook
        else:
            narrow = buffer.to(self._dtype)
            share = self._channel.message(len(buffer), narrow)
            torch.div(narrow, ranks, out=share)  # and with its own
        sent = buffer, share, self._channel.start_all_gather(share)
        if number < 0:  # `DistributedDataParallel.join`: for a rank that has no more data
            self._finish(_Pass(sent=[sent]))
        else:
            if self._pass.number != number:  # one that has failed is forgotten
                self._pass = _Pass(number)
                at_end_of_backward_pass(partial(self._finish, self._pass))
            self._pass.sent.append(sent)
        done: Future[Tensor] = Future()
        done.set_result(buffer)
        return done

    @torch.no_grad()
    def _finish(self, of_pass: _Pass) -> None:
        """Add up what all ranks have sent."""
        rank, self._pass = self._channel.rank, _Pass()
        for buffer, share, work in of_pass.sent:
            self._channel.wait(work, "adding up the gradients of layers")
            parts = work.parts()
            parts[rank] = share
            total = buffer if self._dtype is None else torch.empty_like(share)
            torch.add(parts[0], parts[1], out=total)
            for part in parts[2:]:
                total.add_(part)
            if total is not buffer:
                buffer.copy_(total)
