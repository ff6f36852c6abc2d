"""The examples that train without the trainer, at a small size."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.training.killing import write_clicks

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clicks(tmp_path / "clicks.parquet")
    report = example("plain_loop").main(str(tmp_path / "clicks.parquet"), "click", epochs=5)
    assert report.auc > 0.55
    assert capsys.readouterr().out.startswith("validation: AUC 0.")


def test_train_generated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trains = example("train_generated")
    monkeypatch.setattr(trains, "STEPS", 200)
    trains.main()
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
@pytest.mark.parametrize("ranks", [1, 2])
def test_train_on_many_ranks(tmp_path: Path, ranks: int) -> None:
    script, folder = str(EXAMPLES / "train_on_many_ranks.py"), str(tmp_path / "checkpoint")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *(launch if ranks > 1 else []), script, folder],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{ranks} rank")
    assert re.search(r"user_table +\| row_wise", done.stdout)
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", done.stdout)]
    assert losses[-1] < losses[0] - 0.05
    before, after = re.findall(r"(?:before|after) +(\d\.\d+)", done.stdout)
    assert before == after
    # One process that knows of no ranks has the whole of what they saved.
    name = "model.sparse_arch.embedding_bag_collection.embedding_bags.user_table.weight"
    state = {name: torch.zeros(500, 16)}
    dcp.load(state, checkpoint_id=folder)
    assert bool(state[name].abs().sum(1).all())


@pytest.mark.filterwarnings("ignore")  # Lightning has much to say
def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    write_clicks(tmp_path / "clicks.parquet")
    quiet: dict[str, Any] = {
        "max_epochs": 8,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = example("lightning").main(str(tmp_path / "clicks.parquet"), "click", **quiet)
    assert trainer.callback_metrics["auc"] > 0.6
