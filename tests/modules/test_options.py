"""Every option of a module changes something that can be seen, or its documentation says that it does not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.activation import SwishLayerNorm
from torchrec.modules.crossnet import (
    CrossNet,
    LowRankCrossNet,
    LowRankMixtureCrossNet,
    VectorCrossNet,
)
from torchrec.modules.feature_processor import PositionWeightedModule as PositionWeightedFeatures
from torchrec.modules.feature_processor import PositionWeightedProcessor
from torchrec.modules.feature_processor_ import (
    PositionWeightedModule,
    PositionWeightedModuleCollection,
)
from torchrec.modules.keyed_jagged_tensor_pool import KeyedJaggedTensorPool
from torchrec.modules.mc_adapter import (
    McEmbeddingBagCollectionAdapter,
    McEmbeddingCollectionAdapter,
)
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    ManagedCollisionModule,
    MCHManagedCollisionModule,
    average_threshold_filter,
)
from torchrec.modules.mlp import MLP, Perceptron
from torchrec.modules.regroup import KTRegroupAsDict, PermuteMultiEmbedding
from torchrec.modules.tensor_pool import TensorPool
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor
from torchrec.types import DataType

META, DOUBLE = torch.device("meta"), torch.float64


class Case(NamedTuple):
    """A class, arguments that it needs, another value for each option, and what can be seen of it."""

    cls: Callable[..., Any]
    needed: dict[str, Any]
    others: dict[str, Any]
    see: Callable[[Any], object]


def state(module: nn.Module) -> object:
    """What a module holds, and what it makes of a fixed input."""
    held = {k: (v.shape, v.dtype, v.device) for k, v in module.state_dict().items()}
    if any(v.is_meta for v in module.state_dict().values()):
        return held, None
    with torch.no_grad():
        for n, parameter in enumerate(module.parameters()):
            ramp = torch.arange(parameter.numel(), dtype=parameter.dtype) % 5 - 1.5 + n % 2
            parameter.copy_(ramp.reshape(parameter.shape))
    wide = next((v for v in module.parameters() if v.dtype is DOUBLE), torch.empty(0)).dtype
    try:
        output = module(torch.tensor([[1.0, -2.0]], dtype=wide))
    except ValueError as error:
        return held, str(error)
    return held, output.tolist()


def map_state(module: MCHManagedCollisionModule) -> object:
    """What a map makes of some batches, and says of itself."""
    if module.device.type == "meta":
        return None
    seen: list[object] = [module.output_offset, module.output_size(), module.input_size()]
    seen += [module.buckets(), module._output_segments]
    for ids in ([1, 2, 2, 3], [1, 2, 3, 3, 3], [3, 8, 9]):
        features = KeyedJaggedTensor.from_lists({"f": [ids]}).to_dict()
        seen.append(module(features)["f"].values().tolist())
    with pytest.raises(TypeError) as error:
        module({"f": JaggedTensor(torch.tensor([0.5]), lengths=torch.tensor([1]))})
    return [*seen, str(error.value)]


def policy_state(policy: Any) -> object:
    """Which ids hold rows after some batches."""
    module = MCHManagedCollisionModule(3, "cpu", policy, 2)
    for ids in ([1, 1, 1, 1], [2, 3, 3], [2, 2, 3], [4, 4]):
        module(KeyedJaggedTensor.from_lists({"f": [ids]}).to_dict())
    return module.held()[1].tolist()


def pooled_weights(module: nn.Module) -> object:
    features = KeyedJaggedTensor.from_lists({"a": [[1, 2], [3]], "b": [[4], []]})
    parameters = {k: (v.shape, v.device) for k, v in module.named_parameters()}
    if any(v.is_meta for v in module.parameters()):
        return parameters
    if isinstance(module, PositionWeightedModule):
        return parameters, module(features["a"]).weights().tolist()
    given = features.to_dict() if isinstance(module, PositionWeightedFeatures) else features
    found = module(given)
    return parameters, {
        key: None if found[key].weights_or_none() is None else found[key].weights().tolist()
        for key in found.keys()  # noqa: SIM118 - a KeyedJaggedTensor is no mapping
    }


def pool_state(pool: nn.Module) -> object:
    return [(name, v.shape, v.dtype, v.device, str(v)) for name, v in pool.state_dict().items()]


def regrouped(module: KTRegroupAsDict) -> object:
    found = module([KeyedTensor(["a", "b"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]]))])
    return {name: (value.tolist(), value.dtype) for name, value in found.items()}


def adapted(module: nn.Module) -> object:
    weights = [(v.shape, v.device) for v in module.parameters()]
    if any(v.is_meta for v in module.parameters()):
        return weights
    torch.manual_seed(0)
    seen = []
    for ids in ([70, 80, 80], [90, 90, 80]):
        output = module(KeyedJaggedTensor.from_lists({"f": [ids]}))
        inner = getattr(module, "mc_embedding_collection", None)
        inner = module.mc_embedding_bag_collection if inner is None else inner
        seen.append(inner.export_rows("t")[0].tolist())
        seen.append(output["f"].shape if isinstance(output, KeyedTensor) else None)
    maps = inner._managed_collision_collection.maps()
    return weights, seen, maps["t"].input_size()


def managed(**options: Any) -> Any:
    table = EmbeddingBagConfig(4, 2, "t", feature_names=["f"], init_fn=nn.init.ones_)
    module = MCHManagedCollisionModule(4, "cpu", LFU_EvictionPolicy(), 1)
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=[table]),
        ManagedCollisionCollection({"t": module}, [table]),
        **options,
    )


def collected(module: Any) -> object:
    output, rows = module(KeyedJaggedTensor.from_lists({"f": [[70, 80]]}))
    return output.values().tolist(), None if rows is None else rows.to_lists()


CROSS = {"in_features": 3, "num_layers": 2, "device": META, "dtype": DOUBLE}
ADAPTER = {"input_hash_size": 90, "device": META, "eviction_interval": 2, "zch_method": "mpzch"}
HASHED = {"mpzch_num_buckets": 2, "mpzch_max_probe": 1}
ADAPTERS = [
    (McEmbeddingBagCollectionAdapter, EmbeddingBagConfig),
    (McEmbeddingCollectionAdapter, EmbeddingConfig),
]
CASES = [
    Case(
        Perceptron,
        {"in_size": 2, "out_size": 3},
        {"in_size": 3, "out_size": 4, "bias": False, "activation": torch.tanh}
        | {"device": META, "dtype": DOUBLE},
        state,
    ),
    Case(
        MLP,
        {"in_size": 2, "layer_sizes": [3, 2]},
        {"in_size": 3, "layer_sizes": [3], "bias": False, "activation": "tanh"}
        | {"device": META, "dtype": DOUBLE, "activation_on_last": False},
        state,
    ),
    Case(
        SwishLayerNorm, {"input_dims": 2}, {"input_dims": 3} | dict(list(CROSS.items())[2:]), state
    ),
    Case(CrossNet, {"in_features": 2, "num_layers": 1}, CROSS, state),
    Case(VectorCrossNet, {"in_features": 2, "num_layers": 1}, CROSS, state),
    Case(LowRankCrossNet, {"in_features": 2, "num_layers": 1}, CROSS | {"low_rank": 2}, state),
    Case(
        LowRankMixtureCrossNet,
        {"in_features": 2, "num_layers": 1},
        CROSS | {"low_rank": 2, "num_experts": 2, "activation": torch.sigmoid},
        state,
    ),
    Case(
        KTRegroupAsDict,
        {"groups": [["b"], ["a"]], "keys": ["x", "y"]},
        {"groups": [["a"], ["b"]], "keys": ["y", "z"], "emb_dtype": DataType.BF16},
        regrouped,
    ),
    Case(
        PermuteMultiEmbedding,
        {"groups": [["a"]]},
        {"groups": [["a"], ["b"]]},
        lambda module: len(module._groups),
    ),
    *[
        Case(
            cls,
            {"max_feature_lengths": {"a": 2}},
            {"max_feature_lengths": {"a": 3, "b": 1}, "device": META},
            pooled_weights,
        )
        for cls in (
            PositionWeightedFeatures,
            PositionWeightedProcessor,
            PositionWeightedModuleCollection,
        )
    ],
    Case(
        PositionWeightedModule,
        {"max_feature_length": 2},
        {"max_feature_length": 3, "device": META},
        pooled_weights,
    ),
    Case(
        TensorPool,
        {"pool_size": 2, "dim": 2, "dtype": torch.float32},
        {
            "pool_size": 3,
            "dim": 1,
            "dtype": DOUBLE,
            "device": META,
            "loaded_values": torch.ones(2, 2),
        },
        pool_state,
    ),
    Case(
        KeyedJaggedTensorPool,
        {"pool_size": 2, "feature_max_lengths": {"a": 2}},
        {"pool_size": 3, "feature_max_lengths": {"a": 1, "b": 2}, "device": META}
        | {"values_dtype": torch.int32, "is_weighted": True},
        pool_state,
    ),
    Case(
        LFU_EvictionPolicy, {}, {"threshold_filtering_func": average_threshold_filter}, policy_state
    ),
    Case(
        LRU_EvictionPolicy,
        {},
        {"threshold_filtering_func": average_threshold_filter, "decay_exponent": 0},
        policy_state,
    ),
    Case(
        DistanceLFU_EvictionPolicy,
        {},
        {"threshold_filtering_func": average_threshold_filter, "decay_exponent": 9.0},
        policy_state,
    ),
    Case(
        MCHManagedCollisionModule,
        {
            "zch_size": 3,
            "device": "cpu",
            "eviction_policy": LFU_EvictionPolicy(),
            "eviction_interval": 1,
            "input_hash_func": lambda ids, size: ids % size,
            "mch_size": 2,
        },
        {
            "zch_size": 4,
            "device": META,
            "eviction_policy": LRU_EvictionPolicy(),
            "eviction_interval": 2,
            "input_hash_size": 2,
            "input_hash_func": lambda ids, size: -ids,
            "mch_size": 3,
            "mch_hash_func": lambda ids, size: ids * 0,
            "name": "other",
            "output_global_offset": 10,
            "output_segments": [0, 1, 5],
            "buckets": 2,
        },
        map_state,
    ),
    Case(
        managed,
        {},
        {"return_remapped_features": True},
        collected,
    ),
    *[
        Case(
            cls,
            {
                "tables": [config(4, 2, "t", feature_names=["f"])],
                "input_hash_size": 100,
                "device": "cpu",
                "world_size": 1,
            },
            {"tables": [config(3, 2, "t", feature_names=["f"])], **ADAPTER},
            adapted,
        )
        for cls, config in ADAPTERS
    ],
    *[
        Case(
            cls,
            {
                "tables": [config(4, 2, "t", feature_names=["f"])],
                "input_hash_size": 100,
                "device": "cpu",
                "world_size": 1,
                "zch_method": "mpzch",
                "mpzch_num_buckets": 1,
            },
            HASHED,
            adapted,
        )
        for cls, config in ADAPTERS
    ],
]


def seen(case: Case, **options: Any) -> object:
    """What can be seen of a module with these options; a refusal can be seen, too."""
    torch.manual_seed(0)
    try:
        return case.see(case.cls(**{**case.needed, **options}))
    except (TypeError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize(
    ("case", "option"),
    [
        pytest.param(case, option, id=f"{case.cls.__name__}-{option}")
        for case in CASES
        for option in case.others
    ],
)
def test_an_option_changes_something(case: Case, option: str):
    before = seen(case)
    assert not isinstance(before, str)
    assert seen(case) == before
    assert seen(case, **{option: case.others[option]}) != before


@pytest.mark.parametrize(
    "cls",
    dict.fromkeys(case.cls for case in CASES if inspect.isclass(case.cls)),
    ids=lambda cls: cls.__name__,
)
def test_other_options_are_documented_to_do_nothing(cls: type):
    changing = {name for case in CASES if case.cls is cls for name in case.others}
    rest = [name for name in inspect.signature(cls).parameters if name not in changing]
    documented = re.findall(r"(\w+): without effect", inspect.getdoc(cls) or "")
    assert sorted(rest) == sorted(set(documented) & set(rest))


def test_preprocessing_is_not_left_out_silently():
    table = EmbeddingBagConfig(4, 2, "t", feature_names=["f"])

    def collection(module: ManagedCollisionModule | None) -> ManagedCollisionCollection:
        return ManagedCollisionCollection({"t": module}, [table], need_preprocess=False)

    def make(cls=MCHManagedCollisionModule, **options) -> ManagedCollisionModule:
        return cls(4, "cpu", LFU_EvictionPolicy(), 1, **options)

    assert collection(make()).maps().keys() == {"t"}
    assert collection(None).maps() == {}
    with pytest.raises(
        ValueError, match="`need_preprocess` should be True for table 't', whose map a"
    ):
        collection(make(input_hash_func=lambda ids, size: ids % size))

    class Foreign(ManagedCollisionModule):
        def preprocess(self, features: Any) -> Any: ...
        def remap(self, features: Any, *_: Any) -> Any: ...
        def forward(self, features: Any, *_: Any) -> Any: ...
        def evict(self) -> Tensor | None: ...
        def input_size(self) -> int:
            return 1

        def output_size(self) -> int:
            return 1

        def open_slots(self) -> Tensor: ...
        def rebuild_with_output_id_range(self, *_: Any) -> Any: ...

    with pytest.raises(ValueError, match="whose map, a Foreign, may preprocess ids itself"):
        collection(Foreign("cpu"))


@pytest.mark.parametrize(
    ("exponent", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)]
)
def test_exponents_that_would_change_an_order_are_refused(exponent, error):
    with pytest.raises(error, match="`decay_exponent`"):
        LRU_EvictionPolicy(exponent)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorPool(2, 2, torch.float32),
        lambda: TensorPool(2, 2, torch.float32, loaded_values=torch.ones(2, 2, device="cpu")),
        lambda: KeyedJaggedTensorPool(2, {"a": 1}, is_weighted=True),
        lambda: PositionWeightedProcessor({"a": 1}),
        lambda: PositionWeightedModule(2),
        lambda: MLP(2, [2]),
        lambda: CrossNet(2, 1),
        lambda: SwishLayerNorm(2),
    ],
)
def test_the_default_device_is_heeded(make):
    with torch.device("meta"):
        module = make()
    assert {v.device.type for v in module.state_dict().values()} == {"meta"}
