"""Graphs of PyTorch's own operations: they equal the modules that they were made from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.inference.exports.portable import portable
from torchrec.inference.modules import quantize_embeddings
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    LFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.types import DataType, IdPolicy

KEYS = ["a", "b", "c"]

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]


class Served(nn.Module):
    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection = collection

    def forward(
        self, values: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        output = self.collection(KeyedJaggedTensor(KEYS, values, weights, lengths.flatten()))
        if isinstance(output, tuple):  # of managed collections, with the ids
            output = output[0]
        if isinstance(output, dict):
            return [jagged.values() for jagged in output.values()]
        return output.values()


def draw(batch: int, seed: int, low: int, high: int, weighted: bool = False) -> tuple[Tensor, ...]:
    """Bags of 0 to 3 ids, one key with none at all now and then."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(KEYS), batch), generator=generator)
    lengths[seed % 4 : seed % 4 + 1] = 0
    total = int(lengths.sum())
    values = torch.randint(low, high, (total,), generator=generator)
    if not weighted:
        return values, lengths
    return values, lengths, torch.rand(total, generator=generator)


def exported(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch, ids = torch.export.Dim("batch", min=1), torch.export.Dim("ids", min=0)
    shapes = ({0: ids}, {1: batch}, {0: ids})[: len(example)]
    program = torch.export.export(module, example, dynamic_shapes=shapes)
    graph = portable(program.module(check_guards=False))
    return torch.export.export(graph, example, dynamic_shapes=shapes).run_decompositions()


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Return the namespaces of the operators; sizes are reckoned with Python's."""
    targets = {node.target for node in program.graph.nodes}
    return {one.namespace for one in targets if isinstance(one, torch._ops.OpOverload)}


def same(module: nn.Module, *bounds: tuple[int, int], weighted: bool = False) -> None:
    program = exported(module, draw(9, 8, *bounds[0], weighted))
    assert operators(program) == {"aten"}
    served = program.module()
    with torch.no_grad():
        for low, high in bounds:
            for seed, batch in enumerate((1, 2, 5, 17, 9)):
                example = draw(batch, seed, low, high, weighted)
                torch.testing.assert_close(served(*example), module(*example), rtol=0, atol=1e-6)


POLICIES = {
    "clamp": {"id_policy": IdPolicy.CLAMP},
    "hash": {"id_policy": IdPolicy.HASH},
    "ignore": {"id_policy": IdPolicy.IGNORE},
    "shared row": {"id_policy": IdPolicy.UNKNOWN},
    "rows behind": {"hash_size": 4},
}


def bags(*options: dict[str, object], dtype: str = "FP32") -> EmbeddingBagCollection:
    """Tables of several dims, one of two features, one feature of two tables."""
    torch.manual_seed(1)
    first, second, third = (options * 3)[:3]
    tables = [
        EmbeddingBagConfig(7, 3, "t", feature_names=["a", "c"], **first),
        EmbeddingBagConfig(5, 2, "u", feature_names=["b"], pooling=PoolingType.MEAN, **second),
        EmbeddingBagConfig(6, 3, "v", feature_names=["b", "a"], **third),
    ]
    for table in tables:
        table.data_type = DataType[dtype]
    return EmbeddingBagCollection(tables=tables)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("policy", POLICIES)
def test_bags_of_any_ids(policy: str, weighted: bool) -> None:
    collection = bags(POLICIES[policy])
    if weighted:
        collection = EmbeddingBagCollection(
            tables=collection.embedding_bag_configs(), is_weighted=True
        )
    same(Served(collection).eval(), (-(2**62), 2**62), (-3, 12), weighted=weighted)


def test_policies_side_by_side() -> None:
    same(
        Served(bags(POLICIES["hash"], POLICIES["ignore"], POLICIES["shared row"])).eval(), (-3, 12)
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_weights_of_two_bytes(dtype: str) -> None:
    same(Served(bags({}, dtype=dtype)).eval(), (0, 5))


MIXES = {
    "codes": {"t": torch.qint8, "u": torch.quint4x2, "v": torch.quint2x4},
    "floats": {"t": torch.float16, "u": torch.bfloat16, "v": torch.float32},
}


def quantized(collection: nn.Module, mix: str) -> nn.Module:
    dtypes = MIXES[mix]
    return quantize_embeddings(
        collection, torch.qint8, inplace=False, per_table_weight_dtype=dtypes
    )


@pytest.mark.parametrize("mix", ["codes", pytest.param("floats", marks=pytest.mark.slow)])
def test_rows_of_bytes(mix: str) -> None:
    same(Served(quantized(bags({}), mix)).eval(), (0, 5))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_rows_of_bytes_by_any_ids(policy: str) -> None:
    tables = bags(POLICIES[policy]).embedding_bag_configs()
    collection = EmbeddingBagCollection(tables=tables, is_weighted=True)
    same(Served(quantized(collection, "codes")).eval(), (-3, 12), weighted=True)


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
def test_sequences_of_rows_of_bytes(mix: str) -> None:
    tables = [
        EmbeddingConfig(7, 3, "t", feature_names=["a", "c"], id_policy=IdPolicy.HASH),
        EmbeddingConfig(5, 3, "u", feature_names=["b"]),
        EmbeddingConfig(6, 3, "v", feature_names=["b", "a"]),
    ]
    same(Served(quantized(EmbeddingCollection(tables=tables), mix)).eval(), (0, 5))


PRUNED = {
    "num_embeddings_post_pruning": 3,
    "pruning_indices_remapping": torch.tensor([2, -1, 0, -1, 1, -1, -1]),
}


@pytest.mark.slow
def test_pruned_tables_and_others() -> None:
    """Of a table of two features, whose bags are means without the ids that have no row."""
    tables = bags(PRUNED, POLICIES["hash"], POLICIES["ignore"]).embedding_bag_configs()
    tables[0].pooling = PoolingType.MEAN
    collection = EmbeddingBagCollection(tables=tables, is_weighted=True)
    served = Served(quantized(collection, "codes")).eval()
    same(served, (0, 7), weighted=True)
    values, lengths, weights = draw(5, 8, 0, 7, weighted=True)
    program = exported(served, (values, lengths, weights)).module()
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        program(torch.full_like(values, 7), lengths, weights)


@pytest.mark.slow
def test_sequences_of_pruned_tables() -> None:
    hashed = POLICIES["hash"] | PRUNED
    shared = POLICIES["shared row"] | {
        "num_embeddings_post_pruning": 2,
        "pruning_indices_remapping": torch.tensor([-1, 0, -1, -1, -1, 1]),
    }
    tables = [
        EmbeddingConfig(7, 3, "t", feature_names=["a", "c"], **hashed),
        EmbeddingConfig(5, 3, "u", feature_names=["b"], **shared),
        EmbeddingConfig(6, 3, "v", feature_names=["b", "a"], **POLICIES["clamp"]),
    ]
    same(Served(quantized(EmbeddingCollection(tables=tables), "codes")).eval(), (-9, 12))


def test_ids_that_are_refused() -> None:
    program = exported(Served(bags({})).eval(), draw(9, 8, 0, 5))
    values, lengths = draw(5, 8, 0, 5)
    for bad in (-1, 7, 2**40):
        with pytest.raises(IndexError, match="out of range"):
            program.module()(torch.full_like(values, bad), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_sequences(policy: str) -> None:
    tables = [
        EmbeddingConfig(7, 3, "t", feature_names=["a", "c"], **POLICIES[policy]),
        EmbeddingConfig(5, 3, "u", feature_names=["b"]),
    ]
    same(Served(EmbeddingCollection(tables=tables)).eval(), (0, 5))


def test_maps_that_have_learned() -> None:
    tables = [
        EmbeddingBagConfig(6, 2, "t", feature_names=["a", "b"]),
        EmbeddingBagConfig(4, 3, "u", feature_names=["c"]),
    ]
    maps = ManagedCollisionCollection(
        {
            name: MCHManagedCollisionModule(
                rows, torch.device("cpu"), LFU_EvictionPolicy(), 1, name=name
            )
            for name, rows in (("t", 6), ("u", 4))
        },
        tables,
    )
    managed = ManagedCollisionEmbeddingBagCollection(EmbeddingBagCollection(tables=tables), maps)
    model = Served(managed)
    for seed in range(5):
        model(*draw(4, seed, -9, 9))
    same(model.eval(), (-9, 9))


def test_what_has_no_equal_is_named() -> None:
    class Hashed(nn.Module):
        def forward(self, data: Tensor, offsets: Tensor) -> Tensor:
            return torch.ops.rowwise.hash_strings(data, offsets, 0)

    example = torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 3])
    program = torch.export.export(Hashed(), example)
    with pytest.raises(ValueError, match=r"no operator 'rowwise.hash_strings.default'"):
        portable(program.module())
