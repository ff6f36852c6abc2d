"""Steps of a sharded model whose ids are sent while the batch before is trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchrec.distributed._input_source import input_from
from torchrec.distributed.model_parallel import get_unwrapped_module
from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.train_pipeline.plain import (
    In,
    ModelForward,
    Out,
    TrainPipeline,
    TrainPipelineBase,
)
from torchrec.distributed.train_pipeline.report import Exchanges, PipelineReport
from torchrec.distributed.train_pipeline.started_inputs import InputCall, StartedInputs, calls_shown
from torchrec.distributed.train_pipeline.uneven import Turn
from torchrec.distributed.types import ShardedModule

__all__ = ["EvalPipelineSparseDist", "TrainPipelineSparseDist", "TrainPipelineSparseDistLite"]

_MOST_PASSES = 4  # iterators that are taken up where they were left


@dataclass
class _FetchedBatch:
    """A batch that was fetched ahead of its step."""

    turn: Turn
    context: TrainPipelineContext


@dataclass
class _Pass:
    """What was fetched ahead from one iterator.

    Attributes:
        iterator: held, so that no other object gets its identity.
        fetched: batches that wait for their steps, the next one first.
        has_ended: whether no rank has more.
    """

    iterator: Iterator[Any] | None
    fetched: deque[_FetchedBatch] = field(default_factory=deque)
    has_ended: bool = False


class TrainPipelineSparseDist(TrainPipelineBase[In, Out]):
    """The steps of a sharded model, whose results are those of `TrainPipelineBase`, bit for bit.

    While a batch is trained on, the ids of the next one are on their way: how many in its forward pass, which in its
    backward pass; and ranks tell one another whether they have a batch after that. What a model calls sharded modules
    with has to be a part of its batch, see `report`.

    Each iterator is a pass of its own: batches that were fetched ahead from it wait for it, whatever else the pipeline
    is used for in the meantime. Of iterators that never end, the four that were used last are remembered.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        execute_all_batches: False leaves the last batch of a pass out, as it is fetched before the end is seen.
        apply_jit: not supported; must be False.
        context_type: makes what is kept of each batch.
        pipeline_postproc: without effect.
        custom_model_fwd: see `TrainPipelineBase`.
        dmp_collection_sync_interval_batches: `DMPCollection.sync` after every so many steps of training; None: never.
            Default 1. Of other models, without effect.
        enqueue_batch_after_forward: fetch the batch after the next behind the forward pass, not before.
        enable_inplace_copy_batch: see `TrainPipelineBase`.
        free_features_storage_early: without effect.
        clear_data_dist_inputs: without effect.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        execute_all_batches: bool = True,
        apply_jit: bool = False,
        context_type: type[TrainPipelineContext] = TrainPipelineContext,
        pipeline_postproc: bool = False,
        custom_model_fwd: ModelForward | None = None,
        dmp_collection_sync_interval_batches: int | None = 1,
        enqueue_batch_after_forward: bool = False,
        enable_inplace_copy_batch: bool = False,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        if apply_jit:
            raise ValueError("`apply_jit` should be False: models are not scripted. Received True.")
        interval = dmp_collection_sync_interval_batches
        if interval is not None and interval < 1:
            raise ValueError(
                "`dmp_collection_sync_interval_batches` should be at least 1, or None. "
                f"Received {interval}."
            )
        super().__init__(model, optimizer, device, custom_model_fwd, enable_inplace_copy_batch)
        self._sync_interval = interval
        self._execute_all_batches = execute_all_batches
        self._enqueue_batch_after_forward = enqueue_batch_after_forward
        self._context_type, self._next_index = context_type, 0
        self._passes: list[_Pass] = []  # the one in use last
        self._pass = _Pass(None)
        self._exchanges = Exchanges()
        self._names: dict[int, str] = {}
        self._calls: list[InputCall] = []  # of sharded modules, as the last forward pass made them
        self._is_attached, self._sends_ahead = False, True
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    # What programs ask.

    @property
    def batches(self) -> deque[Any]:
        """The batches that were fetched from the iterator in use, the next one first."""
        return deque(each.turn.batch for each in self._pass.fetched)

    @property
    def contexts(self) -> deque[TrainPipelineContext]:
        """What is kept of each of `batches`."""
        return deque(each.context for each in self._pass.fetched)

    def report(self) -> PipelineReport:
        """Return what overlapped, for how long, and what did not and why."""
        return self._exchanges.report()

    def attach(self, model: nn.Module | None = None, sparse_dist: bool = True) -> None:
        """Work with a model, as a new pipeline does by itself.

        Args:
            model: in place of the one that there was. Default: the same.
            sparse_dist: whether ids are sent ahead. Default True.
        """
        if model is not None:
            if self._model_fwd is self._model:
                self._model_fwd = model
            self._model = model
        inner = get_unwrapped_module(self._model)  # whose paths are those of the plan
        self._names = {
            id(module): path or type(module).__name__
            for path, module in inner.named_modules()
            if isinstance(module, ShardedModule)
        }
        self._calls, self._is_attached, self._sends_ahead = [], True, sparse_dist

    def detach(self) -> nn.Module:
        """Return the model, on all ranks. Batches that were fetched ahead are kept; what was sent for them is not."""
        for each in self._passes:
            for batch in each.fetched:
                batch.context.inputs = None
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._is_attached = [], False
        return self._model

    def reset(self) -> None:
        """Forget all batches that were fetched ahead, on all ranks."""
        super().reset()
        self._passes, self._pass = [], _Pass(None)

    def register_backward_hook(
        self, site: Any, work: Callable[[TrainPipeline[Any, Any]], None]
    ) -> None:
        """Do something in each backward pass, when it has come through a module.

        Args:
            site: path of the module in the model, or an object that has it as ``fqn``.
            work: called with this pipeline.
        """
        module = self._model.get_submodule(getattr(site, "fqn", site))
        self._hooks.append(module.register_full_backward_hook(lambda *_: work(self)))

    # The steps of a step, which subclasses may run themselves.

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step: one of training if the model is in training mode.

        Args:
            dataloader_iter: gives batches: this one's if it is the first of the pass, and those that follow.

        Returns:
            What the model has returned beside its loss.

        Raises:
            StopIteration: on all ranks, when none of them has a batch. The pipeline can be used again.
            Exception: on all ranks, in the step of a batch that one of them cannot use.
        """
        while True:
            self.fill_pipeline(dataloader_iter)
            if not self._pass.fetched:
                self._passes.remove(self._pass)
                raise StopIteration
            now = self._pass.fetched[0]
            if now.turn.error is not None:
                self.dequeue_batch()
                raise now.turn.error
            try:
                output: Out = self._overlapped_step(now, dataloader_iter)
            finally:
                self.dequeue_batch()
            self._exchanges.steps += 1
            if now.turn.is_own:
                return output

    def fill_pipeline(self, dataloader_iter: Iterator[In]) -> None:
        """Fetch batches until there are two, and send the ids of the first, unless that is so already.

        Args:
            dataloader_iter: gives them.
        """
        if not self._is_attached:
            self.attach()
        self._connected = True
        self._take_up(dataloader_iter)
        while len(self._pass.fetched) < 2 and self.enqueue_batch(dataloader_iter):
            pass
        if self._is_there(0):
            first = self._pass.fetched[0]
            self._start(first)
            self._send(first)
            if not self._execute_all_batches and not self._is_there(1) and self._pass.has_ended:
                self._pass.fetched.clear()

    def enqueue_batch(self, dataloader_iter: Iterator[In]) -> bool:
        """Fetch a batch, if this rank has one, and tell the other ranks. False: the pass has ended.

        Args:
            dataloader_iter: gives it.
        """
        if self._pass.has_ended:
            return False
        contexts: list[TrainPipelineContext | None] = []

        def fetch() -> Any:
            batch, context = self.copy_batch_to_gpu(dataloader_iter)
            contexts.append(context)
            return batch

        turn = self._rank_batches.announce(fetch)
        context = contexts[0] if contexts else None
        self._pass.fetched.append(
            _FetchedBatch(turn, self._new_context() if context is None else context)
        )
        return True

    def dequeue_batch(self) -> None:
        """Let go of the batch whose step is done."""
        self._pass.fetched.popleft()

    def copy_batch_to_gpu(
        self, dataloader_iter: Iterator[In]
    ) -> tuple[In | None, TrainPipelineContext | None]:
        """Return the next batch of this rank, on the device, and what is kept of it; subclasses may do otherwise.

        Args:
            dataloader_iter: gives it; None instead of it: there is none.
        """
        batch = self._fetch(dataloader_iter)
        return batch, None if batch is None else self._new_context()

    def inplace_copy_batch_to_gpu(
        self, dataloader_iter: Iterator[In]
    ) -> tuple[In | None, TrainPipelineContext | None]:
        """Do what `copy_batch_to_gpu` does: memory of accelerators is not reused.

        Args:
            dataloader_iter: see `copy_batch_to_gpu`.
        """
        return self.copy_batch_to_gpu(dataloader_iter)

    def start_sparse_data_dist(self, batch: In | None, context: TrainPipelineContext) -> None:
        """Send how many ids there are, for the calls that the forward pass before has made; all ranks do.

        Args:
            batch: whose they are; None: nothing is sent.
            context: of the batch, which keeps what is on its way.
        """
        if batch is None:
            return
        context.inputs = StartedInputs(batch, self._names, self._exchanges)
        if self._sends_ahead and self._calls:
            context.inputs.start(self._calls)
        context.module_contexts = context.inputs.contexts
        context.input_dist_splits_requests = context.inputs.sizes

    def wait_sparse_data_dist(self, context: TrainPipelineContext) -> None:
        """Wait until all ranks have said how many ids there are, and send these; all ranks do.

        Args:
            context: of the batch.
        """
        if context.inputs is not None:
            context.inputs.send()
            context.input_dist_splits_requests = {}
            context.input_dist_tensors_requests = context.inputs.contents

    def clear_sparse_data_dist_inputs(self, context: TrainPipelineContext) -> None:
        """Do nothing: of a batch, nothing is held beside the batch.

        Args:
            context: of the batch.
        """

    # How they are put together.

    def _new_context(self) -> TrainPipelineContext:
        context = self._context_type(index=self._next_index)
        self._next_index += 1
        return context

    def _take_up(self, iterator: Iterator[In]) -> None:
        """Go on with what was fetched from an iterator."""
        found = [each for each in self._passes if each.iterator is iterator]
        self._pass = found[0] if found else _Pass(iterator)
        others = [each for each in self._passes if each is not self._pass]
        self._passes = [*others[1 - _MOST_PASSES :], self._pass]

    def _is_there(self, number: int) -> bool:
        """Agree with the other ranks on a batch that was fetched ahead. False: there is none, the pass has ended."""
        fetched = self._pass.fetched
        if number >= len(fetched):
            return False
        if self._rank_batches.agree(fetched[number].turn).is_end:
            self._pass.has_ended = True
            while len(fetched) > number:
                fetched.pop()
            return False
        return True

    def _start(self, batch: _FetchedBatch) -> None:
        """Send sizes, unless they have been; what fails is this batch's."""
        inputs = batch.context.inputs
        if batch.turn.error is None and (inputs is None or (self._calls and not inputs.started)):
            try:
                self.start_sparse_data_dist(batch.turn.batch, batch.context)
            except Exception as failed:
                batch.turn.error = failed

    def _send(self, batch: _FetchedBatch) -> None:
        """Send ids, unless they have been; what fails is this batch's, and an earlier one may be under way."""
        if batch.turn.error is None:
            try:
                self.wait_sparse_data_dist(batch.context)
            except Exception as failed:
                batch.turn.error = failed

    def _overlapped_step(self, now: _FetchedBatch, iterator: Iterator[In]) -> Any:
        training = self._trains()
        if training:
            self._optimizer.zero_grad()
        following = self._pass.fetched[1] if self._is_there(1) else None
        if following is not None:
            self._start(following)
            if not self._enqueue_batch_after_forward:
                self.enqueue_batch(iterator)
        self._before_forward(now.turn.batch, now.context)
        losses, output = self._forward(now)
        if following is not None:
            if self._enqueue_batch_after_forward:
                self.enqueue_batch(iterator)
            self._start(following)  # in the first step, as it is known only now what to send
            self._send(following)
            if following.turn.error is None:
                self._before_backward(now.context, following.turn.batch, following.context)
        if training:
            self._backward(losses)
            self._update()
            self.sync_embeddings(self._model, self._sync_interval)
        return output

    def _before_forward(self, batch: In, context: TrainPipelineContext) -> None:
        """Do what a pipeline does between the ids of a batch and its forward pass."""

    def _before_backward(
        self, context: TrainPipelineContext, following: In, following_context: TrainPipelineContext
    ) -> None:
        """Do what a pipeline does for the following batch, whose ids were sent, before this one changes weights."""

    def _trains(self) -> bool:
        return self._model.training

    def _update(self) -> None:
        """Step the optimizer, behind a backward pass."""
        self._optimizer.step()

    def _forward(self, now: _FetchedBatch) -> Any:
        """Run the forward pass of a batch, with the ids that were sent for it."""
        inputs = now.context.inputs
        with input_from(inputs):
            found = self._model_fwd(now.turn.batch)
        if inputs is not None:
            self._calls = calls_shown(inputs.calls, self._calls)
        return found


