"""Scores of a stream with their labels: exact as long as they are few, compressed from then on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec.metrics._score_counts import (
    Floats,
    Keys,
    ScoreCounts,
    area_under_curve,
    area_under_pairs,
    compress_counts,
    compress_pairs,
    count_pairs,
    count_scores,
    merge_counts,
    no_counts,
    sorted_pairs,
)


class ScoreStream:
    """What AUC and curves are worked out from, in constant memory.

    Samples wait as they are, sorted, until there are more than ``2 * resolution``; then they become
    a list of scores with counts. Such lists are merged when several are there, for that costs as
    much as they are long.

    Args:
        resolution: how many scores a merged list is compressed to.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self._pairs: list[Keys] = []
        self._lists: list[ScoreCounts] = []

    def add(
        self, scores: NDArray[np.float32], labels: NDArray[np.float32], weights: Floats | None
    ) -> None:
        """Take samples in: no NaN, labels of 0 and 1; weights None: 1 each."""
        if weights is None:
            self._pairs.append(sorted_pairs(scores, labels))
        else:
            self._lists.append(count_scores(scores, labels, weights))
        self._compress()

    def merge(self, other: ScoreStream) -> None:
        """Take in what another has seen; it is left as it is."""
        self._pairs += other._pairs
        self._lists += other._lists
        self._compress()

    def area_under_curve(self) -> float:
        """Return the AUC; both classes have to be there."""
        if self._lists:
            return area_under_curve(self.counts())
        if len(self._pairs) > 1:
            self._pairs = [_together(self._pairs)]
        return area_under_pairs(self._pairs[0])

    def counts(self) -> ScoreCounts:
        """Return everything as one list of scores."""
        counts = merge_counts([*self._lists, *map(count_pairs, self._pairs)])
        if len(counts.keys) > 2 * self.resolution:
            counts = compress_counts(counts, self.resolution)
        return counts

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on from; tensors may share memory with this."""
        lists = [no_counts(), *self._lists]
        columns = {
            name: torch.from_numpy(np.concatenate([getattr(one, name) for one in lists]))
            for name in ScoreCounts._fields
        }
        pairs = np.concatenate([np.empty(0, np.int64), *self._pairs])
        return {
            **columns,
            "sizes": torch.tensor([len(one.keys) for one in self._lists], dtype=torch.int64),
            "pairs": torch.from_numpy(pairs),
            "pair_sizes": torch.tensor([len(one) for one in self._pairs], dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""

        def parts(name: str, sizes: str) -> list[NDArray[np.generic]]:
            return [part.clone().numpy() for part in state[name].split(state[sizes].tolist())]

        columns = [parts(name, "sizes") for name in ScoreCounts._fields]
        self._lists = [ScoreCounts(*part) for part in zip(*columns, strict=True)]
        self._pairs = parts("pairs", "pair_sizes")  # type: ignore[assignment]

    def _compress(self) -> None:
        if sum(map(len, self._pairs)) > 2 * self.resolution:
            # An eighth is enough for a part: the error falls with the square, but for rare classes,
            # and these keep a score of their own each.
            entries = max(self.resolution // 8, 1)
            long = [pairs for pairs in self._pairs if len(pairs) >= self.resolution]
            short = [pairs for pairs in self._pairs if len(pairs) < self.resolution]
            long += [_together(short)] if short else []
            self._lists += [compress_pairs(pairs, entries) for pairs in long]
            self._pairs = []
        if sum(len(counts.keys) for counts in self._lists) > 3 * self.resolution:
            merged = merge_counts(self._lists)
            self._lists = [compress_counts(merged, self.resolution)]


def _together(parts: list[Keys]) -> Keys:
    pairs = np.concatenate(parts)
    pairs.sort()
    return pairs
