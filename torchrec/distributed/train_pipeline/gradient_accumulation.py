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
        num_warmup_steps: batches in the beginning that have a step each. Default 1.
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
    """An optimizer that steps, and drops gradients, only when it is due. All else is the optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.starts, self.is_due = True, True

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return self._optimizer.step(*args, **kwargs) if self.is_due else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.starts:
            self._optimizer.zero_grad(set_to_none)

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":  # not there yet: a copy asks before it has attributes
            raise AttributeError(name)
        return getattr(self._optimizer, name)


class GradientAccumulationWrapper(Generic[In, Out]):
    """A pipeline whose optimizer steps after several batches.

    Gradients of layers add up, as PyTorch's do; divide the loss by ``num_steps`` for their mean. Tables that are
    updated in the backward pass are so in each.

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
        self._pipeline, self._config, self._step, self._pending = pipeline, config, 0, 0
        self._waiting = _PatientOptimizer(optimizer)
        if config.is_enabled:
            pipeline.use_optimizer(self._waiting)

    @property
    def current_step(self) -> int:
        """How many batches there were."""
        return self._step

    @property
    def optimizer_wrapper(self) -> Any:
        """The optimizer that waits."""
        return self._waiting

    def set_step(self, step: int) -> None:
        """Go on from a number of batches, as a checkpoint has it.

        Args:
            step: how many there were.
        """
        self._step, self._pending = step, 0

    def reset(self) -> None:
        """Start anew, by a warm-up and with new gradients; batches fetched ahead are forgotten."""
        self._step = self._pending = 0
        self._pipeline.reset()

    def progress(self, dataloader_iter: Iterator[In], is_last_batch: bool | None = None) -> Out:
        """Make one step of the pipeline.

        Args:
            dataloader_iter: gives the batch.
            is_last_batch: whether the optimizer steps in any case. Default: not.
        """
        config = self._config
        self._waiting.starts = self._pending == 0
        self._waiting.is_due = (
            self._step < config.num_warmup_steps
            or self._pending + 1 >= config.num_steps
            or bool(is_last_batch)
        )
        output: Out = self._pipeline.progress(dataloader_iter)
        self._step += 1
        self._pending = 0 if self._waiting.is_due else self._pending + 1
        return output
