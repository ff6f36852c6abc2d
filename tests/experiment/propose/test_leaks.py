"""Columns that tell the label, or only come after it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from torchrec.experiment.propose import _leaks
from torchrec.experiment.propose._leaks import Leak, tells_of_label

pytestmark = pytest.mark.once

ROWS = 3000
RANDOM = np.random.default_rng(3)
CLICK = (RANDOM.random(ROWS) < 0.4).astype(np.float32)
LATER = (CLICK == 1) & (RANDOM.random(ROWS) < 0.3)  # of the clicks, what follows


def column(values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, from_pandas=True)])


@pytest.mark.parametrize(
    "values",
    [
        LATER,
        LATER.astype(int),
        LATER.astype(np.float32),
        LATER * RANDOM.exponential(30, ROWS),
        np.where(LATER, RANDOM.exponential(30, ROWS), np.nan),
        np.where(LATER, "bought", None),
        np.where(LATER, "bought", "-"),
        np.where(LATER, "Y", "N"),
    ],
    ids=["bool", "flag", "float", "seconds", "seconds-or-null", "text-or-null", "text", "yes-no"],
)
def test_what_only_follows_a_click(values: object) -> None:
    assert tells_of_label(column(values), CLICK) is Leak.OUTCOME


@pytest.mark.parametrize(
    "values",
    [
        np.where(RANDOM.random(ROWS) < 0.02, 1 - CLICK, LATER),  # a few without a click
        RANDOM.random(ROWS) < 0.1,
        np.where(RANDOM.random(ROWS) < 0.5, 3.5, np.nan),
        RANDOM.integers(0, 3000, ROWS),
        RANDOM.choice(["a", "b", "c"], ROWS),
        np.arange(ROWS) == np.flatnonzero(LATER)[0],  # once is no proof
    ],
    ids=["noisy", "flag", "null", "ids", "text", "once"],
)
def test_what_is_no_leak(values: object) -> None:
    assert tells_of_label(column(values), CLICK) == ""


def test_lists_and_nulls_tell_nothing() -> None:
    assert tells_of_label(pa.chunked_array([[[1, 2]] * ROWS]), CLICK) == ""
    assert tells_of_label(pa.chunked_array([pa.nulls(ROWS)]), CLICK) == ""


def test_unknown_labels_are_left_out() -> None:
    labels = CLICK.copy()
    labels[::3] = np.nan
    copy = np.where(np.arange(ROWS) % 3 == 0, 1 - CLICK, CLICK)
    assert tells_of_label(column(copy.astype(int)), labels) is Leak.COPY


def test_a_copy_with_nulls_is_a_copy() -> None:
    copy = np.where(RANDOM.random(ROWS) < 0.2, np.nan, CLICK)
    assert tells_of_label(column(copy), CLICK) is Leak.COPY
    assert tells_of_label(column(np.where(CLICK == 1, "a", "b")), CLICK) is Leak.COPY


def test_what_never_meets_a_click_stays_with_a_note() -> None:
    skipped = (CLICK == 0) & (RANDOM.random(ROWS) < 0.5)
    told = tells_of_label(column(skipped), CLICK)
    assert isinstance(told, str)
    assert told.startswith("Label 1 never comes with it")


@pytest.mark.parametrize("nulls", [0, 0.4])
@pytest.mark.parametrize("first", [3, 22, 1000, ROWS])
@pytest.mark.parametrize("kind", ["copy", "outcome", "never", "chance", "step"])
def test_the_first_rows_tell_what_all_do(
    kind: str, first: int, nulls: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(first)
    made = {
        "copy": CLICK,
        "outcome": LATER * 1.0,
        "never": (CLICK == 0) * 1.0,
        "chance": (random.random(ROWS) < 0.5) * 1.0,
        "step": np.where(np.arange(ROWS) < 2000, random.random(ROWS), 2 + CLICK),
    }[kind]
    many = np.where(np.arange(ROWS) < first, random.integers(0, 40, ROWS), 1)
    values = np.where(random.random(ROWS) < nulls, np.nan, made * many)
    labels = np.where(random.random(ROWS) < nulls / 4, np.nan, CLICK)
    found = tells_of_label(column(values), labels)
    monkeypatch.setattr(_leaks, "_first_tell_nothing", lambda *_: False)
    assert tells_of_label(column(values), labels) == found
