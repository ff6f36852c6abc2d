"""Ranks that have different numbers of batches: who has run out of data goes on with batches of no samples."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from torchrec.distributed.train_pipeline.started_inputs import parts_of
from torchrec.distributed.wire import Meeting, Wire
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = ["RankBatches", "Turn", "without_samples"]

_DONE, _HAS_BATCH, _FAILED, _NEVER_HAD, _HAS_NO_FORM = range(5)
_WITH_SAMPLES = (Tensor, np.ndarray, JaggedTensor, KeyedJaggedTensor, KeyedTensor)


def without_samples(batch: Any) -> Any:
    """Return a batch like this one, but of no samples.

    Args:
        batch: a tensor, features, an array of NumPy, or a dataclass, tuple, list, dictionary or other object of such.
            All else, numbers and types say, stays as it is.

    Raises:
        TypeError: for an object that cannot be copied.

    Example:
        >>> import torch
        >>> without_samples({"x": torch.ones(3, 2)})["x"].shape
        torch.Size([0, 2])
    """
    # A copy of the whole, whatever it is made of, to which the parts that have samples have been copied already.
    copied = {id(part): _emptied(part) for _, part in parts_of(batch, _WITH_SAMPLES)}
    try:
        return deepcopy(batch, copied)
    except Exception as error:
        raise TypeError(
            "A batch should be made of what can be copied, where ranks may have different numbers of them: who has run "
            f"out of data goes on with one like the last, but of no samples. Received a {type(batch).__name__}: {error}"
        ) from error


def _emptied(part: object) -> object:
    """Return a part of a batch for no samples, in memory of its own: what is sent of a view is all that it is of."""
    if isinstance(part, Tensor):
        return part[:0].clone() if part.dim() else part
    if isinstance(part, np.ndarray):
        return part[:0].copy() if part.ndim else part
    if isinstance(part, KeyedTensor):
        values, dim = part.values(), int(part.key_dim() == 0)
        emptied = values.narrow(dim, 0, 0).clone() if values.dim() > dim else values
        return KeyedTensor(part.keys(), part.length_per_key(), emptied, part.key_dim())
    assert isinstance(part, (JaggedTensor, KeyedJaggedTensor))
    weights, values = part.weights_or_none(), part.values()[:0].clone()
    weights, lengths = None if weights is None else weights[:0].clone(), part.lengths()[:0].clone()
    if isinstance(part, KeyedJaggedTensor):
        return KeyedJaggedTensor(part.keys(), values, weights, lengths=lengths)
    return JaggedTensor(values, weights, lengths=lengths)


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
        self._like: Any = None  # the last batch, for the form of those without samples

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
            self._like = None if self._wire is None else batch
        except StopIteration:
            batch, error, state = self._without_data()
        except Exception as failed:
            error, state = failed, _FAILED
        return Turn.announced(batch, error, state, self._wire)

    def _without_data(self) -> tuple[Any, Exception | None, int]:
        """Return the batch, the error and the state of this rank, once it has no data of its own."""
        if self._like is None:
            return None, None, _NEVER_HAD
        try:
            self._like = without_samples(self._like)
        except TypeError as failed:  # which matters only if another rank has a batch
            return None, failed, _HAS_NO_FORM
        return self._like, None, _DONE

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
        if turn.is_end:
            turn.batch = turn.error = None
        elif self._wire is not None:
            try:
                self._complete(turn, states, self._wire)
            except Exception as failed:  # it is this turn's, and an earlier one may be under way
                turn.error = failed
        return turn

    def _complete(self, turn: Turn, states: list[int], wire: Wire) -> None:
        """Give each rank a batch; what keeps any of them from it is raised on all."""
        if _FAILED in states or _HAS_NO_FORM in states:
            wire.raise_together(turn.error)
        if _NEVER_HAD in states:  # it has to be told what a batch is
            source = states.index(_HAS_BATCH)
            told = wire.on_one(lambda: without_samples(self._like), "what a batch is", source)
            if turn.state == _NEVER_HAD:
                self._like = turn.batch = self._move(told)
