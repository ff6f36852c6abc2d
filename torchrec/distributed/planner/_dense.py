"""What the layers of a model take, which every rank has beside its tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DensePart", "Layers"]


@dataclass(frozen=True)
class DensePart:
    """The layers of a model, as `measure_dense` finds them.

    Attributes:
        parameter_bytes: of parameters and buffers.
        training_bytes: of their gradients and what optimizers keep.
        step_bytes: what a step has more at most: what layers keep for the backward pass, gradients of that.
        gradient_bytes: of gradients, which are added up over the ranks.
        step_ms: what a step takes on one rank, with the update.
        product_bytes: that matrix products keep from step to step, which are of no tensor. Default 0.

    Raises:
        ValueError: if a number is below 0.
    """

    parameter_bytes: int
    training_bytes: int
    step_bytes: int
    gradient_bytes: int
    step_ms: float
    product_bytes: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:  # NaN neither
                raise ValueError(f"`{name}` should be 0 or more. Received {value!r}.")

    @property
    def lasting_bytes(self) -> int:
        """Those that are there between steps, too."""
        return self.parameter_bytes + self.training_bytes + self.product_bytes

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return self.lasting_bytes + self.step_bytes


@dataclass(frozen=True)
class Layers:
    """What a planner knows of the layers of a model.

    Attributes:
        parameter_bytes: of parameters and buffers.
        measured: what they take; None: that was not measured.
    """

    parameter_bytes: int
    measured: DensePart | None

    @property
    def lasting_bytes(self) -> int:
        """Those that are known to be there between steps."""
        return self.parameter_bytes if self.measured is None else self.measured.lasting_bytes

    def sum_bytes(self, world_size: int) -> int:
        """Return those in which gradients are added up.

        Args:
            world_size: how many ranks have them. Of several, `DistributedDataParallel` keeps this memory while new
                gradients are made; one rank gives that of its gradients back.
        """
        return 0 if self.measured is None or world_size == 1 else self.measured.gradient_bytes

    def step_bytes(self, world_size: int) -> int | None:
        """Return those that are known to be there in a step; None: there are no layers.

        Args:
            world_size: how many ranks have them.
        """
        if self.measured is None:
            return 0 if self.parameter_bytes else None
        return self.measured.step_bytes + self.sum_bytes(world_size)
