"""Checkpoints of several ranks, as a trainer keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrec.distributed.checkpoint import ShardedCheckpoints


class RankCheckpoints:
    """A `StateStore` in a folder that all ranks see: each rank writes and reads its parts of the tables.

    They go on from what `Checkpoints` wrote as well, and from another number of ranks or another plan.
    All ranks call it alike. Without `torch.distributed`, this process is the only rank.

    Args:
        folder: is made when the first checkpoint is written.
        keep: how many of the last ones are kept. Default 2.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = RankCheckpoints(folder)
        ...     checkpoints.save(10, {"model": {"weight": torch.ones(2)}, "metrics": torch.ones(1)})
        ...     weights = torch.zeros(2)
        ...     checkpoints.load(10, {"model": {"weight": weights}})["metrics"], weights
        (tensor([1.]), tensor([1., 1.]))
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self._checkpoints = ShardedCheckpoints(folder, keep)

    def latest(self) -> int | None:
        """Return the step of the last checkpoint; None if there is none."""
        return self._checkpoints.latest()

    def save(self, step: int, state: Mapping[str, Any], best: int | None = None) -> None:
        """Write a checkpoint.

        Args:
            step: steps taken.
            state: of the model and the optimizer, as all ranks have it together, and what else is alike.
            best: the step of the best weights so far, which this state needs.
        """
        self._checkpoints.save(step, state, best)

    def load(self, step: int, into: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state of a checkpoint; what ``into`` has is read into its tensors.

        Args:
            step: of the checkpoint.
            into: the state of the model and of the optimizer.
        """
        return self._checkpoints.load(step, into, with_rest=True)

    def save_best(self, step: int, weights: Mapping[str, Any]) -> None:
        """Write the best weights so far.

        Args:
            step: steps taken.
            weights: of the model.
        """
        self._checkpoints.save_best(step, weights)

    def load_best(self, step: int, into: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the best weights, read into the tensors of the model.

        Args:
            step: of the weights.
            into: the state of the model.
        """
        return self._checkpoints.load_best(step, into)

    def tidy(self) -> None:
        """Remove what no checkpoint that is kept needs."""
        self._checkpoints.tidy()
