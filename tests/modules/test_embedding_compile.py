"""Collections under `torch.compile(fullgraph=True)` and `torch.export`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.errors import IdOutOfRangeError

ROWS = 50

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]

compiled_updates = pytest.mark.since_torch(
    "2.12", "refuses to trace the change of a parameter in a backward pass"
)


class Model(nn.Module):
    """Tables with the given training, one that hashes, and a small dense part."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(ROWS, 4, "t", feature_names=["f", "g"], **options),
                EmbeddingBagConfig(ROWS, 3, "u", feature_names=["g"], pooling=PoolingType.MEAN,
                                   hash_size=5, **options),
            ]
        )  # fmt: skip
        self.over = nn.Linear(11, 1)

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        return self.over(self.tables(kjt).values()).tanh()


class Sequences(nn.Module):
    """Sequences of two features, summed."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        config = EmbeddingConfig(ROWS, 4, "t", feature_names=["f", "g"], **options)
        self.tables = EmbeddingCollection(tables=[config])

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        out = self.tables(kjt)
        return torch.cat([out["f"].values(), out["g"].values()]).tanh()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def draw(bags: int, seed: int) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4, (2 * bags,), generator=generator)
    values = torch.randint(0, ROWS, (int(lengths.sum()),), generator=generator)
    return KeyedJaggedTensor(["f", "g"], values, lengths=lengths)


def twins(kind: type[nn.Module], **options: Any) -> tuple[nn.Module, nn.Module]:
    eager, compiled = kind(**options), kind(**options)
    compiled.load_state_dict(eager.state_dict())
    return eager, compiled


def compiled(module: nn.Module, backend: str) -> tuple[Any, Any]:
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=True, dynamic=None), counter


def same(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=lambda m, n=name: f"{n}: {m}")
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad)
    first, second = (m.tables.fused_optimizer.state_dict()["state"] for m in (ours, theirs))
    for name, state in second.items():
        for key, value in state.items():
            torch.testing.assert_close(first[name][key], value)


SIZES = [3, 5, 8, 13, 5]
INFERENCE = [
    pytest.param(Model, "aot_eager", id="pooled-aot_eager"),
    pytest.param(Sequences, "aot_eager", id="sequence-aot_eager"),
    pytest.param(Model, "inductor", id="pooled-inductor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "backend"), INFERENCE)
def test_inference(kind: type[nn.Module], backend: str) -> None:
    module = kind()
    run, counter = compiled(module, backend)
    with torch.no_grad():
        for seed, bags in enumerate(SIZES):
            kjt = draw(bags, seed)
            torch.testing.assert_close(run(kjt), module(draw(bags, seed)))
    assert counter.frame_count <= 2  # one for the first batch, one for batches of any size


TRAINING = [
    pytest.param({}, id="dense"),
    pytest.param({"optimizer": "sgd", "lr": 0.1}, id="sgd", marks=compiled_updates),
    pytest.param({"optimizer": "adam", "lr": 0.1}, id="adam", marks=compiled_updates),
]


def train(kind: type[nn.Module], options: dict[str, Any], backend: str) -> None:
    eager, other = twins(kind, **options)
    run, counter = compiled(other, backend)
    for seed, bags in enumerate(SIZES):
        for module, call in ((eager, eager), (other, run)):
            call(draw(bags, seed)).sum().backward()
            for group in module.tables.fused_optimizer.param_groups:
                group["lr"] = 0.1 / (seed + 1)  # counts from the next step on, and costs no compile
        same(other, eager)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("options", TRAINING)
def test_training(options: dict[str, Any]) -> None:
    train(Model, options, "aot_eager")


@compiled_updates
def test_training_of_sequences() -> None:
    train(Sequences, {"optimizer": "adam", "lr": 0.1}, "aot_eager")


@compiled_updates
@pytest.mark.parametrize("kind", [Model, Sequences])
@pytest.mark.parametrize(
    "options", [{"lazy": False}, {"batch_l2": 3.0}, {"lazy": False, "batch_l2": 3.0}], ids=str
)
@pytest.mark.slow
def test_kinds_of_updates(kind: type[nn.Module], options: dict[str, Any]) -> None:
    train(kind, {"optimizer": "adam", "lr": 0.1, "optimizer_options": options}, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("options", TRAINING)
@pytest.mark.parametrize("kind", [Model, Sequences])
def test_training_with_inductor(kind: type[nn.Module], options: dict[str, Any]) -> None:
    train(kind, options, "inductor")


# Dynamo does not trace the making of a sparse tensor. Such collections run uncompiled in a model
# that may have graph breaks.
WAITING = {
    "accumulated": {"lr": 0.1},
    "inherited": {},
    "sparse": {"optimizer": None, "sparse": True},
}
not_traced = pytest.mark.xfail(strict=True, reason="not traced")


@pytest.mark.parametrize(
    ("name", "fullgraph"),
    [
        *(pytest.param(name, False, id=f"{name}-with_breaks") for name in WAITING),
        pytest.param("accumulated", True, id="accumulated-fullgraph", marks=compiled_updates),
        pytest.param("inherited", True, id="inherited-fullgraph", marks=not_traced),
        pytest.param("sparse", True, id="sparse-fullgraph", marks=not_traced),
    ],
)
@pytest.mark.slow
def test_gradients_that_wait(name: str, fullgraph: bool) -> None:
    eager, other = twins(Sequences, **{"optimizer": "adagrad", **WAITING[name]})
    run = torch.compile(other, backend="aot_eager", fullgraph=fullgraph)
    for module, call in ((eager, eager), (other, run)):
        rest = torch.optim.SGD(module.parameters(), lr=0.5)
        for seed in range(3):
            with module.tables.fused_optimizer.accumulate():
                call(draw(3, seed)).sum().backward()
            call(draw(3, seed + 9)).sum().backward()
            rest.step()
            rest.zero_grad()
    same(other, eager)


@compiled_updates
@pytest.mark.parametrize("case", ["two look-ups", "penalty"])
@pytest.mark.slow
def test_all_gradients_of_a_pass_are_one_update(case: str) -> None:
    class Tied(Model):
        def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
            weight = self.tables.embedding_bags["t"].weight
            rest = super().forward(kjt) if case == "two look-ups" else weight.square().sum()
            return super().forward(kjt) + rest

    eager, other = twins(Tied, optimizer="adagrad", lr=0.1)
    run, _ = compiled(other, "aot_eager")
    for seed, bags in enumerate(SIZES):
        for call in (eager, run):
            call(draw(bags, seed)).sum().backward()
        same(other, eager)
    state = other.tables.fused_optimizer.state_dict()["state"]
    assert state["embedding_bags.t.weight"]["step"].item() == len(SIZES)


@compiled_updates
@pytest.mark.slow
def test_freezing_is_seen() -> None:
    eager, other = twins(Sequences, optimizer="sgd", lr=0.1)
    run, _ = compiled(other, "aot_eager")
    for frozen in (False, True, False):
        for module, call in ((eager, eager), (other, run)):
            module.tables.embeddings["t"].weight.requires_grad_(not frozen)
            out = call(draw(3, 0)).sum()
            if not frozen:
                out.backward()
        same(other, eager)


def test_ids_are_checked() -> None:
    run, _ = compiled(Sequences(), "aot_eager")
    run(draw(3, 0))
    bad = draw(3, 1)
    bad.values()[-1] = ROWS
    with pytest.raises(IdOutOfRangeError, match=rf"feature 'g'.*table 't'. Received {ROWS}"):
        run(bad)


def test_counts_are_kept() -> None:
    module = Model()
    run, _ = compiled(module, "aot_eager")
    kjt = draw(3, 0)
    mine = kjt.offset_per_key()
    with torch.no_grad():
        run(kjt)
    assert module.tables.out_of_range_counts() == {"t": 0, "u": 0}
    stray = EmbeddingBagConfig(ROWS, 2, "s", feature_names=["g"], id_policy="ignore")
    ebc = EmbeddingBagCollection(tables=[stray])
    kjt.values()[mine[1]] = -3
    with torch.no_grad():
        torch.compile(ebc, backend="aot_eager", fullgraph=True)(kjt)
    assert ebc.out_of_range_counts() == {"s": 1}


# ---- export


class Served(nn.Module):
    """A model whose input is tensors, as served models have it; lengths are (F, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return self.model(KeyedJaggedTensor(["f", "g"], values, lengths=lengths.flatten()))


def through_file(program: torch.export.ExportedProgram) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def test_export_with_any_batch() -> None:
    module = Served().eval()
    kjt = draw(3, 0)
    batch, ids = torch.export.Dim("batch"), torch.export.Dim("ids")
    program = torch.export.export(
        module,
        (kjt.values(), kjt.lengths().view(2, 3)),
        dynamic_shapes={"values": {0: ids}, "lengths": {1: batch}},
    )
    served = through_file(program)
    for seed, bags in enumerate(EXPORTED):
        kjt = draw(bags, seed)
        inputs = kjt.values(), kjt.lengths().view(2, bags)
        with torch.no_grad():
            torch.testing.assert_close(served(*inputs), module(*inputs))
    bad = draw(4, 0)
    bad.values()[0] = -1
    with pytest.raises(IdOutOfRangeError, match="feature 'f'"):
        served(bad.values(), bad.lengths().view(2, 4))


EXPORTED = [1, 2, 3, 17]


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "used_before"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_export_leaves_nothing_behind(warm: bool, grad: bool) -> None:
    module = Served()
    kjt = draw(3, 0)
    inputs = kjt.values(), kjt.lengths().view(2, 3)
    with torch.set_grad_enabled(grad):
        if warm:
            module(*inputs)
        program = torch.export.export(module, inputs)
        after = module(*inputs)
        assert type(after) is Tensor
        torch.testing.assert_close(program.module()(*inputs), after)
    module(*inputs).sum().backward()
    assert module.model.tables.embedding_bags["t"].weight.grad.count_nonzero() > 0


def test_export_of_flat_lengths() -> None:
    """PyTorch then guards against a batch of one, as it does for any size that it computes."""

    class Flat(Served):
        def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
            return self.model(KeyedJaggedTensor(["f", "g"], values, lengths=lengths))

    module = Flat().eval()
    kjt = draw(3, 0)
    shapes = {"values": {0: torch.export.Dim("ids")}, "lengths": {0: 2 * torch.export.Dim("batch")}}
    served = through_file(
        torch.export.export(module, (kjt.values(), kjt.lengths()), dynamic_shapes=shapes)
    )
    for seed, bags in enumerate([2, 3, 17]):
        kjt = draw(bags, seed)
        with torch.no_grad():
            expected = module(kjt.values(), kjt.lengths())
            torch.testing.assert_close(served(kjt.values(), kjt.lengths()), expected)


@pytest.mark.slow
@compiled_updates
def test_compiled_updates_outlive_lookups_of_many_other_orders_of_keys() -> None:
    torch.manual_seed(1)
    model, twin = (Model(optimizer="sgd", lr=0.1) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(model, fullgraph=True)
    for seed in range(2):
        compiled(draw(3, seed)).sum().backward()
        twin(draw(3, seed)).sum().backward()
        for number in range(100):
            other = KeyedJaggedTensor(
                ["f", "g", f"x{seed}_{number}"], torch.tensor([1]), lengths=torch.tensor([0, 1, 0])
            )
            model(other)
    for weight, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, expected)
