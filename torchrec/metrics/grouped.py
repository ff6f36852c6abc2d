"""Metrics of groups of samples, such as the rows of a user, from a stream, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrec.metrics.estimate import Estimate, mean_estimate
from torchrec.metrics.gauc import areas_of_lists
from torchrec.metrics.names import GROUPED, GROUPED_AT_K, MetricSpec, parse_metric
from torchrec.metrics.ordering import rank, sums
from torchrec.metrics.report import Report
from torchrec.ops.hashing import hash_ids

NO_GROUP = -(2**63)
"""The id of samples that belong to no group: they are left out."""

_SPAN = 2**62  # of the hashes by which groups are chosen
_BUFFER = 131_072  # samples that come together before any are left out


class GroupedMetrics:
    r"""AUC and ranking within groups of samples: the plain mean over the groups.

    With samples of a group in descending order of their scores, :math:`y_i` the label of the one at place
    :math:`i`, counted from 1, and a positive one whose label is above 0:

    - ``gauc(column)``: the AUC of the group, of groups with both classes and more than one score
      (`torchrec.metrics.gauc`). Weights count.
    - ``ndcg@k(column)``: :math:`\sum_{i \le k} y_i / \log_2(i + 1)` over that of the best order.
    - ``recall@k(column)``, ``precision@k(column)``: positives among the first k over all positives; over k.
    - ``hit@k(column)``: 1 if one of the first k is a positive, else 0.
    - ``mrr(column)``: 1 over the place of the first positive.

    All but the first are of groups that have a positive. **Ties:** of samples with one score, those with lower
    labels come first, so that a model that tells nothing apart gains nothing by the order of the rows.
    Samples without weight are left out; beyond that, only ``gauc`` goes by weights.

    Where there are more than ``max_samples``, some groups are left out, as a whole and chosen by a hash of
    their ids: always the same ones, whatever the order of the samples. What is reported is then the mean
    over a random sample of :math:`n` groups, known within :math:`0.98 / \sqrt n` of that of all in 95 of 100
    cases, as each value lies between 0 and 1. ``report.counts`` has :math:`n` as ``groups(column)``.

    Args:
        metrics: as they are written, such as ``"ndcg@10(user)"``.
        max_samples: how many samples are kept of each column at most, unless a single group has more.
            Default 4,194,304, which take 84 MB.

    Raises:
        ValueError: if a metric is none of these, or ``max_samples`` is below 1.

    Example:
        >>> metrics = GroupedMetrics(["gauc(user)", "recall@1(user)", "mrr(user)"])
        >>> scores, labels = torch.tensor([0.9, 0.1, 0.4, 0.6]), torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> metrics.update(scores, labels, groups={"user": torch.tensor([7, 7, 8, 8])})
        >>> dict(metrics.compute())
        {'gauc(user)': 0.5, 'recall@1(user)': 0.5, 'mrr(user)': 0.75}

    Zhu et al. 2017, https://doi.org/10.1145/3097983.3098134 (GAUC); Järvelin and Kekäläinen 2002,
    https://doi.org/10.1145/582415.582418 (NDCG).
    """

    def __init__(self, metrics: Sequence[str], max_samples: int = 2**22) -> None:
        self._specs = [parse_metric(text) for text in metrics]
        for spec in self._specs:
            if spec.group is None:
                raise ValueError(
                    f"Metrics of groups should be among {', '.join([*GROUPED, *GROUPED_AT_K])}. Received {spec}."
                )
        if max_samples < 1:
            raise ValueError(f"`max_samples` should be at least 1. Received {max_samples}.")
        self._max_samples = max_samples
        self.reset()

    @property
    def columns(self) -> list[str]:
        """The columns whose values are the groups, each once."""
        return list(self._samples)

    def reset(self) -> None:
        """Forget everything."""
        columns = dict.fromkeys(spec.group for spec in self._specs if spec.group is not None)
        self._samples = {column: _GroupSamples(self._max_samples) for column in columns}

    def update(
        self,
        scores: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        groups: Mapping[str, Tensor],
    ) -> None:
        """Take a batch in, on whatever device; mostly without waiting for it.

        Args:
            scores: ``(B,)``.
            targets: labels, not negative, ``(B,)``.
            weights: ``(B,)``. Default: 1 each.
            groups: ids of the groups by column, ``(B,)`` integers each; `NO_GROUP` for none.

        Raises:
            ValueError: if a column is missing or is not of integers, or sizes differ; on the CPU, if a
                score or a label of a sample that counts is NaN, or a label negative.
        """
        for column, samples in self._samples.items():
            if column not in groups:
                raise ValueError(
                    f"`groups` should have the column '{column}', as {self._first_of(column)} asks for. "
                    f"Received {sorted(groups)}."
                )
            named = {"targets": targets, "weights": weights, f"groups['{column}']": groups[column]}
            for name, x in named.items():
                if x is not None and x.numel() != scores.numel():
                    raise ValueError(
                        f"`{name}` should be as many as scores ({scores.numel()}). Received {x.numel()}."
                    )
            if groups[column].is_floating_point():
                raise ValueError(
                    f"`groups['{column}']` should be integers, ids of the groups. Received {groups[column].dtype}."
                )
            given = _Columns.of(groups[column], scores, targets, weights)
            if scores.device.type == "cpu":  # elsewhere one would have to wait for it
                _require_numbers(given.where(given.count))
            samples.add(given)

    def _first_of(self, column: str) -> MetricSpec:
        return next(spec for spec in self._specs if spec.group == column)

    def compute(self, curves: bool = False) -> Report:
        """Report on everything since the last reset.

        Args:
            curves: whether with intervals, over the groups. There is nothing to draw. Default False.

        Raises:
            ValueError: if a score or a label was NaN, or a label negative, and `update` did not say so.
        """
        values, counts = self._values()
        numbers = {name: x[~x.isnan()] for name, x in values.items()}
        why = {name: _undefined(name) for name, value in numbers.items() if not value.numel()}
        return Report(
            {name: math.nan if name in why else float(x.mean()) for name, x in numbers.items()},
            counts=counts,
            undefined=why,
            better=dict.fromkeys(numbers, "higher"),
            intervals={
                name: _estimate(x).interval()
                for name, x in values.items()
                if curves and numbers[name].numel() > 1
            },
        )

    def estimates(self) -> dict[str, Estimate]:
        """Return each metric with how it varies with the groups: they are drawn again, not their samples.

        Influences are in the order of the groups, which is that of any scores of the same samples.

        Raises:
            ValueError: as `compute`.
        """
        return {name: _estimate(values) for name, values in self._values()[0].items()}

    def _values(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return each metric of each group, NaN where a group has none, and how many groups there are."""
        values: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        for column, samples in self._samples.items():
            ranked = _Ranked.of(samples.together())
            counts[f"groups({column})"] = ranked.groups
            for spec in self._specs:
                if spec.group == column:
                    values[str(spec)] = ranked.values_of(spec)
        return {str(spec): values[str(spec)] for spec in self._specs}, counts

    def merge(self, other: GroupedMetrics) -> None:
        """Take in what another of the same metrics has seen; it is left as it is."""
        for column, samples in self._samples.items():
            samples.merge(other._samples[column])

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is to go on from, as tensors on the CPU."""
        return {
            f"{column}.{name}": x.cpu()
            for column, samples in self._samples.items()
            for name, x in samples.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Args:
            state: from `state_dict`.
        """
        self.reset()
        for column, samples in self._samples.items():
            samples.load_state_dict(
                {name: state[f"{column}.{name}"] for name in _GroupSamples.NAMES}
            )


