"""How arguments of modules follow from the input of a model, for programs that trace models themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["ArgInfo", "BaseArgInfoStep", "CallArgs", "PipelinePhase"]


class BaseArgInfoStep(ABC):
    """One step from the input of a model to an argument of a module in it."""

    @abstractmethod
    def process(self, arg: Any) -> Any:
        """Return what the step makes of what the one before has made.

        Args:
            arg: that.
        """


@dataclass
class ArgInfo:
    """All steps from the input of a model to an argument.

    Attributes:
        steps: in their order.

    Example:
        >>> from torchrec.distributed.train_pipeline.tracing import ArgInfoStepFactory
        >>> ArgInfo([ArgInfoStepFactory.get_item("ids")]).process_steps({"ids": 3})
        3
    """

    steps: list[BaseArgInfoStep]

    def add_step(self, step: BaseArgInfoStep) -> ArgInfo:
        """Put a step before the others, and return this.

        Args:
            step: comes first.
        """
        self.steps.insert(0, step)
        return self

    def append_step(self, step: BaseArgInfoStep) -> ArgInfo:
        """Put a step behind the others, and return this.

        Args:
            step: comes last.
        """
        self.steps.append(step)
        return self

    def process_steps(self, arg: Any) -> Any:
        """Return the argument.

        Args:
            arg: input of the model.
        """
        for step in self.steps:
            arg = step.process(arg)
        return arg


@dataclass
class CallArgs:
    """All arguments of a call.

    Attributes:
        args: by position.
        kwargs: by name.
    """

    args: list[ArgInfo]
    kwargs: dict[str, ArgInfo]

    def build_args_kwargs(self, initial_input: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments.

        Args:
            initial_input: of the model.
        """
        args = [each.process_steps(initial_input) for each in self.args]
        return args, {name: each.process_steps(initial_input) for name, each in self.kwargs.items()}


class PipelinePhase(Enum):
    """What a pipeline does for a batch."""

    NULL = "null"
    COPY_BATCH_TO_DEVICE = "copy_batch_to_device"
    INPUT_POST_PROC = "input_post_proc"
    INPUT_SPLITS_DIST = "input_splits_dist"
    INPUT_DATA_DIST = "input_data_dist"
    EMBEDDING_LOOKUP = "embedding_lookup"
    EMBEDDING_OUTPUT_DIST = "embedding_output_dist"
    DENSE_FORWARD = "dense_forward"
    DENSE_BACKWARD = "dense_backward"
    EMBEDDING_GRAD_DIST = "embedding_grad_dist"
    EMBEDDING_BACKWARD = "embedding_backward"
    EMBEDDING_UPDATE = "embedding_update"
    DENSE_OPTIMIZER_STEP = "dense_optimizer_step"
