"""Look-ups in quantised tables: beside float ones, and beside another library that has the API.

``python -m benchmarks.quantised --peer /path/to/other/python`` runs this file under both Pythons in turn and prints
the least milliseconds of a look-up, input and all, by the clock and of the processor: INT8 of both, INT4 and FP32 of
ours. Ids are new with every call, so that rows come from memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch

T, E, D = 26, 100_000, 64
KEYS = [f"feature_{i}" for i in range(T)]
SIZES = ((64, 1), (2048, 20))  # bags, ids a bag
MOST_IDS = 1 << 22  # of all inputs of a measurement


def quantised(data_type: str) -> torch.nn.Module:
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
    from torchrec.quant.embedding_modules import EmbeddingBagCollection

    tables = [
        EmbeddingBagConfig(
            num_embeddings=E,
            embedding_dim=D,
            name=f"table_{i}",
            feature_names=[key],
            data_type=DataType[data_type],
        )
        for i, key in enumerate(KEYS)
    ]
    collection = EmbeddingBagCollection(tables, is_weighted=False, device=torch.device("cpu"))
    for rows in collection.state_dict().values():
        # Bytes below 60 are finite scales and biases; written everywhere, so that each page has its own memory.
        rows.copy_(torch.randint(0, 60, rows.shape, dtype=torch.uint8))
    return collection


def floats() -> torch.nn.Module:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                num_embeddings=E, embedding_dim=D, name=f"table_{i}", feature_names=[key]
            )
            for i, key in enumerate(KEYS)
        ]
    )


def least(collection: torch.nn.Module, bags: int, ids: int) -> tuple[float, float]:
    """Return the least milliseconds of a look-up over several rounds: by the clock, of the processor."""
    from torchrec import KeyedJaggedTensor

    count = max(8, min(256, MOST_IDS // (T * bags * ids)))
    lengths = torch.full((T * bags,), ids, dtype=torch.int32)
    inputs = [torch.randint(0, E, (T * bags * ids,), dtype=torch.int32) for _ in range(count)]
    rounds = []
    for _ in range(7):
        start, worked = time.perf_counter(), time.process_time()
        for values in inputs:
            collection(KeyedJaggedTensor(keys=KEYS, values=values, lengths=lengths)).values()
        now, done = time.perf_counter(), time.process_time()
        rounds.append(((now - start) / count * 1e3, (done - worked) / count * 1e3))
    clock, processor = zip(*rounds, strict=True)
    return min(clock), min(processor)


def measure(made: str, threads: int) -> dict[str, tuple[float, float]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "INT8": lambda: quantised("INT8"),
        "INT4": lambda: quantised("INT4"),
        "FP32": floats,
    }
    with torch.no_grad():
        collection = makers[made]()
        return {f"B={bags}, {ids} ids": least(collection, bags, ids) for bags, ids in SIZES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python that has the other library")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="of all sides in turn")
    parser.add_argument("--json", metavar="TABLES", help="measure these here, and print JSON")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options.json, options.threads)))
        return
    sides = {made: (sys.executable, made) for made in ("INT8", "INT4", "FP32")}
    if options.peer:
        sides["peer INT8"] = options.peer, "INT8"
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for side, (python, made) in sides.items():
            command = [python, "-W", "ignore", __file__, "--json", made]
            command += ["--threads", str(options.threads)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for size, both in json.loads(out.splitlines()[-1]).items():
                before = found.setdefault(size, {}).get(side, both)
                found[size][side] = [min(pair) for pair in zip(before, both, strict=True)]
    print("| | tables | ms | processor ms | / INT8 |\n|---|---|---|---|---|")
    for size, times in found.items():
        for side, (clock, processor) in times.items():
            ratio = clock / times["INT8"][0]
            print(f"| {size} | {side} | {clock:.3f} | {processor:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
