"""Quantised tables in parts, on several devices of one process, and their look-up.

Which row an id chooses is decided once for all parts, where the ids are. Parts that have all rows of their columns
pool bags themselves. Of columns that are divided by rows each part gives the rows that it has; they are pooled where
the bags are, in the order of the bag, so that sums are those of the whole table to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchrec.distributed._plan import ParameterSharding
from torchrec.distributed._private import EnumerableShardingSpec, placement_of
from torchrec.distributed.embedding_types import (
    EmbeddingComputeKernel,
    FeatureSharding,
    KJTList,
    ListOfKJTList,
)
from torchrec.distributed.layout import Shard, shards_of
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingConfig, ShardingType
from torchrec.modules.tables import slots_of
from torchrec.ops.embedding import (
    Bags,
    Ids,
    LookupSpec,
    PolicyCode,
    TableSpec,
    lookup_bags,
)
from torchrec.ops.permute import regroup
from torchrec.ops.quant import lookup_quantized_bags, lookup_quantized_sequences
from torchrec.quant.tables import QuantizedTable, QuantizedWeights, RowChooser, rows_left
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

__all__ = ["Part", "QuantizedParts", "StepOfParts"]


class Part(NamedTuple):
    """A part of a table.

    Attributes:
        table: number of the table.
        shard: which rows and columns of it, and the rank that has them.
        rows: the part itself.
        path: of the part among all: its rank, and which of the rank's parts of this table it is.
        sharding_type: of the table.
    """

    table: int
    shard: Shard
    rows: QuantizedTable
    path: str
    sharding_type: str


@dataclass
class StepOfParts(Multistreamable):
    """What the steps of one look-up hand on to each other.

    Attributes:
        features: the input, with the keys that it came with.
        rows: the rows that its ids choose, one key a slot.
        places: for each rank, and each slot of a part that has some rows of its columns, which of the slot's ids
            have their row there.
    """

    features: KeyedJaggedTensor | None = None
    rows: KeyedJaggedTensor | None = None
    places: list[list[Tensor]] = field(default_factory=list)

    def record_stream(self, stream: torch.Stream) -> None:
        """Have no tensor of this look-up written to before a stream is through with it."""
        for features in (self.features, self.rows):
            if features is not None:
                features.record_stream(stream)
        for place in (place for places in self.places for place in places):
            place.record_stream(stream)


class _Whole(NamedTuple):
    """Parts of one rank that have all rows of their columns, as one look-up.

    Attributes:
        parts: the parts.
        keys: slots that the rank is told, by number.
        spec: of the look-up.
    """

    parts: list[Part]
    keys: list[int]
    spec: LookupSpec


class _Divided(NamedTuple):
    """Parts of one rank that have some rows of their columns, as one look-up.

    Attributes:
        parts: the parts.
        slots: number of a slot, and of the part that it is looked up in.
        spec: of the look-up.
    """

    parts: list[Part]
    slots: list[tuple[int, int]]
    spec: LookupSpec


class QuantizedParts:
    """All parts of the tables of a collection.

    Args:
        configs: the tables.
        tables: their rows, by name.
        sharding: where each table goes.
        world_size: how many ranks, that is devices, there are.
        home: where ids come in and vectors go out. Default: where the first part is.
        output_dtype: of look-ups.
        split: whether states have scales and biases apart, even where the tables had not.
        path: of the collection in its model, for errors.

    Raises:
        ValueError: for a plan that does not fit the tables, or asks for what there is not.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        tables: Mapping[str, QuantizedTable],
        sharding: Mapping[str, ParameterSharding],
        world_size: int,
        home: torch.device | None,
        output_dtype: torch.dtype,
        split: bool,
        path: str,
    ) -> None:
        self.output_dtype, self.world_size = output_dtype, world_size
        self.configs, self._sharding = list(configs), sharding
        self.tbes = nn.ModuleList(nn.ModuleList() for _ in range(world_size))
        self.parts: list[Part] = []
        for t, config in enumerate(configs):
            for shard, device in _placed(config, sharding, world_size, path):
                self._add(t, shard, device, tables[config.name], split)
        devices = [part.rows.weight.device for part in self.parts]
        if home is None:
            home = devices[0] if devices else torch.device("cpu")
        self.chooser = RowChooser(configs, home)
        features = list(dict.fromkeys(name for c in configs for name in c.feature_names))
        self.slots, _ = slots_of(configs, features)
        ranks = [[p for p in self.parts if p.shard.rank == r] for r in range(world_size)]
        for rank, parts in enumerate(ranks):
            held = sorted({str(part.rows.weight.device) for part in parts})
            if len(held) > 1:
                raise ValueError(
                    f"The parts of rank {rank} of module '{path}' should be on one device. Received {', '.join(held)}."
                )
        self._whole = [self._whole_of(parts) for parts in ranks]
        self._divided = [self._divided_of(parts) for parts in ranks]

    def _add(
        self, t: int, shard: Shard, device: torch.device, whole: QuantizedTable, split: bool
    ) -> None:
        config, of_rank = self.configs[t], self.tbes[shard.rank]
        assert isinstance(of_rank, nn.ModuleList)
        given: QuantizedWeights | None = None
        if whole.weight.is_meta:
            device = whole.weight.device
        elif shard.sizes == (rows_left(config), config.embedding_dim):
            given = whole.weight, None
        else:
            given = whole.cut(shard.rows, shard.columns)
        as_table = EmbeddingConfig(
            *shard.sizes, config.name, config.data_type, list(config.feature_names)
        )
        rows = QuantizedTable(as_table, device, whole.row_alignment, split or whole.is_split, given)
        number = 0  # a rank may have several parts of a table
        while number < len(of_rank) and hasattr(of_rank[number], config.name):
            number += 1
        if number == len(of_rank):
            of_rank.append(nn.ModuleDict())
        of_rank[number].add_module(config.name, rows)
        kind = self._sharding[config.name].sharding_type
        path = f"{shard.rank}.{number}.{config.name}"
        self.parts.append(Part(t, shard, rows, path, kind))

    @property
    def home(self) -> torch.device:
        """Where ids come in and vectors go out."""
        return self.chooser.device

    def _is_whole(self, part: Part) -> bool:
        return len(part.shard.rows) == rows_left(self.configs[part.table])

    def _whole_of(self, parts: list[Part]) -> _Whole:
        parts = [part for part in parts if self._is_whole(part)]
        held = {part.table for part in parts}
        keys = [s for s, slot in enumerate(self.slots) if slot.table in held]
        place = {s: key for key, s in enumerate(keys)}
        slots, column = [], 0
        for p, part in enumerate(parts):
            for s in self._slots_of(part):
                slot = self.slots[s]
                slots.append(slot._replace(table=p, key=place[s], column=column))
                column += len(part.shard.columns)
        return _Whole(parts, keys, LookupSpec(_specs(parts), slots, len(keys), column))

    def _divided_of(self, parts: list[Part]) -> _Divided:
        parts = [part for part in parts if not self._is_whole(part)]
        pairs = [(s, p) for p, part in enumerate(parts) for s in self._slots_of(part)]
        slots = [
            self.slots[s]._replace(table=p, key=key, column=0) for key, (s, p) in enumerate(pairs)
        ]
        return _Divided(parts, pairs, LookupSpec(_specs(parts), slots, len(slots), 0))

    def _slots_of(self, part: Part) -> Iterator[int]:
        return (s for s, slot in enumerate(self.slots) if slot.table == part.table)

    def shardings(self) -> dict[str, FeatureSharding]:
        """Return, for each sharding type, which ranks look up the features of such tables."""
        found = {}
        for kind in dict.fromkeys(part.sharding_type for part in self.parts):
            mine = [part for part in self.parts if part.sharding_type == kind]
            tables = dict.fromkeys(part.table for part in mine)
            of_ranks = [
                dict.fromkeys(part.table for part in mine if part.shard.rank == rank)
                for rank in range(self.world_size)
            ]
            names = [[n for t in of for n in self.configs[t].feature_names] for of in of_ranks]
            all_names = [name for t in tables for name in self.configs[t].feature_names]
            found[kind] = FeatureSharding(all_names, names)
        return found

    def distribute(self, step: StepOfParts, features: KeyedJaggedTensor) -> ListOfKJTList:
        """Return for each rank the rows that it looks up: in columns that it has whole, and in others.

        Args:
            step: written to.
            features: ids of the features of the tables.

        Raises:
            IdOutOfRangeError: for an id that no row stands for, if its table's policy says so.
        """
        step.features = features
        step.rows = self.chooser.rows_of(features)[0] if self.slots else features
        step.places = []
        segments = step.rows.values().split(step.rows.length_per_key())
        lists = []
        for whole, divided in zip(self._whole, self._divided, strict=True):
            inputs = []
            if whole.parts:
                inputs.append(step.rows.permute(whole.keys).to(_device(whole.parts)))
            places, ids = [], []
            for s, p in divided.slots:
                rows = divided.parts[p].shard.rows
                here = (segments[s] >= rows.start) & (segments[s] < rows.stop)
                places.append(here.nonzero().flatten())
                ids.append(segments[s].index_select(0, places[-1]) - rows.start)
            if divided.parts:
                lengths = torch.tensor([len(place) for place in places], device=self.home)
                names = [f"{key}" for key in range(len(places))]
                given = KeyedJaggedTensor(names, torch.cat(ids), lengths=lengths)
                inputs.append(given.to(_device(divided.parts)))
            step.places.append(places)
            lists.append(KJTList(inputs))
        return ListOfKJTList(lists)

    def look_up(self, inputs: ListOfKJTList, pooled: bool, weighted: bool) -> list[list[Tensor]]:
        """Return what each rank looks up, on its device.

        Args:
            inputs: from `distribute`.
            pooled: pool bags in columns that a rank has whole.
            weighted: with the weights of ids.

        Returns:
            For each rank, of columns that it has whole: the pooled bags, ``(B, columns)``, or vectors by slot; and
            vectors by slot of others, float32.
        """
        found = []
        for rank, of_rank in enumerate(inputs):
            given, outputs = list(of_rank), []
            whole, divided = self._whole[rank], self._divided[rank]
            if whole.parts and pooled:
                outputs.append(self._pooled(whole, given.pop(0), weighted))
            elif whole.parts:
                outputs += _vectors(whole, given.pop(0), self.output_dtype)
            if divided.parts:
                outputs += _vectors(divided, given.pop(0), torch.float32)
            found.append(outputs)
        return found

    def _pooled(self, whole: _Whole, given: KeyedJaggedTensor, weighted: bool) -> Tensor:
        weights = [part.rows.weight for part in whole.parts]
        formats = [int(part.rows.format) for part in whole.parts]
        bags = Bags(given.values(), given.offsets(), _sample_weights(given) if weighted else None)
        return lookup_quantized_bags(weights, formats, whole.spec, bags, self.output_dtype)[0]

    def pool(self, step: StepOfParts, outputs: list[list[Tensor]], weighted: bool) -> Tensor:
        """Return the pooled bags of all slots, ``(B, width)``.

        Args:
            step: of the look-up.
            outputs: from `look_up`.
            weighted: with the weights of ids.
        """
        assert step.rows is not None
        if not self.slots:
            return step.rows.values().new_empty((step.rows.stride(), 0), dtype=self.output_dtype)
        matrices: list[Tensor] = []
        pieces: dict[tuple[int, int], tuple[int, int, int]] = {}  # (slot, first column) -> piece
        rest = []
        for whole, of_rank in zip(self._whole, outputs, strict=True):
            for (s, part), slot in zip(self._by_slot(whole), whole.spec.slots, strict=True):
                columns = part.shard.columns
                pieces[s, columns.start] = len(matrices), slot.column, len(columns)
            count = 1 if whole.parts else 0
            matrices += [matrix.to(self.home) for matrix in of_rank[:count]]
            rest.append(of_rank[count:])
        divided = self._gathered(step, rest)
        column = 0
        for key, vectors in divided.items():
            pieces[key] = len(matrices), column, vectors.shape[1]
            column += vectors.shape[1]
        if divided:
            matrices.append(self._pool_divided(step.rows, divided, weighted))
        order = sorted(pieces, key=lambda key: (self.slots[key[0]].column, key[1]))
        return regroup(matrices, [n for key in order for n in pieces[key]], [len(order)])[0]

    def vectors(self, step: StepOfParts, outputs: list[list[Tensor]]) -> list[Tensor]:
        """Return the vector of each id of each slot, ``(N, D)``.

        Args:
            step: of the look-up.
            outputs: from `look_up`.
        """
        found: dict[tuple[int, int], Tensor] = {}
        rest = []
        for whole, of_rank in zip(self._whole, outputs, strict=True):
            count = len(whole.spec.slots)
            for (s, part), vectors in zip(self._by_slot(whole), of_rank[:count], strict=True):
                found[s, part.shard.columns.start] = vectors.to(self.home)
            rest.append(of_rank[count:])
        for key, vectors in self._gathered(step, rest).items():
            found[key] = vectors.to(self.output_dtype)
        by_slot: list[list[Tensor]] = [[] for _ in self.slots]
        for key in sorted(found):
            by_slot[key[0]].append(found[key])
        return [of[0] if len(of) == 1 else torch.cat(of, 1) for of in by_slot]

    def _by_slot(self, whole: _Whole) -> Iterator[tuple[int, Part]]:
        return ((s, part) for part in whole.parts for s in self._slots_of(part))

    def _gathered(
        self, step: StepOfParts, outputs: list[list[Tensor]]
    ) -> dict[tuple[int, int], Tensor]:
        """Return, for each slot and first column of what is divided by rows, the vectors of its ids; 0 for none."""
        assert step.rows is not None
        counts = step.rows.length_per_key()
        found: dict[tuple[int, int], Tensor] = {}
        for divided, of_rank, places in zip(self._divided, outputs, step.places, strict=True):
            for (s, p), vectors, place in zip(divided.slots, of_rank, places, strict=True):
                key = s, divided.parts[p].shard.columns.start
                if key not in found:
                    shape = counts[s], vectors.shape[1]
                    found[key] = torch.zeros(shape, dtype=vectors.dtype, device=self.home)
                found[key].index_copy_(0, place, vectors.to(self.home))
        return found

    def _pool_divided(
        self,
        rows: KeyedJaggedTensor,
        divided: Mapping[tuple[int, int], Tensor],
        weighted: bool,
    ) -> Tensor:
        """Return bags pooled of vectors, which are tables whose rows are numbered as the ids of their slot."""
        tables, slots, column = [], [], 0
        for number, ((s, _), vectors) in enumerate(divided.items()):
            count, dim = vectors.shape
            tables.append(TableSpec("", dim, count, 0, PolicyCode.ROWS))
            slots.append(self.slots[s]._replace(table=number, key=s, column=column))
            column += dim
        spec = LookupSpec(tables, slots, len(self.slots), column)
        numbers = [torch.arange(n, device=self.home) for n in rows.length_per_key()]
        values = torch.where(rows.values() >= 0, torch.cat(numbers), -1)
        bags = Bags(values, rows.offsets(), _sample_weights(rows) if weighted else None)
        return lookup_bags(list(divided.values()), spec, bags, self.output_dtype, [])[0]


