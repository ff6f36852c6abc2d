"""Random models, plans and batches, as values that hypothesis makes smaller and ranks are sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.distributed import sharding_plan
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.layout import Shard, spec_of
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import ParameterSharding, ShardingPlan
from torchrec.ops.embedding.updates import RULES
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.fusable import optimizer_class_of
from torchrec.types import DataType, IdPolicy, OptimizerType

COLLECTIONS = ("bags", "weighted", "sequences")
FEATURES = ("f0", "f1", "f2", "f3")
# What a step does: train; train on two batches; leave gradients for a later one; a forward pass; one without gradients.
MODES = ("step", "twice", "accumulate", "forward", "evaluate")
UNUSED = "unused"
POOLINGS = (
    PoolingType.SUM,
    PoolingType.MEAN,
    PoolingType.SUM,
    PoolingType.MEAN,
    PoolingType.NONE,
)


@dataclass(frozen=True)
class Table:
    """A table of one of the collections of a model."""

    collection: str
    rows: int
    dim: int
    features: tuple[str, ...]
    pooling: PoolingType = PoolingType.SUM
    data_type: DataType = DataType.FP32
    policy: IdPolicy = IdPolicy.ERROR
    hash_size: int | None = None
    optimizer: OptimizerType | None = None
    lr: float | None = None
    options: tuple[tuple[str, Any], ...] = ()
    enable_grad: bool = True

    @property
    def num_rows(self) -> int:
        """Rows of the parameter."""
        return self.rows + (self.hash_size or self.policy == IdPolicy.UNKNOWN)

    @property
    def takes_any_id(self) -> bool:
        """Whether ids outside the rows are no error."""
        return self.hash_size is not None or self.policy != IdPolicy.ERROR


@dataclass(frozen=True)
class Layout:
    """Where a table goes: a function of `torchrec.distributed.sharding_plan` with its arguments, or shards."""

    kind: str
    arguments: tuple[Any, ...] = ()

    def generate(self, *given: Any) -> ParameterSharding:
        """Return what the plan says of the table, as `construct_module_sharding_plan` asks for it."""
        if self.kind != "shards":
            return getattr(sharding_plan, self.kind)(*self.arguments)(*given)
        shards = [Shard(rank, range(a, b), range(c, d)) for rank, a, b, c, d in self.arguments]
        ranks = [shard.rank for shard in shards]
        return ParameterSharding("grid_shard", "fused", ranks, spec_of(shards))


@dataclass(frozen=True)
class Phase:
    """Some steps on some ranks: layouts of the tables, sizes of batches by step and rank, what a step does."""

    world_size: int
    local_size: int
    layouts: tuple[Layout, ...]
    exact: bool
    sizes: tuple[tuple[int, ...], ...]
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A model, trained on some ranks, saved, loaded on others, and trained further."""

    seed: int
    tables: tuple[Table, ...]
    keys: tuple[str, ...]
    dense: bool
    outside: str
    learned_weights: bool
    variable: bool  # batches whose keys have batches of their own
    applied: bool  # optimizers of tables by `apply_optimizer_in_backward`
    skips: bool  # losses leave some outputs out
    scheduled: bool  # learning rates of tables halve with each step
    need_indices: bool
    output_dtype: torch.dtype | None
    phases: tuple[Phase, ...]

    def of_collection(self, name: str) -> list[int]:
        """Return the numbers of the tables of a collection."""
        return [t for t, table in enumerate(self.tables) if table.collection == name]


# Strategies.


def cuts(total: int, parts: int) -> st.SearchStrategy[list[int]]:
    """So many sizes, some of them 0 perhaps, that add up to a total."""
    edges = st.lists(st.integers(0, total), min_size=parts - 1, max_size=parts - 1)
    return edges.map(
        lambda found: [
            b - a for a, b in zip([0, *sorted(found)], [*sorted(found), total], strict=True)
        ]
    )


