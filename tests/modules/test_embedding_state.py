"""Saving, copying, converting and moving collections, with what their fused tables keep."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    OptimizerType,
)
from torchrec.optim import CombinedOptimizer, KeyedOptimizerWrapper, apply_optimizer_in_backward

KINDS = list(OptimizerType)


def make(kind: OptimizerType = OptimizerType.ADAM, **options) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(9, 3, "t", feature_names=["f"], optimizer=kind, lr=0.1),
        EmbeddingBagConfig(9, 5, "u", feature_names=["g"], optimizer="adagrad", lr=0.2),
        EmbeddingBagConfig(9, 5, "plain", feature_names=["g"]),
    ]
    return EmbeddingBagCollection(tables=configs, **options)


def make_sequence(kind: OptimizerType = OptimizerType.ADAM) -> EmbeddingCollection:
    configs = [EmbeddingConfig(9, 3, "t", feature_names=["f", "g"], optimizer=kind, lr=0.1)]
    return EmbeddingCollection(tables=configs)


BATCHES = [
    {"f": [[1, 2, 2], []], "g": [[5], [5, 8]]},
    {"f": [[2], [7]], "g": [[], [8]]},
    {"f": [[1, 1], [2]], "g": [[0], [8]]},
]


def train(module: nn.Module, *numbers: int) -> None:
    for number in numbers:
        out = module(KeyedJaggedTensor.from_lists(BATCHES[number]))
        parts = [j.values() for j in out.values()] if isinstance(out, dict) else [out.values()]
        torch.stack([part.float().sin().sum() for part in parts]).sum().backward()


def bits(module: nn.Module) -> dict[str, list]:
    """Return every number of a collection, its fused state included."""
    numbers = {name: value.tolist() for name, value in module.state_dict().items()}
    for table, state in module.fused_optimizer.state_dict()["state"].items():
        numbers |= {f"{table}/{name}": value.tolist() for name, value in state.items()}
    return numbers


def through_file(value: object, **options) -> object:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
@pytest.mark.parametrize("maker", [make, make_sequence])
def test_state_continues_bit_by_bit(maker: Callable, kind: OptimizerType, assign: bool) -> None:
    module = maker(kind)
    train(module, 0, 1)
    saved = through_file([module.state_dict(), module.fused_optimizer.state_dict()])
    fresh = maker(kind)
    fresh.load_state_dict(saved[0], assign=assign)
    fresh.fused_optimizer.load_state_dict(saved[1])
    assert bits(fresh) == bits(module)
    train(module, 2, 0)
    train(fresh, 2, 0)
    assert bits(fresh) == bits(module)


def test_learning_rates_are_saved() -> None:
    module = make()
    module.fused_optimizer.param_groups[0]["lr"] = 0.03
    fresh = make()
    fresh.fused_optimizer.load_state_dict(module.fused_optimizer.state_dict())
    assert [g["lr"] for g in fresh.fused_optimizer.param_groups] == [0.03, 0.2]
    fresh.load_state_dict(module.state_dict())
    train(module, 0)
    train(fresh, 0)
    assert bits(fresh) == bits(module)


COPIES: dict[str, Callable] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch_save": lambda module: through_file(module, weights_only=False),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
@pytest.mark.parametrize("maker", [make, make_sequence])
def test_copies_go_their_own_way(maker: Callable, kind: OptimizerType, how: str) -> None:
    module = maker(kind)
    train(module, 0)
    other = COPIES[how](module)
    before = bits(module)
    assert bits(other) == before
    train(other, 1, 2)
    assert bits(module) == before
    train(module, 1, 2)
    assert bits(module) == bits(other)
    assert str(other) == str(module)


@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_inherited_and_applied_optimizers(how: str) -> None:
    configs = [
        EmbeddingBagConfig(9, 3, "t", feature_names=["f"], optimizer="adagrad"),
        EmbeddingBagConfig(9, 3, "u", feature_names=["g"]),
    ]
    module = EmbeddingBagCollection(tables=configs)
    apply_optimizer_in_backward(
        torch.optim.Adagrad, [module.embedding_bags["u"].weight], {"lr": 0.1}
    )
    other = COPIES[how](module)
    for one in (module, other):
        driver = torch.optim.SGD(one.parameters(), lr=0.5)
        train(one, 0)
        driver.step()
        train(one, 1)
        driver.step()
    assert bits(other) == bits(module)
    assert other.fused_optimizer.state_dict()["state"]["embedding_bags.t.weight"]["step"] == 2


def test_assigned_weights_stay_fused() -> None:
    """`assign=True` makes new parameters: they are met, and inherit rates as the old ones did."""
    config = EmbeddingBagConfig(9, 3, "t", feature_names=["f"], optimizer="sgd")
    module, other = (EmbeddingBagCollection(tables=[config]) for _ in range(2))
    module.load_state_dict(
        {name: value.clone() for name, value in other.state_dict().items()}, assign=True
    )
    for one in (module, other):
        driver = torch.optim.SGD(one.parameters(), lr=0.5)
        one(KeyedJaggedTensor.from_lists({"f": [[1]]})).values().sum().backward()
        driver.step()
    assert bits(module) == bits(other)
    weight = module.embedding_bags["t"].weight
    assert module.fused_optimizer.params["embedding_bags.t.weight"] is weight


def test_weights_assigned_to_a_collection_without_memory_are_trained() -> None:
    module, empty = make(), make(device="meta")
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    train(module, 0)
    train(empty, 0)
    assert bits(empty) == bits(module)


def test_from_meta_to_memory() -> None:
    empty = make(device="meta")
    assert empty.device.type == "meta"
    empty.to_empty(device="cpu")
    assert empty.device.type == "cpu"
    torch.manual_seed(0)
    empty.reset_parameters()
    torch.manual_seed(0)
    module = make()
    assert bits(empty) == bits(module)
    train(empty, 0, 1)
    train(module, 0, 1)
    assert bits(empty) == bits(module)


PLACES = {
    "plain": {},
    "sparse": {"sparse": True},
    "hashed": {"hash_size": 3},
    "fused": {"optimizer": "adam", "lr": 0.1},
    "inherited": {"optimizer": "adam"},
}


@pytest.mark.parametrize("options", PLACES.values(), ids=list(PLACES))
@pytest.mark.parametrize("how", ["argument", "context", "default"])
def test_the_default_device_is_heeded(how: str, options: dict) -> None:
    def build(**device) -> EmbeddingBagCollection:
        config = EmbeddingBagConfig(10, 4, "t", feature_names=["f"], **options)
        return EmbeddingBagCollection(tables=[config], **device)

    if how == "argument":
        module = build(device="meta")
    elif how == "context":
        with torch.device("meta"):
            module = build()
    else:
        torch.set_default_device("meta")
        try:
            module = build()
        finally:
            torch.set_default_device(None)
    assert module.device.type == "meta"
    tensors = [*module.parameters(), *module.buffers()]
    state = module.fused_optimizer.state_dict()["state"].values()
    tensors += [v for values in state for key, v in values.items() if key != "step"]
    assert all(tensor.is_meta for tensor in tensors)
    assert build(device="cpu").device.type == "cpu"


def test_a_device_that_is_given_comes_before_the_default_one() -> None:
    with torch.device("meta"):
        module = make(device="cpu")
    train(module, 0)
    assert module.device.type == "cpu"
    assert all(not p.is_meta for p in module.parameters())


@pytest.mark.parametrize("options", PLACES.values(), ids=list(PLACES))
def test_weights_assigned_to_a_collection_without_memory_are_all_it_needs(options: dict) -> None:
    policy = {} if "hash_size" in options else {"id_policy": "clamp"}
    config = EmbeddingBagConfig(10, 4, "t", feature_names=["f"], **policy, **options)
    module = EmbeddingBagCollection(tables=[config], device="meta")
    assert module.out_of_range_counts() == {"t": 0}
    weight = torch.zeros(config.num_rows, 4)
    module.load_state_dict({"embedding_bags.t.weight": weight}, assign=True)
    assert module.device.type == "cpu"
    assert module.out_of_range_counts() == {"t": 0}
    for number in (1, 2):
        module(KeyedJaggedTensor.from_lists({"f": [[77]]})).values().sum().backward()
        assert module.out_of_range_counts() == {"t": number}
    module.set_out_of_range_counts({"t": 9})
    assert module.out_of_range_counts(reset=True) == {"t": 9}
    state = module.fused_optimizer.state_dict()["state"].values()
    assert all(not value.is_meta for values in state for value in values.values())


def test_a_collection_without_memory_is_not_looked_up() -> None:
    empty = make(device="meta")
    with pytest.raises((ValueError, RuntimeError), match="meta"):
        train(empty, 0)


def test_reset_is_a_new_start() -> None:
    module = make()
    train(module, 0, 1)
    torch.manual_seed(0)
    module.reset_parameters()
    torch.manual_seed(0)
    assert bits(module) == bits(make())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_conversion_keeps_what_was_learned(kind: OptimizerType, dtype: torch.dtype) -> None:
    module = make(kind)
    unconverted = copy.deepcopy(module)
    train(module, 0)
    state = {name: value for name, value in bits(module).items() if "/" in name}
    module.to(dtype)
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert {name: value for name, value in bits(module).items() if "/" in name} == state
    train(module, 1)
    module.float()
    train(module, 2)
    train(unconverted, 0, 1, 2)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, unconverted.state_dict()[name], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", ["half", "bfloat16", "double", "float"])
def test_conversion_by_name(method: str) -> None:
    module = getattr(make(), method)()
    train(module, 0, 1)
    expected = {"half": torch.float16, "double": torch.float64}.get(
        method, getattr(torch, method) if method == "bfloat16" else torch.float32
    )
    assert {p.dtype for p in module.parameters()} == {expected}
    assert all(p.isfinite().all() for p in module.parameters())


def test_moving_keeps_schedulers_and_parameters() -> None:
    module = make()
    scheduler = torch.optim.lr_scheduler.LambdaLR(module.fused_optimizer, lambda t: 0.5**t)
    parameters = dict(module.named_parameters())
    module.to("cpu").to(torch.float32)
    assert all(parameters[n] is p for n, p in module.named_parameters())
    scheduler.optimizer.step()
    scheduler.step()
    before = module.embedding_bags["t"].weight.detach().clone()
    module.fused_optimizer.step()
    train(module, 0)
    moved = (module.embedding_bags["t"].weight - before).abs().max().item()
    assert moved == pytest.approx(0.05, rel=1e-3)  # Adam's first step is its rate


def test_state_of_other_tables_is_refused() -> None:
    module = make()
    saved = module.fused_optimizer.state_dict()
    saved["state"]["embedding_bags.x.weight"] = saved["state"].pop("embedding_bags.t.weight")
    with pytest.raises(ValueError, match=r"embedding_bags\.x\.weight"):
        module.fused_optimizer.load_state_dict(saved)
    saved = make(OptimizerType.SGD).fused_optimizer.state_dict()
    with pytest.raises(ValueError, match=r"State of 'embedding_bags\.t\.weight' should be"):
        module.fused_optimizer.load_state_dict(saved)
    config = EmbeddingBagConfig(8, 3, "t", feature_names=["f"], optimizer="adam", lr=0.1)
    smaller = EmbeddingBagCollection(tables=[config])
    with pytest.raises(RuntimeError, match=r"size mismatch for embedding_bags\.t\.weight"):
        smaller.load_state_dict(module.state_dict(), strict=False)


def test_combined_with_the_optimizer_of_the_rest() -> None:
    def model() -> tuple[EmbeddingBagCollection, CombinedOptimizer]:
        module = make()
        plain = {"embedding_bags.plain.weight": module.embedding_bags["plain"].weight}
        rest = KeyedOptimizerWrapper(plain, lambda p: torch.optim.Adam(p, lr=0.1))
        return module, CombinedOptimizer([module.fused_optimizer, rest])

    module, optimizer = model()
    optimizer.zero_grad()
    train(module, 0)
    optimizer.step()
    other, other_optimizer = model()
    other.load_state_dict(module.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state_dict()["state"]) == 3
    for one, one_optimizer in ((module, optimizer), (other, other_optimizer)):
        one_optimizer.zero_grad()
        train(one, 1)
        one_optimizer.step()
    assert bits(other) == bits(module)


# ---- other processes


class Lookups(torch.utils.data.Dataset):
    """Looks up in the worker that loads."""

    def __init__(self, module: EmbeddingBagCollection) -> None:
        self.module = module

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> torch.Tensor:
        with torch.no_grad():
            return self.module(KeyedJaggedTensor.from_lists(BATCHES[number])).values()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_the_workers_of_a_loader(start: str) -> None:
    module = make()
    with torch.no_grad():  # threads have been started before the fork
        large = torch.randint(0, 9, (20_000,))
        lengths = torch.full((20_000,), 1)
        module(KeyedJaggedTensor(["f", "g"], torch.cat([large, large]), lengths=lengths.repeat(2)))
    data = Lookups(module)
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=start
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads
        received = list(loader)
    for number, values in enumerate(received):
        assert torch.equal(values, data[number])


def test_shared_memory() -> None:
    module = make()
    before = bits(module)
    module.share_memory()
    assert all(p.is_shared() for p in module.parameters())
    assert bits(module) == before
    train(module, 0)
    assert bits(module) != before
