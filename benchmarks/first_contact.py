"""Measures a whole ``torchrec train`` beside a whole process with a plain PyTorch loop.

``python -m benchmarks.first_contact`` trains a DeepFM (400-400-400, batch normalisation, dropout 0.2)
on ten categorical fields with 5,400 ids, 202,000 rows, batches of 4096, three epochs, one thread. The
plain loop has `nn.Embedding`, one Adam for all parameters, and the data in memory; it evaluates after
each epoch as the run does. Wanted: 0.9 times its speed, by processor time of whole processes, from
the first import to the last file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, EVALUATED, BATCH, DIM, EPOCHS = 202_000, 20_000, 4096, 16, 3
IDS = [2, 4, 8, 20, 60, 120, 250, 600, 1300, 3036]
PARTS = {"train": ROWS, "valid": EVALUATED, "test": EVALUATED}


def write_data(folder: Path) -> None:
    """Write clicks whose log odds are a sum over fields and of pairs of them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    vectors = [draw.normal(0, 0.5, (count, 4)) for count in IDS]
    for part, rows in PARTS.items():
        ids = [np.minimum(draw.geometric(min(1, 8 / n), rows) - 1, n - 1) for n in IDS]
        summed = sum(vector[i] for vector, i in zip(vectors, ids, strict=True))
        odds = (summed**2).sum(axis=1) / 4 - 3
        columns = {f"f{number}": values for number, values in enumerate(ids)}
        columns["click"] = draw.random(rows) < 1 / (1 + np.exp(-odds))
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")


def write_experiment(folder: Path) -> None:
    """Write the experiment, in JSON, which is YAML as well."""
    import json

    features = {
        f"f{number}": {"type": "sparse", "rows": count + 1} for number, count in enumerate(IDS)
    }
    experiment = {
        "data": {"label": "click", **{part: [str(folder / f"{part}.parquet")] for part in PARTS}},
        "features": features,
        "model": {
            "name": "deepfm", "dim": DIM, "layers": [400] * 3, "dropout": 0.2,
            "batch_norm": True,
        },
        "training": {"epochs": EPOCHS, "batch_size": BATCH, "threads": 1},
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(experiment))


def plain(folder: Path) -> None:
    """Train with what PyTorch has."""
    import pyarrow.parquet as pq
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import binary_cross_entropy_with_logits

    class DeepFM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(count + 1, DIM) for count in IDS])
            layers: list[nn.Module] = []
            for inputs in (len(IDS) * DIM, 400, 400):
                layers += [nn.Linear(inputs, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Dropout(0.2)]
            self.deep = nn.Sequential(*layers, nn.Linear(400, 1))

        def forward(self, ids: Tensor) -> Tensor:
            vectors = torch.stack(
                [table(ids[:, number]) for number, table in enumerate(self.tables)], dim=1
            )
            pairs = (vectors.sum(dim=1) ** 2 - (vectors**2).sum(dim=1)).sum(dim=1) / 2
            deep: Tensor = self.deep(vectors.flatten(1))
            return deep.squeeze(1) + pairs

    def read(part: str) -> tuple[Tensor, Tensor]:
        table = pq.read_table(folder / f"{part}.parquet")
        columns = [torch.from_numpy(table[f"f{number}"].to_numpy()) for number in range(len(IDS))]
        return torch.stack(columns, dim=1), torch.tensor(table["click"].to_numpy()).float()

    def evaluate(ids: Tensor, labels: Tensor) -> None:
        model.eval()
        with torch.no_grad():
            logits = torch.cat([model(part) for part in ids.split(BATCH)])
            loss = binary_cross_entropy_with_logits(logits, labels)
        print(f"loss {loss.item():.4f}", flush=True)
        model.train()

    torch.manual_seed(0)
    data = {part: read(part) for part in PARTS}
    model = DeepFM()
    optimizer = torch.optim.Adam(model.parameters())
    ids, labels = data["train"]
    for _ in range(EPOCHS):
        for rows in torch.randperm(ROWS).split(BATCH):
            loss = binary_cross_entropy_with_logits(model(ids[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        evaluate(*data["valid"])
    evaluate(*data["test"])
    torch.save(model.state_dict(), folder / "model.pt")


def measured(command: list[str], log: Path) -> tuple[float, float]:
    """Return processor time and time of a process, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.perf_counter()
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} should end well. Received:\n{log.read_text()}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=Path, help="the folder of a round: its plain loop")
    options = parser.parse_args()
    if options.plain is not None:
        plain(options.plain)
        return
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_data(folder)
        write_experiment(folder)
        train = [sys.executable, "-m", "torchrec", "train", str(folder / "experiment.yaml")]
        for number in range(options.rounds):
            commands = {
                "plain loop": [sys.executable, __file__, "--plain", made],
                "torchrec train": [*train, "-o", str(folder / f"run-{number}")],
                "without baselines": [
                    *train, "-o", str(folder / f"less-{number}"), "training.baselines=false",
                ],
            }  # fmt: skip
            for name, command in commands.items():
                found.setdefault(name, []).append(measured(command, folder / "log.txt"))
    print(f"{'':18} | processor time, s | speed of the plain loop | time, s | speed")
    floor = [statistics.median(each) for each in zip(*found["plain loop"], strict=True)]
    for name, times in found.items():
        processor, wall = (statistics.median(each) for each in zip(*times, strict=True))
        print(
            f"{name:18} | {processor:17.1f} | {floor[0] / processor:23.2f} | {wall:7.1f} | "
            f"{floor[1] / wall:5.2f}"
        )


if __name__ == "__main__":
    main()
