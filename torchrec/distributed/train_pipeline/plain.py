"""What every pipeline does, and the plain one: one step behind the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.train_pipeline.uneven import RankBatches
from torchrec.distributed.wire import Wire

__all__ = ["In", "ModelForward", "Out", "TrainPipeline", "TrainPipelineBase"]

In = TypeVar("In")
Out = TypeVar("Out")
ModelForward = Callable[[Any], tuple[Tensor, Any]]


class TrainPipeline(ABC, Generic[In, Out]):
    """Takes batches and makes steps of them."""

    def __init__(self) -> None:
        self._synced_steps = 0

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
        """Forget batches that were fetched ahead, on all ranks. Default: there are none."""

    def sync_embeddings(
        self,
        model: nn.Module,
        interval_batches: int | None,
        context: TrainPipelineContext | None = None,
    ) -> None:
        """Count a step of training, and call `DMPCollection.sync` after every so many. Other models need none.

        Args:
            model: that was trained.
            interval_batches: after how many steps; None: never.
            context: of the batch; with a number, that one is taken in place of the count.
        """
        if interval_batches is None or not isinstance(model, DMPCollection):
            return
        self._synced_steps += 1
        index = None if context is None else context.index
        steps = self._synced_steps if index is None else index + 1
        if steps % interval_batches == 0:
            model.sync()


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
        super().__init__()
        self._model, self._optimizer, self._device = model, optimizer, device
        self._model_fwd: ModelForward = model if custom_model_fwd is None else custom_model_fwd
        self._rank_batches = RankBatches(_wire_of(model), self._to_device)
        self._connected = False  # to an iterator, as programs ask

    def progress(self, dataloader_iter: Iterator[In]) -> Out:
        """Make one step: one of training if the model is in training mode.

        Args:
            dataloader_iter: gives the batch.

        Returns:
            What the model has returned beside its loss.

        Raises:
            StopIteration: on all ranks, when none of them has a batch.
        """
        self._connected = True
        while True:
            turn = self._rank_batches.announce(lambda: self._fetch(dataloader_iter))
            self._rank_batches.agree(turn)
            if turn.error is not None:
                raise turn.error
            if turn.is_end:
                raise StopIteration
            output: Out = self._step(turn.batch)
            if turn.is_own:
                return output

    def reset(self) -> None:
        """Forget the iterator: there are no batches that were fetched ahead."""
        self._connected = False

    def use_optimizer(self, optimizer: Any) -> None:
        """Step another optimizer from now on.

        Args:
            optimizer: has ``step`` and ``zero_grad``.
        """
        self._optimizer = optimizer

    def _next_batch(self, dataloader_iter: Iterator[In]) -> In | None:
        """Return the next batch of this rank, where it was made; None: there is none. Subclasses may take others."""
        return next(dataloader_iter, None)

    def _fetch(self, dataloader_iter: Iterator[In]) -> Any:
        batch = self._next_batch(dataloader_iter)
        return None if batch is None else self._to_device(batch)

    def _to_device(self, batch: Any) -> Any:
        move = getattr(batch, "to", None)
        return batch if move is None else move(self._device)

    def _step(self, batch: Any) -> Any:
        if self._model.training:
            self._optimizer.zero_grad()
        losses, output = self._model_fwd(batch)
        if self._model.training:
            self._backward(losses)
            self._optimizer.step()
        return output

    def _backward(self, losses: Tensor) -> None:
        torch.sum(losses, dim=0).backward()


def _wire_of(model: nn.Module) -> Wire | None:
    """Return the ranks of a model; None: it is one rank's."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = model.process_group if isinstance(model, DistributedModelParallel) else dist.group.WORLD
    return None if group is None or dist.get_world_size(group) == 1 else Wire(group)
