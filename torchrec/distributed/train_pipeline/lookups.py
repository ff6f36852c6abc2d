"""Pipelines that look tables up before the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from torchrec.distributed.train_pipeline.late_gradients import LateGradients
from torchrec.distributed.train_pipeline.pipeline_context import (
    EmbeddingTrainPipelineContext,
    PrefetchTrainPipelineContext,
    TrainPipelineContext,
)
from torchrec.distributed.train_pipeline.plain import In, ModelForward, Out
from torchrec.distributed.train_pipeline.sparse_dist import TrainPipelineSparseDist

__all__ = [
    "EvalPipelineFusedSparseDist",
    "PrefetchTrainPipelineSparseDist",
    "TrainPipelineFusedSparseDist",
    "TrainPipelineSemiSync",
]

_STREAMS = ("data_dist", "current", "new")


class PrefetchTrainPipelineSparseDist(TrainPipelineSparseDist[In, Out]):
    """A `TrainPipelineSparseDist`; what it would fetch ahead into caches of accelerators is in memory already.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        execute_all_batches: see `TrainPipelineSparseDist`.
        apply_jit: not supported; must be False.
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
        execute_all_batches: bool = True,
        apply_jit: bool = False,
        pipeline_postproc: bool = True,
        custom_model_fwd: ModelForward | None = None,
        enable_inplace_copy_batch: bool = False,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            device,
            execute_all_batches,
            apply_jit,
            PrefetchTrainPipelineContext,
            custom_model_fwd=custom_model_fwd,
        )


class TrainPipelineFusedSparseDist(TrainPipelineSparseDist[In, Out]):
    """A `TrainPipelineSparseDist` that looks tables up before it calls the model, by the weights of that step.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        execute_all_batches: see `TrainPipelineSparseDist`.
        apply_jit: not supported; must be False.
        pipeline_postproc: without effect.
        custom_model_fwd: see `TrainPipelineBase`.
        strict: without effect.
        emb_lookup_stream: ``"data_dist"``, ``"current"`` or ``"new"``; of accelerators: the same on a CPU.
        embedding_lookup_after_data_dist: without effect: the ids of the next batch are sent first.
        enable_inplace_copy_batch: see `TrainPipelineBase`.
        enqueue_batch_after_forward: see `TrainPipelineSparseDist`.
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
        pipeline_postproc: bool = True,
        custom_model_fwd: ModelForward | None = None,
        strict: bool = False,
        emb_lookup_stream: str = "data_dist",
        embedding_lookup_after_data_dist: bool = False,
        enable_inplace_copy_batch: bool = False,
        enqueue_batch_after_forward: bool = False,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        if emb_lookup_stream not in _STREAMS:
            raise ValueError(
                f"`emb_lookup_stream` should be one of {list(_STREAMS)}. Received {emb_lookup_stream!r}."
            )
        super().__init__(
            model,
            optimizer,
            device,
            execute_all_batches,
            apply_jit,
            EmbeddingTrainPipelineContext,
            custom_model_fwd=custom_model_fwd,
            enqueue_batch_after_forward=enqueue_batch_after_forward,
        )

    def start_embedding_lookup(
        self, batch: In | None, context: EmbeddingTrainPipelineContext
    ) -> None:
        """Look tables up for a batch whose ids have been sent; all ranks do.

        Args:
            batch: which; None: nothing is looked up.
            context: of the batch, which keeps what was found.
        """
        look_up(batch, context)

    def wait_embedding_lookup(self) -> None:
        """Return at once: there is no other stream to wait for."""

    def _before_forward(self, batch: In, context: TrainPipelineContext) -> None:
        if isinstance(context, EmbeddingTrainPipelineContext):
            self.start_embedding_lookup(batch, context)


class EvalPipelineFusedSparseDist(TrainPipelineFusedSparseDist[In, Out]):
    """Steps of evaluation that look tables up before they call the model.

    Args:
        args: see `TrainPipelineFusedSparseDist`.
        enable_embedding_lookup_prefetch: look up for the next batch in each step. Nothing is trained in between.
        kwargs: see `TrainPipelineFusedSparseDist`.
    """

    def __init__(
        self, *args: Any, enable_embedding_lookup_prefetch: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._looks_up_ahead = enable_embedding_lookup_prefetch

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step of evaluation; see `TrainPipelineSparseDist.progress`."""
        with torch.no_grad():
            return super().progress(dataloader_iter)

    def _trains(self) -> bool:
        return False

    def _before_backward(
        self, context: TrainPipelineContext, following: In, following_context: TrainPipelineContext
    ) -> None:
        if self._looks_up_ahead:
            look_up(following, following_context)


