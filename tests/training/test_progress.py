"""The progress line, on a terminal and elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.training.clicks import ClickModel, Source, valid_batches
from torchrec.metrics import Report
from torchrec.training import Checkpoints, Extent, FitOptions, Observer, Record, Trainer
from torchrec.training.progress import LiveLine, PlainLines, describe, progress_observer

pytestmark = pytest.mark.once

RECORD = Record(
    split="train",
    step=50,
    epoch=0.5,
    samples=51_200,
    seconds=2.0,
    loss=0.41234,
    report=Report(
        {"ne": 0.91, "auc": 0.7654, "logloss": 0.41234, "calibration": 1.0},
        counts={"samples": 51_200},
    ),
    learning_rate=0.01,
    samples_per_second=25_600.0,
    ids={"unknown": 1234, "hashed": 0},
)


def test_a_line_says_what_matters() -> None:
    assert describe(RECORD) == (
        "25,600 samples/s  loss 0.4123  NE 0.9100  AUC 0.7654  unknown 1,234"
    )


def test_a_line_says_how_many_managed_ids_had_a_row() -> None:
    ids = {"hits": 900, "collided": 100, "inserted": 3, "evicted": 0}
    line = describe(replace(RECORD, ids=ids))
    assert line.endswith("hit rate 90.0%  collided 100  inserted 3")


def test_plain_lines() -> None:
    stream = io.StringIO()
    lines = progress_observer(stream)
    assert isinstance(lines, PlainLines)
    lines.started(Extent(steps=100, samples=None, epochs=1))
    lines.stepped(1, 1024)
    lines.recorded(RECORD)
    lines.said("done")
    lines.ended()
    first, second, last = stream.getvalue().splitlines()
    assert first == "training for 100 steps"
    assert second.startswith("step 50/100  train  25,600 samples/s  loss 0.4123")
    assert second.endswith("0:00 left")
    assert last == "done"


def test_plain_lines_without_a_length() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines.started(Extent(steps=None, samples=None, epochs=1, step=7))
    lines.recorded(RECORD)
    assert stream.getvalue().splitlines()[0] == (
        "training for an unknown number of steps, 7 of them done"
    )
    assert "left" not in stream.getvalue()


@pytest.mark.parametrize("sized", [True, False])
def test_live_line(sized: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    trainer = Trainer(
        ClickModel(),
        options=FitOptions(log_every=2),
        observers=[LiveLine(console)],
        id_counts=lambda: {"hashed": 5},
    )
    trainer.fit(Source() if sized else iter(list(Source())), valid_batches())
    shown = stream.getvalue()
    for part in ("step", "samples/s", "loss", "NE", "AUC", "hashed 5", "after step 7"):
        assert part in shown
    assert ("7/7" in shown) == sized


def test_the_line_says_what_steps_wait_for(tmp_path: Path) -> None:
    """On a terminal; lines of a file have the results alone."""
    live, plain = io.StringIO(), io.StringIO()
    console = Console(file=live, force_terminal=True, width=160)
    trainer = Trainer(
        ClickModel(),
        options=FitOptions(log_every=2, epochs=2),
        checkpoints=Checkpoints(tmp_path),
        observers=[LiveLine(console), PlainLines(plain)],
    )
    trainer.fit(Source(), valid_batches(), valid_batches())
    for activity in (
        "evaluating on valid ...",
        "saving a checkpoint ...",
        "evaluating on test ...",
    ):
        assert activity in live.getvalue()
        assert activity not in plain.getvalue()
    assert live.getvalue().rfind("samples/s") > live.getvalue().find("saving a checkpoint ...")


@pytest.mark.parametrize("live", [False, True], ids=["plain", "live"])
def test_names_steer_no_terminal(live: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=200, color_system=None)
    lines: Observer = LiveLine(console) if live else PlainLines(stream)
    lines.started(Extent(steps=100, samples=None, epochs=1))
    report = Report({"to\x9b2Jbuy[red].auc": 0.75}, counts={"samples": 1})
    lines.recorded(replace(RECORD, report=report, split="valid"))
    lines.recorded(replace(RECORD, report=report))
    lines.said("`user\x1b]0;owned\x07\u202e` [bold]\nholds")
    lines.ended()
    text = stream.getvalue()
    assert text.count(r"to\x9b2Jbuy[red] AUC 0.7500") >= (1 if live else 2)
    assert r"`user\x1b]0;owned\x07\u202e` [bold]\nholds" in text
    assert all(steering not in text for steering in ("\x1b]", "\x9b", "\u202e", "\x07"))


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
def test_what_comes_before_and_after_training_is_written(terminal: bool) -> None:
    stream = io.StringIO()
    observer: Observer = PlainLines(stream)
    if terminal:
        observer = LiveLine(Console(file=stream, force_terminal=True, width=100))
    observer.began("reading the data")
    assert "reading the data ...\n" in stream.getvalue()
    observer.started(Extent(10, 100, 1))
    observer.began("evaluating on valid")
    observer.ended()
    observer.began("saving the model")
    assert stream.getvalue().endswith("saving the model ...\n")
    assert "evaluating on valid ...\n" not in stream.getvalue()
