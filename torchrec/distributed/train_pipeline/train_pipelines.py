"""A step of training or evaluation at a time, on as many ranks as there are.

All ranks call `progress` alike. One that has run out of data takes part with batches of no samples until all have: so
each rank may have as many batches as it has, and none waits for one that has stopped. What fails to give a batch on
one rank is raised on all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
from torchrec.distributed.train_pipeline.empty import without_samples
from torchrec.distributed.wire import Wire

__all__ = [
    "EvalPipelineSparseDist",
    "TrainPipeline",
    "TrainPipelineBase",
    "TrainPipelineSparseDist",
]

In = TypeVar("In")
Out = TypeVar("Out")
ModelForward = Callable[[Any], tuple[Tensor, Any]]

_DONE, _HAS_BATCH, _FAILED, _NEVER_HAD = range(4)


class TrainPipeline(ABC, Generic[In, Out]):
    """Takes batches and makes steps of them."""

    @abstractmethod
    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step.

        Args:
            dataloader_iter: gives the batch.

        Returns:
            What the model has returned beside its loss.

        Raises:
            StopIteration: on all ranks, when none of them has a batch.
        """

    def reset(self) -> None:
        """Forget batches that were fetched ahead: there are none."""


class TrainPipelineBase(TrainPipeline[In, Out]):
    """Batch to device, forward, backward, optimizer: one behind the other.

    Args:
        model: returns a loss and what `progress` returns; in training mode, steps train it.
        optimizer: of what the backward pass does not update itself.
        device: where batches go.
        custom_model_fwd: called with a batch in place of the model.
        enable_inplace_copy_batch: without effect on a CPU, and not supported elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        custom_model_fwd: ModelForward | None = None,
        enable_inplace_copy_batch: bool = False,
    ) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device
        self._forward: ModelForward = model if custom_model_fwd is None else custom_model_fwd
        self._wire = _wire_of(model)
        self._last: Any = None  # of the batches, without its samples

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step: one of training if the model is in training mode.

        Args:
            dataloader_iter: gives the batch.

        Returns:
            What the model has returned beside its loss.

        Raises:
            StopIteration: on all ranks, when none of them has a batch.
        """
        while True:
            batch, mine = self._next(dataloader_iter)
            output: Out = self._step(batch)
            if mine:
                return output

    def _next(self, dataloader_iter: Iterator[In]) -> tuple[Any, bool]:
        """Return the next batch, and whether it is of this rank's own data; it has no samples if it is not."""
        error, batch, state = None, None, _HAS_BATCH
        try:
            batch = self._moved(next(dataloader_iter))
            if self._last is None and self._wire is not None:
                self._last = without_samples(batch)
        except StopIteration:
            state = _NEVER_HAD if self._last is None else _DONE
        except Exception as failed:
            if self._wire is None:
                raise
            error, state = failed, _FAILED
        if self._wire is None:
            if state != _HAS_BATCH:
                raise StopIteration
            return batch, True
        states = self._wire.states(state, "the next batch of a pipeline")
        if _FAILED in states:
            self._wire.raise_together(error)
        if _HAS_BATCH not in states:
            raise StopIteration
        if _NEVER_HAD in states:  # it has to be told what a batch is
            self._last = self._wire.share(self._last, states.index(_HAS_BATCH), "what a batch is")
        mine = state == _HAS_BATCH
        return batch if mine else self._moved(self._last), mine

    def _moved(self, batch: Any) -> Any:
        move = getattr(batch, "to", None)
        return batch if move is None else move(self._device)

    def _step(self, batch: Any) -> Any:
        if self._model.training:
            self._optimizer.zero_grad()
        losses, output = self._forward(batch)
        if self._model.training:
            torch.sum(losses, dim=0).backward()
            self._optimizer.step()
        return output


class TrainPipelineSparseDist(TrainPipelineBase[In, Out]):
    """The steps of a sharded model; of the exchanges of ids and the layers between, nothing overlaps yet.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        execute_all_batches: without effect: no batch is fetched ahead, so none is left at the end.
        apply_jit: not supported; must be False.
        context_type: without effect.
        pipeline_postproc: without effect.
        custom_model_fwd: see `TrainPipelineBase`.
        dmp_collection_sync_interval_batches: `DMPCollection.sync` after every so many steps of training; None: never.
            Default 1. Of other models, without effect.
        enqueue_batch_after_forward: without effect.
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
        context_type: type[object] | None = None,
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
        self._sync_interval, self._steps = interval, 0

    def _step(self, batch: Any) -> Any:
        output = super()._step(batch)
        if self._model.training and isinstance(self._model, DMPCollection):
            self._steps += 1
            if self._sync_interval is not None and self._steps % self._sync_interval == 0:
                self._model.sync()
        return output


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

    def _step(self, batch: Any) -> Any:
        with torch.no_grad():
            _, output = self._forward(batch)
        return output


def _wire_of(model: nn.Module) -> Wire | None:
    """Return the ranks of a model; None: it is one rank's."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = model.process_group if isinstance(model, DistributedModelParallel) else dist.group.WORLD
    return None if group is None or dist.get_world_size(group) == 1 else Wire(group)
