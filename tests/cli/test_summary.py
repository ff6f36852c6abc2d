"""The table that ends a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rowwise.cli.summary import show_summary
from torchrec.runs import RunFolder, RunResult, Scores

pytestmark = pytest.mark.once


def scores(auc: float | None, samples: float = 100) -> Scores:
    return {"ne": 0.9, "auc": auc, "logloss": 0.25, "calibration": 1.01, "samples": samples}


RESULT = RunResult(
    train=scores(0.8, 12_000),
    valid=scores(0.7),
    test=scores(None),
    samples_per_second=12_345.6,
    seconds=61.4,
    steps=300,
    epochs=3,
    best_step=200,
    best_epoch=2,
    threads=1,
    baselines={
        "constant": {"valid": scores(0.5), "test": scores(0.5)},
        "lr": {"valid": scores(0.66), "test": None},
    },
)


def shown(result: RunResult, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    run = RunFolder(folder)
    run.write_experiment("{}")
    run.write_result(result)
    show_summary(run)
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_seeds_show_deviations_and_the_ensemble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = dataclasses.replace(
        RESULT,
        seeds=(3, 4, 5),
        best_epoch=None,
        deviation={"train": scores(0.01), "valid": scores(0.02), "test": scores(None)},
        ensemble={"valid": scores(0.8), "test": scores(0.85)},
    )
    for seed in (3, 4, 5):
        (tmp_path / f"seed-{seed}").mkdir()
    lines = [" ".join(line) for line in shown(result, tmp_path, capsys)]
    rest = "0.2500 ± 0.2500 0.9000 ± 0.9000 1.0100 ± 1.0100"
    assert lines[2] == f"valid 100 0.7000 ± 0.0200 {rest}"
    assert lines[3] == f"test 100 - {rest}"
    assert lines[4] == "test, mean of 3 models 100 0.8500 0.2500 0.9000 1.0100"
    assert "Means and standard deviations of 3 seeds, 3 to 5." in lines
    assert lines[-1].endswith("seed-3/model, and 2 more")


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    lines = shown(RESULT, tmp_path, capsys)
    rest = ["0.2500", "0.9000", "1.0100"]
    assert lines[:5] == [
        ["rows", "AUC", "log", "loss", "NE", "calibration"],
        ["train,", "epoch", "3", "12,000", "0.8000", *rest],
        ["valid", "100", "0.7000", *rest],
        ["test", "100", "-", *rest],
        ["test,", "base", "rate", "of", "training", "100", "0.5000", *rest],
    ]
    text = [" ".join(line) for line in lines[5:]]
    assert text[0] == "best epoch 2 of 3, whose weights (of step 200) are saved"
    assert text[1] == "time 1:01, 12,346 samples/s, 1 thread"
    assert text[2].startswith("model ")
    assert text[2].endswith("model")


def test_summary_without_test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = dataclasses.replace(RESULT, test=None, best_epoch=None, threads=None)
    lines = [" ".join(line) for line in shown(result, tmp_path, capsys)]
    assert lines[3].startswith("valid, base rate of training")
    assert lines[4].startswith("valid, logistic regression 100 0.6600")
    assert lines[5:] == ["time 1:01, 12,346 samples/s"]


def test_training_is_told_with_its_epoch_where_earlier_weights_are_saved() -> None:
    last = dataclasses.replace(RESULT, best_step=300, best_epoch=3)
    assert [RESULT.part_name(part) for part in ("train", "valid")] == ["train, epoch 3", "valid"]
    assert last.part_name("train") == "train"
    assert dataclasses.replace(RESULT, best_step=None).part_name("train") == "train"


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_experiment("{}")
    run.write_result(RESULT)
    assert run.read_result() == RESULT
