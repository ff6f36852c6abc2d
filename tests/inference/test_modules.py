"""Models for prediction: what is quantised, what stays as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.quant_embedding import QuantEmbeddingCollectionSharder
from torchrec.inference.modules import (
    DEFAULT_FUSED_PARAMS,
    DEFAULT_QUANT_MAPPING,
    DEFAULT_SHARDERS,
    FEATURE_PROCESSED_EBC_TYPE,
    FUSED_PARAM_BOUNDS_CHECK_MODE,
    FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP,
    FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS,
    FUSED_PARAM_REGISTER_TBE_BOOL,
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    QualNameMetadata,
    assign_weights_to_tbe,
    get_table_to_weights_from_tbe,
    quantize_dense,
    quantize_embeddings,
    quantize_feature,
    quantize_inference_model,
    set_pruning_data,
    shard_quant_model,
    trim_torch_package_prefix_from_typename,
)
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.quant import embedding_modules as quant


class Model(nn.Module):
    """Two collections, one of them used twice, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        tables = [EmbeddingBagConfig(9, 8, name, feature_names=[name]) for name in ("a", "b")]
        self.first = EmbeddingBagCollection(tables=tables[:1])
        self.again = nn.ModuleList([self.first])
        self.second = FeatureProcessedEmbeddingBagCollection(
            EmbeddingBagCollection(tables=tables[1:], is_weighted=True),
            PositionWeightedModuleCollection({"b": 4}),
        )
        self.dense = nn.Linear(16, 2)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        pooled = [self.first(features).values(), self.second(features).values()]
        out: Tensor = self.dense(torch.cat(pooled, 1).to(self.dense.weight.dtype))
        return out


FEATURES = KeyedJaggedTensor.from_lists({"a": [[1, 2], []], "b": [[3], [4, 4]]})


def test_a_model_is_quantised_beside_the_original() -> None:
    model = Model()
    before = model(FEATURES)
    for made in (
        quantize_embeddings(model, torch.qint8, inplace=False),
        quantize_inference_model(model),
    ):
        assert isinstance(made, Model)
        assert isinstance(made.first, quant.EmbeddingBagCollection)
        assert made.again[0] is made.first
        assert isinstance(made.second, quant.FeatureProcessedEmbeddingBagCollection)
        assert made.dense is not model.dense
        torch.testing.assert_close(made(FEATURES), before, atol=0.02, rtol=0.02)
        assert not hasattr(model.first, "qconfig")
        assert isinstance(model.first, EmbeddingBagCollection)
        assert torch.equal(model(FEATURES), before)


def test_in_place_only_where_asked() -> None:
    model = Model()
    made = quantize_embeddings(
        model, torch.qint8, inplace=True, per_table_weight_dtype={"b": torch.float16}
    )
    assert made is model
    assert isinstance(model.first, quant.EmbeddingBagCollection)
    assert model.again[0] is model.first
    shapes = {n: list(t.shape) for n, t in model.state_dict().items() if t.dtype is torch.uint8}
    assert shapes["first.embedding_bags.a.weight"] == [9, 16]
    assert shapes["second.embedding_bags.b.weight"] == [9, 16]
    assert model.second.embedding_bag_configs()[0].data_type.value == "FP16"


def test_dtypes_and_types_are_those_asked_for() -> None:
    made: Any = quantize_inference_model(
        Model(), quantization_dtype=torch.quint4x2, fp_weight_dtype=torch.float32
    )
    types = [m.embedding_bag_configs()[0].data_type.value for m in (made.first, made.second)]
    assert types == ["INT4", "FP32"]
    made = quantize_inference_model(Model(), DEFAULT_QUANT_MAPPING)
    assert isinstance(made.first, quant.EmbeddingBagCollection)
    assert isinstance(made.second, FeatureProcessedEmbeddingBagCollection)
    with pytest.raises(ValueError, match="`dtype` should be one of"):
        quantize_embeddings(Model(), torch.complex64, inplace=False)
    with pytest.raises(ValueError, match="`data_type` of table 'a' should be one of"):
        quantize_embeddings(Model(), torch.int32, inplace=False)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = Model()
    model.second.table_store().embedding_bags["b"].weight.data[4, 1] = float("nan")
    with pytest.raises(ValueError, match=r"table 'b' should be finite.*row 4"):
        quantize_embeddings(model, torch.qint8, inplace=False)
    assert not hasattr(model.second, "qconfig")


def test_searched_bounds_are_nearer() -> None:
    table = EmbeddingBagConfig(50, 32, "t", feature_names=["f"])
    ebc = EmbeddingBagCollection(tables=[table])
    weight = ebc.embedding_bags["t"].weight.data.normal_()
    lost = []
    for search in (False, True):
        made: Any = quantize_embeddings(ebc, torch.quint2x4, inplace=False, search_clipping=search)
        found = made.quantized_tables()["t"].dequantized()
        lost.append(float((found - weight).square().sum()))
    assert lost[1] < 0.8 * lost[0]


