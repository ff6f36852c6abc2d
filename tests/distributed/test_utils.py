"""Names, copies and options of tables, as programs that shard use them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torchrec.optim as optim
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheParams,
    DataType,
    EnumerableShardingSpec,
    KeyValueParams,
    ParameterSharding,
    ShardMetadata,
)
from torchrec.distributed.utils import (
    CopyableMixin,
    add_params_from_parameter_sharding,
    add_prefix_to_state_dict,
    append_prefix,
    convert_to_fbgemm_types,
    copy_to_device,
    create_global_tensor_shape_stride_from_metadata,
    filter_state_dict,
    get_unsharded_module_names,
    init_parameters,
    merge_fused_params,
    modify_input_for_feature_processor,
    none_throws,
    optimizer_type_to_emb_opt_type,
    sharded_model_copy,
)
from torchrec.types import OptimizerType

pytestmark = pytest.mark.once

META = torch.device("meta")
CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection([EmbeddingBagConfig(9, 4, "t", feature_names=["f"])])
        self.over = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        self.tower = nn.Module()
        self.tower.inside = EmbeddingBagCollection(
            [EmbeddingBagConfig(5, 4, "u", feature_names=["g"])]
        )
        self.tower.layer = nn.Linear(1, 1)


def test_names_of_unsharded_modules_are_those_of_the_largest() -> None:
    assert get_unsharded_module_names(Model()) == []
    assert get_unsharded_module_names(DistributedModelParallel(Model())) == [
        "_dmp_wrapped_module.over",
        "_dmp_wrapped_module.tower.layer",
    ]


def test_names_of_states() -> None:
    state = {"a.b": 1, "a.c.d": 2, "ab.c": 3, "a": 4}
    assert dict(filter_state_dict(state, "a")) == {"b": 1, "c.d": 2}
    add_prefix_to_state_dict(state, "p.")
    assert list(state.items()) == [("p.a.b", 1), ("p.a.c.d", 2), ("p.ab.c", 3), ("p.a", 4)]
    assert (append_prefix("", "n"), append_prefix("p", ""), append_prefix("p", "n")) == (
        "n",
        "p",
        "p.n",
    )


def test_a_value_that_should_be_there() -> None:
    assert none_throws(0) == 0
    with pytest.raises(AssertionError, match="no table"):
        none_throws(None, "no table")


def test_a_copy_has_what_was_on_one_device_on_another_and_keeps_ties() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, device="meta"))
    model.append(model[0])
    model[0].weight.requires_grad_(False)
    twin = copy_to_device(model, CPU, CPU)
    assert twin[0] is twin[3]
    assert twin[0] is not model[0]
    assert torch.equal(twin[0].weight, model[0].weight)
    assert twin[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert (twin[0].weight.requires_grad, twin[0].bias.requires_grad) == (False, True)
    assert twin[2].weight.is_meta
    moved = copy_to_device(model, CPU, META)
    assert all(tensor.is_meta for tensor in moved.state_dict().values())
    assert not model[1].running_mean.is_meta
    with pytest.raises(NotImplementedError, match="no data"):
        copy_to_device(model, META, CPU)


def test_sharded_modules_are_shared_by_a_copy_to_a_device() -> None:
    model = DistributedModelParallel(Model()).module
    twin = copy_to_device(model, CPU, META)
    assert twin.tables is model.tables
    assert twin.over[0].weight.is_meta
    assert not model.over[0].weight.is_meta


def test_a_module_copies_itself() -> None:
    class Layer(CopyableMixin):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(2, 1)

    model = nn.Sequential(Layer())
    twin = copy_to_device(model, CPU, CPU)
    assert torch.equal(twin[0].inside.weight, model[0].inside.weight)
    assert twin[0].inside.weight is not model[0].inside.weight


def test_sharded_models_are_copied_on_the_cpu() -> None:
    model = DistributedModelParallel(Model())
    for device in (None, "cpu", CPU):
        with sharded_model_copy(device):
            twin = copy.deepcopy(model)
    features = KeyedJaggedTensor.from_lists({"f": [[1, 2], [8]], "g": [[], [3]]})
    found, expected = (m.module.tables(features).values() for m in (twin, model))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"`device` should be None or the CPU.*'meta'"):
        sharded_model_copy("meta")


def test_modules_on_meta_get_memory_and_others_keep_theirs() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, device="meta"))
    kept = model[0].weight.clone()
    init_parameters(model, CPU)
    assert torch.equal(model[0].weight, kept)
    assert model[1].running_var.tolist() == [1.0, 1.0]
    bare = nn.Module()
    bare.weight = nn.Parameter(torch.empty(2, device="meta"))
    with pytest.raises(ValueError, match="should have `reset_parameters`"):
        init_parameters(bare, CPU)


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (torch.optim.SGD, OptimizerType.SGD),
        (torch.optim.AdamW, OptimizerType.ADAMW),
        (optim.RowWiseAdagrad, OptimizerType.ROWWISE_ADAGRAD),
        (optim.PartialRowWiseLAMB, OptimizerType.PARTIAL_ROWWISE_LAMB),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_classes_of_optimizers_stand_for_updates(cls, kind) -> None:
    assert optimizer_type_to_emb_opt_type(cls) is kind


def test_other_classes_of_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="Received RMSprop"):
        optimizer_type_to_emb_opt_type(torch.optim.RMSprop)


def test_options_of_tables() -> None:
    assert merge_fused_params() == {}
    assert merge_fused_params({"lr": 1, "eps": 2}, {"eps": 3}) == {"lr": 1, "eps": 3}
    common = {"lr": 1}
    sharding = ParameterSharding(
        "table_wise",
        "fused",
        [0],
        enforce_hbm=False,
        bounds_check_mode=BoundsCheckMode.WARNING,
        output_dtype=DataType.FP16,
    )
    options = add_params_from_parameter_sharding(common, sharding)
    assert common == {"lr": 1}
    assert options == {
        "lr": 1,
        "enforce_hbm": False,
        "bounds_check_mode": BoundsCheckMode.WARNING,
        "output_dtype": DataType.FP16,
    }
    assert convert_to_fbgemm_types(options)["output_dtype"].as_dtype() == torch.float16
    assert (
        add_params_from_parameter_sharding(None, ParameterSharding("row_wise", "fused", [0])) == {}
    )


@pytest.mark.parametrize(
    "given",
    [{"cache_params": CacheParams(load_factor=0.1)}, {"key_value_params": KeyValueParams()}],
    ids=list,
)
def test_options_of_caches_are_refused(given) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` should be None"):
        add_params_from_parameter_sharding({}, ParameterSharding("row_wise", "fused", [0], **given))


def test_a_table_has_the_shape_that_its_shards_make() -> None:
    grid = [([0, 0], [8, 4]), ([8, 0], [7, 4]), ([0, 4], [8, 3]), ([8, 4], [7, 3])]
    shards = [ShardMetadata(*shard, f"rank:{rank}/cpu") for rank, shard in enumerate(grid)]
    sharding = ParameterSharding("grid_shard", "fused", [0, 1], EnumerableShardingSpec(shards))
    found = create_global_tensor_shape_stride_from_metadata(sharding, 2)
    assert found == (torch.Size([15, 7]), (7, 1))
    with pytest.raises(ValueError, match=r"should list the shards.*data_parallel"):
        create_global_tensor_shape_stride_from_metadata(
            ParameterSharding("data_parallel", "dense", [0, 1])
        )


def test_a_batch_is_not_written_into() -> None:
    features = KeyedJaggedTensor.from_lists({"f": [[1]]})
    with pytest.raises(NotImplementedError, match="A batch should stay as it is"):
        modify_input_for_feature_processor(features, nn.ModuleDict(), False)