def _estimate(values: Tensor) -> Estimate:
    """Return the mean over the groups that have a value; the others are NaN."""
    known = ~values.isnan()
    terms = torch.stack([torch.where(known, values, 0.0), known.double()], dim=1)
    return mean_estimate(terms.numpy(force=True), _mean_of_known)


def _mean_of_known(means: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = means[..., 0] / means[..., 1]
    return found


def _undefined(name: str) -> str:
    kind = "both classes and different scores" if name.startswith("gauc") else "a positive label"
    return f"no group has {kind}"


@dataclass(frozen=True)
class _Columns:
    """Samples: ids of their groups, scores, labels and weights, ``(N,)`` each."""

    ids: Tensor
    scores: Tensor
    labels: Tensor
    weights: Tensor

    @classmethod
    def of(cls, ids: Tensor, scores: Tensor, labels: Tensor, weights: Tensor | None) -> _Columns:
        """Return them flat, of one type each; what has it already is not copied."""
        given = (scores, labels, torch.ones_like(scores) if weights is None else weights)
        floats = (x.detach().reshape(-1).to(torch.float32) for x in given)
        return cls(ids.reshape(-1).to(torch.int64), *floats)

    @property
    def count(self) -> Tensor:
        """Which samples have a weight and a group, ``(N,)``."""
        return (self.weights != 0) & (self.ids != NO_GROUP)

    def where(self, chosen: Tensor | slice) -> _Columns:
        return _Columns(*(x[chosen] for x in vars(self).values()))

    def write(self, start: int, others: _Columns) -> None:
        """Overwrite those from ``start`` on."""
        for x, other in zip(vars(self).values(), vars(others).values(), strict=True):
            x[start : start + len(other)] = other

    def room(self, size: int) -> _Columns:
        """Return room for ``size`` samples like these, to be written to inside and outside inference mode."""
        with torch.inference_mode(False):
            return _Columns(*(x.new_empty(size) for x in vars(self).values()))


def _require_numbers(samples: _Columns) -> None:
    for name, values, wrong, wanted in (
        ("scores", samples.scores, samples.scores.isnan(), "numbers"),
        (
            "targets",
            samples.labels,
            ~(samples.labels >= 0) | samples.labels.isinf(),
            "finite and not negative",
        ),
    ):
        if wrong.any():
            raise ValueError(f"`{name}` should be {wanted}. Received {float(values[wrong][0])}.")


class _GroupSamples:
    """The samples of one column: those of a share of the groups, halved whenever there are too many.

    They are written into tensors that stay. Small ones, kept from batch to batch between large ones that come
    and go, would leave the heap full of holes: resident memory then grows long after all there is to keep is
    there.
    """

    NAMES = ("ids", "scores", "labels", "weights", "halvings")

    def __init__(self, max_samples: int) -> None:
        self._max_samples = max_samples
        self._room = _Columns.of(*[torch.empty(0)] * 4)
        self._size = 0  # of what is written there
        self._kept = 0  # of samples at its begin, which are of groups that are kept
        self._halvings = 0

    def add(self, samples: _Columns) -> None:
        self._append(samples)
        waiting = self._size - self._kept
        if self._size > self._max_samples and waiting >= min(_BUFFER, self._max_samples):
            self._thin_out()

    def merge(self, other: _GroupSamples) -> None:
        self._append(other._written())
        self._kept = 0  # one of both may have halved them more often
        self._halvings = max(self._halvings, other._halvings)
        self._thin_out()

    def together(self) -> _Columns:
        """Return the samples that are kept; they change with the next ones."""
        self._thin_out()
        return self._written()

    def state_dict(self) -> dict[str, Tensor]:
        kept = {name: x.clone() for name, x in vars(self.together()).items()}
        return {**kept, "halvings": torch.tensor(self._halvings)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        columns = dict(state)
        self._halvings = int(columns.pop("halvings"))
        self._size = 0
        self._append(_Columns(**columns))
        self._kept = self._size

    def _written(self) -> _Columns:
        return self._room.where(slice(self._size))

    def _append(self, samples: _Columns) -> None:
        size = self._size + len(samples.ids)
        if size > len(self._room.ids):
            most = self._max_samples + _BUFFER  # unless a single group has more
            room = samples.room(2 * size if size > most else min(2 * size, most))
            room.write(0, self._written())
            self._room = room
        self._room.write(self._size, samples)
        self._size = size

    def _thin_out(self) -> None:
        """Leave out what came since the last time and does not count; then, of too many, groups."""
        new = self._room.where(slice(self._kept, self._size))
        self._keep(self._kept, new.count & self._chosen(new.ids))
        while self._size > self._max_samples:
            self._halvings += 1
            chosen = self._chosen(self._written().ids)
            if not chosen.any():  # all that is left is one group, or few of one fate
                self._halvings -= 1
                break
            self._keep(0, chosen)
        self._kept = self._size

    def _keep(self, start: int, chosen: Tensor) -> None:
        """Keep the chosen ones of those from ``start`` on."""
        if not chosen.all():
            self._room.write(start, self._room.where(slice(start, self._size)).where(chosen))
        self._size = start + int(chosen.sum())

    def _chosen(self, ids: Tensor) -> Tensor:
        return hash_ids(ids, _SPAN) & ((1 << self._halvings) - 1) == 0


@dataclass(frozen=True)
class _Ranked:
    """Samples in the order of their groups and, within them, of their scores.

    Attributes:
        samples: as they came.
        group: of each, from 0.
        groups: how many there are.
        places: of each sample in its group by score, from 0.
    """

    samples: _Columns
    group: Tensor
    groups: int
    places: Tensor

    @classmethod
    def of(cls, samples: _Columns) -> _Ranked:
        _require_numbers(samples)
        scores, labels = samples.scores, samples.labels
        keys, group = samples.ids.unique(return_inverse=True)
        # Of one score the lower label first: sorts are stable.
        order = labels.argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = rank(scores[order], group[order]).ranks()
        return cls(samples, group, len(keys), places)

    def values_of(self, spec: MetricSpec) -> Tensor:
        """Return the value of each group, ``(groups,)``; NaN of one that has none."""
        labels = self.samples.labels.double()
        positive = labels > 0
        if spec.name == "gauc":
            scores, weights = self.samples.scores.double(), self.samples.weights.double()
            areas, counts = areas_of_lists(
                scores, positive.double(), weights, self.group, self.groups
            )
            return torch.where(counts, areas, math.nan)
        positives = sums(positive.double(), self.group, self.groups)
        there = positives > 0
        if spec.name == "mrr":
            # Of groups without one the place is beyond all, and left out.
            first = torch.full_like(positives, math.inf).scatter_reduce_(
                0, self.group[positive], self.places[positive].double(), "amin"
            )
            return torch.where(there, 1.0 / (1.0 + first), math.nan)
        k = spec.k or 1
        if spec.name == "ndcg":
            best = rank(labels, self.group).ranks()
            found, ideal = (self._gain(labels, places, k) for places in (self.places, best))
            return torch.where(there, found / ideal, math.nan)
        hits = sums((positive & (self.places < k)).double(), self.group, self.groups)
        if spec.name == "hit":
            return torch.where(there, hits.clamp(max=1.0), math.nan)
        return torch.where(there, hits / (positives if spec.name == "recall" else k), math.nan)

    def _gain(self, labels: Tensor, places: Tensor, k: int) -> Tensor:
        gains = torch.where(places < k, labels / (places + 2.0).log2(), 0.0)
        return sums(gains, self.group, self.groups)
