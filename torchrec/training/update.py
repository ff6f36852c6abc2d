"""One update of a model, with the gradient of all samples of some batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.datasets.utils import Batch
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.training.compared import loss_of_ranks
from torchrec.training.optimizers import collecting, dense_parameters, stepping
from torchrec.training.options import FitOptions
from torchrec.training.phases import PhaseTimer
from torchrec.training.task import Prediction, Task, predictions_of
from torchrec.training.world import World


class Update:
    """Updates a model: forward and backward pass, in which fused tables are updated, and the rest.

    Args:
        model: what is trained.
        tasks: what it learns.
        optimizer: all optimizers of the model.
        options: precision, compiling, clipping.
        phases: is told how long what takes.
        world: the ranks that make the update together.

    Raises:
        ValueError: if an option would have no effect.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        optimizer: CombinedOptimizer,
        options: FitOptions,
        phases: PhaseTimer,
        world: World,
    ) -> None:
        self._model, self._tasks, self._optimizer = model, tasks, optimizer
        self._options, self._phases, self._world = options, phases, world
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._forward: Any = torch.compile(model) if options.compile else model
        self._stepping = stepping(optimizer)
        self._left_gradients = list(dense_parameters(model).values())
        self._clipped = [
            p for each in self._stepping for g in each.param_groups for p in g["params"]
        ]
        if options.clip_norm is not None and not self._clipped:
            raise ValueError(
                "`clip_norm` should be given for a model with parameters that are not fused. "
                f"Received {options.clip_norm} for one that has none to train."
            )
        if options.label_smoothing and not any(task.is_cross_entropy for task in tasks):
            raise ValueError(
                "`label_smoothing` should be given for a task with the loss 'binary_cross_entropy'. "
                f"Received {options.label_smoothing} for {[task.loss for task in tasks]}."
            )

    def __call__(
        self, group: Sequence[Batch], weight: Tensor | float
    ) -> tuple[Tensor, list[Prediction]]:
        """Make the update, and return the loss and what the model said before it.

        Args:
            group: batches on the device of the model.
            weight: what their samples weigh together: `weigh`. Of several ranks, whose gradients' mean
                is taken, the mean of what theirs weigh.

        Raises:
            ValueError: if weights or outputs are not as they should be.
        """
        with self._watching():
            loss, predictions = self._backward(group, weight)
            with self._phases("optimizer"):
                if self._options.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self._clipped, self._options.clip_norm)
                for optimizer in self._stepping:
                    optimizer.step()
        return loss, predictions

    def drop_gradients(self) -> None:
        """Drop what no step has applied, of fused tables and of the rest."""
        self._optimizer.zero_grad(set_to_none=True)

    def _backward(
        self, group: Sequence[Batch], total: Tensor | float
    ) -> tuple[Tensor, list[Prediction]]:
        smoothing = self._options.label_smoothing
        losses: list[Tensor] = []
        predictions: list[Prediction] = []
        for number, batch in enumerate(group, 1):
            with self._phases("dense"):
                with self._precision():
                    output = self._forward(batch.dense_features, batch.sparse_features)
                mine = [each.of_training() for each in predictions_of(output, self._tasks, batch)]
                first, *others = (
                    loss_of_ranks(each, total, self._world, smoothing) for each in mine
                )
                loss = sum(others, first)
                if number == 1:
                    # Not after the step: a heap that is emptied goes back to the system, page by
                    # page, and is fetched again: some hundredths of a step.
                    for parameter in self._left_gradients:
                        parameter.grad = None
                with collecting(self._optimizer) if number < len(group) else nullcontext():
                    loss.backward()
            losses.append(loss.detach())
            predictions += [each._replace(outputs=each.outputs.detach()) for each in mine]
        return sum(losses[1:], losses[0]), predictions

    def _watching(self) -> AbstractContextManager[None]:
        # Hooks would have a compiled model compiled again.
        return nullcontext() if self._options.compile else self._phases.step(self._model)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._options.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)