@st.composite
def tables(draw: Any, collection: str) -> Table:
    """A table, with its features and whatever trains it."""
    pooled = collection != "sequences"
    policy = draw(st.sampled_from(list(IdPolicy)))
    hash_size = draw(st.sampled_from([None, None, 1, 4])) if policy == IdPolicy.ERROR else None
    optimizer = draw(st.sampled_from([None, *OptimizerType]))
    lr, options = None, {}
    if optimizer is not None:
        lr = draw(st.sampled_from([0.1, 0.02, None]))
        names = RULES[optimizer].table_options
        choices = {
            "weight_decay": [0.01],
            "lazy": [False],
            "momentum": [0.5],
            "batch_l2": [0.01],
            "max_gradient": [0.3],
        }
        for name, values in choices.items():
            if name == "batch_l2" and lr is None:
                continue  # refused: no step of another optimizer knows how often rows were looked up
            if name in names and draw(st.integers(0, 4)) == 4:
                options[name] = draw(st.sampled_from(values))
    types = [DataType.FP32, DataType.FP32, DataType.BF16, DataType.FP16]
    if optimizer is not None and lr is None:
        types.pop()  # PyTorch cannot add sparse gradients of it up on CPUs, where there are several look-ups
    return Table(
        collection,
        rows=draw(st.sampled_from([1, 2, 3, 5, 8, 20])),
        dim=draw(st.integers(1, 19)),
        features=tuple(
            draw(st.lists(st.sampled_from(FEATURES), min_size=1, max_size=3, unique=True))
        ),
        pooling=draw(st.sampled_from(POOLINGS)) if pooled else PoolingType.SUM,
        data_type=draw(st.sampled_from(types)),
        policy=policy,
        hash_size=hash_size,
        optimizer=optimizer,
        lr=lr,
        options=tuple(options.items()),
        enable_grad=draw(st.integers(0, 9)) < 9,
    )


@st.composite
def free_shards(draw: Any, rows: int, dim: int, world_size: int) -> tuple[tuple[int, ...], ...]:
    """Groups of ranks, each with some ranges of rows, whose columns are cut among its ranks."""
    group_of = draw(
        st.lists(st.integers(0, world_size - 1), min_size=world_size, max_size=world_size)
    )
    groups = [[r for r in range(world_size) if group_of[r] == g] for g in sorted(set(group_of))]
    columns = []
    for ranks in groups:
        sizes = draw(cuts(dim, draw(st.integers(1, len(ranks) + 2))))
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        columns.append(
            [(draw(st.sampled_from(ranks)), c, c + n) for c, n in zip(starts, sizes, strict=True)]
        )
    shards, first = [], 0
    for size in draw(cuts(rows, draw(st.integers(1, world_size + 2)))):
        for rank, c, d in columns[draw(st.integers(0, len(groups) - 1))]:
            shards.append((rank, first, first + size, c, d))
        first += size
    return tuple(shards)


@st.composite
def layouts(draw: Any, table: Table, applied: bool, world_size: int, local_size: int) -> Layout:
    """A layout of a table, of any sharding type."""
    rows, dim, hosts = table.num_rows, table.dim, world_size // local_size
    kinds = [
        "table_wise",
        "row_wise",
        "row_wise uneven",
        "column_wise",
        "column_wise even",
        "table_row_wise",
        "table_column_wise",
        "grid_shard",
        "shards",
    ]
    marked = applied and table.lr is not None  # an optimizer around the model trains its copies
    no_sums = table.optimizer is not None and table.lr is None and table.data_type == DataType.FP16
    if not marked and not no_sums:
        kinds.append("data_parallel")
    kind = draw(st.sampled_from(kinds))
    ranks, host = st.integers(0, world_size - 1), st.integers(0, hosts - 1)
    if kind == "table_wise":
        return Layout(kind, (draw(ranks),))
    if kind == "row_wise uneven":
        sizes = draw(cuts(rows, draw(st.integers(1, world_size))))
        return Layout("row_wise", ((sizes, "cpu"),))
    if kind in ("column_wise", "table_column_wise"):
        sizes = draw(cuts(dim, draw(st.integers(1, world_size + 2))))
        if kind == "table_column_wise":
            return Layout(kind, (draw(host), sizes))
        return Layout(kind, ([draw(ranks) for _ in sizes], sizes))
    if kind == "column_wise even":
        parts = [n for n in range(1, 6) if dim % n == 0]
        return Layout("column_wise", ([draw(ranks) for _ in range(draw(st.sampled_from(parts)))],))
    if kind == "table_row_wise":
        return Layout(kind, (draw(host),))
    if kind == "grid_shard":
        parts = [n for n in range(1, hosts + 1) if dim % n == 0]
        order = draw(st.permutations(range(hosts)))
        return Layout(kind, (list(order[: draw(st.sampled_from(parts))]),))
    if kind == "shards":
        return Layout(kind, draw(free_shards(rows, dim, world_size)))
    return Layout(kind)


