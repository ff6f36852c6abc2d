"""Runs one scenario with whichever ``torchrec`` this Python has, by its public API alone.

``python worker.py SCENARIO THREADS`` prints one line of JSON: a list of times in milliseconds for
each variant of the scenario. Started by ``python -m benchmarks``, under both Pythons in turn.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable

import torch

Times = dict[str, list[float]]

F, E, D = 26, 100_000, 64
KEYS = [f"feature_{i}" for i in range(F)]

# name: (tables, rows, dim, batch, ids a bag, repetitions)
FORWARD = {
    "forward, B=1": (F, E, D, 1, 1, 1000),
    "forward, B=64": (F, E, D, 64, 1, 500),
    "forward, B=4096": (F, E, D, 4096, 1, 50),
    "forward, B=2048, 20 ids a bag": (F, E, D, 2048, 20, 15),
    "forward, 8 x 1M x 128, 50 ids a bag": (8, 1_000_000, 128, 2048, 50, 9),
}
TRAINING = {
    "training step, B=2048, 1 id a bag": (F, E, D, 2048, 1, 50),
    "training step, B=2048, 20 ids a bag": (F, E, D, 2048, 20, 15),
}
SPARSE = "sparse types, 26 keys x 64"
SCENARIOS = [*FORWARD, *TRAINING, SPARSE]


def timed(function: Callable[[], object], repetitions: int, seconds: float = 5) -> list[float]:
    """Return the time of each call, after a tenth as many calls to warm up; no more once time is up."""
    for _ in range(max(3, repetitions // 10)):
        function()
    gc.disable()
    times: list[float] = []
    while len(times) < 3 or (len(times) < repetitions and sum(times) < 1e3 * seconds):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    gc.enable()
    return times


def batches(tables: int, rows: int, batch: int, length: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((tables * batch,), length)
    shape = (tables * batch * length,)
    return [(torch.randint(rows, shape, generator=generator), lengths) for _ in range(4)]


def configs(tables: int, rows: int, dim: int):
    from torchrec import EmbeddingBagConfig

    return [
        EmbeddingBagConfig(
            name=f"table_{i}", num_embeddings=rows, embedding_dim=dim, feature_names=[KEYS[i]]
        )
        for i in range(tables)
    ]


def features(tables: int, data: tuple[torch.Tensor, ...]):
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(keys=KEYS[:tables], values=data[0], lengths=data[1])


def forward(tables: int, rows: int, dim: int, batch: int, length: int, repetitions: int) -> Times:
    from torchrec import EmbeddingBagCollection

    collection = EmbeddingBagCollection(tables=configs(tables, rows, dim))
    data, turn = batches(tables, rows, batch, length), 0

    def step() -> None:
        nonlocal turn
        turn += 1
        with torch.no_grad():
            collection(features(tables, data[turn % len(data)])).values()

    return {"EmbeddingBagCollection": timed(step, repetitions)}


def fused_collection(tables: int, rows: int, dim: int):
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    return FusedEmbeddingBagCollection(configs(tables, rows, dim), RowWiseAdagrad, {"lr": 0.01})


def optimizer_in_backward(tables: int, rows: int, dim: int):
    from torchrec import EmbeddingBagCollection
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    collection = EmbeddingBagCollection(tables=configs(tables, rows, dim))
    apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": 0.01})
    return collection


def sharded_collection(tables: int, rows: int, dim: int):
    """Shard over one rank, where this ``torchrec`` can; its fast path, by its own documents."""
    import torch.distributed as dist

    from torchrec.distributed.model_parallel import DistributedModelParallel

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29517", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
    )
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1)
    holder = torch.nn.Module()
    holder.collection = optimizer_in_backward(tables, rows, dim)
    return DistributedModelParallel(holder, device=torch.device("cpu")).module.collection


def training(tables: int, rows: int, dim: int, batch: int, length: int, repetitions: int) -> Times:
    makers = {
        "FusedEmbeddingBagCollection": fused_collection,
        "EmbeddingBagCollection": optimizer_in_backward,
        "sharded": sharded_collection,
    }
    data, gradient = batches(tables, rows, batch, length), torch.randn(batch, tables * dim)
    result = {}
    for name, make in makers.items():
        try:
            collection, turn = make(tables, rows, dim), 0
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue

        def step(collection=collection) -> None:
            nonlocal turn
            turn += 1
            collection(features(tables, data[turn % len(data)])).values().backward(gradient)

        result[name] = timed(step, repetitions)
        del collection, step
    return result


def sparse_types() -> Times:
    from torchrec import KeyedJaggedTensor, KeyedTensor

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 5, (F * 64,), generator=generator)
    values = torch.randint(0, 1000, (int(lengths.sum()),), generator=generator)
    others = [f"other_{i}" for i in range(F)]
    order = list(range(F))[::-1]
    tensors = [
        KeyedTensor([f"{side}{i}" for i in range(13)], [D] * 13, torch.randn(64, 13 * D))
        for side in "ab"
    ]
    groups = [["a0", "b1", "a5"], ["b0", "b2", "a7", "a8"], [f"a{i}" for i in range(13)]]

    def make(keys: list[str] = KEYS) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths)

    cases = {
        "construct": make,
        "split": lambda: make().split([1] * F),
        "to_dict": lambda: make().to_dict(),
        "permute": lambda: make().permute(order),
        "concat": lambda: KeyedJaggedTensor.concat([make(), make(others)]),
        "[]": lambda: make()[KEYS[13]],
        "KeyedTensor.regroup": lambda: KeyedTensor.regroup(tensors, groups),
    }
    return {name: timed(case, 2000) for name, case in cases.items()}


def main() -> None:
    """Run the scenario named on the command line."""
    scenario, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    if scenario in FORWARD:
        result = forward(*FORWARD[scenario])
    elif scenario in TRAINING:
        result = training(*TRAINING[scenario])
    elif scenario == SPARSE:
        result = sparse_types()
    else:
        raise SystemExit(f"Unknown scenario {scenario!r}; there are {SCENARIOS}.")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
