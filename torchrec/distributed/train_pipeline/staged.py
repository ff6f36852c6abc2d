"""A pipeline of stages that a program gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from torchrec.distributed.train_pipeline.pipeline_stage import PipelineStage
from torchrec.distributed.train_pipeline.plain import In, Out, TrainPipeline

__all__ = ["StagedTrainPipeline"]

_EMPTY = object()  # a stage without a batch


@dataclass
class _Failed:
    """What has become of a batch that a stage, or the iterator, has failed with."""

    error: Exception


class StagedTrainPipeline(TrainPipeline[In, Out]):
    """Has several batches in stages at a time: a batch comes out when it has been through all of them.

    A stage that returns None leaves its batch out: later stages do not see it, and the next one comes out in its place.
    Where ranks exchange something, they leave out the same batches. What a stage fails by is raised where its batch
    would come out: later stages do not see that batch, and others go on.

    Args:
        pipeline_stages: in their order, at least one.
        debug_mode: without effect: stages of a CPU are done when they return.
        compute_stream: of accelerators; without effect on a CPU.
        on_flush_end: called when the pipeline is empty after `set_flush`.

    Raises:
        ValueError: for no stages.

    Example:
        >>> stages = [PipelineStage("add", lambda x: x + 1, None), PipelineStage("double", lambda x: 2 * x, None)]
        >>> steps, data = StagedTrainPipeline(stages), iter([1, 2, 3])
        >>> [steps.progress(data) for _ in range(4)]
        [4, 6, 8, None]
        >>> odd = PipelineStage("odd", lambda x: x if x % 2 else None, None)
        >>> steps, data = StagedTrainPipeline([odd, *stages]), iter([1, 2, 3])
        >>> [steps.progress(data) for _ in range(3)]
        [4, 8, None]
    """

    def __init__(
        self,
        pipeline_stages: list[PipelineStage],
        debug_mode: bool = False,
        compute_stream: torch.Stream | None = None,
        on_flush_end: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        if not pipeline_stages:
            raise ValueError("`pipeline_stages` should be at least one. Received none.")
        self._stages, self._on_flush_end = list(pipeline_stages), on_flush_end
        # Of each stage; None: a batch was left out; `_Failed`: its error waits for its turn.
        self._outputs: list[Any] = [_EMPTY] * len(self._stages)
        self._is_filled, self._flushes = False, False

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self._stages)

    def set_flush(self, flush: bool) -> None:
        """Take no new batches until all that are in the pipeline are out; then go on.

        Args:
            flush: whether to.
        """
        self._flushes = flush

    def flush_end(self) -> None:
        """End a flush: new batches are taken again, and ``on_flush_end`` is called."""
        self._flushes = False
        if self._on_flush_end is not None:
            self._on_flush_end()

    def reset(self) -> None:
        """Forget the batches that are in stages."""
        self._outputs, self._is_filled = [_EMPTY] * len(self._stages), False

    def progress(self, dataloader_iter: Iterator[In]) -> Out | None:  # type: ignore[override]
        """Return a batch that has been through all stages, and move the others one on; None: there is none any more.

        Args:
            dataloader_iter: gives batches.

        Raises:
            Exception: what a stage, or the iterator, has failed by, in the step of its batch. The next step returns the
                batch after it.
        """
        while True:
            if self._flushes and all(each is _EMPTY for each in self._outputs):
                self._is_filled = False
                self.flush_end()
            if not self._is_filled:
                self._fill(dataloader_iter)
            output = self._outputs[-1]
            self._advance(dataloader_iter)
            if output is _EMPTY:
                self._is_filled = False  # what comes next is a pass of its own
                return None
            if isinstance(output, _Failed):
                raise output.error
            if output is not None:
                found: Out = output
                return found

    def _fill(self, iterator: Iterator[In]) -> None:
        """Bring the first batch through all stages, the next one through all but the last, and so on."""
        self._outputs = [_EMPTY] * len(self._stages)
        for last in range(len(self._stages), 0, -1):
            batch = _caught(next, iterator, _EMPTY)
            for number in range(last):
                batch = self._run(number, batch)
                fill = self._stages[number].fill_callback
                if batch is not _EMPTY and fill is not None:
                    filled = _caught(fill)  # of failed batches, too: other ranks may wait in it
                    if isinstance(filled, _Failed) and not isinstance(batch, _Failed):
                        batch = filled
            self._outputs[last - 1] = batch
        self._is_filled = True

    def _advance(self, iterator: Iterator[In]) -> None:
        for number in range(len(self._stages) - 1, 0, -1):
            self._outputs[number] = self._run(number, self._outputs[number - 1])
        batch = _EMPTY if self._flushes else _caught(next, iterator, _EMPTY)
        self._outputs[0] = self._run(0, batch)

    def _run(self, number: int, batch: Any) -> Any:
        stage = self._stages[number]
        if batch is _EMPTY:
            exhausted = stage.data_exhausted_callback
            called = None if exhausted is None else _caught(exhausted)
            return called if isinstance(called, _Failed) else _EMPTY
        if batch is None or isinstance(batch, _Failed):
            return batch
        return _caught(stage.runnable, batch)


def _caught(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a call returns, or what it has failed by."""
    try:
        return call(*args)
    except Exception as error:
        return _Failed(error)