@st.composite
def phases(draw: Any, of: Sequence[Table], applied: bool, world_size: int, steps: int) -> Phase:
    """Some steps under a plan for some tables."""
    local_size = draw(st.sampled_from([n for n in range(1, world_size + 1) if world_size % n == 0]))
    sizes = st.tuples(*[st.integers(0, 4)] * world_size)
    return Phase(
        world_size,
        local_size,
        tuple(draw(layouts(table, applied, world_size, local_size)) for table in of),
        draw(st.booleans()),
        tuple(draw(st.lists(sizes, min_size=steps, max_size=steps))),
        tuple(draw(st.sampled_from(("step", *MODES))) for _ in range(steps)),
    )


@st.composite
def cases(draw: Any, world_size: int, most: int = 4) -> Case:
    """A model, and two phases of its training: the first on so many ranks, the second on 1 to ``most``."""
    chosen = draw(st.lists(st.sampled_from(COLLECTIONS), min_size=1, max_size=6))
    found = tuple(draw(tables(collection)) for collection in sorted(chosen))
    keys = sorted({feature for table in found for feature in table.features})
    later, applied = draw(st.integers(1, most)), draw(st.booleans())
    return Case(
        draw(st.integers(0, 1000)),
        found,
        tuple(draw(st.permutations([*keys, UNUSED]))),
        dense=draw(st.booleans()),
        outside=draw(st.sampled_from(["sgd", "adam"])),
        learned_weights=draw(st.booleans()),
        variable=draw(st.booleans()),
        applied=applied,
        skips=draw(st.booleans()),
        scheduled=draw(st.booleans()),
        need_indices=draw(st.booleans()),
        output_dtype=draw(st.sampled_from([None, None, None, torch.bfloat16])),
        phases=(
            draw(phases(found, applied, world_size, 3)),
            draw(phases(found, applied, later, 2)),
        ),
    )


@st.composite
def moving_cases(draw: Any, world_size: int) -> Case:
    """A model whose tables, as far as they can, go elsewhere between two phases."""
    case = draw(cases(world_size, world_size))
    first, later = case.phases[0], draw(phases(case.tables, case.applied, world_size, 2))
    by_hosts = ("table_row_wise", "table_column_wise", "grid_shard")

    def layout(table: Table, before: Layout, after: Layout) -> Layout:
        is_layer = table.enable_grad and (table.optimizer is None or table.lr is None)
        hosts_differ = after.kind in by_hosts and first.local_size != later.local_size
        stays = is_layer or hosts_differ or "data_parallel" in (before.kind, after.kind)
        return before if stays else after

    chosen = map(layout, case.tables, first.layouts, later.layouts)
    later = replace(later, layouts=tuple(chosen), local_size=first.local_size, exact=first.exact)
    return replace(case, phases=(first, later))


# Models and batches.

Outputs = dict[str, tuple[Tensor, Tensor | None]]


