"""Quantised collections: against the float ones that have the dequantised tables, and by bytes of the API."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.errors import IdOutOfRangeError
from torchrec.inference.modules import quantize_embeddings
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.quant import embedding_modules as quant
from torchrec.tensor_types import UInt2Tensor, UInt4Tensor
from torchrec.types import DataType, IdPolicy

CPU = torch.device("cpu")
DTYPES = [
    torch.qint8,
    torch.quint4x2,
    torch.quint2x4,
    torch.float16,
    torch.bfloat16,
    torch.float32,
]


def bag_tables() -> list[EmbeddingBagConfig]:
    """Two tables of uneven sizes, one with an odd D; feature f2 is looked up in both."""
    return [
        EmbeddingBagConfig(7, 5, "t1", feature_names=["f1", "f2"], pooling=PoolingType.MEAN),
        EmbeddingBagConfig(11, 16, "t2", feature_names=["f2"], id_policy=IdPolicy.UNKNOWN),
    ]


def sequence_tables() -> list[EmbeddingConfig]:
    return [
        EmbeddingConfig(7, 6, "t1", feature_names=["f1", "f2"]),
        EmbeddingConfig(11, 6, "t2", feature_names=["f2"], id_policy=IdPolicy.CLAMP),
    ]


FEATURES = KeyedJaggedTensor.from_lists(
    {"f2": [[6, 0], [], [3]], "other": [[9], [], [9]], "f1": [[1, 1, 2], [0], []]}
)


def dequantised(module: nn.Module, made: Any) -> nn.Module:
    """Return the float collection with the numbers that the quantised one has."""
    module = copy.deepcopy(module)
    for name, table in made.quantized_tables().items():
        weight = dict(module.named_parameters())[
            next(key for key, _ in module.named_parameters() if f".{name}." in key)
        ]
        weight.data.copy_(table.dequantized())
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bags_are_those_of_the_dequantised_tables(dtype: torch.dtype) -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    made: Any = quantize_embeddings(ebc, dtype, inplace=False)
    assert type(made) is quant.EmbeddingBagCollection
    found, expected = made(FEATURES), dequantised(ebc, made)(FEATURES)
    assert torch.equal(found.values(), expected.values())
    assert (found.keys(), found.offset_per_key()) == (expected.keys(), expected.offset_per_key())
    assert [table.name for table in made.embedding_bag_configs()] == ["t1", "t2"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_are_those_of_the_dequantised_tables(dtype: torch.dtype) -> None:
    ec = EmbeddingCollection(tables=sequence_tables(), need_indices=True)
    made: Any = quantize_embeddings(ec, dtype, inplace=False)
    found, expected = made(FEATURES), dequantised(ec, made)(FEATURES)
    assert list(found) == list(expected) == ["f1", "f2@t1", "f2@t2"]
    for name in found:
        assert torch.equal(found[name].values(), expected[name].values())
        assert torch.equal(found[name].weights(), expected[name].weights())
        assert torch.equal(found[name].lengths(), expected[name].lengths())


# Made by TorchRec itself: rows of three, and what it gives for the bags [0, 2], [], [1] and [1, 2, 0].
_API = {
    DataType.INT8: (6, PoolingType.SUM,
        "3829fac6db005fffe0fb000000000000f229aac5ea1bc4ff400000000000000064240cbfa1bec63800ff000000000000",
        [[2.95196533203125, -5.4796142578125, -1.4691162109375, 2.618896484375, 0.39453125, 5.86883544921875],
         [0.0] * 6,
         [5.2047119140625, -4.40997314453125, 3.439697265625, 6.18011474609375, -2.69140625, -5.6640625],
         [8.15667724609375, -9.88958740234375, 1.9705810546875, 8.79901123046875, -2.296875, 0.20477294921875]]),
    DataType.INT4: (8, PoolingType.MEAN,
        "cf3ba3c8680da5df00000000000000006c3a3cc5cb04832f00000000000000001437bbc4884860bf0000000000000000",
        [[-1.328125, -2.30419921875, 1.112060546875, -6.1171875, -4.561767578125, -0.79443359375, 3.636474609375,
          1.775634765625], [0.0] * 8,
         [3.595703125, 4.3984375, -2.0234375, -5.234375, -2.826171875, 1.1875, 6.806640625, -3.62890625],
         [0.3131510615348816, -0.0699869841337204, 0.06689453125, -5.8229169845581055, -3.9832358360290527,
          -0.1337890625, 4.693196773529053, -0.02587890625]]),
    DataType.INT2: (8, PoolingType.SUM,
        "6944d4c6c995000000000000000000004f405ec3bc74000000000000000000003f41fec316b600000000000000000000",
        [[-1.16796875, 0.619140625, -8.201171875, 2.40625, -1.16796875, -3.791015625, 1.455078125, 3.2421875],
         [0.0] * 8,
         [-3.68359375, 2.779296875, 2.779296875, 0.625, -3.68359375, -1.529296875, 2.779296875, -1.529296875],
         [-4.8515625, 3.3984375, -5.421875, 3.03125, -4.8515625, -5.3203125, 4.234375, 1.712890625]]),
    DataType.FP16: (3, PoolingType.MEAN,
        "28460341e5bc0000000000000000000019c1f3381c3c000000000000000000006bc03ec356be00000000000000000000",
        [[1.9736328125, -0.5576171875, -1.40380859375], [0.0] * 3, [-2.548828125, 0.61865234375, 1.02734375],
         [0.4661458432674408, -0.16552734375, -0.5934244990348816]]),
    DataType.FP32: (3, PoolingType.SUM,
        "38c91a40920c01c0f24b2dc000000000e0e04e40407fd640561fec400000000098e9ee40adaaf5bee792f73e00000000",
        [[9.884546279907227, -2.4962100982666016, -2.224217653274536], [0.0] * 3,
         [3.2324752807617188, 6.703033447265625, 7.3788251876831055],
         [13.117021560668945, 4.206823348999023, 5.15460729598999]]),
}  # fmt: skip


@pytest.mark.parametrize("data_type", _API, ids=str)
def test_a_state_of_the_api_loads_and_gives_its_outputs(data_type: DataType) -> None:
    dim, pooling, text, expected = _API[data_type]
    rows = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).view(3, -1)
    packed: dict[DataType, Callable[[Tensor], Tensor]] = {
        DataType.INT4: UInt4Tensor,
        DataType.INT2: UInt2Tensor,
    }
    table = EmbeddingBagConfig(3, dim, "t", data_type, feature_names=["f"], pooling=pooling)
    features = KeyedJaggedTensor.from_lists({"f": [[0, 2], [], [1], [1, 2, 0]]})
    for state in (rows, packed.get(data_type, Tensor.clone)(rows)):
        ebc = quant.EmbeddingBagCollection([table], is_weighted=False, device=CPU)
        ebc.load_state_dict({"embedding_bags.t.weight": state})
        found = ebc(features).values()
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_weights_of_ids_are_taken_and_asked_for() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables(), is_weighted=True)
    made: Any = quantize_embeddings(ebc, torch.qint8, inplace=False)
    with pytest.raises(ValueError, match="should have weights"):
        made(FEATURES)
    weights = torch.arange(FEATURES.values().numel()).float().requires_grad_()
    weighted = FEATURES.with_weights(weights)
    found = made(weighted).values()
    assert not found.requires_grad
    assert torch.equal(found, dequantised(ebc, made)(weighted).values())


def test_ids_out_of_range_follow_the_policy_and_are_counted() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    made: Any = quantize_embeddings(ebc, torch.qint8, inplace=False)
    bad = KeyedJaggedTensor.from_lists({"f1": [[1], [7]], "f2": [[0], []]})
    with pytest.raises(IdOutOfRangeError, match=r"f1.*sample 1"):
        made(bad)
    table = EmbeddingBagConfig(3, 4, "t", feature_names=["f"], id_policy=IdPolicy.UNKNOWN)
    ebc = EmbeddingBagCollection(tables=[table])
    made = quantize_embeddings(ebc, torch.float32, inplace=False)
    found = made(KeyedJaggedTensor.from_lists({"f": [[99], [-1], [0]]})).values()
    assert torch.equal(found, ebc.embedding_bags["t"].weight[[3, 3, 0]])
    assert made.out_of_range_counts(reset=True) == {"t": 2}
    assert made.out_of_range_counts() == {"t": 0}
    ec: Any = quantize_embeddings(
        EmbeddingCollection(tables=sequence_tables()), torch.qint8, inplace=False
    )
    with pytest.raises(IdOutOfRangeError, match=r"f1.*sample 1"):
        ec(KeyedJaggedTensor.from_lists({"f1": [[1, 2], [7]], "f2": [[0], []]}))


def test_state_and_copies_hold_the_rows() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    made: Any = quantize_embeddings(ebc, torch.qint8, inplace=False)
    state = made.state_dict()
    assert {name: (value.dtype, list(value.shape)) for name, value in state.items()} == {
        "embedding_bags.t1.weight": (torch.uint8, [7, 16]),
        "embedding_bags.t2.weight": (torch.uint8, [12, 32]),
    }
    expected = made(FEATURES).values()
    stream = io.BytesIO()
    torch.save(made, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    copied = copy.deepcopy(made)
    for table in made.quantized_tables().values():
        table.weight.zero_()
    assert not made(FEATURES).values().any()
    assert torch.equal(loaded(FEATURES).values(), expected)
    assert torch.equal(copied(FEATURES).values(), expected)
    assert made.copy(CPU) is made


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint4x2, torch.float16], ids=str)
def test_scales_and_biases_apart_in_the_state(dtype: torch.dtype) -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    plain: Any = quantize_embeddings(ebc, dtype, inplace=False)
    quant.quant_prep_enable_quant_state_dict_split_scale_bias_for_types(
        ebc, [EmbeddingBagCollection]
    )
    made: Any = quantize_embeddings(ebc, dtype, inplace=False)
    state = made.state_dict()
    assert len(state) == (6 if dtype is not torch.float16 else 2)
    if dtype is torch.qint8:
        codes, scale, bias = (
            state[f"embedding_bags.t1.weight{part}"] for part in ("", "_qscale", "_qbias")
        )
        assert torch.equal(
            codes.float() * scale.float() + bias.float(),
            plain.quantized_tables()["t1"].dequantized(),
        )
    fresh = copy.deepcopy(made)
    for table in fresh.quantized_tables().values():
        table.weight.zero_()
    fresh.load_state_dict({name: value.clone() for name, value in state.items()})
    assert torch.equal(fresh(FEATURES).values(), plain(FEATURES).values())


def test_notes_on_a_model_have_their_effect() -> None:
    model = nn.Sequential(EmbeddingBagCollection(tables=bag_tables()))
    kinds: list[type[nn.Module]] = [EmbeddingBagCollection]
    quant.quant_prep_enable_register_tbes(model, kinds)
    quant.quant_prep_customize_row_alignment(model, kinds, 1)
    quant.quant_prep_enable_cache_features_order(model, kinds)
    made: Any = quantize_embeddings(copy.deepcopy(model), torch.quint4x2, inplace=True)
    assert "0.tbes.0" in dict(made.named_modules())
    assert list(made.state_dict()["0.embedding_bags.t1.weight"].shape) == [7, 4 + 3]
    assert "0.tbes.0" not in dict(model.named_modules())
    with pytest.raises(ValueError, match="`row_alignment` should be at least 1"):
        quant.quant_prep_customize_row_alignment(model, kinds, 0)


@pytest.mark.parametrize("alignment", [16, 1, 24])
@pytest.mark.parametrize(("dtype", "bits"), list(zip(DTYPES, [8, 4, 2, 16, 16, 32], strict=True)))
def test_memory_is_that_of_the_formula(dtype: torch.dtype, bits: int, alignment: int) -> None:
    sizes = {(rows, dim): f"t{rows}_{dim}" for rows in (1, 7) for dim in (1, 2, 3, 5, 12, 13, 64)}
    model = nn.Sequential(
        EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(rows, dim, name, feature_names=[f"f_{name}"])
                for (rows, dim), name in sizes.items()
            ]
        )
    )
    kinds: list[type[nn.Module]] = [EmbeddingBagCollection]
    quant.quant_prep_customize_row_alignment(model, kinds, alignment)
    made = quantize_embeddings(model, dtype, inplace=True)
    head = 4 if bits <= 8 else 0
    expected = {
        f"0.embedding_bags.{name}.weight": rows
        * math.ceil((head + math.ceil(dim * bits / 8)) / alignment)
        * alignment
        for (rows, dim), name in sizes.items()
    }
    assert {name: weight.nbytes for name, weight in made.state_dict().items()} == expected
    held = sum(part.nbytes for part in [*made.parameters(), *made.buffers()])
    assert held - sum(expected.values()) == 8 * len(sizes)  # counters of ids out of range


@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_pruned_tables_keep_the_rows_that_are_left(kind: str) -> None:
    remapping = torch.tensor([-1, 1, -1, 0, 2])
    pruned = {"num_embeddings_post_pruning": 3, "pruning_indices_remapping": remapping}
    features = KeyedJaggedTensor.from_lists({"b": [[0, 1], [2]], "a": [[1, 0, 3], [4, 2]]})
    if kind == "bags":
        tables = [
            EmbeddingBagConfig(5, 3, "t", feature_names=["a"], pooling=PoolingType.MEAN, **pruned),  # type: ignore[arg-type]
            EmbeddingBagConfig(4, 2, "u", feature_names=["b", "a"], id_policy=IdPolicy.IGNORE),
        ]
        float_bags = EmbeddingBagCollection(tables=tables)
        made: Any = quantize_embeddings(float_bags, torch.float32, inplace=False)
        weight, other = (float_bags.embedding_bags[n].weight.data for n in ("t", "u"))
        found = made(features).to_dict()
        assert torch.equal(found["a@t"][0], (weight[1] + weight[3]) / 2)
        assert torch.equal(found["a@t"][1], weight[4])
        assert torch.equal(found["b"][0], other[0] + other[1])
        assert torch.equal(found["a@u"][1], other[2])
        assert made.out_of_range_counts()["u"] == 1
    else:
        configs = [EmbeddingConfig(5, 3, "t", feature_names=["a", "b"], **pruned)]  # type: ignore[arg-type]
        ec = EmbeddingCollection(tables=configs)
        made = quantize_embeddings(ec, torch.float32, inplace=False)
        weight = ec.embeddings["t"].weight.data.clone()
        weight[[0, 2]] = 0
        assert torch.equal(made(features)["a"].values(), weight[[1, 0, 3, 4, 2]])
    assert made.quantized_tables()["t"].weight.shape[0] == 3
    with pytest.raises(IdOutOfRangeError):
        made(KeyedJaggedTensor.from_lists({"a": [[5]], "b": [[0]]}))


def test_without_a_remapping_the_first_rows_are_left() -> None:
    table = EmbeddingBagConfig(
        5, 3, "t", feature_names=["a"], num_embeddings_post_pruning=2, id_policy=IdPolicy.IGNORE
    )
    ebc = EmbeddingBagCollection(tables=[table])
    made: Any = quantize_embeddings(ebc, torch.float32, inplace=False)
    found = made(KeyedJaggedTensor.from_lists({"a": [[1], [2]]})).values()
    assert torch.equal(found[0], ebc.embedding_bags["t"].weight[1])
    assert not found[1].any()


@pytest.mark.once
def test_prunings_that_cannot_be_are_refused() -> None:
    def table(**pruned: Any) -> EmbeddingBagConfig:
        return EmbeddingBagConfig(3, 2, "t", feature_names=["a"], **pruned)

    with pytest.raises(ValueError, match="`num_embeddings_post_pruning` of table 't'"):
        table(num_embeddings_post_pruning=4)
    with pytest.raises(ValueError, match="should come with `num_embeddings_post_pruning`"):
        table(pruning_indices_remapping=torch.tensor([0, 1, -1]))
    for remapping in ([0, 0, -1], [0, 2, -1], [0, 1, -2]):
        with pytest.raises(ValueError, match="a row of its own below"):
            table(num_embeddings_post_pruning=2, pruning_indices_remapping=torch.tensor(remapping))
    with pytest.raises(ValueError, match=r"one number a row \(3\)"):
        table(num_embeddings_post_pruning=2, pruning_indices_remapping=torch.tensor([0, 1]))


def test_features_are_processed_first() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables(), is_weighted=True)
    processors = PositionWeightedModuleCollection({"f1": 3, "f2": 3})
    with torch.no_grad():
        for parameter in processors.parameters():
            parameter.copy_(torch.tensor([1.0, 0.5, 0.25]))
    module = FeatureProcessedEmbeddingBagCollection(ebc, processors).eval()
    made: Any = quantize_embeddings(module, torch.float32, inplace=False)
    assert type(made) is quant.FeatureProcessedEmbeddingBagCollection
    features = KeyedJaggedTensor.from_lists({"f1": [[1, 2], []], "f2": [[0], [3, 3, 3]]})
    assert torch.equal(made(features).values(), module(features).values())


def _maps(tables: list[Any]) -> ManagedCollisionCollection:
    maps = {
        table.name: MCHManagedCollisionModule(
            zch_size=table.num_embeddings,
            device=CPU,
            eviction_policy=DistanceLFU_EvictionPolicy(),
            eviction_interval=1,
            input_hash_size=10_000,
        )
        for table in tables
    }
    return ManagedCollisionCollection(maps, tables)


def test_maps_are_frozen_in_front_of_quantised_tables() -> None:
    bags = [EmbeddingBagConfig(6, 4, "t", feature_names=["f"])]
    sequences = [EmbeddingConfig(6, 4, "t", feature_names=["f"])]
    pairs: list[tuple[nn.Module, type[nn.Module]]] = [
        (
            ManagedCollisionEmbeddingBagCollection(
                EmbeddingBagCollection(tables=bags), _maps(bags), return_remapped_features=True
            ),
            quant.QuantManagedCollisionEmbeddingBagCollection,
        ),
        (
            ManagedCollisionEmbeddingCollection(
                EmbeddingCollection(tables=sequences), _maps(sequences)
            ),
            quant.QuantManagedCollisionEmbeddingCollection,
        ),
    ]
    learnt = KeyedJaggedTensor.from_lists({"f": [[500, 700], [900]]})
    for module, kind in pairs:
        for _ in range(2):
            module(learnt)
        module.eval()
        made: Any = quantize_embeddings(module, torch.float32, inplace=False)
        assert type(made) is kind
        found, rows = made(learnt)
        expected, _ = module(learnt)
        assert rows is None
        if isinstance(found, dict):
            assert torch.equal(found["f"].values(), expected["f"].values())
        else:
            assert torch.equal(found.values(), expected.values())


def test_weights_that_do_not_fit_are_refused() -> None:
    table = EmbeddingBagConfig(3, 4, "t", DataType.INT8, feature_names=["f"])

    def made(**options: Any) -> quant.EmbeddingBagCollection:
        return quant.EmbeddingBagCollection([table], False, CPU, **options)

    codes, head = torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(3, 4, dtype=torch.uint8)
    made(table_name_to_quantized_weights={"t": (codes, head)})
    for pair in ((codes[:2], head[:2]), (codes, None), (codes.int(), head), (codes[:, :3], head)):
        with pytest.raises(ValueError, match="Quantised weights of table 't' should be uint8"):
            made(table_name_to_quantized_weights={"t": pair})
    with pytest.raises(ValueError, match="should have table 't'"):
        made(table_name_to_quantized_weights={})
    with pytest.raises(ValueError, match="should be of the tables"):
        made(table_name_to_quantized_weights={"t": (codes, head), "u": (codes, head)})
    with pytest.raises(ValueError, match="`output_dtype` should be one of"):
        made(output_dtype=torch.int8)
    with pytest.raises(ValueError, match="should have a `qconfig`"):
        quant.EmbeddingBagCollection.from_float(EmbeddingBagCollection(tables=bag_tables()))
    table = EmbeddingBagConfig(3, 4, "t", DataType.INT32, feature_names=["f"])
    with pytest.raises(ValueError, match="`data_type` of table 't' should be one of"):
        made()


def test_a_state_is_quantised_by_the_names_of_tables() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    found: dict[str, Any] = {}
    types = {"t1": DataType.INT4, "t2": DataType.FP16}
    assert quant.quantize_state_dict(ebc, found, types, {"t2": 4}) == CPU
    shapes = {
        name: [None if x is None else list(x.shape) for x in pair] for name, pair in found.items()
    }
    assert shapes == {"t1": [[7, 3], [7, 4]], "t2": [[4, 32], None]}
    expected: Any = quantize_embeddings(ebc, torch.quint4x2, inplace=False)
    codes, head = expected.quantized_tables()["t1"].parts()
    assert torch.equal(found["t1"][0], codes)
    assert torch.equal(found["t1"][1], head)
    with pytest.raises(ValueError, match="should have a weight of table 'x'"):
        quant.quantize_state_dict(ebc, found, {"x": DataType.INT8})


def test_other_dtypes_of_the_output() -> None:
    ebc = EmbeddingBagCollection(tables=bag_tables())
    made: Any = quantize_embeddings(ebc, torch.qint8, inplace=False, output_dtype=torch.bfloat16)
    assert made.output_dtype() is torch.bfloat16
    assert made(FEATURES).values().dtype is torch.bfloat16
