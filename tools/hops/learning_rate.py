"""A learning rate on its way from an experiment file to the update of a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchrec.experiment.files import load_experiment
from torchrec.training.run import run_experiment

VALUE = 0.0123456789


def prepare(folder: Path) -> Callable[[], object]:
    rows = "\n".join(f"{i % 2},{i % 7}" for i in range(8))
    (folder / "clicks.csv").write_text(f"click,item\n{rows}\n")
    file = folder / "experiment.yaml"
    file.write_text(
        f"data: {{train: {folder / 'clicks.csv'}, label: click, split: {{valid: 0, test: 0}}}}\n"
        "features:\n  item: {type: sparse}\n"
        "model: {name: deepfm, dim: 4, layers: [4]}\n"
        f"training: {{batch_size: 8, epochs: 1, embedding_learning_rate: {VALUE}}}\n"
    )
    return lambda: run_experiment(load_experiment(file), folder / "run", observers=[])