class Model(nn.Module):
    """The collections of a case, and a layer over what is pooled, if it has one.

    Returns by name the outputs that a loss is taken of; those of sequences with lengths. Tables begin with
    negative numbers, and the layer over them with positive ones: a loss whose gradients are positive then drives
    every weight away from 0, and no sum of weights, products or gradients cancels. So errors of rounding stay
    relative to what is compared.
    """

    def __init__(self, case: Case, seed: int, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.names = [name for name in COLLECTIONS if case.of_collection(name)]
        for name in self.names:
            self.add_module(name, _collection(case, name, torch.device(device)))
        width = sum(
            table.dim * len(table.features)
            for table in case.tables
            if table.collection != "sequences"
        )
        with torch.no_grad():
            for param in self.parameters():
                param.abs_().neg_()
            self.over = nn.Linear(width, 2) if case.dense and width else None
            if self.over is not None:
                self.over.weight.abs_()
                self.over.bias.abs_().neg_()

    def forward(self, features: KeyedJaggedTensor) -> Outputs:
        """Look everything up."""
        found: Outputs = {}
        pooled = []
        for name in self.names:
            output = getattr(self, name)(features)
            if name == "sequences":
                for key, each in output.items():
                    found[f"{name}.{key}"] = each.values(), each.lengths()
                    if each.weights_or_none() is not None:
                        found[f"{name}.{key} ids"] = each.weights(), each.lengths()
            elif self.over is not None:
                pooled.append(output.values())
            else:
                found |= {f"{name}.{key}": (output[key], None) for key in output.keys()}  # noqa: SIM118
        if self.over is not None:
            found["over"] = (self.over(torch.cat(pooled, dim=1).float()), None)
        return found


def _collection(case: Case, name: str, device: torch.device) -> nn.Module:
    kind = EmbeddingConfig if name == "sequences" else EmbeddingBagConfig
    configs = []
    for t in case.of_collection(name):
        table = case.tables[t]
        applied = case.applied and table.lr is not None
        options: dict[str, Any] = {} if name == "sequences" else {"pooling": table.pooling}
        configs.append(
            kind(
                table.rows,
                table.dim,
                f"t{t}",
                data_type=table.data_type,
                feature_names=list(table.features),
                id_policy=table.policy,
                hash_size=table.hash_size,
                optimizer=None if applied else table.optimizer,
                lr=None if applied else table.lr,
                optimizer_options={} if applied else dict(table.options),
                enable_grad=table.enable_grad,
                **options,
            )
        )
    made: nn.Module
    if name == "sequences":
        made = EmbeddingCollection(
            configs, device, case.need_indices, output_dtype=case.output_dtype
        )
    else:
        made = EmbeddingBagCollection(configs, name == "weighted", device, case.output_dtype)
    for t, param in zip(case.of_collection(name), made.parameters(), strict=True):
        table = case.tables[t]
        if case.applied and table.optimizer is not None and table.lr is not None:
            options = {"lr": table.lr, **dict(table.options)}
            apply_optimizer_in_backward(optimizer_class_of(table.optimizer), [param], options)
    return made


def plan_of(case: Case, phase: Phase, model: Model) -> ShardingPlan:
    """Return where the tables of a model go in a phase."""
    plan = {}
    for name in model.names:
        kinds = {f"t{t}": phase.layouts[t].generate for t in case.of_collection(name)}
        plan[name] = construct_module_sharding_plan(
            getattr(model, name),
            kinds,
            local_size=phase.local_size,
            world_size=phase.world_size,
            device_type="cpu",
        )
    return ShardingPlan(plan)


def sharders_of(phase: Phase) -> list[Any]:
    """Return who shards the collections in a phase."""
    return [
        EmbeddingBagCollectionSharder(exact=phase.exact),
        EmbeddingCollectionSharder(exact=phase.exact),
    ]


def batch(case: Case, phase: int, step: int, rank: int) -> KeyedJaggedTensor:
    """Return the batch of a rank in a step; steps from 5 on are of as many samples as those from 0 on."""
    size = case.phases[phase].sizes[step % 5][rank]
    generator = torch.Generator().manual_seed(((case.seed * 10 + phase) * 10 + step) * 10 + rank)

    def numbers(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    values, lengths, inverse = [], [], []
    for key in case.keys:
        distinct = int(numbers(1, size + 1, 1)) if case.variable and size else size
        inverse.append(numbers(0, max(distinct, 1), size))
        single = any(
            key in table.features and table.pooling == PoolingType.NONE for table in case.tables
        )
        lengths.append(
            torch.ones(distinct, dtype=torch.int64) if single else numbers(0, 5, distinct)
        )
        values.append(numbers(*_ids_of(case, key), int(lengths[-1].sum())))
    ids = torch.cat(values)
    weights = torch.rand(len(ids), generator=generator) + 0.5
    if case.learned_weights:
        weights.requires_grad_()
    if not case.variable:
        return KeyedJaggedTensor(list(case.keys), ids, weights, lengths=torch.cat(lengths))
    return KeyedJaggedTensor(
        list(case.keys),
        ids,
        weights,
        lengths=torch.cat(lengths),
        stride_per_key_per_rank=[[len(each)] for each in lengths],
        inverse_indices=(list(case.keys), torch.stack(inverse)),
    )


def _ids_of(case: Case, key: str) -> tuple[int, int]:
    tables_of = [table for table in case.tables if key in table.features]
    strict = [table.rows for table in tables_of if not table.takes_any_id]
    if strict:
        return 0, min(strict)
    most = max((table.rows for table in tables_of), default=9)
    return -4, most + 4


def joined(batches: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """Return the batches of all ranks as one."""
    if batches[0].inverse_indices_or_none() is not None:
        batches = [each.expand_inverse() for each in batches]
    keys, parts = batches[0].keys(), [each.to_dict() for each in batches]

    def over(read: Any) -> Iterator[Tensor]:
        return (read(part[key]) for key in keys for part in parts)

    return KeyedJaggedTensor(
        keys,
        torch.cat(list(over(lambda jagged: jagged.values()))),
        torch.cat(list(over(lambda jagged: jagged.weights()))),
        lengths=torch.cat(list(over(lambda jagged: jagged.lengths()))),
    )
