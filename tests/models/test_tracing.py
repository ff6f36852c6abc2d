"""Models under `torch.compile(fullgraph=True)` and `torch.export`."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.deepfm import DeepFactorizationMachine, SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
from torchrec.models.fm import FactorizationMachineModel
from torchrec.models.lr import LogisticRegression

D, DENSE, ROWS = 4, 7, 50
NAMES = ["f1", "f2", "f3"]

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tables(**options) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(ROWS, D, "t1", feature_names=["f1", "f3"], **options),
            EmbeddingBagConfig(ROWS, D, "t2", feature_names=["f2"], **options),
        ]
    )


def with_weights(**options) -> EmbeddingBagCollection:
    vectors = tables(**options).embedding_bag_configs()
    weights = [
        dataclasses.replace(table, name=f"{table.name}_linear", embedding_dim=1)
        for table in vectors
    ]
    return EmbeddingBagCollection(tables=[*vectors, *weights])


def weights_alone(**options) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(ROWS, 1, "t1", feature_names=["f1", "f3"], **options),
            EmbeddingBagConfig(ROWS, 1, "t2", feature_names=["f2"], **options),
        ]
    )


LINEAR = ["t1_linear", "t2_linear"]
MODELS = {
    "dlrm": lambda **o: DLRM(tables(**o), DENSE, [6, D], [5, 1]),
    "dcn": lambda **o: DLRM_DCN(tables(**o), DENSE, [6, D], [5, 1], 2, 3),
    "deepfm": lambda **o: SimpleDeepFMNN(DENSE, tables(**o), 6, 5),
    "paper": lambda **o: DeepFactorizationMachine(tables(**o), DENSE, [6], activation="gelu"),
    "paper, weights of ids": lambda **o: DeepFactorizationMachine(
        with_weights(**o), DENSE, [6], linear_tables=LINEAR
    ),
    "fm": lambda **o: FactorizationMachineModel(with_weights(**o), LINEAR, DENSE),
    "lr": lambda **o: LogisticRegression(weights_alone(**o), DENSE),
    "projection": lambda **o: DLRM_Projection(
        tables(**o), DENSE, [6, D], [5, 1], [8, 2 * D], [3 * D]
    ),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def draw(batch: int) -> tuple[Tensor, KeyedJaggedTensor]:
    lengths = torch.randint(1, 4, (len(NAMES) * batch,))
    values = torch.randint(0, ROWS, (int(lengths.sum()),))
    return torch.randn(batch, DENSE), KeyedJaggedTensor(NAMES, values, lengths=lengths)


SIZES = [9, 8, 13, 21, 8]  # none that is also a size of the model, which would be taken for it


@each_model
@pytest.mark.parametrize(
    ("dynamic", "compiles"),
    [
        pytest.param(True, 1, id="dynamic"),
        pytest.param(None, 2, id="default", marks=pytest.mark.slow),
    ],
)
def test_inference(make, dynamic, compiles) -> None:
    model = make()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    run = torch.compile(model, backend=counter, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for batch in SIZES:
            dense, ids = draw(batch)
            torch.testing.assert_close(run(dense, ids), model(dense, ids))
    assert counter.frame_count == compiles


@each_model
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="dense"),
        pytest.param(
            {"optimizer": "rowwise_adagrad", "lr": 0.1}, id="fused", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.slow
def test_training(make, options) -> None:
    eager, other = make(**options), make(**options)
    other.load_state_dict(eager.state_dict())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = torch.compile(other, backend=counter, fullgraph=True, dynamic=True)
    for batch in SIZES[:3]:
        dense, ids = draw(batch)
        for call in (eager, run):
            call(dense, ids).square().sum().backward()
    assert counter.frame_count == 1
    for (name, mine), theirs in zip(other.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda m, n=name: f"{n}: {m}")
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_goes_into_the_graph() -> None:
    model = DLRMTrain(MODELS["dlrm"]())
    run = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    batch = Batch(*draw(6), labels=torch.ones(6))
    torch.testing.assert_close(run(batch), model(batch))


@pytest.mark.slow
@each_model
def test_inductor(make) -> None:
    model = make()
    run = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in SIZES[:3]:
        dense, ids = draw(batch)
        torch.testing.assert_close(run(dense, ids), model(dense, ids))
        run(dense, ids).sum().backward()


def test_compiled_dense_path_keeps_outputs_and_names() -> None:
    model = MODELS["dlrm"]()
    dense, ids = draw(9)
    names, expected = list(model.state_dict()), model(dense, ids)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    modes = []

    def compile_with(self: nn.Module, *, mode: str) -> None:
        modes.append(mode)
        self._compiled_call_impl = torch.compile(self._call_impl, backend=counter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "compile", compile_with)
        model.compile_dense_path()
    assert modes == ["reduce-overhead"] * 3
    torch.testing.assert_close(model(dense, ids), expected)
    assert counter.frame_count == 3
    assert list(model.state_dict()) == names


class Served(nn.Module):
    """A model whose inputs are tensors, as served models have it; lengths are (F, B)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        return self.model(dense, KeyedJaggedTensor(NAMES, values, lengths=lengths.flatten()))


def through_file(program: torch.export.ExportedProgram) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@each_model
def test_export_with_any_batch_and_any_number_of_ids(make) -> None:
    model = Served(make()).eval()

    def inputs(batch: int) -> tuple[Tensor, ...]:
        dense, ids = draw(batch)
        return dense, ids.values(), ids.lengths().view(len(NAMES), batch)

    batch, ids = torch.export.Dim("batch"), torch.export.Dim("ids")
    program = torch.export.export(
        model,
        inputs(9),
        dynamic_shapes={"dense": {0: batch}, "values": {0: ids}, "lengths": {1: batch}},
    )
    served = through_file(program)
    with torch.no_grad():
        for size in (1, 2, 8, 17):
            example = inputs(size)
            torch.testing.assert_close(served(*example), model(*example))
