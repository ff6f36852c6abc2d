"""Ranks that have different numbers of batches: who has run out of data goes on with batches of no samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from torchrec.distributed.wire import Meeting, Wire
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["RankBatches", "Turn", "without_samples"]

_DONE, _HAS_BATCH, _FAILED, _NEVER_HAD = range(4)


def without_samples(batch: Any) -> Any:
    """Return a batch like this one, but of no samples.

    Args:
        batch: a tensor, features, or a dataclass, tuple, list or dictionary of such.

    Raises:
        TypeError: for something else.

    Example:
        >>> import torch
        >>> without_samples({"x": torch.ones(3, 2)})["x"].shape
        torch.Size([0, 2])
    """
    if isinstance(batch, Tensor):
        return batch[:0] if batch.dim() else batch
    if isinstance(batch, KeyedJaggedTensor):
        weights = batch.weights_or_none()
        return KeyedJaggedTensor(
            batch.keys(),
            batch.values()[:0],
            None if weights is None else weights[:0],
            lengths=batch.lengths()[:0],
        )
    if batch is None or isinstance(batch, (str, int, float)):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch,
            **{f.name: without_samples(getattr(batch, f.name)) for f in fields(batch) if f.init},
        )
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(without_samples, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(without_samples, batch))
    if isinstance(batch, dict):
        return {name: without_samples(value) for name, value in batch.items()}
    raise TypeError(
        "A batch should be made of tensors, features, dataclasses, tuples, lists and dictionaries, where "
        f"ranks may have different numbers of them. Received a {type(batch).__name__}."
    )


@dataclass
class Turn:
    """What the ranks do next: a step, with a batch each; or nothing more.

    Attributes:
        batch: of this rank; of no samples if it has run out of data. None: not known yet.
        is_own: whether it is of this rank's data.
        is_end: whether no rank has a batch.
        error: what kept a rank from its batch, on all ranks.
        is_agreed: whether all ranks know all of this.
    """

    batch: Any = None
    is_own: bool = True
    is_end: bool = False
    error: Exception | None = None
    is_agreed: bool = False
    _state: int = _HAS_BATCH
    _meeting: Meeting | None = None

    @classmethod
    def announced(cls, batch: Any, error: Exception | None, state: int, wire: Wire | None) -> Turn:
        """Tell the other ranks what this one has, and go on while they hear of it."""
        meeting = None
        if wire is not None:
            topic = "the next batch of a pipeline"
            meeting = wire.begin(topic, [[state]] * wire.world_size, 1)
        return cls(batch, error=error, _state=state, _meeting=meeting)

    def states(self) -> list[int]:
        """Wait until all ranks have told what they have, and return that."""
        if self._meeting is None:
            return [self._state]
        return [state for (state,) in self._meeting.numbers()]

    @property
    def state(self) -> int:
        """What this rank has."""
        return self._state


class RankBatches:
    """The batches of all ranks, of which each may have as many as it has.

    Args:
        wire: the ranks; None: this one alone.
        move: a batch to where it is used.
    """

    def __init__(self, wire: Wire | None, move: Callable[[Any], Any]) -> None:
        self._wire, self._move = wire, move
        self._empty: Any = None  # a batch, without its samples

    def announce(self, fetch: Callable[[], Any]) -> Turn:
        """Take a batch, if this rank has one, and tell the other ranks without waiting for them.

        Args:
            fetch: gives the batch; None, or StopIteration: there is none. What else it raises is raised on all
                ranks, in the turn that it is for.
        """
        batch, error, state = None, None, _HAS_BATCH
        try:
            batch = fetch()
            if batch is None:
                raise StopIteration
            if self._empty is None and self._wire is not None:
                self._empty = without_samples(batch)
        except StopIteration:
            state = _NEVER_HAD if self._empty is None else _DONE
        except Exception as failed:
            error, state = failed, _FAILED
        return Turn.announced(batch, error, state, self._wire)

    def agree(self, turn: Turn) -> Turn:
        """Wait until all ranks know what each of them has; they agree on turns in the order of announcing.

        Args:
            turn: written to, and returned.
        """
        if turn.is_agreed:
            return turn
        states, turn.is_agreed = turn.states(), True
        turn.is_end = _HAS_BATCH not in states and _FAILED not in states
        turn.is_own = turn.state == _HAS_BATCH
        if self._wire is None or turn.is_end:
            return turn
        if _FAILED in states:
            try:
                self._wire.raise_together(turn.error)
            except Exception as failed:  # it is this turn's, and an earlier one may be under way
                turn.error = failed
            return turn
        if _NEVER_HAD in states:  # it has to be told what a batch is
            source = states.index(_HAS_BATCH)
            self._empty = self._wire.share(self._empty, source, "what a batch is")
        if not turn.is_own:
            turn.batch = self._move(self._empty)
        return turn
