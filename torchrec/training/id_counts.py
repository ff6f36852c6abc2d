"""What was unusual about ids and values: counted by the transform and by the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from torchrec.datasets.transform import FeatureCounts, FeatureTransform
from torchrec.modules.collection import collections_in
from torchrec.modules.mc_modules import ManagedCollisionStats
from torchrec.training.observers import Observer, Record
from torchrec.training.world import ALONE, World

_FROM_TRANSFORM = ("missing", "infinite", "nulls", "unknown", "truncated")
_FROM_MAPS = ("hits", "collided", "inserted", "evicted", "admitted", "rejected")
_ENOUGH, _MOST_UNKNOWN = 100, 0.5  # ids, of which such a share may have no row


@runtime_checkable
class _Managed(Protocol):
    """A collection whose rows are chosen by maps of ids, on one rank or many."""

    def stats(self, reset: bool) -> Mapping[str, ManagedCollisionStats]: ...


def out_of_range_counts(model: nn.Module) -> dict[str, int]:
    """Return how many ids each table has been given that no row of their own stands for."""
    counts: dict[str, int] = {}
    for _, collection in collections_in(model):
        counts.update(collection.table_store().out_of_range_counts())
    return counts


def tables_by_ids(model: nn.Module) -> list[str]:
    """Return the tables of a model without those that read the same features as another.

    A model may have a second table for the weights of ids: what is unusual about ids is counted once.
    """
    found: dict[tuple[str, ...], str] = {}
    for _, collection in collections_in(model):
        for config in collection.table_store().table_configs():
            found.setdefault(tuple(config.feature_names), config.name)
    return list(found.values())


def managed_stats(model: nn.Module, reset: bool = False) -> dict[str, ManagedCollisionStats]:
    """Return what the map of each table with managed ids has done since it was last reset; on this rank."""
    stats: dict[str, ManagedCollisionStats] = {}
    for _, collection in collections_in(model):
        if isinstance(collection, _Managed):
            stats.update(collection.stats(reset))
    return stats


class IdCounts:
    """Counts since it was last asked: of training, or of evaluation if the model is in that mode.

    To be asked whenever the mode is about to change. What evaluation counted is taken out of the
    tables' counters again: in the end these tell of training, whatever was evaluated in between.

    The transform works ahead of training, so its counts run ahead too, by the batches that wait.

    Args:
        transform: counts what it does to values for training.
        evaluated: counts what it does to values for evaluation.
        model: its tables count ids that they have no row for.
        world: the ranks whose tables count together; each transforms all rows, but looks up its share.
            Default: this process alone.

    Attributes:
        of_evaluation: what the last evaluation counted, by feature; empty before the first.
    """

    def __init__(
        self,
        transform: FeatureTransform,
        evaluated: FeatureTransform,
        model: nn.Module,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self._transforms = {True: transform, False: evaluated}
        self._model = model
        self._tables = tables_by_ids(model)
        self._is_managed = any(spec.ids == "managed" for spec in transform.tables)
        self._hashed = {spec.name for spec in transform.tables if spec.ids == "hash"}
        self._before: dict[str, int] = {}
        self.of_evaluation: Mapping[str, FeatureCounts] = {}

    def __call__(self) -> Mapping[str, int]:
        """Return counts by kind, over all features and tables."""
        training = self._model.training
        taken = self._transforms[training].counts.take()
        if not training:
            self.of_evaluation = taken
        counts = {
            name: sum(getattr(one, name) for one in taken.values()) for name in _FROM_TRANSFORM
        }
        now = out_of_range_counts(self._model)
        new = {name: count - self._before.get(name, 0) for name, count in now.items()}
        if training:
            self._before = now
        else:
            self._forget(new)
        hashed = sum(new[name] for name in self._tables if name in self._hashed)
        of_tables = {
            "hashed": hashed,
            "out_of_range": sum(new[name] for name in self._tables) - hashed,
        }
        if self._is_managed:
            stats = managed_stats(self._model, reset=True)
            maps = [stats[name] for name in self._tables if name in stats]
            of_tables |= {name: sum(getattr(one, name) for one in maps) for name in _FROM_MAPS}
        totals = self._world.total(list(of_tables.values()), "counts of ids")
        return counts | {name: int(total) for name, total in zip(of_tables, totals, strict=True)}

    def _forget(self, new: Mapping[str, int]) -> None:
        for _, collection in collections_in(self._model):
            store = collection.table_store()
            counts = store.out_of_range_counts()
            store.set_out_of_range_counts({name: counts[name] - new[name] for name in counts})


def unknown_ids(split: str, counts: Mapping[str, FeatureCounts]) -> list[str]:
    """Say so of features most of whose ids have no row of their own: the vocabulary does not hold them.

    Args:
        split: of which data.
        counts: what the transform counted of them, by feature.

    Example:
        >>> unknown_ids("test", {"user": FeatureCounts(values=200, unknown=120)})[0].partition(" come")[0]
        "60% of the ids of 'user' on test"
        >>> unknown_ids("test", {"user": FeatureCounts(values=200, unknown=90)})
        []
    """
    return [
        f"{count.unknown / count.values:.0%} of the ids of '{feature}' on {split} come never, or less "
        "than `min_count` times, in the training data: the model knows nothing of them."
        for feature, count in counts.items()
        if count.values >= _ENOUGH and count.unknown > _MOST_UNKNOWN * count.values
    ]


class UnknownIds(Observer):
    """Says of validation and of test, once, where most ids of a feature have no row of their own.

    That is known when they are first evaluated; nothing is read for it.

    Args:
        counts: what evaluations count.
        say: is given the sentences.
    """

    def __init__(self, counts: IdCounts, say: Callable[[str], None]) -> None:
        self._counts, self._say = counts, say
        self._told = {"train"}  # whose rows have all ids that there are

    def recorded(self, record: Record) -> None:
        """Say what the first evaluation found."""
        if record.split not in self._told:
            self._told.add(record.split)
            for sentence in unknown_ids(record.split, self._counts.of_evaluation):
                self._say(sentence)
