"""Options of quantised forms: by functions, by the attributes that these set, and by constructors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.inference.modules import quantize_embeddings
from torchrec.quant import embedding_modules as quant
from torchrec.quant.weights import new_config
from torchrec.types import DataType

pytestmark = pytest.mark.once

FEATURES = KeyedJaggedTensor.from_lists({"f": [[1, 2], [], [4]]})
CPU = torch.device("cpu")


def bags() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=[EmbeddingBagConfig(5, 6, "t", feature_names=["f"])])


def sequences() -> EmbeddingCollection:
    return EmbeddingCollection(tables=[EmbeddingConfig(5, 6, "t", feature_names=["f"])])


def vectors(module: Any) -> torch.Tensor:
    found = module(FEATURES)
    return found["f"].values() if isinstance(found, dict) else found.values()


@pytest.mark.parametrize("make", [bags, sequences])
def test_attributes_that_programs_set_have_their_effect(make: Any) -> None:
    collection = make()
    plain: Any = quantize_embeddings(collection, torch.qint8, inplace=False)
    for name, value in (
        (quant.MODULE_ATTR_REGISTER_TBES_BOOL, True),
        (quant.MODULE_ATTR_QUANT_STATE_DICT_SPLIT_SCALE_BIAS, True),
        (quant.MODULE_ATTR_ROW_ALIGNMENT_INT, 1),
        (quant.MODULE_ATTR_EMB_CONFIG_NAME_TO_NUM_ROWS_POST_PRUNING_DICT, {"t": 5}),
        (quant.MODULE_ATTR_CACHE_FEATURES_ORDER, True),
        (quant.MODULE_ATTR_USE_UNFLATTENED_LENGTHS_FOR_BATCHING, True),
        (quant.MODULE_ATTR_USE_BATCHING_HINTED_OUTPUT, True),
    ):
        setattr(collection, name, value)
    made: Any = quantize_embeddings(collection, torch.qint8, inplace=False)
    assert torch.equal(vectors(made), vectors(plain))
    assert "tbes.0" in dict(made.named_modules())
    assert "tbes.0" not in dict(plain.named_modules())
    (table,) = made.quantized_tables().values()
    assert table.weight.shape == (5, 10)  # scale, bias and six codes
    assert [name.rpartition(".")[2] for name in made.state_dict()] == [
        "weight",
        "weight_qscale",
        "weight_qbias",
    ]
    setattr(collection, quant.MODULE_ATTR_REMOVE_STBE_PADDING_BOOL, True)
    with pytest.raises(ValueError, match="rows are without padding by"):
        quantize_embeddings(collection, torch.qint8, inplace=False)


def test_constructors_take_the_same() -> None:
    options: dict[str, Any] = {
        "register_tbes": True,
        "quant_state_dict_split_scale_bias": True,
        "row_alignment": 4,
        "cache_features_order": True,
    }
    pooled = EmbeddingBagConfig(5, 6, "t", DataType.INT4, feature_names=["f"])
    looked_up = EmbeddingConfig(5, 6, "t", DataType.INT4, feature_names=["f"])
    for made in (
        quant.EmbeddingBagCollection([pooled], is_weighted=False, device=CPU, **options),
        quant.EmbeddingCollection([looked_up], device=CPU, **options),
    ):
        assert "tbes.0" in dict(made.named_modules())
        (table,) = made.quantized_tables().values()
        assert table.weight.shape == (5, 8)
        assert [x.shape[1] for x in made.state_dict().values()] == [3, 1, 1]
    assert quant.DEFAULT_ROW_ALIGNMENT == 16


@pytest.mark.parametrize(
    ("make", "kind"), [(bags, quant.EmbeddingBagCollection), (sequences, quant.EmbeddingCollection)]
)
def test_nothing_is_computed_before(make: Any, kind: Any) -> None:
    collection = make()
    with pytest.raises(ValueError, match="should have a `qconfig`"):
        kind.from_float(collection)
    collection.qconfig = new_config(torch.qint8, torch.float32)
    found = [
        kind.from_float(collection, use_precomputed_fake_quant=asked) for asked in (False, True)
    ]
    assert torch.equal(vectors(found[0]), vectors(found[1]))


def test_functions_are_called_for_modules_of_the_types_alone() -> None:
    model = nn.ModuleDict(
        {"bags": bags(), "more": nn.ModuleList([sequences()]), "dense": nn.ReLU()}
    )
    found: list[nn.Module] = []
    quant.for_each_module_of_type_do(model, [EmbeddingBagCollection, nn.ReLU], found.append)
    assert found == [model["bags"], model["dense"]]
    quant.quant_prep_enable_register_tbes(model, module_types=[EmbeddingCollection])
    made = quantize_embeddings(model, torch.qint8, inplace=False)
    names = dict(made.named_modules())
    assert "more.0.tbes.0" in names
    assert "bags.tbes.0" not in names
    with pytest.raises(TypeError, match="`module` should be a"):
        quant.for_each_module_of_type_do(None, [nn.ReLU], found.append)  # type: ignore[arg-type]