class TrainPipelineSemiSync(TrainPipelineSparseDist[In, Out]):
    """A `TrainPipelineSparseDist` that looks tables up a step early: by weights that lack the last update.

    So the exchange of vectors, too, is out of the way of the layers. Results are not those of the plain loop: from
    batch ``start_batch + 1`` on, what is looked up for a batch is what tables held before the batch ahead of it
    updated them. Gradients update the tables as they are then; layers are trained as ever.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        execute_all_batches: see `TrainPipelineSparseDist`.
        apply_jit: not supported; must be False.
        start_batch: number of the first batch, of all since the pipeline was made, in whose step the next one's tables
            are looked up. Default 900: embeddings move most in the beginning.
        stash_gradients: update layers a step late as well, from batch ``start_batch`` on: by the gradients of the
            batch before, as embeddings are. Those of the last batch of a pass are applied where the pass ends, or by
            `detach`; `reset` forgets them. Default False.
        pipeline_postproc: without effect.
        custom_model_fwd: see `TrainPipelineBase`.
        strict: without effect.
        dmp_collection_sync_interval_batches: see `TrainPipelineSparseDist`.
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
        start_batch: int = 900,
        stash_gradients: bool = False,
        pipeline_postproc: bool = True,
        custom_model_fwd: ModelForward | None = None,
        strict: bool = False,
        dmp_collection_sync_interval_batches: int | None = 1,
        enable_inplace_copy_batch: bool = False,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            device,
            execute_all_batches,
            apply_jit,
            EmbeddingTrainPipelineContext,
            custom_model_fwd=custom_model_fwd,
            dmp_collection_sync_interval_batches=dmp_collection_sync_interval_batches,
        )
        self._start_batch = start_batch
        self._late = LateGradients() if stash_gradients else None

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step; see `TrainPipelineSparseDist.progress`."""
        try:
            return super().progress(dataloader_iter)
        except StopIteration:
            if self._trains():
                self._apply_late()
            raise

    def detach(self) -> nn.Module:
        """Return the model, trained by all gradients; see `TrainPipelineSparseDist.detach`."""
        self._apply_late()
        return super().detach()

    def reset(self) -> None:
        """Forget all batches that were fetched ahead, and gradients that wait, on all ranks."""
        super().reset()
        if self._late is not None:
            self._late.forget()

    def use_optimizer(self, optimizer: Any) -> None:
        """Step another optimizer from now on.

        Args:
            optimizer: has ``step`` and ``zero_grad``.

        Raises:
            ValueError: with ``stash_gradients``: gradients that add up over batches cannot wait as well.
        """
        if self._late is not None:
            raise ValueError(
                "`stash_gradients` should be False where another optimizer is to wait for gradients. Received True."
            )
        super().use_optimizer(optimizer)

    def is_semi_sync(self) -> bool:
        """Return whether the tables of the next batch are looked up in the step of this one."""
        contexts = self.contexts
        index = contexts[0].index if contexts else None
        return index is not None and index >= self._start_batch

    def start_embedding_lookup(
        self, batch: In | None, context: EmbeddingTrainPipelineContext
    ) -> None:
        """Look tables up for a batch whose ids have been sent; all ranks do.

        Args:
            batch: which; None: nothing is looked up.
            context: of the batch, which keeps what was found.
        """
        look_up(batch, context)

    def embedding_backward(self, context: EmbeddingTrainPipelineContext) -> None:
        """Do nothing: the backward pass of the loss comes through the tables.

        Args:
            context: of the batch.
        """

    def extract_model_input_from_batch(self, batch: In) -> In:
        """Return what the model is called with: the batch.

        Args:
            batch: which.
        """
        return batch

    def _before_backward(
        self, context: TrainPipelineContext, following: In, following_context: TrainPipelineContext
    ) -> None:
        if self.is_semi_sync() and isinstance(following_context, EmbeddingTrainPipelineContext):
            self.start_embedding_lookup(following, following_context)

    def _update(self) -> None:
        if self._late is not None and self.is_semi_sync():
            self._late.step(self._optimizer)
        else:
            super()._update()

    def _apply_late(self) -> None:
        if self._late is not None:
            self._late.apply(self._optimizer)


def look_up(batch: object, context: TrainPipelineContext) -> None:
    """Look tables up for a batch whose ids have been sent; all ranks do.

    Args:
        batch: which; None: nothing is looked up.
        context: of the batch, which keeps what was found.
    """
    if batch is not None and context.inputs is not None:
        context.inputs.look_up()
