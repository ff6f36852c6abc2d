"""DLRM and DLRM_DCN, with whichever ``torchrec`` this Python has, and their matrix products alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.scenarios import KEYS, feature_names

F, E, D, DENSE = 26, 100_000, 64, 13
BOTTOM, TOP = [512, 256, D], [512, 512, 256, 1]
LAYERS, RANK = 3, 128
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def configs(tables: int = F, rows: int = E, dim: int = D):
    from torchrec import EmbeddingBagConfig

    return [
        EmbeddingBagConfig(
            name=f"table_{i}", num_embeddings=rows, embedding_dim=dim, feature_names=[name]
        )
        for i, name in enumerate(feature_names(tables))
    ]


def optimizer_in_backward(tables: int = F, rows: int = E, dim: int = D):
    from torchrec import EmbeddingBagCollection
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    collection = EmbeddingBagCollection(tables=configs(tables, rows, dim))
    apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": 0.01})
    return collection


def make_model(kind: str, collection: torch.nn.Module) -> torch.nn.Module:
    from torchrec.models.dlrm import DLRM, DLRM_DCN

    if kind == "dlrm":
        return DLRM(collection, DENSE, BOTTOM, TOP)
    return DLRM_DCN(collection, DENSE, BOTTOM, TOP, LAYERS, RANK)


def batches(batch: int) -> list[Data]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.ones(F * batch, dtype=torch.int64)
    return [
        (
            torch.randn(batch, DENSE, generator=generator),
            torch.randint(E, (F * batch,), generator=generator),
            lengths,
            torch.randint(2, (batch,), generator=generator),
        )
        for _ in range(4)
    ]


def features(values: Tensor, lengths: Tensor):
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(keys=KEYS, values=values, lengths=lengths)


def prediction(model: torch.nn.Module) -> Callable[[Data], object]:
    model.eval()

    def predict(data: Data) -> None:
        dense, values, lengths, _ = data
        with torch.no_grad():
            model(dense, features(values, lengths))

    return predict


def training_step(model: torch.nn.Module) -> Callable[[Data], object]:
    from torchrec.datasets.utils import Batch
    from torchrec.models.dlrm import DLRMTrain

    trained = DLRMTrain(model)
    parts = (model.dense_arch, model.inter_arch, model.over_arch)
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.01)

    def train(data: Data) -> None:
        dense, values, lengths, labels = data
        loss, _ = trained(Batch(dense, features(values, lengths), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train


def product_shapes(kind: str) -> list[tuple[int, int]]:
    """List the weights, (in, out), of the matrix products of a model."""
    width = D + F * (F + 1) // 2 if kind == "dlrm" else (F + 1) * D
    sizes = [[DENSE, *BOTTOM], [width, *TOP]]
    found = [pair for chain in sizes for pair in itertools.pairwise(chain)]
    return found + ([(width, RANK), (RANK, width)] * LAYERS if kind == "dcn" else [])


def products_alone(kind: str, batch: int, training: bool) -> Callable[[object], object]:
    """Return a step of the matrix products of a model: each in the fastest way that PyTorch has for it here."""
    pairs: list[tuple[Tensor, Tensor]] = []  # (m, k) and (n, k): the product is (m, n)
    for i, (inputs, outputs) in enumerate(product_shapes(kind)):
        x, w = torch.randn(batch, inputs), torch.randn(outputs, inputs)
        pairs.append((x, w))
        if training:
            grad = torch.randn(batch, outputs)
            pairs.append((grad.t(), x.t()))
            if i:  # nobody asks for the gradient of the dense features
                pairs.append((grad, w.t()))
    with torch.no_grad():
        ways = [fastest(left, right) for left, right in pairs]

    def step(_: object) -> None:
        with torch.no_grad():
            for way in ways:
                way()

    return step


def fastest(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    """Return the fastest way to multiply (m, k) and (n, k) to (m, n), or what that is transposed."""
    one_dnn = torch.ops.mkldnn._linear_pointwise
    out, transposed = (left.new_empty(len(a), len(b)) for a, b in ((left, right), (right, left)))
    ways: list[Callable[[], Tensor]] = [
        lambda: torch.mm(left, right.t(), out=out),
        lambda: torch.mm(right, left.t(), out=transposed),
        lambda: one_dnn(left, right, None, "none", [], ""),
        lambda: one_dnn(right, left, None, "none", [], ""),
    ]
    return min(ways, key=least_seconds)


def least_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])
