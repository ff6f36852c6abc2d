"""Where a trainer keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class StateStore(Protocol):
    """Keeps the states of a training by step, and the best weights so far.

    `Checkpoints` keeps them in a folder. States are nested dictionaries and lists of tensors,
    numbers and strings.
    """

    def latest(self) -> int | None:
        """Return the step of the last state; None if there is none."""
        ...

    def save(self, step: int, state: Mapping[str, Any], best: int | None = None) -> object:
        """Keep a state. It must be whole, or the one before still the last, whatever happens.

        Args:
            step: steps taken.
            state: all that the rest of the training depends on; what trains goes on to change it.
            best: the step of the best weights so far, which this state needs.
        """
        ...

    def load(self, step: int, into: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state of a step, tensors on the CPU.

        Args:
            step: of the state.
            into: those parts of a state that are in memory now, as of the same names: a store may read into
                their tensors, and has to where these are shared among ranks.
        """
        ...

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the best weights so far, besides former ones that a state needs."""

    def load_best(self, step: int, into: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the best weights of a step.

        Args:
            step: of the weights.
            into: those that there are now; see `load`.
        """
        ...

    def tidy(self) -> None:
        """Remove what no state that is kept needs, as a process that was killed leaves it."""
