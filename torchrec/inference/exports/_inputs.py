"""A model with its transform in front, as one module: numbers and whole numbers in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.datasets.features import DenseFeature
from torchrec.datasets.transform import FeatureTransform, Target
from torchrec.datasets.transform.columns import LARGEST
from torchrec.datasets.transform.targets import LABELS
from torchrec.datasets.transform.vocabulary import Vocabulary
from torchrec.inference.exports._lookups import bag_of_each
from torchrec.inference.exports._searching import count_at_most
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class RawModel(nn.Module):
    """Computes what a `Predictor` does, from what is left once strings are hashed and lists are cut.

    Args:
        transform: fitted; what it has learned becomes a part of the module.
        model: from its batches to logits.

    Attributes:
        number_names: the features in the columns of ``numbers``.
        id_names: the features in the rows of ``lengths``.
        targets: what is predicted, by task.
        is_click: whether that is one label of yes and no.
    """

    def __init__(self, transform: FeatureTransform, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        buckets = transform.boundaries
        self.number_names = [*transform.dense_names, *buckets]
        self.id_names = [key for key in transform.sparse_keys if key not in buckets]
        self._keys = [*self.id_names, *buckets]
        self.targets = dict(transform.targets) or {LABELS: Target(LABELS)}
        self.is_click = [target.kind for target in self.targets.values()] == ["click"]
        self.numbers = _Numbers(transform, self.number_names)
        self.buckets = _Buckets(transform, list(buckets)) if buckets else None
        known = transform.vocabularies
        self.rows = None
        if any(name in known for name in self.id_names):
            self.rows = _Vocabularies([known.get(name) for name in self.id_names])

    def forward(
        self, numbers: Tensor, ids: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            numbers: float64 ``(B, len(number_names))``, as in the data; NaN where missing.
            ids: int64 ``(N,)``, feature after feature, and of each row after row.
            lengths: int64 ``(len(id_names), B)``, how many ids each row of each feature has.
            weights: float32 ``(N,)``, of a model whose ids have weights.

        Returns:
            Probabilities and logits, float32 ``(B,)``, of one label of yes and no; else what is predicted of each task,
            ``(B,)`` or ``(B, classes)``.
        """
        dense, raw = self.numbers(numbers)
        if self.rows is not None:
            ids = self.rows(ids, lengths)
        if self.buckets is not None:
            found = self.buckets(raw)
            ids = torch.cat([ids, found.flatten()])
            lengths = torch.cat([lengths, torch.ones_like(found)])
            if weights is not None:
                weights = torch.cat(
                    [weights, torch.ones_like(found, dtype=weights.dtype).flatten()]
                )
        sparse = KeyedJaggedTensor(self._keys, ids, weights, lengths.flatten())
        widths = [target.width for target in self.targets.values()]
        outputs = self.model(dense, sparse).reshape(numbers.shape[0], sum(widths)).float()
        if self.is_click:
            logits = outputs.squeeze(1)
            return torch.sigmoid(logits), logits
        parts = zip(self.targets.values(), outputs.split(widths, dim=1), strict=True)
        return tuple(_scores(target, part) for target, part in parts)


def _scores(target: Target, outputs: Tensor) -> Tensor:
    """Return `Target.scores`, of classes in order without a cumulative product, which ONNX does not have."""
    if target.kind != "ordinal":
        return target.scores(outputs)
    above = [torch.ones_like(outputs[:, :1])]
    for column in torch.sigmoid(outputs).split(1, dim=1):
        above.append(above[-1] * column)
    return torch.cat(above, 1) * torch.cat([torch.sigmoid(-outputs), above[0]], 1)


