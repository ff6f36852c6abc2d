"""Where samples stand in the order of their scores, within groups: what ranking metrics are made of.

All are vectorised over tasks and groups, and ask no device for a number: sizes are those of the input.
A group is a session, a list of candidates, a user, or all samples of a task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def group_numbers(keys: Tensor) -> Tensor:
    """Return the group of each sample as a number from 0, ``(T, N)`` below ``T * N``, int64.

    Args:
        keys: any numbers that are equal within a group, ``(T, N)``. Rows do not share groups.

    Example:
        >>> group_numbers(torch.tensor([[7, 7, 5], [7, 5, 5]]))
        tensor([[1, 1, 0],
                [4, 3, 3]])
    """
    ordered, order = keys.sort(dim=-1, stable=True)
    changes = torch.zeros_like(ordered, dtype=torch.int64)
    changes[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    numbers = torch.empty_like(order).scatter_(-1, order, changes.cumsum(-1))
    return numbers + _row_offsets(keys)


def _row_offsets(keys: Tensor) -> Tensor:
    rows, size = keys.shape
    return (torch.arange(rows, device=keys.device) * size).unsqueeze(-1)


def starts(changes: Tensor) -> Tensor:
    """Return, for each place, where the run that it lies in starts.

    Args:
        changes: whether a run starts at a place, ``(N,)``; one starts at the first.

    Example:
        >>> starts(torch.tensor([True, False, True, False]))
        tensor([0, 0, 2, 2])
    """
    places = torch.arange(len(changes), device=changes.device)
    return torch.where(changes, places, 0).cummax(0).values if len(changes) else places


def changes_of(*columns: Tensor) -> Tensor:
    """Return where any of some columns ``(N,)`` differs from the place before; it does at the first."""
    changes = torch.ones_like(columns[0], dtype=torch.bool)
    changes[1:] = False
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return changes


@dataclass(frozen=True)
class Ranking:
    """Samples of all groups, one group after another, by score within each.

    Attributes:
        order: the place in the input of each sample, ``(N,)``. Equal scores are in the order of the input.
        group: its group.
        group_start: where its group starts.
        run_start: where the samples of its group with its score start.
        starts_run: whether it is the first of these.
    """

    order: Tensor
    group: Tensor
    group_start: Tensor
    run_start: Tensor
    starts_run: Tensor

    def ranks(self) -> Tensor:
        """Return how many samples of its group come before each of the input, from 0, ``(N,)``."""
        places = torch.arange(len(self.order), device=self.order.device)
        return torch.empty_like(self.order).scatter_(0, self.order, places - self.group_start)

    def tied_ranks(self) -> Tensor:
        """Return how many samples of its group have another score and come before, ``(N,)``."""
        before = self.run_start - self.group_start
        return torch.empty_like(self.order).scatter_(0, self.order, before)


def rank(scores: Tensor, group: Tensor, descending: bool = True) -> Ranking:
    """Order samples by score within each group.

    Args:
        scores: ``(N,)``.
        group: of each sample, ``(N,)``.
        descending: whether the highest score is first. Default: True.

    Example:
        >>> ranking = rank(torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([0, 0, 0, 1]))
        >>> ranking.ranks(), ranking.tied_ranks()
        (tensor([2, 0, 1, 0]), tensor([2, 0, 0, 0]))
    """
    order = scores.argsort(descending=descending, stable=True)
    order = order[group[order].argsort(stable=True)]
    ordered, scores = group[order], scores[order]
    starts_group = changes_of(ordered)
    starts_run = changes_of(ordered, scores)
    return Ranking(order, ordered, starts(starts_group), starts(starts_run), starts_run)


def sums(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the sum of values ``(N,)`` of each group, ``(groups,)``."""
    return values.new_zeros(groups).index_add_(0, group, values)


@dataclass(frozen=True)
class Curve:
    """How much of either class has each score, scores of a group one after another.

    Attributes:
        positives: of each score, ``(N,)``, 0 beyond the last.
        negatives: alike.
        group: of each score.
        scores: how many a group has, ``(groups,)``.
        positive_sum: of each group.
        negative_sum: alike.
        unknown: which groups have a NaN, which counts as nothing in all else.
    """

    positives: Tensor
    negatives: Tensor
    group: Tensor
    scores: Tensor
    positive_sum: Tensor
    negative_sum: Tensor
    unknown: Tensor

    def up_to(self, values: Tensor, totals: Tensor) -> Tensor:
        """Return the sums of values within groups, up to and with each score."""
        return values.cumsum(0) - (totals.cumsum(0) - totals)[self.group]

    def known(self, values: Tensor) -> Tensor:
        """Return values of groups, NaN for those that have one."""
        return torch.where(self.unknown, torch.nan, values)


