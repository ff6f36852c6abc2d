"""Resolve the data of a run and fit the transform to them: columns, types, features, split, loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchrec.experiment.files import check_experiment
from torchrec.runs import RunFolder
from torchrec.training.run_data import RunData


def prepare(folder: Path) -> Callable[[], object]:
    rows = "\n".join(f"{i % 2},{i % 7},{i / 8}" for i in range(64))
    (folder / "clicks.csv").write_text(f"click,item,price\n{rows}\n")
    values = {
        "data": {"train": [str(folder / "clicks.csv")], "label": "click"},
        "model": {"name": "deepfm", "dim": 4, "layers": [4]},
    }
    experiment = check_experiment(values, "experiment.yaml")
    return lambda: RunFolder(folder).write_fitted(RunData(experiment).fitted)
