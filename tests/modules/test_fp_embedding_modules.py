"""Embedding bags of processed features, against a sum over ids written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from torchrec import (
    DataType,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    JaggedTensor,
    KeyedJaggedTensor,
)
from torchrec.modules.feature_processor_ import (
    FeatureProcessor,
    PositionWeightedModule,
    PositionWeightedModuleCollection,
)
from torchrec.modules.fp_embedding_modules import (
    FeatureProcessedEmbeddingBagCollection,
    FeatureProcessorDictWrapper,
    apply_feature_processors_to_kjt,
)

ROWS, DIM, LONGEST = 10, 3, 4


def tables(is_weighted: bool = True, data_type: DataType = DataType.FP32) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(ROWS, DIM, "t", data_type, feature_names=["a", "b"]),
        EmbeddingBagConfig(ROWS, 2, "u", data_type, feature_names=["c"]),
    ]
    return EmbeddingBagCollection(tables=configs, is_weighted=is_weighted)


def processors(kind: str) -> dict[str, FeatureProcessor] | PositionWeightedModuleCollection:
    if kind == "collection":
        return PositionWeightedModuleCollection(dict.fromkeys("abc", LONGEST))
    return {key: PositionWeightedModule(LONGEST) for key in "abc"}


def batch_of(batch: int, keys: str = "abc") -> KeyedJaggedTensor:
    lengths = torch.randint(0, LONGEST + 1, (len(keys) * batch,))
    values = torch.randint(0, ROWS, (int(lengths.sum()),))
    return KeyedJaggedTensor(list(keys), values, lengths=lengths)


def by_hand(module, kind: str, features: KeyedJaggedTensor) -> torch.Tensor:
    """For each sample the sum over ids of weight[position] * row[id], features side by side."""
    parameters = dict(module.named_parameters())
    lists = features.to_lists()
    rows = []
    for sample in range(features.stride()):
        parts = []
        for key, table in (("a", "t"), ("b", "t"), ("c", "u")):
            table_weight = parameters[f"_embedding_bag_collection.embedding_bags.{table}.weight"]
            name = f"position_weights.{key}" if kind == "collection" else f"{key}.position_weight"
            weight = parameters[f"_feature_processors.{name}"]
            total = torch.zeros(table_weight.shape[1])
            for position, row in enumerate(lists[key][sample]):
                total = total + weight[position].float() * table_weight[row].float()
            parts.append(total)
        rows.append(torch.cat(parts))
    return torch.stack(rows) if rows else torch.zeros(0, 2 * DIM + 2)


kinds = pytest.mark.parametrize("kind", ["dict", "collection"])


@kinds
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("data_type", [DataType.FP32, DataType.BF16], ids=str)
def test_output_and_gradients(kind, batch, data_type) -> None:
    module = FeatureProcessedEmbeddingBagCollection(
        tables(data_type=data_type), processors(kind)
    ).to(torch.float32 if data_type == DataType.FP32 else torch.bfloat16)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    features = batch_of(batch, "cab")
    actual, expected = module(features), by_hand(module, kind, features)
    assert actual.keys() == ["a", "b", "c"]
    loose = {} if data_type == DataType.FP32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(actual.values().float(), expected, **loose)
    if batch:
        upstream = torch.randn_like(expected)
        parameters = list(module.parameters())
        got = torch.autograd.grad(actual.values(), parameters, upstream.to(actual.values().dtype))
        want = torch.autograd.grad(expected, parameters, upstream, allow_unused=True)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w, **loose)


@kinds
def test_variable_batch_per_key(kind) -> None:
    module = FeatureProcessedEmbeddingBagCollection(tables(), processors(kind))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    features = KeyedJaggedTensor(
        ["a", "b", "c"],
        torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([1, 2, 0, 3]),
        stride_per_key_per_rank=[[2], [1], [1]],
        inverse_indices=(["a", "b", "c"], torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]])),
    )
    expected = by_hand(module, kind, features.expand_inverse())
    torch.testing.assert_close(module(features).values(), expected)


@kinds
def test_a_longer_bag_names_its_feature(kind) -> None:
    module = FeatureProcessedEmbeddingBagCollection(tables(), processors(kind))
    features = KeyedJaggedTensor(
        ["a", "b", "c"], torch.arange(6), lengths=torch.tensor([0, 1, 0, 5, 0, 0])
    )
    with pytest.raises(ValueError, match=r"[Ff]eature 'b'.* should hold at most 4.*5 in sample 1"):
        module(features)


def test_the_documents_example_with_one_module_a_feature() -> None:
    keys = ["Feature0", "Feature1", "Feature2"]
    features = KeyedJaggedTensor.from_lengths_sync(
        keys=keys,
        values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]),
        lengths=torch.tensor([2, 0, 1, 1, 1, 3, 2, 3, 0]),
    )
    # They write FeatureProcessorCollection(feature_processor_modules=...) and
    # PositionWeightedFeatureProcessor: names that never existed.
    pw = FeatureProcessorDictWrapper(
        nn.ModuleDict({key: PositionWeightedModule(max_feature_length=100) for key in keys})
    )
    result = pw(features)
    assert result.to_lists() == {
        "Feature0": [[0, 1], [], [2]],
        "Feature1": [[3], [4], [5, 6, 7]],
        "Feature2": [[3, 4], [5, 6, 7], []],
    }
    assert result.weights().tolist() == [1.0] * 13


def test_split_gives_the_parts_and_state_names_are_the_same_throughout() -> None:
    for kind, names in (
        ("dict", [f"_feature_processors.{key}.position_weight" for key in "abc"]),
        ("collection", [f"_feature_processors.position_weights.{key}" for key in "abc"]),
    ):
        module = FeatureProcessedEmbeddingBagCollection(tables(), processors(kind))
        ebc = "_embedding_bag_collection.embedding_bags"
        assert list(module.state_dict()) == [f"{ebc}.t.weight", f"{ebc}.u.weight", *names]
        assert module.is_weighted()
        first, second = module.split()
        features = batch_of(3)
        assert torch.equal(second(first(features)).values(), module(features).values())
        twin = copy.deepcopy(module)
        assert torch.equal(twin(features).values(), module(features).values())


class Dropped(FeatureProcessor):
    """Keeps the first half of the values."""

    def forward(self, features: JaggedTensor) -> JaggedTensor:
        half = features.values()[: features.values().numel() // 2]
        return JaggedTensor(half, half.float(), torch.tensor([half.numel()]))


class Plain(FeatureProcessor):
    """Gives no weights."""

    def forward(self, features: JaggedTensor) -> JaggedTensor:
        return features


def test_other_processors() -> None:
    features = batch_of(3, "ab")
    ones = [1.0] * features.values().numel()
    assert apply_feature_processors_to_kjt(features, {"a": Plain()}).weights().tolist() == ones
    with pytest.raises(ValueError, match=r"processor of feature 'b' should give each id a weight"):
        apply_feature_processors_to_kjt(features, {"b": Dropped()})
    empty = KeyedJaggedTensor.empty()
    assert apply_feature_processors_to_kjt(empty, {}) is empty


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"should have is_weighted=True"):
        FeatureProcessedEmbeddingBagCollection(tables(is_weighted=False), processors("dict"))
    with pytest.raises(ValueError, match=r"features of the tables, \['a', 'b', 'c'\].*\['a'\]"):
        FeatureProcessedEmbeddingBagCollection(tables(), {"a": PositionWeightedModule(2)})


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
@kinds
def test_compiles_once_for_changing_batches(kind) -> None:
    torch._dynamo.reset()
    module = FeatureProcessedEmbeddingBagCollection(tables(), processors(kind))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 5, 9):
        features = batch_of(batch)
        torch.testing.assert_close(compiled(features).values(), module(features).values())
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_exports_with_a_dynamic_batch() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = FeatureProcessedEmbeddingBagCollection(tables(), processors("collection"))

        def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.inner(KeyedJaggedTensor(["a", "b", "c"], values, lengths=lengths)).values()

    module = Module()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    first, second = batch_of(3), batch_of(7)
    batch, values = torch.export.Dim("batch"), torch.export.Dim("values")
    program = torch.export.export(
        module, (first.values(), first.lengths()), dynamic_shapes=({0: values}, {0: 3 * batch})
    )
    actual = program.module()(second.values(), second.lengths())
    torch.testing.assert_close(actual, module(second.values(), second.lengths()))