def curve(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor,
    group: Tensor,
    groups: int,
    descending: bool = False,
) -> Curve:
    """Sum both classes of each score of each group.

    Args:
        scores: ``(N,)``.
        labels: from 0 to 1, ``(N,)``.
        weights: ``(N,)``.
        group: of each sample, below ``groups``, ``(N,)``.
        groups: how many there are.
        descending: whether the highest score is first. Default: False.
    """
    ranking = rank(scores, group, descending)
    # A NaN would spread to groups further on by cumulative sums.
    unknown = scores.isnan() | labels.isnan() | weights.isnan()
    positives = torch.where(unknown, 0.0, weights * labels)[ranking.order]
    negatives = torch.where(unknown, 0.0, weights)[ranking.order] - positives
    run = ranking.starts_run.cumsum(0) - 1
    size = len(run)
    return Curve(
        sums(positives, run, size),
        sums(negatives, run, size),
        torch.zeros_like(run).scatter_(0, run, ranking.group),
        sums(ranking.starts_run.long(), ranking.group, groups),
        sums(positives, ranking.group, groups),
        sums(negatives, ranking.group, groups),
        sums(unknown.double(), group, groups) > 0,
    )


def areas_under_roc(samples: Curve) -> Tensor:
    """Return the AUC of each group, 0.5 for one without either class; the curve is ascending.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.2, 0.2, 0.4]), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> groups = torch.zeros(4, dtype=torch.int64)
        >>> samples = curve(scores, labels, torch.ones(4), groups, 1)
        >>> areas_under_roc(samples)
        tensor([0.8750])
    """
    below = samples.up_to(samples.negatives, samples.negative_sum) - samples.negatives / 2
    area = sums(samples.positives * below, samples.group, len(samples.scores))
    pairs = samples.positive_sum * samples.negative_sum
    return samples.known(torch.where(pairs == 0, 0.5, area / pairs))


def average_precisions(samples: Curve) -> Tensor:
    """Return the mean precision at positives of each group, 0 without any; the curve is descending."""
    hits = samples.up_to(samples.positives, samples.positive_sum)
    found = hits + samples.up_to(samples.negatives, samples.negative_sum)
    at_score = torch.where(samples.positives == 0, 0.0, samples.positives * hits / found)
    area = sums(at_score, samples.group, len(samples.scores))
    return samples.known(torch.where(samples.positive_sum == 0, 0.0, area / samples.positive_sum))


def ordered_pairs(
    first: Tensor, second: Tensor, weights: Tensor, group: Tensor, groups: int
) -> Tensor:
    """Return the weight of pairs of a group of which one is above the other in both columns.

    The weight of a pair is the product of those of its samples. Ties are in neither order. In
    O(N log(N)**2): samples stand in the order of ``first``, and are parted by the ranks in ``second``,
    bit by bit. A pair differs in exactly one highest bit, at which it is counted.

    Args:
        first: ``(N,)``.
        second: ``(N,)``.
        weights: ``(N,)``.
        group: of each sample, below ``groups``, ``(N,)``.
        groups: how many there are.

    Returns:
        ``(groups,)``.

    Example:
        >>> ordered_pairs(
        ...     torch.tensor([1, 2, 3]),
        ...     torch.tensor([1, 3, 2]),
        ...     torch.ones(3),
        ...     torch.zeros(3, dtype=torch.int64),
        ...     1,
        ... )
        tensor([2.])
    """
    bits = max(len(first) - 1, 0).bit_length()
    by_first = rank(first, group, descending=False)
    order, run = by_first.order, by_first.run_start
    code = torch.searchsorted(second.sort().values, second)[order]
    group, weights = by_first.group, weights[order]
    code = code + (group << bits)
    total = weights.new_zeros(groups)
    for bit in reversed(range(bits)):
        high = code >> bit + 1
        is_high = (code >> bit & 1).bool()
        low = torch.where(is_high, 0, weights)
        before = low.cumsum(0) - low
        below = before[starts(changes_of(high, run))] - before[starts(changes_of(high))]
        total.index_add_(0, group, torch.where(is_high, weights * below, 0))
        order = (code >> bit).argsort(stable=True)
        code, run, group, weights = code[order], run[order], group[order], weights[order]
    return total


def by_task(
    areas: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor],
    n_tasks: int,
    scores: Tensor,
    labels: Tensor,
    weights: Tensor,
    grouping_keys: Tensor,
    otherwise: float,
) -> Tensor:
    """Return the mean over groups of a number of each, ``(T,)`` in float64.

    Args:
        areas: the numbers of groups ``(groups,)``, of scores, labels, weights and groups ``(N,)`` and how
            many groups there are.
        n_tasks: T.
        scores: ``(T, N)``.
        labels: ``(T, N)``.
        weights: ``(T, N)``.
        grouping_keys: the group of each sample, ``(N,)``.
        otherwise: where there are no groups.
    """
    if not labels.numel():
        return torch.full((n_tasks,), otherwise, dtype=torch.float64, device=labels.device)
    keys, group = grouping_keys.flatten().unique(return_inverse=True)
    rows = torch.arange(n_tasks, device=group.device).unsqueeze(-1) * len(keys)
    scores, labels, weights = (x.reshape(-1).double() for x in (scores, labels, weights))
    found = areas(scores, labels, weights, (rows + group).flatten(), n_tasks * len(keys))
    return found.view(n_tasks, -1).mean(-1)