def test_pruned_rows_are_left_out() -> None:
    made: Any = quantize_embeddings(
        set_pruning_data(Model(), {"a": 4, "b": 5}), torch.qint8, inplace=False
    )
    assert list(made.first.state_dict()["embedding_bags.a.weight"].shape) == [4, 16]
    assert made.first.embedding_bag_configs()[0].num_embeddings_post_pruning == 4
    with pytest.raises(ValueError, match="of table 'a' should be at least 1"):
        set_pruning_data(Model(), {"a": 0})


def test_weights_go_from_one_model_to_another() -> None:
    first, second = (quantize_inference_model(Model()) for _ in range(2))
    weights = get_table_to_weights_from_tbe(first)
    assert [list(x.shape) for x in weights["a"][0] if x is not None] == [[9, 8], [9, 4]]
    assign_weights_to_tbe(second, weights)
    assert torch.equal(
        second.first.state_dict()["embedding_bags.a.weight"],  # type: ignore[union-attr]
        first.first.state_dict()["embedding_bags.a.weight"],  # type: ignore[union-attr]
    )
    with pytest.raises(ValueError, match="should have table 'b'"):
        assign_weights_to_tbe(second, {"a": weights["a"]})
    with pytest.raises(ValueError, match=r"should have the shape \[9, 8\]"):
        assign_weights_to_tbe(second, {**weights, "a": [(torch.zeros(1, 1), None)]})


class Predicts(PredictModule):
    def predict_forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = KeyedJaggedTensor(["a", "b"], batch["values"], lengths=batch["lengths"])
        found: Tensor = self.predict_module(features)
        return found


BATCH = {"values": torch.tensor([1, 2, 3]), "lengths": torch.tensor([2, 1])}


def test_a_predict_module_has_no_gradients_and_the_state_of_its_module() -> None:
    module = Predicts(Model(), device="cpu")
    assert not module(BATCH).requires_grad
    assert list(module.state_dict()) == list(module.predict_module.state_dict())
    assert all(name.startswith("x.") for name in module.state_dict(prefix="x."))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dense_part_alone_is_cast(dtype: torch.dtype) -> None:
    module = Predicts(quantize_inference_model(Model()))
    made: Any = quantize_dense(module, dtype)
    assert made.dense.weight.dtype is dtype
    assert module.predict_module.dense.weight.dtype is torch.float32  # type: ignore[union-attr]
    assert made.first is module.predict_module.first
    assert made.second.feature_processor.position_weights["b"].dtype is torch.float32
    with pytest.raises(ValueError, match="should be a floating dtype"):
        quantize_dense(module, torch.int8)


def test_what_a_factory_says_is_json() -> None:
    class Factory(PredictFactory):
        def create_predict_module(self) -> nn.Module:
            return Predicts(Model())

        def batching_metadata(self) -> dict[str, BatchingMetadata]:
            return {"values": BatchingMetadata("sparse", "cpu", ["values"])}

        def result_metadata(self) -> str:
            return "dict_of_tensor"

        def run_weights_independent_tranformations(self, predict_module: nn.Module) -> nn.Module:
            return predict_module

        def run_weights_dependent_transformations(self, predict_module: nn.Module) -> nn.Module:
            return predict_module

        def qualname_metadata(self) -> dict[str, QualNameMetadata]:
            return {"dense": QualNameMetadata(need_preproc=True)}

    factory = Factory()
    assert json.loads(factory.batching_metadata_json()) == {
        "values": {"type": "sparse", "device": "cpu", "pinned": ["values"]}
    }
    assert json.loads(factory.qualname_metadata_json()) == {"dense": {"need_preproc": True}}
    assert factory.model_inputs_data() == {}


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint2x4, torch.float16], ids=str)
def test_a_model_over_devices_answers_as_the_whole(dtype: torch.dtype) -> None:
    model = quantize_inference_model(Model(), quantization_dtype=dtype, fp_weight_dtype=dtype)
    features = KeyedJaggedTensor.from_lists({"a": [[8, 0], [], [3]], "b": [[1], [2, 8, 2], []]})
    expected = model(features)
    sharded, plan = shard_quant_model(model, world_size=2, compute_device="cpu")
    assert sharded is model
    assert sharded.again[0] is sharded.first  # used twice, sharded once
    assert {path: list(tables) for path, tables in plan.plan.items()} == {
        "first": ["a"],
        "second": ["b"],
    }
    assert {t.compute_kernel for tables in plan.plan.values() for t in tables.values()} == {"quant"}
    assert sorted(r for tables in plan.plan.values() for t in tables.values() for r in t.ranks) == [
        0,
        1,
    ]
    assert torch.equal(sharded(features), expected)
    by_plan, same = shard_quant_model(
        quantize_inference_model(Model(), quantization_dtype=dtype, fp_weight_dtype=dtype),
        world_size=2,
        compute_device="cpu",
        sharding_plan=plan,
    )
    assert same is plan
    assert list(by_plan.state_dict()) == list(sharded.state_dict())