def _placed(
    config: BaseEmbeddingConfig,
    sharding: Mapping[str, ParameterSharding],
    world_size: int,
    path: str,
) -> Iterator[tuple[Shard, torch.device]]:
    """Yield the parts of a table, and the device of each."""
    if config.name not in sharding:
        raise ValueError(
            f"The plan of module '{path}' should have table '{config.name}'. Received {list(sharding)}."
        )
    mine = sharding[config.name]
    shape = rows_left(config), config.embedding_dim
    shards = shards_of(config.name, shape, mine, world_size, path)
    spec = mine.sharding_spec
    if mine.sharding_type == ShardingType.DATA_PARALLEL.value:
        raise ValueError(
            f"Table '{config.name}' of module '{path}' should not be copied to every device: one process looks it up "
            "once. Received data_parallel."
        )
    if mine.compute_kernel != EmbeddingComputeKernel.QUANT.value:
        raise ValueError(
            f"Table '{config.name}' of module '{path}' should have the `compute_kernel` 'quant', as it is quantised. "
            f"Received {mine.compute_kernel!r}."
        )
    for option in (
        "cache_params",
        "enforce_hbm",
        "stochastic_rounding",
        "bounds_check_mode",
        "output_dtype",
        "key_value_params",
    ):
        value = getattr(mine, option)
        if value is not None and value is not False:
            raise ValueError(
                f"Table '{config.name}' of module '{path}' should not have `{option}`: there is no such quantised "
                f"table. Received {value!r}."
            )
    assert isinstance(spec, EnumerableShardingSpec)
    for shard, metadata in zip(shards, spec.shards, strict=True):
        if shard.rows and shard.columns:
            yield shard, torch.device(placement_of(metadata)[1])


def _specs(parts: Sequence[Part]) -> list[TableSpec]:
    """Return parts as tables that are looked up by row."""
    return [
        TableSpec("", len(p.shard.columns), len(p.shard.rows), 0, PolicyCode.ROWS) for p in parts
    ]


def _device(parts: Sequence[Part]) -> torch.device:
    return parts[0].rows.weight.device


def _sample_weights(features: KeyedJaggedTensor) -> Tensor | None:
    weights = features.weights_or_none()
    return None if weights is None else weights.detach()


def _vectors(
    looked_up: _Whole | _Divided, given: KeyedJaggedTensor, dtype: torch.dtype
) -> list[Tensor]:
    weights = [part.rows.weight for part in looked_up.parts]
    formats = [int(part.rows.format) for part in looked_up.parts]
    offsets, sizes = given.offset_per_key(), given.length_per_key()
    starts = [offsets[slot.key] for slot in looked_up.spec.slots]
    counts = [sizes[slot.key] for slot in looked_up.spec.slots]
    ids = Ids(given.values(), starts, counts, given.stride())
    return lookup_quantized_sequences(weights, formats, looked_up.spec, ids, dtype)[0]
