"""The examples that train without the trainer, at a small size."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training.killing import write_clicks

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
