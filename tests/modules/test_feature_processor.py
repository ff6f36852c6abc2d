"""Weights by position, whole batches: each weight looked up by hand, one id at a time."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from torchrec import JaggedTensor, KeyedJaggedTensor
from torchrec.modules.feature_processor import (
    BaseFeatureProcessor,
    BaseGroupedFeatureProcessor,
    PositionWeightedModule,
    PositionWeightedProcessor,
    offsets_to_range_traceble,
    position_weighted_module_update_features,
)

LIMITS = {"a": 3, "b": 1, "c": 4}


def batch_of(batch: int, keys: str = "abc", dtype: torch.dtype = torch.int64) -> KeyedJaggedTensor:
    """Random bags, no longer than LIMITS says."""
    lengths = torch.cat([torch.randint(0, LIMITS[key] + 1, (batch,)) for key in keys])
    values = torch.randint(0, 10, (int(lengths.sum()),))
    return KeyedJaggedTensor(list(keys), values, lengths=lengths.to(dtype))


def by_hand(features: KeyedJaggedTensor, weights: dict[str, Tensor]) -> Tensor:
    """The definition: weight p of the feature for id p of each bag; 1 without weights."""
    parts = [
        weights[key][p] if key in weights else torch.ones(())
        for key, bags in features.to_lists().items()
        for bag in bags
        for p in range(len(bag))
    ]
    return torch.stack(parts) if parts else torch.zeros(0)


def randomised(module: nn.Module) -> nn.Module:
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module


def named(module: nn.Module) -> dict[str, Tensor]:
    return {name.split(".")[-1]: weight for name, weight in module.named_parameters()}


def seed_batch() -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lengths_sync(
        keys=["Feature0", "Feature1", "Feature2"],
        values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]),
        lengths=torch.tensor([2, 0, 1, 1, 1, 3, 2, 3, 0]),
    )


SEED_RESULT = """KeyedJaggedTensor({
    "Feature0": {
        "values": [[0, 1], [], [2]],
        "weights": [[1.0, 1.0], [], [1.0]]
    },
    "Feature1": {
        "values": [[3], [4], [5, 6, 7]],
        "weights": [[1.0], [1.0], [1.0, 1.0, 1.0]]
    },
    "Feature2": {
        "values": [[3, 4], [5, 6, 7], []],
        "weights": [[1.0, 1.0], [1.0, 1.0, 1.0], []]
    }
})"""


def test_the_documents_example() -> None:
    # They call it FeatureProcessorCollection(feature_processor_modules={key:
    # PositionWeightedFeatureProcessor(max_feature_length=100)}): names that never existed.
    features = seed_batch()
    processor = PositionWeightedProcessor(dict.fromkeys(features.keys(), 100))
    assert str(processor(features)).strip() == SEED_RESULT


@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("lengths", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_processor_weights_and_gradients(batch, lengths, dtype) -> None:
    features = batch_of(batch, dtype=lengths)
    processor = randomised(PositionWeightedProcessor(LIMITS)).to(dtype)
    actual = processor(features)
    expected = by_hand(features, named(processor)).to(dtype)
    assert actual.keys() == features.keys()
    assert actual.values() is features.values()
    assert torch.equal(actual.lengths(), features.lengths())
    assert actual.weights().dtype == dtype
    torch.testing.assert_close(actual.weights(), expected, rtol=0, atol=0)
    upstream = torch.randn_like(expected)
    params = list(processor.parameters())
    got = torch.autograd.grad(actual.weights(), params, upstream, allow_unused=True)
    wide = {n: w.detach().float().requires_grad_() for n, w in named(processor).items()}
    want = torch.autograd.grad(
        by_hand(features, wide) if batch else sum(w.sum() * 0 for w in wide.values()),
        list(wide.values()),
        upstream.float() if batch else None,
        allow_unused=True,
    )
    for g, w, p in zip(got, want, params, strict=True):
        torch.testing.assert_close(g, torch.zeros_like(p) if w is None else w.to(dtype))


def test_gradients_of_a_narrow_dtype_are_summed_in_a_wide_one() -> None:
    # In bfloat16 a sum of ones stops at 256.
    processor = PositionWeightedProcessor({"a": 1}).to(torch.bfloat16)
    features = KeyedJaggedTensor(
        ["a"], torch.zeros(1000, dtype=torch.int64), lengths=torch.ones(1000, dtype=torch.int64)
    )
    processor(features).weights().sum().backward()
    assert processor.position_weights["a"].grad.item() == 1000


def test_processor_keeps_its_features_only_in_the_order_of_the_batch() -> None:
    features = batch_of(5, "cab")
    processor = randomised(PositionWeightedProcessor({"b": 1, "c": 4}))
    actual = processor(features)
    assert actual.keys() == ["c", "b"]
    expected = features.permute([0, 2])
    assert actual.to_lists() == expected.to_lists()
    torch.testing.assert_close(actual.weights(), by_hand(expected, named(processor)))


def test_processor_passes_a_batch_with_none_of_its_features() -> None:
    features = batch_of(5, "a")
    assert PositionWeightedProcessor({"b": 1})(features) is features


def test_variable_batch_per_key_keeps_its_strides() -> None:
    features = KeyedJaggedTensor(
        ["a", "b"],
        torch.arange(5),
        lengths=torch.tensor([1, 2, 1, 0, 1]),
        stride_per_key_per_rank=[[2], [3]],
        inverse_indices=(["a", "b"], torch.tensor([[0, 1, 0], [0, 1, 2]])),
    )
    processor = randomised(PositionWeightedProcessor(LIMITS | {"a": 3}))
    with pytest.raises(ValueError, match="`features` should have 'c'"):
        processor(features)
    processor = randomised(PositionWeightedProcessor({"a": 3, "b": 1}))
    actual = processor(features)
    weights = named(processor)
    a, b = weights["a"], weights["b"]
    assert torch.equal(actual.weights(), torch.stack([a[0], a[0], a[1], b[0], b[0]]))
    assert actual.stride_per_key() == [2, 3]
    assert actual.expand_inverse().lengths().tolist() == [1, 2, 1, 1, 0, 1]


@pytest.mark.parametrize("make", [PositionWeightedModule, PositionWeightedProcessor])
def test_a_bag_longer_than_its_weights_names_feature_and_sample(make) -> None:
    module = make({"Feature0": 2, "Feature1": 2})
    features = seed_batch()
    with pytest.raises(
        ValueError,
        match=r"Bags of feature 'Feature1' should hold at most 2 ids.*Received 3 in sample 2",
    ):
        module(features if make is PositionWeightedProcessor else features.to_dict())


def test_weights_that_features_have_are_replaced_and_left_alone() -> None:
    features = KeyedJaggedTensor(
        ["a"], torch.arange(2), torch.tensor([0.5, 0.5]), torch.tensor([2])
    )
    assert PositionWeightedProcessor({"a": 2})(features).weights().tolist() == [1, 1]
    assert features.weights().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_module_takes_a_dict(batch) -> None:
    features = batch_of(batch)
    module = randomised(PositionWeightedModule({"c": 4, "a": 3}))
    actual = module(features.to_dict())
    assert list(actual) == ["a", "b", "c"]
    assert actual["b"].weights_or_none() is None
    for key in "ac":
        expected = by_hand(features.permute([features.keys().index(key)]), named(module))
        torch.testing.assert_close(actual[key].weights(), expected)
    if batch == 7:
        actual["a"].weights().sum().backward()
        lengths = features["a"].lengths()
        expected = torch.tensor([(lengths > p).sum() for p in range(3)], dtype=torch.float32)
        torch.testing.assert_close(module.position_weights["a"].grad, expected)


def test_module_names_a_feature_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"`features` should have 'c'.*Received \['a', 'b'\]"):
        PositionWeightedModule(LIMITS)(batch_of(2, "ab").to_dict())


@pytest.mark.parametrize("make", [PositionWeightedModule, PositionWeightedProcessor])
def test_state_names_and_reset(make) -> None:
    module = randomised(make({"type": 2, "a": 3}))  # "type" is an attribute of every module
    state = copy.deepcopy(module.state_dict())
    assert list(state) == ["position_weights.type", "position_weights.a"]
    other = make({"type": 2, "a": 3}, device="cpu")
    assert all(torch.equal(w, torch.ones_like(w)) for w in other.parameters())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert all(torch.equal(other.state_dict()[name], state[name]) for name in state)
    other.position_weights.reset_parameters()
    assert all(torch.equal(w, torch.ones_like(w)) for w in other.parameters())
    assert not list(module.named_buffers())
    assert make(LIMITS, device="meta").position_weights["a"].is_meta


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"a": 0}, ValueError, "of feature 'a' should be at least 1. Received 0"),
        ({"a": 2.5}, TypeError, "of feature 'a' should be an integer. Received 2.5"),
        ({"a.b": 2}, ValueError, "names without dots.*Received 'a.b'"),
        ({7: 2}, TypeError, "should have names of features. Received 7"),
    ],
    ids=["zero", "fraction", "dots", "no_name"],
)
def test_what_cannot_be_a_length(limits, error, message) -> None:
    with pytest.raises(error, match=message):
        PositionWeightedProcessor(limits)


@given(lengths=st.lists(st.integers(0, 5), max_size=6))
def test_positions_count_from_zero_in_each_bag(lengths) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    actual = offsets_to_range_traceble(offsets, torch.empty(sum(lengths)))
    assert actual.tolist() == [p for n in lengths for p in range(n)]


def test_update_leaves_its_arguments_alone() -> None:
    jt = JaggedTensor.empty()
    features, weighted = {"a": jt}, {"a": JaggedTensor.empty(True)}
    updated = position_weighted_module_update_features(features, weighted)
    assert updated["a"] is weighted["a"]
    assert features["a"] is jt


def test_base_classes_leave_forward_to_others() -> None:
    for base in (BaseFeatureProcessor, BaseGroupedFeatureProcessor):
        with pytest.raises(TypeError, match=r"abstract"):
            base()


def test_compiles_once_for_changing_batches() -> None:
    torch._dynamo.reset()
    processor = randomised(PositionWeightedProcessor(LIMITS))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(processor, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 5, 9):
        features = batch_of(batch)
        torch.testing.assert_close(compiled(features).weights(), processor(features).weights())
    assert counter.frame_count == 1
    long = KeyedJaggedTensor(list("abc"), torch.arange(6), lengths=torch.tensor([0, 4, 0, 0, 1, 1]))
    with pytest.raises(RuntimeError, match=r"no longer than there are weights by position: 'a' 3"):
        compiled(long)
