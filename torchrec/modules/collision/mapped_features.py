"""Features whose ids maps make rows: which keys a map is for, and the features with rows in place of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.modules.collision.features import count_kept
from torchrec.modules.collision.interface import ManagedCollisionModule
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, keyed_jagged

IdsByKey = dict[str, Tensor]


class MapGroup(NamedTuple):
    """The tables that share a map.

    Attributes:
        tables: their names.
        keys: of the features of all of them.
        drops_missing: whether the map may leave ids out, for which it gives -1.
    """

    tables: list[str]
    keys: list[str]
    drops_missing: bool


class MappedFeatures:
    """Which features of a batch the maps of a collection are for.

    Args:
        configs: the tables.
        maps: of each table that has one.
    """

    def __init__(
        self, configs: Sequence[BaseEmbeddingConfig], maps: Mapping[str, ManagedCollisionModule]
    ) -> None:
        self.groups = _groups(configs, maps)
        self._split = self._find_split(configs)

    def _find_split(
        self, configs: Sequence[BaseEmbeddingConfig]
    ) -> dict[str, list[tuple[str, int | None]]]:
        """Return the features whose tables do not share a map: for each table the key, and the number of its group."""
        group_of = {t: g for g, group in enumerate(self.groups) for t in group.tables}
        tables: dict[str, list[str]] = {}
        for config in configs:
            for feature in config.feature_names:
                tables.setdefault(feature, []).append(config.name)
        return {
            feature: [(f"{feature}@{table}", group_of.get(table)) for table in names]
            for feature, names in tables.items()
            if len({group_of.get(table) for table in names}) > 1
        }

    def feature_of(self, key: str) -> str:
        """Return the feature whose rows come under a key, which may be of one table alone."""
        split = {name: feature for feature, names in self._split.items() for name, _ in names}
        return split.get(key, key)

    def group_of_keys(self) -> dict[str, MapGroup]:
        """Return the group whose map gives the rows that come under each key."""
        found = {key: group for group in self.groups for key in group.keys}
        for names in self._split.values():
            found.update({name: self.groups[g] for name, g in names if g is not None})
        return found

    def ids_by_key(self, features: KeyedJaggedTensor) -> IdsByKey:
        """Return the ids of each key, where they are all that the maps need: asked before any map learns.

        Args:
            features: of all tables, and possibly others.

        Raises:
            ValueError: for a feature that is missing.
        """
        if not self.groups:
            return {}
        bags = features.bags
        ids = dict(zip(bags.keys, bags.values.split(bags.length_per_key()), strict=True))
        for group in self.groups:
            for key in group.keys:
                if key not in ids:
                    raise ValueError(
                        f"`features` should have the key '{key}' of table '{group.tables[0]}'. "
                        f"Received keys {bags.keys}."
                    )
        for feature, names in self._split.items():
            for name, _ in names:
                if name in ids:
                    raise ValueError(
                        f"`features` should have no key '{name}', under which rows of '{feature}' come. "
                        f"Received keys {bags.keys}."
                    )
        return ids

    def with_rows(
        self,
        features: KeyedJaggedTensor,
        ids: IdsByKey,
        rows: Sequence[Sequence[Tensor]],
        drops_missing: bool,
    ) -> KeyedJaggedTensor:
        """Return the features with rows in place of ids.

        Args:
            features: the features.
            ids: of each key; those of the maps are replaced.
            rows: of each group, in the order of its keys.
            drops_missing: drop the ids for which maps give -1.
        """
        if not rows:
            return features
        missing: set[str] = set()
        for group, of_keys in zip(self.groups, rows, strict=True):
            if drops_missing and group.drops_missing:
                missing.update(group.keys)
                missing.update(f"{key}@{table}" for key in group.keys for table in group.tables)
            for key, found in zip(group.keys, of_keys, strict=True):
                if key not in self._split:
                    ids[key] = found
        if self._split:
            mapped = self._with_rows_of_tables(features, ids, rows)
        else:
            parts = tuple(ids.values())
            values = parts[0] if len(parts) == 1 else torch.cat(parts)
            bags = features.bags
            mapped = keyed_jagged(bags.replace(values, bags.weights))
        return _without_missing(mapped, missing) if missing else mapped

    def _with_rows_of_tables(
        self,
        features: KeyedJaggedTensor,
        values: IdsByKey,
        rows: Sequence[Sequence[Tensor]],
    ) -> KeyedJaggedTensor:
        """Return the features with values, and with a key for each table that maps a feature its own way."""
        groups = zip(self.groups, rows, strict=True)
        rows_by_key = [dict(zip(group.keys, found, strict=True)) for group, found in groups]
        order: list[int] = []
        parts: IdsByKey = {}
        for position, (key, ids) in enumerate(values.items()):
            for name, group in self._split.get(key, [(key, None)]):
                order.append(position)
                parts[name] = ids if group is None else rows_by_key[group][key]
        bags = features.permute(order)
        inverse = bags.inverse_indices_or_none()
        if inverse is not None:
            row = {key: r for r, key in enumerate(inverse[0])}
            keys = bags.keys()
            inverse = list(parts), inverse[1][[row[key] for key in keys]]
        return KeyedJaggedTensor(
            list(parts),
            torch.cat(list(parts.values())),
            bags.weights_or_none(),
            bags.lengths(),
            stride=bags.stride(),
            stride_per_key_per_rank=bags.stride_per_key_per_rank() or None,
            inverse_indices=inverse,
        )


def _groups(
    configs: Sequence[BaseEmbeddingConfig], maps: Mapping[str, ManagedCollisionModule]
) -> list[MapGroup]:
    """Return each map once, with the tables that have it and the features of all of these."""
    groups: dict[int, MapGroup] = {}
    for config in configs:
        if config.name in maps:
            module = maps[config.name]
            group = groups.setdefault(id(module), MapGroup([], [], module.disable_fallback))
            group.tables.append(config.name)
            group.keys.extend(n for n in config.feature_names if n not in group.keys)
    return list(groups.values())


def _without_missing(features: KeyedJaggedTensor, keys: Set[str]) -> KeyedJaggedTensor:
    """Return the features without the values below 0 of some keys; their bags are that much shorter."""
    keep = features.values() >= 0
    parts = keep.split(features.length_per_key())
    keep = torch.cat(
        [
            part if key in keys else torch.ones_like(part)
            for key, part in zip(features.keys(), parts, strict=True)
        ]
    )
    weights = features.weights_or_none()
    varies = features.variable_stride_per_key()
    return KeyedJaggedTensor(
        features.keys(),
        features.values()[keep],
        None if weights is None else weights[keep],
        count_kept(keep, features.lengths(), features.offsets()),
        stride=None if varies else features.stride(),
        stride_per_key_per_rank=features.stride_per_key_per_rank() if varies else None,
        inverse_indices=features.inverse_indices_or_none(),
    )
