"""The maps of several tables, applied to all features at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.checks import require_list, require_type
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules._private import outside_graphs
from torchrec.modules.collision.interface import (
    FindsRows,
    JaggedDict,
    KeepsNumbers,
    ManagedCollisionModule,
)
from torchrec.modules.collision.mapped_features import MapGroup, MappedFeatures
from torchrec.modules.collision.module import MCHManagedCollisionModule
from torchrec.modules.collision.stats import ManagedCollisionStats
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def apply_mc_method_to_jt_dict(
    mc_module: nn.Module | str,
    method: str | JaggedDict,
    features_dict: JaggedDict | Mapping[str, list[str]],
    managed_collisions: nn.ModuleDict | None = None,
    *,
    table_to_features: Mapping[str, list[str]] | None = None,
) -> JaggedDict:
    """Apply a method of a map to features by name; or of several maps, each to those of its table.

    Two forms: ``(mc_module, method, features_dict)``, and, older,
    ``(method, features_dict, table_to_features, managed_collisions)``.

    Args:
        mc_module: the map.
        method: name of the method: ``"preprocess"``, ``"profile"``, ``"remap"`` or ``"forward"``.
        features_dict: features by name.
        managed_collisions: table -> map.
        table_to_features: table -> names of its features.

    Returns:
        The features, in the same order; those of no table as they were.

    Example:
        >>> from torchrec.modules.mc_modules import LFU_EvictionPolicy
        >>> from torchrec.sparse.jagged_tensor import JaggedTensor
        >>> mcm = MCHManagedCollisionModule(4, torch.device("cpu"), LFU_EvictionPolicy(), 1)
        >>> features = {"f": JaggedTensor(torch.tensor([70, 80]), lengths=torch.tensor([2]))}
        >>> apply_mc_method_to_jt_dict(mcm, "forward", features)["f"].values()
        tensor([0, 1])
    """
    if isinstance(mc_module, nn.Module):
        changed: JaggedDict = getattr(mc_module, str(method))(features_dict)
        return changed
    tables: Any = features_dict if table_to_features is None else table_to_features
    result: JaggedDict = dict(method)  # type: ignore[arg-type]
    for table, names in tables.items():
        assert managed_collisions is not None
        mine = {name: result[name] for name in names}
        result.update(getattr(managed_collisions[table], mc_module)(mine))
    return result


class ManagedCollisionCollection(nn.Module, LeafModule):
    """Maps the ids of each table's features to rows of the table.

    Tables whose features come from the same ids may share a map: give both the same module. Where
    the tables of one feature have maps of their own, its rows differ from table to table: they come
    under the keys ``feature@table``, in the order of the tables.

    Args:
        managed_collision_modules: table -> its map; None for a table whose ids are rows already.
        embedding_configs: the tables.
        need_preprocess: whether ids are still to be preprocessed, which maps do themselves. False
            is refused for a map that would do so.

    Raises:
        ValueError: for a table without a map, or with fewer rows than its map, or for ids that
            should not be preprocessed and would be.
        TypeError: for a map that is none.

    Example:
        >>> from torchrec import EmbeddingBagConfig
        >>> from torchrec.modules.mc_modules import LFU_EvictionPolicy
        >>> table = EmbeddingBagConfig(4, 2, "user", feature_names=["user", "friends"])
        >>> mcm = MCHManagedCollisionModule(4, torch.device("cpu"), LFU_EvictionPolicy(), 1)
        >>> mcc = ManagedCollisionCollection({"user": mcm}, [table])
        >>> ids = {"user": [[-3], [10**18]], "friends": [[10**18, 7], []]}
        >>> mcc(KeyedJaggedTensor.from_lists(ids)).to_lists()
        {'user': [[0], [1]], 'friends': [[1, 2], []]}
    """

    def __init__(
        self,
        managed_collision_modules: Mapping[str, ManagedCollisionModule | None],
        embedding_configs: Sequence[BaseEmbeddingConfig],
        need_preprocess: bool = True,
    ) -> None:
        super().__init__()
        require_list(embedding_configs, "`embedding_configs`", BaseEmbeddingConfig)
        require_type(managed_collision_modules, "`managed_collision_modules`", Mapping)
        self._embedding_configs = list(embedding_configs)
        maps = dict(managed_collision_modules)
        for config in self._embedding_configs:
            if config.name not in maps:
                raise ValueError(
                    f"`managed_collision_modules` should have a map for table '{config.name}' (None "
                    f"if its ids are rows). Received {list(maps)}."
                )
            _check_map(config, maps[config.name])
            if not need_preprocess:
                _check_leaves_ids(config.name, maps[config.name])
        present = {table: module for table, module in maps.items() if module is not None}
        self._managed_collision_modules = nn.ModuleDict(present)
        self._mapped_features = MappedFeatures(self._embedding_configs, self.maps())

    @property
    def mapped_features(self) -> MappedFeatures:
        """Which features the maps are for."""
        return self._mapped_features

    def maps(self) -> dict[str, ManagedCollisionModule]:
        """Return the map of each table that has one."""
        return dict(self._managed_collision_modules.items())  # type: ignore[arg-type]

    def tables_of(self, module: object) -> list[str]:
        """Return the names of the tables that have this map."""
        return [table for table, other in self.maps().items() if other is module]

    def embedding_configs(self) -> Sequence[BaseEmbeddingConfig]:
        """Return the tables."""
        return self._embedding_configs

    def forward(
        self, features: KeyedJaggedTensor, mutate_miss_lengths: bool = True
    ) -> KeyedJaggedTensor:
        """Map ids to rows; while training, learn from them first.

        Args:
            features: of all tables, and possibly others, which stay as they are, in any order.
            mutate_miss_lengths: for maps that leave ids out: whether their lengths become 0.

        Returns:
            The same features, with rows in place of ids; ``feature@table`` in the place of a feature
            whose tables do not share a map.

        Raises:
            ValueError: for a feature that is missing.
            TypeError: for ids that are not integers.
        """
        if not isinstance(features, KeyedJaggedTensor):
            if not is_proxy(features):
                require_type(features, "`features`", KeyedJaggedTensor)
            traced: KeyedJaggedTensor = self.recorded(features, mutate_miss_lengths)
            return traced
        mapped = self._forward_outside if is_compiling() else self._forward
        return mapped(features, mutate_miss_lengths)

    def _forward(self, features: KeyedJaggedTensor, mutate_miss_lengths: bool) -> KeyedJaggedTensor:
        ids = self._mapped_features.ids_by_key(features)
        rows = []
        for group in self._mapped_features.groups:
            mapped = self._map_of(group)({key: features[key] for key in group.keys}, False)
            rows.append([mapped[key].values() for key in group.keys])
        return self._mapped_features.with_rows(features, ids, rows, mutate_miss_lengths)

    # Evictions depend on the data, and policies of the user's call what they like: a graph that
    # torch.compile makes ends before the maps, and a new one begins behind them.
    _forward_outside = outside_graphs(_forward)

    def remap(
        self, features: KeyedJaggedTensor, mutate_miss_lengths: bool = True
    ) -> KeyedJaggedTensor:
        """Map ids to rows and learn nothing, while training too.

        Args:
            features: see `forward`.
            mutate_miss_lengths: see `forward`.
        """
        require_type(features, "`features`", KeyedJaggedTensor)
        ids = self._mapped_features.ids_by_key(features)
        rows = []
        for group in self._mapped_features.groups:
            module = self._map_of(group)
            mine = module.preprocess({key: features[key] for key in group.keys})
            found = module.find(mine, False)
            rows.append([found[key].values() for key in group.keys])
        return self._mapped_features.with_rows(features, ids, rows, mutate_miss_lengths)

    def map_ids(
        self,
        features: KeyedJaggedTensor,
        reset_rows: Callable[[str, Tensor], None],
        mutate_miss_lengths: bool = True,
    ) -> KeyedJaggedTensor:
        """Map ids to rows as `forward` does, and have rows that changed hands reset.

        Args:
            features: see `forward`.
            reset_rows: ``(table, rows)``; called as soon as rows of a table have changed hands, so
                that none is missed if a later map fails.
            mutate_miss_lengths: see `forward`.
        """
        maps: Any = self._managed_collision_modules
        ids = self._mapped_features.ids_by_key(features)
        rows = []
        for group in self._mapped_features.groups:
            mine = dict(zip(group.keys, map(ids.__getitem__, group.keys), strict=True))
            mapped = maps[group.tables[0]].map_keys(features, mine, mutate_miss_lengths)
            if mapped.changed is not None and mapped.changed.numel():
                for table in group.tables:
                    reset_rows(table, mapped.changed)
            rows.append(mapped.rows)
        return self._mapped_features.with_rows(features, ids, rows, mutate_miss_lengths)

    def _map_of(self, group: MapGroup) -> ManagedCollisionModule:
        return self._managed_collision_modules[group.tables[0]]  # type: ignore[return-value]

    def evict(self) -> dict[str, Tensor | None]:
        """Return, for each table, the rows that changed hands since the last call; None: no eviction.

        In calls of `forward`, that is; `map_ids` has them reset itself.
        """
        found: dict[int, Tensor | None] = {}
        for module in self.maps().values():
            if id(module) not in found:
                found[id(module)] = module.evict()
        return {table: found[id(module)] for table, module in self.maps().items()}

    def open_slots(self) -> dict[str, Tensor]:
        """Return, for each table, how many rows no id holds, ``(1,)``."""
        return {table: module.open_slots() for table, module in self.maps().items()}

    def table_to_number_buckets(self) -> dict[str, int]:
        """Return, for each table, the buckets of its map."""
        return {table: module.buckets() for table, module in self.maps().items()}

    def stats(self, reset: bool = True) -> dict[str, ManagedCollisionStats]:
        """Return, for each table, how full its map is and what it has done since the last call.

        Tables that share a map have the same numbers.

        Args:
            reset: start to count anew.
        """
        found: dict[int, ManagedCollisionStats] = {}
        for module in self._managed_collision_modules.values():
            if isinstance(module, FindsRows) and id(module) not in found:
                found[id(module)] = module.stats(reset)
        maps = self.maps().items()
        return {table: found[id(module)] for table, module in maps if id(module) in found}

    def lookup_runtime_meta(
        self, features: KeyedJaggedTensor, remapped_ids: KeyedJaggedTensor
    ) -> KeyedJaggedTensor:
        """Return what maps keep for ids, as weights of their rows.

        Args:
            features: ids.
            remapped_ids: their rows, of the same features.

        Returns:
            ``remapped_ids``, int64 weights ``(N,)`` or ``(N, D)``: the numbers kept, -1 for an id that does
            not hold the row.

        Raises:
            ValueError: for a table whose map keeps none.
        """
        found = []
        for key, module in self._keeping(remapped_ids.keys()).items():
            ids, rows = (
                features[self._mapped_features.feature_of(key)].values(),
                remapped_ids[key].values(),
            )
            found.append(module.lookup_runtime_meta(ids, rows))
        return remapped_ids.with_weights(torch.cat(found))

    def lookup_custom_runtime_meta(self, remapped_ids: KeyedJaggedTensor) -> Tensor:
        """Return what maps keep for rows, int64 ``(N, D)``, in the order of the values.

        Args:
            remapped_ids: rows.

        Raises:
            ValueError: for a table whose map keeps none.
        """
        keeping = self._keeping(remapped_ids.keys())
        found = [
            module.lookup_custom_runtime_meta(remapped_ids[key].values())
            for key, module in keeping.items()
        ]
        return torch.cat(found)

    def _keeping(self, keys: Sequence[str]) -> dict[str, KeepsNumbers]:
        """Return the map of each feature, which has to keep numbers."""
        maps = {
            key: self._map_of(group) for key, group in self._mapped_features.group_of_keys().items()
        }
        found: dict[str, KeepsNumbers] = {}
        for key in keys:
            module = maps.get(key)
            if not isinstance(module, KeepsNumbers):
                raise ValueError(
                    "Runtime metadata should be looked up in maps that keep some. "
                    f"Received those of tables {list(self.maps())}, which keep none of '{key}'."
                )
            found[key] = module
        return found


def _check_leaves_ids(table: str, module: ManagedCollisionModule | None) -> None:
    """Raise for a map that preprocesses ids, or may do so."""
    if module is None or not module.preprocesses_ids:
        return
    if isinstance(module, MCHManagedCollisionModule):
        raise ValueError(
            f"`need_preprocess` should be True for table '{table}', whose map applies its "
            "`input_hash_func` itself: leave it out where ids are hashed already. Received False."
        )
    raise ValueError(
        f"`need_preprocess` should be True for table '{table}', whose map, a {type(module).__name__}, "
        "may preprocess ids itself. Received False."
    )


def _check_map(config: BaseEmbeddingConfig, module: object) -> None:
    if module is None:
        return
    if not isinstance(module, ManagedCollisionModule):
        raise TypeError(
            f"The map of table '{config.name}' should be a ManagedCollisionModule. "
            f"Received {module!r}."
        )
    rows = module.output_offset + module.output_size()
    if config.num_embeddings < rows:
        raise ValueError(
            f"`num_embeddings` of table '{config.name}' should be at least {rows}, the rows of its "
            f"map. Received {config.num_embeddings}."
        )