class _Numbers(nn.Module):
    """The numbers of dense features, filled and scaled; and those of buckets, NaN where missing."""

    def __init__(self, transform: FeatureTransform, names: Sequence[str]) -> None:
        super().__init__()
        self.dense = len(transform.dense_names)
        found = [transform.features.get(name) for name in names]
        logs = [isinstance(feature, DenseFeature) and feature.log for feature in found]
        known = transform.scales
        scales = [known[name] for name in transform.dense_names]
        self.any_log = any(logs)
        self.logs: Tensor
        self.fill: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("logs", torch.tensor(logs))
        for name, values in (
            ("fill", [scale.fill for scale in scales]),
            ("mean", [scale.mean for scale in scales]),
            ("deviation", [scale.deviation for scale in scales]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        is_missing = ~(numbers.abs() <= LARGEST)
        if self.any_log:
            logarithms = torch.sign(numbers) * torch.log1p(numbers.abs())
            numbers = torch.where(self.logs, logarithms, numbers)
        dense, no_number = numbers[:, : self.dense], is_missing[:, : self.dense]
        filled = (self.fill - self.mean) / self.deviation
        dense = (torch.where(no_number, self.fill, dense) - self.mean) / self.deviation
        dense = torch.where(dense.abs() <= LARGEST, dense, filled)
        raw = torch.where(is_missing, torch.nan, numbers)[:, self.dense :]
        return dense.float(), raw


class _Buckets(nn.Module):
    """The bucket of each number, ``(features, B)``."""

    def __init__(self, transform: FeatureTransform, names: Sequence[str]) -> None:
        super().__init__()
        parts = [torch.tensor(transform.boundaries[name]) for name in names]
        missing = []
        for name in names:
            feature = transform.features[name]
            assert isinstance(feature, DenseFeature)
            assert feature.buckets is not None
            missing.append(feature.buckets)
        sizes = torch.tensor([len(part) for part in parts])
        self.boundaries: Tensor
        self.first: Tensor
        self.last: Tensor
        self.missing: Tensor
        # One more, so that there is one to compare with where no feature has boundaries.
        ordered = torch.cat([*parts, torch.zeros(1, dtype=torch.float64)])
        self.register_buffer("boundaries", ordered)
        self.register_buffer("first", sizes.cumsum(0) - sizes)
        self.register_buffer("last", sizes.cumsum(0))
        self.register_buffer("missing", torch.tensor(missing))

    def forward(self, numbers: Tensor) -> Tensor:
        columns = numbers.T
        wanted = columns.flatten()
        first = self.first.unsqueeze(1).expand(columns.shape).flatten()
        last = self.last.unsqueeze(1).expand(columns.shape).flatten()
        found = count_at_most(self.boundaries, wanted, first, last).view(columns.shape)
        return torch.where(columns.isnan(), self.missing.unsqueeze(1), found)


class _Vocabularies(nn.Module):
    """The row of each id of features with a vocabulary; the ids of others as they are."""

    def __init__(self, vocabularies: Sequence[Vocabulary | None]) -> None:
        super().__init__()
        distinct = {id(v): v for v in vocabularies if v is not None}
        ordered, rows, places, at = [], [], {}, 0
        for number, vocabulary in distinct.items():
            ids, order = torch.tensor(vocabulary.ids).sort()
            ordered.append(ids)
            rows.append(order)
            places[number] = (at, at + len(ids))
            at += len(ids)
        self.ordered: Tensor
        self.rows: Tensor
        self.first: Tensor
        self.last: Tensor
        self.has_one: Tensor
        one_more = torch.zeros(1, dtype=torch.int64)
        self.register_buffer("ordered", torch.cat([*ordered, one_more]))
        self.register_buffer("rows", torch.cat([*rows, one_more]))
        bounds = [places[id(v)] if v is not None else (0, 0) for v in vocabularies]
        self.register_buffer("first", torch.tensor([first for first, _ in bounds]))
        self.register_buffer("last", torch.tensor([last for _, last in bounds]))
        self.register_buffer("has_one", torch.tensor([v is not None for v in vocabularies]))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        ends = lengths.sum(1).cumsum(0)
        keys = bag_of_each(torch.cat([torch.zeros_like(ends[:1]), ends]), ids.shape[0])
        first, last = self.first.index_select(0, keys), self.last.index_select(0, keys)
        before = first + count_at_most(self.ordered, ids, first, last) - 1
        place = torch.maximum(before, first)
        is_known = (self.ordered.index_select(0, place) == ids) & (place < last)
        found = torch.where(is_known, self.rows.index_select(0, place), last - first)
        return torch.where(self.has_one.index_select(0, keys), found, ids)
