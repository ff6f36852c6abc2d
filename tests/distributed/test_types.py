"""What sharding is written in: lazy values, plans, ranks, and what sharders and sharded modules do by default."""

from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch
from torch import nn

from tests.distributed.table_sharder import TableSharder, collection
from torchrec import KeyedTensor
from torchrec.distributed.types import (
    Awaitable,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    GetItemLazyAwaitable,
    LazyAwaitable,
    LazyGetItemMixin,
    LazyNoWait,
    NoOpQuantizedCommCodec,
    NoWait,
    NullShardedModuleContext,
    ParameterSharding,
    QuantizedCommCodec,
    QuantizedCommCodecs,
    ShardedModule,
    ShardingEnv,
    ShardingPlan,
    ShardMetadata,
    StorageUsageType,
    compute_storage_usage,
    rank_device,
)
from torchrec.streamable import Multistreamable

pytestmark = pytest.mark.once


class Counted(LazyAwaitable[torch.Tensor]):
    """Counts how often it is waited for."""

    def __init__(self, value) -> None:
        super().__init__()
        self.value = value
        self.waits = 0

    def _wait_impl(self):
        self.waits += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


VALUE = torch.tensor([1.0, 2.0])
USES = {
    "attribute": lambda x: x.shape,
    "method": lambda x: x.sum(),
    "item": lambda x: x[0],
    "length": len,
    "loop": list,
    "contains": lambda x: 2.0 in x,
    "add": lambda x: x + 1,
    "reflected add": lambda x: 1 + x,
    "reflected subtract": lambda x: 5 - x,
    "reflected power": lambda x: 2**x,
    "matmul": lambda x: x @ torch.ones(2),
    "negative": lambda x: -x,
    "absolute": abs,
    "compare": lambda x: x == VALUE,
    "less": lambda x: x < 2,
    "torch function": torch.sum,
    "in a list": lambda x: torch.cat([x, x]),
    "by keyword": lambda x: torch.add(input=VALUE, other=x),
    "functional": lambda x: nn.functional.relu(x),
    "tensor method": lambda x: VALUE.add(x),
    "tensor operator": lambda x: VALUE * x,
    "text": str,
    "format": lambda x: f"{x}",
    "numpy": lambda x: x.numpy().tolist(),
    "array": lambda x: __import__("numpy").asarray(x).tolist(),
}


