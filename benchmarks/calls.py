"""What small calls cost: processor time of one thread, beside another state of the library.

``python -m benchmarks.calls --beside /path/to/other/python`` runs this file under both Pythons in turn and prints the
least time of each call in microseconds, and the ratio. What a call costs beyond its kernel shows at B=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch

T, D, B = 26, 64, 64
KEYS = [f"feature_{i}" for i in range(T)]


def microseconds(function: Callable[[], object], calls: int = 1000) -> float:
    """Return the least time of a call over several rounds of calls."""
    for _ in range(100):
        function()
    rounds = []
    for _ in range(7):
        start = time.process_time()
        for _ in range(calls):
            function()
        rounds.append((time.process_time() - start) / calls * 1e6)
    return min(rounds)


def measure() -> dict[str, float]:
    from torchrec import (
        EmbeddingBagCollection,
        EmbeddingBagConfig,
        KeyedJaggedTensor,
        KeyedTensor,
    )

    def collection(**options: object) -> EmbeddingBagCollection:
        return EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(1000, D, f"t{i}", feature_names=[key], **options)
                for i, key in enumerate(KEYS)
            ]
        )

    def features(batch: int, keys: list[str] = KEYS) -> KeyedJaggedTensor:
        values, lengths = data[batch]
        size = len(keys) * batch
        return KeyedJaggedTensor(keys=keys, values=values[:size], lengths=lengths[:size])

    def rates() -> None:
        for group in groups:
            group["lr"] = 0.1

    data = {
        batch: (torch.randint(1000, (T * batch,)), torch.ones(T * batch, dtype=torch.int64))
        for batch in (1, B)
    }
    plain, fused = collection(), collection(optimizer="rowwise_adagrad", lr=0.1)
    groups = fused.fused_optimizer.param_groups
    one, many, others = features(1), features(B), features(B, ["other"])
    pooled = [plain(many)]
    reverse = list(range(T))[::-1]
    with torch.no_grad():
        found = {
            "look-up, B=1": microseconds(lambda: plain(one)),
            f"look-up, B={B}": microseconds(lambda: plain(many)),
        }
    return found | {
        "training step, B=1": microseconds(lambda: fused(one).values().sum().backward(), 200),
        f"training step, B={B}": microseconds(lambda: fused(many).values().sum().backward(), 200),
        "write the learning rates": microseconds(rates, 200),
        "KeyedJaggedTensor": microseconds(lambda: features(1)),
        "KeyedJaggedTensor.offsets": microseconds(lambda: features(1).offsets()),
        "KeyedJaggedTensor.split": microseconds(lambda: features(1).split([1] * T)),
        "KeyedJaggedTensor.to_dict": microseconds(lambda: features(1).to_dict()),
        "KeyedJaggedTensor[key]": microseconds(lambda: features(1)["feature_3"]),
        "KeyedJaggedTensor.concat": microseconds(lambda: KeyedJaggedTensor.concat([many, others])),
        "KeyedJaggedTensor.permute": microseconds(lambda: many.permute(reverse)),
        "KeyedTensor.regroup": microseconds(
            lambda: KeyedTensor.regroup(pooled, [KEYS[1:4:2], KEYS[2:3]])
        ),
        "EmbeddingBagCollection": microseconds(collection, 20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", help="Python that has another state of the library")
    parser.add_argument("--json", action="store_true", help="measure here, and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.json:
        print(json.dumps(measure()))
        return
    pythons = {"ours": sys.executable} | ({"beside": options.beside} if options.beside else {})
    least: dict[str, dict[str, float]] = {side: {} for side in pythons}
    for _ in range(3):
        for side, python in pythons.items():
            command = [python, __file__, "--json"]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for name, value in json.loads(out).items():
                least[side][name] = min(value, least[side].get(name, value))
    print("| µs | ours | beside | beside / ours |\n|---|---|---|---|")
    for name, ours in least["ours"].items():
        other = least.get("beside", {}).get(name)
        rest = "| |" if other is None else f"{other:.2f} | {other / ours:.2f} |"
        print(f"| {name} | {ours:.2f} | {rest}")


if __name__ == "__main__":
    main()