def test_wishes_and_memory_are_heeded() -> None:
    def made() -> nn.Module:
        return quantize_inference_model(Model())

    wish = ParameterConstraints(sharding_types=["row_wise"])
    sharded, plan = shard_quant_model(
        made(), 2, "cpu", constraints={"a": wish, "b": wish}, sharding_device="cpu"
    )
    kinds = {t.sharding_type for tables in plan.plan.values() for t in tables.values()}
    assert kinds == {"row_wise"}
    assert sharded.first.state_dict()["tbes.1.0.a.weight_qscale"].shape == (4, 1)
    with pytest.raises(PlannerError, match=r"memory|room"):
        shard_quant_model(made(), 2, "cpu", ddr_cap=100)
    with pytest.raises(PlannerError):
        shard_quant_model(made(), 2, "cuda", device_memory_size=100)
    with pytest.raises(ValueError, match="`model` should have a quantised collection"):
        shard_quant_model(nn.Linear(1, 1), 2, "cpu")
    sequences = [QuantEmbeddingCollectionSharder()]
    with pytest.raises(ValueError, match=r"that the sharders take: EmbeddingCollection\."):
        shard_quant_model(made(), 2, "cpu", sharders=sequences)
    with pytest.raises(ValueError, match="`module` should not be sharded yet"):
        shard_quant_model(sharded, 2, "cpu")


def test_other_types_are_quantised_where_asked() -> None:
    class Special(EmbeddingBagCollection):
        pass

    class Quantised(quant.EmbeddingBagCollection):
        pass

    tables = [EmbeddingBagConfig(9, 8, "a", feature_names=["a"])]
    model = nn.ModuleDict({"special": Special(tables=tables), "plain": Model().first})
    asked = {"additional_qconfig_spec_keys": [Special], "additional_mapping": {Special: Quantised}}
    made: Any = quantize_embeddings(model, torch.qint8, False, **asked)  # type: ignore[arg-type]
    assert type(made["special"]) is Quantised
    assert type(made["plain"]) is quant.EmbeddingBagCollection
    left = quantize_embeddings(model, torch.qint8, False)
    assert type(left["special"]) is Special  # type: ignore[index]
    name = trim_torch_package_prefix_from_typename(torch.typename(model["plain"]))
    only: Any = quantize_inference_model(model, quantization_mapping={name: Quantised})
    assert [type(only[key]) for key in ("special", "plain")] == [Special, Quantised]
    assert trim_torch_package_prefix_from_typename("<torch_package_12>.a.B") == "a.B"


def test_what_stays_in_float32_can_be_named() -> None:
    module = Predicts(quantize_inference_model(Model()))
    made: Any = quantize_dense(module, torch.float16, additional_embedding_module_type=[nn.Linear])
    assert made.dense is module.predict_module.dense
    halved = quantize_dense(Predicts(nn.Linear(2, 1)), torch.float16)
    assert halved(torch.ones(1, 2)).dtype is torch.float16  # its input is cast, too
    whole, number = quantize_feature(halved, (torch.ones(1, dtype=torch.float64), 3))
    assert (whole.dtype, number) == (torch.float16, 3)


def test_pruning_is_noted_on_the_types_that_are_named() -> None:
    kinds = [FeatureProcessedEmbeddingBagCollection]
    model = set_pruning_data(Model(), {"a": 4, "b": 5}, module_types=kinds)
    made: Any = quantize_embeddings(model, torch.qint8, inplace=False)
    rows = [made.first.embedding_bag_configs(), made.second.embedding_bag_configs()]
    assert [one[0].num_embeddings_post_pruning for one in rows] == [None, 5]


def test_a_state_is_written_where_asked() -> None:
    module, found = Predicts(Model()), {"x": torch.ones(1)}
    state = module.state_dict(destination=found, keep_vars=True)
    assert state is found
    assert state["dense.weight"] is module.predict_module.dense.weight
    assert "x" in state


def test_what_the_api_calls_things() -> None:
    assert FEATURE_PROCESSED_EBC_TYPE == "FeatureProcessedEmbeddingBagCollection"
    assert [sharder.module_type for sharder in DEFAULT_SHARDERS] == [
        quant.EmbeddingBagCollection,
        quant.EmbeddingCollection,
        quant.FeatureProcessedEmbeddingBagCollection,
    ]
    assert all(sharder.fused_params == DEFAULT_FUSED_PARAMS for sharder in DEFAULT_SHARDERS)  # type: ignore[attr-defined]
    assert list(DEFAULT_FUSED_PARAMS) == [
        FUSED_PARAM_REGISTER_TBE_BOOL,
        FUSED_PARAM_QUANT_STATE_DICT_SPLIT_SCALE_BIAS,
        FUSED_PARAM_BOUNDS_CHECK_MODE,
        FUSED_PARAM_LENGTHS_TO_OFFSETS_LOOKUP,
    ]
