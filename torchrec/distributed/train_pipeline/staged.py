"""A pipeline of stages that a program gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from torchrec.distributed.train_pipeline.pipeline_stage import PipelineStage
from torchrec.distributed.train_pipeline.plain import In, Out, TrainPipeline

__all__ = ["StagedTrainPipeline"]

_EMPTY = object()  # a stage without a batch


class StagedTrainPipeline(TrainPipeline[In, Out]):
    """Has several batches in stages at a time: a batch comes out when it has been through all of them.

    A stage that returns None leaves its batch out: later stages do not see it, and the next one comes out in its place.
    Where ranks exchange something, they leave out the same batches.

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
        # Of each stage; None: a batch was left out.
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
        """
        while True:
            if self._flushes and all(each is _EMPTY for each in self._outputs):
                self.flush_end()
                self._is_filled = False
            if not self._is_filled:
                self._fill(dataloader_iter)
            output = self._outputs[-1]
            self._advance(dataloader_iter)
            if output is _EMPTY:
                self._is_filled = False  # what comes next is a pass of its own
                return None
            if output is not None:
                found: Out = output
                return found

    def _fill(self, iterator: Iterator[In]) -> None:
        """Bring the first batch through all stages, the next one through all but the last, and so on."""
        self._outputs = [_EMPTY] * len(self._stages)
        for last in range(len(self._stages), 0, -1):
            batch = next(iterator, _EMPTY)
            for number in range(last):
                batch = self._run(number, batch)
                fill = self._stages[number].fill_callback
                if batch is not _EMPTY and fill is not None:
                    fill()
            self._outputs[last - 1] = batch
        self._is_filled = True

    def _advance(self, iterator: Iterator[In]) -> None:
        for number in range(len(self._stages) - 1, 0, -1):
            self._outputs[number] = self._run(number, self._outputs[number - 1])
        self._outputs[0] = self._run(0, _EMPTY if self._flushes else next(iterator, _EMPTY))

    def _run(self, number: int, batch: Any) -> Any:
        stage = self._stages[number]
        if batch is _EMPTY:
            if stage.data_exhausted_callback is not None:
                stage.data_exhausted_callback()
            return _EMPTY
        return None if batch is None else stage.runnable(batch)
