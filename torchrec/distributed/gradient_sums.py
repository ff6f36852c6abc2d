"""Gradients of layers that every rank has a copy of, added up over ranks.

Gloo adds up through sockets: a gradient is copied four times more, by threads that want the processor for which the
backward pass waits. On one host, each rank writes what it has where the others read it instead, and all add up the same
numbers in the same order, so that copies stay alike to the last bit. Between hosts gloo does it, and a rank that does
not come is named, which `DistributedDataParallel` by itself leaves to gloo's timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from torchrec.distributed.channel import Channel
from torchrec.optim.backward_pass import at_end_of_backward_pass, backward_pass_number
from torchrec.process_groups import wait_for
from torchrec.process_groups.lost_ranks import lost_ranks_named

__all__ = ["Bucket", "GradientSums", "added_up"]

_DOING = "adding up the gradients of layers"  # for errors


class Bucket(Protocol):
    """Gradients of some parameters, one behind the other, as `DistributedDataParallel` gives them to a hook."""

    def buffer(self) -> Tensor:
        """Return them, ``(size,)``."""


@dataclass
class _Pass:
    """One backward pass, and what is called at its end: each waits for the sum of a bucket, and writes it there."""

    number: int = -1
    ends: list[Callable[[], None]] = field(default_factory=list)


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

    A bucket is sent when it is full, and waited for where the backward pass ends: nobody waits in the middle of it,
    where another rank may be waiting for something else. The bucket is returned as it is, and written to at the end. So
    it has to be what the gradients are parts of (``gradient_as_bucket_view=True``).

    Args:
        group: of the ranks. Sparse gradients, each of which has a bucket of its own, always go through it.
        channel: of the same ranks, by memory that they share, and for these gradients alone: when in a pass a bucket is
            full differs from rank to rank. None: they share none, and all gradients go through the group.
        dtype: in which they are added up. Default: their own.
    """

    def __init__(
        self, group: dist.ProcessGroup, channel: Channel | None, dtype: torch.dtype | None
    ) -> None:
        self._group, self._dtype = group, dtype
        self._start: Callable[[Tensor], Callable[[], None]]
        if channel is None:
            self._start = partial(_start_by_group, group, dtype)
        else:
            self._start = partial(_start_by_memory, channel, dtype)
        self._pass = _Pass()

    def __call__(self, bucket: Bucket) -> Future[Tensor]:
        """Send a bucket.

        Args:
            bucket: as `DistributedDataParallel` gives it.
        """
        buffer, number = bucket.buffer(), backward_pass_number()
        if buffer.is_sparse:
            return added_up(self._group, self._dtype, bucket)
        end = self._start(buffer)
        if number < 0:  # `DistributedDataParallel.join`: for a rank that has no more data
            end()
        else:
            if self._pass.number != number:  # one that has failed is forgotten
                self._pass = _Pass(number)
                at_end_of_backward_pass(partial(self._end, self._pass))
            self._pass.ends.append(end)
        done: Future[Tensor] = Future()
        done.set_result(buffer)
        return done

    def _end(self, of_pass: _Pass) -> None:
        self._pass = _Pass()
        with torch.no_grad():
            for end in of_pass.ends:
                end()


def _start_by_memory(
    channel: Channel, dtype: torch.dtype | None, buffer: Tensor
) -> Callable[[], None]:
    """Send a bucket through memory that ranks share; return what waits for theirs, and writes the mean into it."""
    if dtype is None:
        share = channel.message(len(buffer), buffer)
        torch.mul(buffer, 1 / channel.world_size, out=share)  # as PyTorch does without a hook
    else:
        narrow = buffer.to(dtype)
        share = channel.message(len(buffer), narrow)
        torch.div(narrow, channel.world_size, out=share)  # and with its own
    work = channel.start_all_gather(share)

    def end() -> None:
        channel.wait(work, _DOING)
        parts = work.parts()
        parts[channel.rank] = share
        total = buffer if dtype is None else torch.empty_like(share)
        torch.add(parts[0], parts[1], out=total)
        for part in parts[2:]:
            total.add_(part)
        if total is not buffer:
            buffer.copy_(total)

    return end


def _start_by_group(
    group: dist.ProcessGroup, dtype: torch.dtype | None, buffer: Tensor
) -> Callable[[], None]:
    """Send a bucket through a process group; return what waits for the mean, and has it in the bucket."""
    ranks = group.size()
    share = buffer.mul_(1 / ranks) if dtype is None else buffer.to(dtype).div_(ranks)
    with lost_ranks_named(group):
        work = dist.all_reduce(share, group=group, async_op=True)

    def end() -> None:
        wait_for(work, share, _DOING, group)
        if share is not buffer:
            buffer.copy_(share)

    return end
