"""Stages of a `StagedTrainPipeline`, and those that send the ids of sharded modules ahead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import nn

from torchrec.distributed._input_source import input_from
from torchrec.distributed.model_parallel import get_unwrapped_module
from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.train_pipeline.plain import In
from torchrec.distributed.train_pipeline.report import Exchanges, PipelineReport
from torchrec.distributed.train_pipeline.started_inputs import InputCall, StartedInputs, calls_shown
from torchrec.distributed.types import ShardedModule

__all__ = ["PipelineStage", "SparseDataDistUtil"]


@dataclass
class PipelineStage:
    """One stage: what becomes of a batch, in the same call in which other batches are in other stages.

    Attributes:
        name: of the stage.
        runnable: makes the output of the stage of that of the one before; of the first, of a batch. None: the batch is
            left out.
        stream: of accelerators; without effect on a CPU.
        fill_callback: called behind the stage where the pipeline is being filled.
        data_exhausted_callback: called in place of the stage where there is no batch for it any more.
    """

    name: str
    runnable: Callable[..., Any]
    stream: torch.Stream | None
    fill_callback: Callable[[], None] | None = None
    data_exhausted_callback: Callable[[], None] | None = None


@dataclass
class _UnderWay:
    batch: Any
    context: TrainPipelineContext
    error: Exception | None = None  # raised where the model is called with the batch


class SparseDataDistUtil(Generic[In]):
    """Sends the ids of batches ahead, as a stage, for a program that calls the model itself.

    Hooks on the model, which last until `detach`, give its forward pass what was sent for the batch that it is called
    with. All ranks have the same number of batches; where they do not, take a `TrainPipelineSparseDist`. A batch that
    the model is not called with, but with one that was started later, is forgotten then.

    Args:
        model: called with a batch.
        data_dist_stream: of accelerators; without effect on a CPU.
        apply_jit: not supported; must be False.
        prefetch_stream: of accelerators; without effect on a CPU.
        pipeline_postproc: without effect.
        embedding_lookup_stream: of accelerators; without effect on a CPU.

    Example:
        >>> def main(model, optimizer, batches):  # on each rank
        ...     sender = SparseDataDistUtil(model, None)
        ...     steps = StagedTrainPipeline([sender.start_sparse_data_dist_stage()])
        ...     while (batch := steps.progress(batches)) is not None:
        ...         optimizer.zero_grad()
        ...         loss, _ = model(batch)
        ...         sender.wait_sparse_data_dist()
        ...         loss.backward()
        ...         optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        data_dist_stream: torch.Stream | None,
        apply_jit: bool = False,
        prefetch_stream: torch.Stream | None = None,
        pipeline_postproc: bool = False,
        embedding_lookup_stream: torch.Stream | None = None,
    ) -> None:
        if apply_jit:
            raise ValueError("`apply_jit` should be False: models are not scripted. Received True.")
        self.model, self.data_dist_stream = model, data_dist_stream
        self._under_way: list[_UnderWay] = []  # in the order of batches
        self._calls: list[InputCall] = []
        self._exchanges = Exchanges()
        self._entered = ExitStack()  # during a forward pass
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]
        self._names = {
            id(module): path or type(module).__name__
            for path, module in get_unwrapped_module(model).named_modules()
            if isinstance(module, ShardedModule)
        }

    def report(self) -> PipelineReport:
        """Return what overlapped, for how long, and what did not and why."""
        return self._exchanges.report()

    def start_sparse_data_dist(self, batch: In) -> In:
        """Send how many ids a batch has, and return it; all ranks do.

        Args:
            batch: which.
        """
        context = TrainPipelineContext(inputs=StartedInputs(batch, self._names, self._exchanges))
        self._under_way.append(_UnderWay(batch, context))
        self._start(context)
        return batch

    def wait_sparse_data_dist(self) -> None:
        """Send ids, once all ranks have said how many; all ranks call this, behind each forward pass.

        What is wrong with a batch of any rank, all raise where they call the model with theirs.
        """
        for each in self._under_way:
            if each.context.inputs is not None and each.error is None:
                try:
                    self._start(each.context)
                    each.context.inputs.send()
                except (
                    Exception
                ) as failed:  # it is this batch's, and an earlier one may be under way
                    each.error = failed

    def wait_sdd_fill_callback(self) -> None:
        """Send the ids of what was started, while the pipeline is being filled."""
        self.wait_sparse_data_dist()

    def data_exhausted_callback(self) -> None:
        """Do nothing: what is under way is waited for by its forward pass."""

    def start_embedding_lookup(self, batch: In) -> In:
        """Look tables up for a batch whose ids have been sent, by the weights as they are now, and return it.

        Args:
            batch: which.
        """
        for each in self._under_way:
            if each.batch is batch and each.context.inputs is not None:
                each.context.inputs.look_up()
        return batch

    def prefetch(self, batch: In) -> In:
        """Return the batch: there are no caches to fetch into.

        Args:
            batch: which.
        """
        return batch

    def load_prefetch(self) -> None:
        """Do nothing: there are no caches to fetch into."""

    def should_assert_context_invariants(self, ctx: TrainPipelineContext) -> bool:
        """Return whether a batch has been started, so that its calls can be looked for.

        Args:
            ctx: of the batch.
        """
        return ctx.inputs is not None

    def start_sparse_data_dist_stage(
        self, name: str = "start_sparse_data_dist", runnable: Callable[..., Any] | None = None
    ) -> PipelineStage:
        """Return the stage that sends how many ids there are.

        Args:
            name: of the stage.
            runnable: in place of `start_sparse_data_dist`.
        """
        return PipelineStage(
            name,
            self.start_sparse_data_dist if runnable is None else runnable,
            self.data_dist_stream,
            self.wait_sdd_fill_callback,
            self.data_exhausted_callback,
        )

    def start_embedding_lookup_stage(
        self, name: str = "start_embedding_lookup", runnable: Callable[..., Any] | None = None
    ) -> PipelineStage:
        """Return the stage that looks tables up.

        Args:
            name: of the stage.
            runnable: in place of `start_embedding_lookup`.
        """
        made = self.start_embedding_lookup if runnable is None else runnable
        return PipelineStage(name, made, self.data_dist_stream)

    def detach(self) -> nn.Module:
        """Return the model, without hooks; what is under way is forgotten, on all ranks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._under_way = [], []
        return self.model

    def _start(self, context: TrainPipelineContext) -> None:
        inputs = context.inputs
        if inputs is not None and self._calls and not inputs.started:
            inputs.start(self._calls)

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        for number, each in enumerate(self._under_way):
            if any(value is each.batch for value in given):
                del self._under_way[: number + 1]  # those before it were left out, on all ranks
                if each.error is not None:
                    raise each.error
                self._entered.enter_context(input_from(each.context.inputs))
                self._entered.callback(self._learn, each.context.inputs)
                return

    def _leave(self, *_: object) -> None:
        self._entered.close()

    def _learn(self, inputs: StartedInputs | None) -> None:
        if inputs is not None and inputs.calls:
            self._calls = calls_shown(inputs.calls, self._calls)
            self._exchanges.steps += 1