class EvalPipelineSparseDist(TrainPipelineSparseDist[In, Out]):
    """Steps of evaluation: no gradient is recorded, and nothing is trained.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: without effect.
        device: see `TrainPipelineBase`.
        apply_jit: not supported; must be False.
        pipeline_postproc: without effect.
        enable_inplace_copy_batch: see `TrainPipelineBase`.
        free_features_storage_early: without effect.
        clear_data_dist_inputs: without effect.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        apply_jit: bool = False,
        pipeline_postproc: bool = False,
        enable_inplace_copy_batch: bool = False,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        super().__init__(model, optimizer, device, apply_jit=apply_jit)

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step of evaluation; see `TrainPipelineSparseDist.progress`."""
        with torch.no_grad():
            return super().progress(dataloader_iter)

    def _trains(self) -> bool:
        return False


class TrainPipelineSparseDistLite(TrainPipelineSparseDist[In, Out]):
    """A `TrainPipelineSparseDist` that sends nothing ahead, and fetches batches ahead alone.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        apply_jit: not supported; must be False.
        context_type: see `TrainPipelineSparseDist`.
        pipeline_postproc: without effect.
        custom_model_fwd: see `TrainPipelineBase`.
        enable_inplace_copy_batch: see `TrainPipelineBase`.
        free_features_storage_early: without effect.
        clear_data_dist_inputs: without effect.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        apply_jit: bool = False,
        context_type: type[TrainPipelineContext] = TrainPipelineContext,
        pipeline_postproc: bool = False,
        custom_model_fwd: ModelForward | None = None,
        enable_inplace_copy_batch: bool = False,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            device,
            apply_jit=apply_jit,
            context_type=context_type,
            custom_model_fwd=custom_model_fwd,
        )

    def start_sparse_data_dist(self, batch: In | None, context: TrainPipelineContext) -> None:
        """Send nothing ahead.

        Args:
            batch: whose ids would be sent.
            context: of the batch.
        """
