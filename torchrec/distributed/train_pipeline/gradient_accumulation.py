"""Steps of an optimizer after several batches, whose gradients add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import nn

from torchrec.distributed.train_pipeline.plain import In, Out, TrainPipeline, TrainPipelineBase

__all__ = ["GradientAccumulationConfig", "GradientAccumulationWrapper"]


@dataclass
class GradientAccumulationConfig:
    """After how many batches an optimizer steps.

    Attributes:
        is_enabled: whether it waits at all. Default False.
        num_steps: batches of a step of the optimizer. Default 1.
        num_warmup_steps: batches that are trained on in the beginning, with a step each. Default 1.
    """

    is_enabled: bool = False
    num_steps: int = 1
    num_warmup_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that are none."""
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` should be at least 1. Received {self.num_steps}.")
        if self.num_warmup_steps < 0:
            raise ValueError(
                f"`num_warmup_steps` should be at least 0. Received {self.num_warmup_steps}."
            )


class _PatientOptimizer:
    """An optimizer that steps, and drops gradients, only when it is due. All else is the optimizer's.

    It counts how often it is asked to, and not how often the pipeline is called: that evaluates in between as well, and
    trains on with no samples on ranks that have run out of data.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: GradientAccumulationConfig
    ) -> None:
        self._optimizer, self._config = optimizer, config
        self._pending = 0  # batches whose gradients have been added up
        self.steps, self.is_last = 0, False

    def step(self, *args: Any, **kwargs: Any) -> Any:
        is_due = (
            self.steps < self._config.num_warmup_steps
            or self._pending + 1 >= self._config.num_steps
            or self.is_last
        )
        self.steps += 1
        self._pending = 0 if is_due else self._pending + 1
        return self._optimizer.step(*args, **kwargs) if is_due else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self._pending == 0:
            self._optimizer.zero_grad(set_to_none)

    def go_on_from(self, steps: int) -> None:
        """Count from a number of batches, and drop gradients with the next one."""
        self.steps, self._pending = steps, 0

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":  # not there yet: a copy asks before it has attributes
            raise AttributeError(name)
        return getattr(self._optimizer, name)


class GradientAccumulationWrapper(Generic[In, Out]):
    """A pipeline whose optimizer steps after several batches.

    Gradients of layers add up, as PyTorch's do; divide the loss by ``num_steps`` for their mean. Tables that are
    updated in the backward pass are so in each. Batches that are evaluated in between count for nothing.

    Args:
        pipeline: makes the steps. Its optimizer gives way to one that waits.
        optimizer: of the pipeline.
        model: of the pipeline.
        config: after how many batches.

    Raises:
        TypeError: for a pipeline that has no optimizer.
    """

    def __init__(
        self,
        pipeline: TrainPipeline[In, Out],
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        config: GradientAccumulationConfig,
    ) -> None:
        if not isinstance(pipeline, TrainPipelineBase):
            raise TypeError(
                "`pipeline` should be a TrainPipelineBase, whose optimizer can wait. "
                f"Received a {type(pipeline).__name__}."
            )
        self._pipeline, self._model, self._config = pipeline, model, config
        self._waiting = _PatientOptimizer(optimizer, config)
        if config.is_enabled:
            pipeline.use_optimizer(self._waiting)

    @property
    def current_step(self) -> int:
        """How many batches were trained on."""
        return self._waiting.steps

    @property
    def optimizer_wrapper(self) -> Any:
        """The optimizer that waits."""
        return self._waiting

    def set_step(self, step: int) -> None:
        """Go on from a number of batches, as a checkpoint has it.

        Args:
            step: how many were trained on.
        """
        self._waiting.go_on_from(step)

    def reset(self) -> None:
        """Start anew, by a warm-up and with new gradients; batches fetched ahead are forgotten."""
        self._waiting.go_on_from(0)
        self._pipeline.reset()

    def progress(self, dataloader_iter: Iterator[In], is_last_batch: bool | None = None) -> Out:
        """Make one step of the pipeline.

        Args:
            dataloader_iter: gives the batch.
            is_last_batch: whether the optimizer steps in any case, the same on all ranks. Default: not. A rank that has
                run out of data cannot say so: leave it out where ranks have different numbers of batches.
        """
        self._waiting.is_last = bool(is_last_batch)
        output: Out = self._pipeline.progress(dataloader_iter)
        if not self._config.is_enabled and self._model.training:  # the optimizer is asked itself
            self._waiting.steps += 1
        return output
