"""Measures whole models, and beside them another Python with the same API.

``python benchmarks/models.py --peer /path/to/python`` runs every scenario under our Python and the
peer's in turn, several rounds, and prints medians and their ratios; ``floor`` is what the matrix
products of a step take alone, and nothing else, in the fastest way that PyTorch has for each.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

F, E, D, DENSE = 26, 100_000, 64, 13
KEYS = [f"feature_{i}" for i in range(F)]
BOTTOM, TOP = [512, 256, D], [512, 512, 256, 1]
LAYERS, RANK = 3, 128

# name: (model, batch, whether to train, repetitions, the ratio wanted)
SCENARIOS = {
    "DLRM, training step, B=2048": ("dlrm", 2048, True, 15, 1.45),
    "DLRM_DCN, training step, B=2048": ("dcn", 2048, True, 8, 1.3),
    "DLRM, inference, B=1": ("dlrm", 1, False, 1000, 2.5),
    "DLRM, inference, B=256": ("dlrm", 256, False, 60, 1.2),
    "DLRM_DCN, inference, B=256": ("dcn", 256, False, 30, None),
}


def timed(function: Callable[[], object], repetitions: int) -> float:
    """Return the least time of a call in milliseconds, after some to warm up."""
    for _ in range(max(3, repetitions // 10)):
        function()
    gc.disable()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    gc.enable()
    return min(times)


def configs():
    from torchrec import EmbeddingBagConfig

    return [
        EmbeddingBagConfig(
            name=f"table_{i}", num_embeddings=E, embedding_dim=D, feature_names=[key]
        )
        for i, key in enumerate(KEYS)
    ]


def optimizer_in_backward():
    from torchrec import EmbeddingBagCollection
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    collection = EmbeddingBagCollection(tables=configs())
    apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": 0.01})
    return collection


def fused_collection():
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    return FusedEmbeddingBagCollection(configs(), RowWiseAdagrad, {"lr": 0.01})


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """Shard over one rank, where this ``torchrec`` can; its fast path, by its own documents."""
    import torch.distributed as dist

    from torchrec.distributed.model_parallel import DistributedModelParallel

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29518", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
    )
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1)
    return DistributedModelParallel(model, device=torch.device("cpu")).module


def make_model(kind: str, collection: torch.nn.Module) -> torch.nn.Module:
    from torchrec.models.dlrm import DLRM, DLRM_DCN

    if kind == "dlrm":
        return DLRM(collection, DENSE, BOTTOM, TOP)
    return DLRM_DCN(collection, DENSE, BOTTOM, TOP, LAYERS, RANK)


WAYS = {
    "EmbeddingBagCollection": lambda kind: make_model(kind, optimizer_in_backward()),
    "FusedEmbeddingBagCollection": lambda kind: make_model(kind, fused_collection()),
    "sharded": lambda kind: sharded(make_model(kind, optimizer_in_backward())),
}


def batches(batch: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
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


def step_of(model: torch.nn.Module, batch: int, training: bool) -> Callable[[], object]:
    from torchrec import KeyedJaggedTensor
    from torchrec.datasets.utils import Batch
    from torchrec.models.dlrm import DLRMTrain

    data, turn = batches(batch), 0

    def features(values: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(keys=KEYS, values=values, lengths=lengths)

    def predict() -> None:
        nonlocal turn
        turn += 1
        dense, values, lengths, _ = data[turn % len(data)]
        with torch.no_grad():
            model(dense, features(values, lengths))

    if not training:
        model.eval()
        return predict
    trained = DLRMTrain(model)
    parts = (model.dense_arch, model.inter_arch, model.over_arch)
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.01)

    def train() -> None:
        nonlocal turn
        turn += 1
        dense, values, lengths, labels = data[turn % len(data)]
        loss, _ = trained(Batch(dense, features(values, lengths), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train


def products(kind: str) -> list[tuple[int, int]]:
    """List the weights, (in, out), of the matrix products of a model."""
    width = D + F * (F + 1) // 2 if kind == "dlrm" else (F + 1) * D
    sizes = [[DENSE, *BOTTOM], [width, *TOP]]
    found = [pair for chain in sizes for pair in itertools.pairwise(chain)]
    return found + ([(width, RANK), (RANK, width)] * LAYERS if kind == "dcn" else [])


def floor(kind: str, batch: int, training: bool, repetitions: int) -> float:
    """Return the time of the matrix products alone, in milliseconds."""
    total = 0.0
    one_dnn = torch.ops.mkldnn._linear_pointwise

    def fastest(left: Tensor, right: Tensor) -> float:
        ways = [
            lambda: left @ right.t(),
            lambda: one_dnn(left, right, None, "none", [], ""),
            lambda: one_dnn(right, left, None, "none", [], ""),
        ]
        return min(timed(way, repetitions) for way in ways)

    with torch.no_grad():
        for i, (inputs, outputs) in enumerate(products(kind)):
            x, w = torch.randn(batch, inputs), torch.randn(outputs, inputs)
            total += fastest(x, w)
            if training:
                grad = torch.randn(batch, outputs)
                total += fastest(grad.t(), x.t())
                if i:  # nobody asks for the gradient of the dense features
                    total += fastest(grad, w.t())
    return total


def work(scenario: str, threads: int) -> dict[str, float]:
    """Return the time of each way to make the model, and the floor."""
    torch.set_num_threads(threads)
    kind, batch, training, repetitions, _ = SCENARIOS[scenario]
    result = {}
    for way, make in WAYS.items():
        try:
            model = make(kind)
        except ImportError as error:
            print(f"{way}: {error}", file=sys.stderr)
            continue
        result[way] = timed(step_of(model, batch, training), repetitions)
        del model
    result["floor"] = floor(kind, batch, training, repetitions)
    return result


def compare(pythons: dict[str, str], scenario: str, rounds: int, threads: int) -> str:
    """Return the row of a scenario: medians of the rounds, the fastest way of each side."""
    best: dict[str, list[float]] = {side: [] for side in pythons}
    floors = []
    for number in range(rounds):
        for side in list(pythons) if number % 2 == 0 else list(pythons)[::-1]:
            command = [pythons[side], str(Path(__file__).resolve()), "--worker", scenario]
            out = subprocess.run(
                [*command, "--threads", str(threads)], capture_output=True, text=True, check=False
            )
            if out.returncode != 0:
                raise SystemExit(f"{scenario!r} failed under {pythons[side]}:\n{out.stderr}")
            found = json.loads(out.stdout.splitlines()[-1])
            if side == "ours":
                floors.append(found.pop("floor"))
            found.pop("floor", None)
            print(f"  {scenario}: {side} {found}", file=sys.stderr)
            best[side].append(min(found.values()))
    ours, low = statistics.median(best["ours"]), statistics.median(floors)
    row = f"| {scenario} | {ours:.4g} | {low:.4g} | {low / ours:.0%} |"
    if "peer" not in best:
        return f"{row} | | |"
    ratio = statistics.median(p / o for p, o in zip(best["peer"], best["ours"], strict=True))
    wanted = SCENARIOS[scenario][4]
    met = "" if wanted is None else f"{wanted:g} {'✓' if ratio >= wanted else '✗'}"
    return f"{row} {statistics.median(best['peer']):.4g} | {ratio:.2f} | {met} |"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="Python of an environment with another torchrec")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each scenario, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--worker", choices=SCENARIOS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments.threads)))
        return
    pythons = {"ours": sys.executable} | ({"peer": arguments.peer} if arguments.peer else {})
    print("| ms | ours | floor | share | peer | peer / ours | wanted |")
    print("|---|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        if arguments.only in scenario:
            print(compare(pythons, scenario, arguments.rounds, arguments.threads), flush=True)


if __name__ == "__main__":
    main()
