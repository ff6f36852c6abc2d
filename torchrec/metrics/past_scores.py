"""Scores of samples that have left a window, in constant memory: what an AUC of all samples needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from torchrec.metrics._score_counts import (
    ScoreCounts,
    area_under_curve,
    compress_counts,
    count_scores,
    merge_counts,
    no_counts,
)

RESOLUTION = 65_536
_FULL = 8  # times the resolution: so many scores are compressed
_BUFFER = 131_072  # samples of a task that come together before they are counted


class PastScores:
    """Positives and negatives by score, of several tasks.

    Exact as long as there are no more than eight times ``resolution`` scores. Then neighbours count as one,
    which moves the AUC of what has come so far by at most 2 / ``resolution``, whatever the distribution, and
    by about its square where that is smooth (`torchrec.metrics._score_counts`). It happens once in seven times
    ``resolution`` samples at most: J times move that of all by no more than 2 J / 3 ``resolution`` and a little,
    as early pairs are few. That is 0.0023 in 100 million samples.

    Args:
        n_tasks: T.
        resolution: how many scores are left of each task. Default 65,536, which take 14 MB.

    Example:
        >>> past = PastScores(n_tasks=1)
        >>> past.add(torch.tensor([[0.1, 0.9, 0.9]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1, 3))
        >>> past.packed().tolist()[2:]
        [[0.0, 1.0], [1.0, 1.0]]
        >>> areas([past.packed()], n_tasks=1)
        tensor([0.7500], dtype=torch.float64)
    """

    def __init__(self, n_tasks: int, resolution: int = RESOLUTION) -> None:
        self._n_tasks = n_tasks
        self._resolution = resolution
        self.clear()

    def clear(self) -> None:
        """Forget all samples."""
        self._counts: list[list[ScoreCounts]] = [[] for _ in range(self._n_tasks)]
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._size = 0

    def add(self, predictions: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Take samples in, mostly without waiting for their device.

        Args:
            predictions: ``(T, N)``; kept, so not to be written to afterwards.
            labels: from 0 to 1, alike.
            weights: alike.
        """
        self._waiting.append((predictions, labels, weights))
        self._size += labels.shape[-1]
        if self._size >= _BUFFER:
            self._count()

    def packed(self) -> Tensor:
        """Return everything as rows of task, score, positives and negatives, ``(4, E)`` in float64."""
        self._count()
        return _packed([merge_counts(of_task) for of_task in self._counts])

    def load(self, packed: Tensor) -> None:
        """Put what `packed` returned in the place of what is there."""
        self.clear()
        self._counts = [[counts] for counts in _unpacked([packed], self._n_tasks)]

    def _count(self) -> None:
        if not self._waiting:
            return
        columns = [torch.cat(x, -1) for x in zip(*self._waiting, strict=True)]
        self._waiting, self._size = [], 0
        for of_task, counts in zip(self._counts, counted(*columns), strict=True):
            of_task.append(counts)
            if sum(len(each.keys) for each in of_task) > _FULL * self._resolution:
                of_task[:] = [compress_counts(merge_counts(of_task), self._resolution)]


def counted(predictions: Tensor, labels: Tensor, weights: Tensor) -> list[ScoreCounts]:
    """Return positives and negatives by score, of each task.

    Args:
        predictions: ``(T, N)``.
        labels: from 0 to 1, alike.
        weights: alike.
    """
    # A score that is none makes the weight NaN, and with it the area.
    weights = torch.where(predictions.isnan(), torch.nan, weights.double())
    columns = (predictions.float(), labels.float(), weights)
    rows = zip(*(x.detach().cpu().numpy() for x in columns), strict=True)
    return [count_scores(scores, y, w) for scores, y, w in rows]


def packed_counts(predictions: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return what `PastScores.packed` does of some samples, `counted`."""
    return _packed(counted(predictions, labels, weights))


def compressed(packed: Sequence[Tensor], n_tasks: int, resolution: int = RESOLUTION) -> Tensor:
    """Return all that was packed as one, with no more than ``resolution`` scores a task, or about as many.

    Args:
        packed: ``(4, E)`` each.
        n_tasks: T.
        resolution: see `PastScores`. Default 65,536.
    """
    found = _unpacked(packed, n_tasks)
    return _packed(
        compress_counts(one, resolution) if len(one.keys) > _FULL * resolution else one
        for one in found
    )


def areas(packed: Sequence[Tensor], n_tasks: int) -> Tensor:
    """Return the AUC of each task of all that was packed, 0.5 without either class; ``(T,)`` in float64.

    Args:
        packed: ``(4, E)`` each.
        n_tasks: T.
    """
    found = []
    for counts in _unpacked(packed, n_tasks):
        pairs = counts.positives.sum() * counts.negatives.sum()
        found.append(0.5 if pairs == 0 else area_under_curve(counts))
    return torch.tensor(found, dtype=torch.float64)


def _packed(by_task: Iterable[ScoreCounts]) -> Tensor:
    parts = [
        np.stack([np.full(len(one.keys), task), one.keys, one.positives, one.negatives])
        for task, one in enumerate(by_task)
    ]
    return torch.from_numpy(np.concatenate([np.empty((4, 0)), *parts], axis=1))


def _unpacked(packed: Sequence[Tensor], n_tasks: int) -> list[ScoreCounts]:
    rows = np.concatenate([np.empty((4, 0)), *(x.cpu().numpy() for x in packed)], axis=1)
    found = []
    for task in range(n_tasks):
        _, keys, positives, negatives = rows[:, rows[0] == task]
        counts = ScoreCounts(keys.astype(np.int64), positives, negatives)
        found.append(merge_counts([counts, no_counts()]))  # which brings them into order
    return found