@pytest.mark.parametrize("use", USES)
def test_any_use_waits(use):
    lazy = Counted(VALUE)
    result, expected = USES[use](lazy), USES[use](VALUE)
    assert lazy.waits == 1
    if isinstance(expected, torch.Tensor):
        assert type(result) is torch.Tensor
        assert torch.equal(result, expected)
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("use", "value"),
    [(int, 3), (float, 2.5), (bool, 0), (operator.index, 3), (operator.invert, 3)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_numbers(use, value):
    assert use(Counted(value)) == use(value)


def test_two_lazy_values_meet():
    assert torch.equal(Counted(VALUE) - Counted(torch.ones(2)), torch.tensor([0.0, 1.0]))
    assert torch.equal(Counted(VALUE)[Counted(torch.tensor([1]))], torch.tensor([2.0]))
    lazy = Counted(torch.zeros(2))
    lazy[0] = Counted(torch.tensor(4.0))
    assert lazy.value.tolist() == [4.0, 0.0]


def test_gradients_flow_through():
    weight = torch.ones(2, requires_grad=True)
    (Counted(weight * 3) * VALUE).sum().backward()
    assert weight.grad.tolist() == [3.0, 6.0]


def test_layers_take_it():
    layer = nn.Linear(2, 3)
    assert torch.equal(layer(Counted(VALUE)), layer(VALUE))


def test_waiting_twice_gives_the_same_object_and_waits_once():
    lazy = Counted(VALUE)
    assert lazy.wait() is lazy.wait() is VALUE
    assert lazy.waits == 1


def test_callbacks_run_once_in_their_order():
    lazy = Counted(VALUE)
    lazy.callbacks.append(lambda value: value + 1)
    lazy.callbacks.append(lambda value: value * 2)
    assert lazy.wait().tolist() == [4.0, 6.0]
    assert lazy.wait() is lazy.wait()
    assert lazy.callbacks == []
    lazy.callbacks.append(lambda value: value - 1)  # one that comes late runs as well
    assert lazy.wait().tolist() == [3.0, 5.0]
    assert lazy.waits == 1


def test_an_error_is_the_same_each_time_and_nobody_waits_again():
    lazy = Counted(RuntimeError("rank 1 failed"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="rank 1 failed"):
            lazy.wait()
    with pytest.raises(RuntimeError, match="rank 1 failed"):
        lazy + 1
    assert lazy.waits == 1


def test_a_failing_callback_fails_each_time():
    lazy = Counted(VALUE)
    lazy.callbacks.append(lambda value: value[5])
    for _ in range(2):
        with pytest.raises(IndexError):
            lazy.wait()


def test_what_does_not_wait():
    lazy = Counted(VALUE)
    assert repr(lazy) == "Counted(not waited for)"
    assert isinstance(hash(lazy), int)
    assert not hasattr(lazy, "__fx_tracer__")
    assert isinstance(lazy, Awaitable)
    assert not isinstance(lazy, torch.Tensor)
    assert lazy.waits == 0
    lazy.wait()
    assert repr(lazy) == "Counted(tensor([1., 2.]))"


def test_a_missing_attribute_is_named():
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'nonsense'"):
        _ = Counted(VALUE).nonsense


def test_copies_and_pickles():
    for other in (copy.deepcopy(LazyNoWait(VALUE)), pickle.loads(pickle.dumps(LazyNoWait(VALUE)))):
        assert torch.equal(other.wait(), VALUE)


class Vectors(LazyGetItemMixin[str, torch.Tensor], Counted):
    """A KeyedTensor to whoever asks, whose items are lazy."""

    stands_for = KeyedTensor


def keyed() -> KeyedTensor:
    return KeyedTensor(["a", "b"], [1, 2], torch.arange(6.0).view(2, 3))


def test_a_lazy_value_may_stand_for_a_class_without_being_waited_for():
    lazy = Vectors(keyed())
    assert isinstance(lazy, KeyedTensor)
    assert isinstance(lazy, LazyAwaitable)
    assert not isinstance(lazy, dict)
    assert lazy.waits == 0
    regrouped = KeyedTensor.regroup([lazy], [["b"], ["a"]])
    assert torch.equal(regrouped[0], keyed()["b"])
    assert lazy.keys() == ["a", "b"]
    assert lazy.waits == 1


def test_items_are_lazy_too():
    lazy = Vectors(keyed())
    items = [lazy["b"], lazy["a"]]
    assert all(isinstance(item, GetItemLazyAwaitable) for item in items)
    assert lazy.waits == 0
    assert torch.equal(torch.cat(items, dim=1), torch.cat([keyed()["b"], keyed()["a"]], dim=1))
    assert lazy.waits == 1


def test_items_of_what_is_not_lazy():
    class Plain(LazyGetItemMixin[str, int]):
        pass

    with pytest.raises(TypeError, match=r"into a LazyAwaitable. Received Plain"):
        Plain()["a"]


def test_no_wait():
    value = object()
    assert NoWait(value).wait() is value
    assert LazyNoWait(value).wait() is value


def test_plans_are_printed_as_two_tables():
    plan = EmbeddingModuleShardingPlan(
        t=ParameterSharding("data_parallel", "dense", [0, 1]),
        a_long_name=ParameterSharding("data_parallel", "fused", [0]),
    )
    lines = [
        "module: a.b",
        "",
        "   param    | sharding type | compute kernel | ranks ",
        "----------- | ------------- | -------------- | ------",
        "t           | data_parallel | dense          | [0, 1]",
        "a_long_name | data_parallel | fused          | [0]   ",
        *[""] * 3,  # of shards, there are none
    ]
    assert str(ShardingPlan({"a.b": plan})) == "\n".join(lines)
    assert str(plan) == "\n" + "\n".join(lines[1:])
    assert str(ShardingPlan({"a.b": plan, "c": plan})).count("\n\nmodule: c\n\n") == 1
    assert str(EmbeddingModuleShardingPlan()) == "\n" * 6
    shards = EnumerableShardingSpec([ShardMetadata([5, 0], [4, 2], "rank:1/cpu")])
    sharded = EmbeddingModuleShardingPlan(t=ParameterSharding("row_wise", "fused", [1], shards))
    assert str(sharded).splitlines()[-3:] == [
        "param | shard offsets | shard sizes | placement ",
        "----- | ------------- | ----------- | ----------",
        "t     | [5, 0]        | [4, 2]      | rank:1/cpu",
    ]


def test_plans_of_modules():
    plan = EmbeddingModuleShardingPlan()
    assert ShardingPlan({"a": plan}).get_plan_for_module("a") is plan
    assert ShardingPlan({"a": plan}).get_plan_for_module("b") is None
    assert ShardingPlan({"a": plan}) == ShardingPlan({"a": EmbeddingModuleShardingPlan()})
    assert ShardingPlan({"a": plan}) != ShardingPlan({"b": plan})


@pytest.mark.parametrize(("world_size", "rank"), [(2, 2), (2, -1), (0, 0)])
def test_ranks_outside_the_world(world_size, rank):
    with pytest.raises(ValueError, match=rf"`rank` should be .* {world_size}. Received {rank}"):
        ShardingEnv(world_size, rank)


def test_dtensors_need_a_process_group():
    with pytest.raises(ValueError, match="`output_dtensor` should come with a process group"):
        ShardingEnv(1, 0, output_dtensor=True)


def test_sharders_by_default():
    class Plain(TableSharder):
        sharding_types = TableSharder.__mro__[1].sharding_types
        compute_kernels = TableSharder.__mro__[1].compute_kernels
        shardable_parameters = TableSharder.__mro__[1].shardable_parameters

    module, sharder = collection(t=(10, 4)), Plain()
    assert sharder.sharding_types("cpu") == ["data_parallel"]
    assert sharder.compute_kernels("data_parallel", "cpu") == ["dense"]
    assert list(sharder.shardable_parameters(module)) == ["embedding_bags.t.weight"]
    assert sharder.storage_usage(torch.empty(10, 4), "cpu", "fused") == {"ddr": 160}
    assert sharder.qcomm_codecs_registry is None


@pytest.mark.parametrize(
    ("device", "kernel", "usage", "memory"),
    [
        ("cpu", "fused", StorageUsageType.BASE, "ddr"),
        ("cuda", "fused", StorageUsageType.BASE, "hbm"),
        ("cuda", "fused_uvm", StorageUsageType.BASE, "ddr"),
        ("cuda", "fused_uvm", StorageUsageType.DEFAULT, "hbm"),
    ],
)
def test_storage_of_a_table(device, kernel, usage, memory):
    table = torch.empty(3, 4, dtype=torch.float16, device="meta")
    assert compute_storage_usage(table, device, kernel, usage) == {memory: 24}


def test_devices_of_ranks():
    assert rank_device("cpu", 3) == torch.device("cpu")
    assert rank_device("cuda", 0) == torch.device("cuda:0")


class Ids(Multistreamable):
    def __init__(self, values: list[int]) -> None:
        self.values = values

    def record_stream(self, stream) -> None:
        pass


class Doubled(ShardedModule[Ids, list[int], list[int], NullShardedModuleContext]):
    """Doubles ids, in the four steps of a sharded module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.written: list[int] = []

    def create_context(self):
        return NullShardedModuleContext()

    def input_dist(self, ctx, *input, **kwargs):
        return NoWait(NoWait(Ids(list(input))))

    def compute(self, ctx, dist_input):
        return [2 * value for value in dist_input.values]

    def output_dist(self, ctx, output):
        return LazyNoWait(output)

    @property
    def unsharded_module_type(self):
        return nn.Identity


def test_a_sharded_module_runs_its_steps():
    module = Doubled()
    assert module(1, 2).wait() == [2, 4]
    assert list(module.sharded_parameter_names("a.b")) == ["a.b.weight"]
    assert module.preprocess_input([1], {"x": 2}) == ([1], {"x": 2})
    assert module.qcomm_codecs_registry == {}
    assert module.copy(torch.device("cpu")) is module
    module.prefetch(Ids([]))
    with pytest.raises(NotImplementedError, match="Doubled does not write rows"):
        module.write(1)


def test_codecs():
    codecs = QuantizedCommCodecs()
    assert codecs == QuantizedCommCodecs()
    assert isinstance(codecs.backward, NoOpQuantizedCommCodec)
    assert codecs.forward.decode(codecs.forward.encode(VALUE)) is VALUE
    assert codecs.forward.quantized_dtype == torch.float32
    assert codecs.forward.calc_quantized_size(5) == 5
    assert codecs.forward.padded_size(VALUE, [2, 3], 1, None) == (3, 0)
    assert codecs.forward.create_context() is None


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.encode(VALUE),
        lambda c: c.decode(VALUE),
        lambda c: c.quantized_dtype,
        lambda c: c.calc_quantized_size(1),
        lambda c: c.padded_size(VALUE, [1], 0, None),
        lambda c: c.create_context(),
    ],
)
def test_the_interface_of_a_codec_does_nothing(call):
    with pytest.raises(NotImplementedError):
        call(QuantizedCommCodec())
