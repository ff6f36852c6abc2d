"""Batches that are loaded in the background."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Generic

import torch

from torchrec.distributed.train_pipeline.plain import In

__all__ = ["DataLoadingThread"]

_PATIENCE = 0.05  # seconds between looks at whether the thread should stop


class DataLoadingThread(Thread, Generic[In]):
    """Takes batches from an iterator in the background, one ahead, and moves them to a device.

    Args:
        device: where batches go.
        dataloader_iter: gives them.
        to_device_non_blocking: copy without waiting where memory is pinned.
        memcpy_stream_priority: without effect: batches are moved on the current stream.
        memcpy_stream: not supported; must be None.

    Raises:
        ValueError: for a stream.

    Example:
        >>> thread = DataLoadingThread(torch.device("cpu"), iter([torch.ones(1)]), False)
        >>> thread.start()
        >>> thread.get_next_batch(), thread.get_next_batch()
        (tensor([1.]), None)
        >>> thread.stop()
    """

    def __init__(
        self,
        device: torch.device,
        dataloader_iter: Iterator[In],
        to_device_non_blocking: bool,
        memcpy_stream_priority: int = 0,
        memcpy_stream: torch.Stream | None = None,
    ) -> None:
        if memcpy_stream is not None:
            raise ValueError(
                "`memcpy_stream` should be None: batches are moved on the current stream. "
                f"Received {memcpy_stream!r}."
            )
        super().__init__(daemon=True)
        self._to, self._iterator = device, dataloader_iter
        self._non_blocking = to_device_non_blocking
        self._ready: Queue[tuple[Any, BaseException | None]] = Queue(maxsize=1)
        self._should_stop, self._end = Event(), False

    def run(self) -> None:
        """Load batches until there are none, or it should stop."""
        while not self._should_stop.is_set():
            try:
                batch = next(self._iterator)
                move = getattr(batch, "to", None)
                if move is not None:
                    batch = move(self._to, non_blocking=self._non_blocking)
            except StopIteration:
                self._give(None, None)
                return
            except (
                BaseException
            ) as error:  # of whatever kind: the thread ends, and nobody else hears of it
                self._give(None, error)
                return
            self._give(batch, None)

    def _give(self, batch: Any, error: BaseException | None) -> None:
        while not self._should_stop.is_set():
            with suppress(Full):
                self._ready.put((batch, error), timeout=_PATIENCE)
                return

    def get_next_batch(self, none_throws: bool = False) -> In | None:
        """Return the next batch; None: there is none.

        Args:
            none_throws: raise StopIteration instead. Default False.

        Raises:
            RuntimeError: if the thread was not started, or has ended without a word.
            BaseException: what the iterator has raised.
        """
        batch: In | None = None
        error: BaseException | None = None
        while not self._end:
            is_alive = self.is_alive()  # before the look: what it has given until then is there
            with suppress(Empty):
                batch, error = self._ready.get(timeout=_PATIENCE)
                self._end = batch is None
                break
            self._end = self._should_stop.is_set()
            if not (self._end or is_alive):
                raise RuntimeError(
                    "The thread that loads batches should run: call `start()` first. Received no batch from one that "
                    f"{'has ended' if self.ident else 'was not started'}."
                )
        if error is not None:
            raise error
        if batch is None and none_throws:
            raise StopIteration
        return batch

    def stop(self) -> None:
        """Stop loading, and wait for the batch that is under way."""
        self._should_stop.set()
        if self.is_alive():
            self.join()
