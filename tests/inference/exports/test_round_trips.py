"""Every model of the registry, with tables of few bits: bundles and exports say what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.inference.exports.round_trips import (
    PRECISIONS,
    bundled,
    compared,
    rows,
)
from torchrec.inference import load
from torchrec.inference.exports.formats import Format
from torchrec.models.registry import names

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]
FORMATS: tuple[Format, ...] = ("torch-export", "onnx")
# Each model, precisions and formats in turn; ``python -m tests.inference.exports.round_trips`` does all of all.
CASES = [
    pytest.param(
        name,
        list(PRECISIONS)[number % len(PRECISIONS)],
        FORMATS[(number + number // len(PRECISIONS)) % len(FORMATS)],
        id=name,
    )
    for number, name in enumerate(names())
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bundles(precision: str, tmp_path: Path) -> None:
    table = rows(200, 3)
    for name in names():
        written = bundled(name, precision, tmp_path / name)
        expected, found = written.predict_tasks(table), load(tmp_path / name).predict_tasks(table)
        assert list(found) == list(expected)
        for task, predictions in expected.items():
            assert torch.equal(found[task], predictions), (name, task)


@pytest.mark.parametrize(("name", "precision", "format"), CASES)
def test_exports(name: str, precision: str, format: Format, tmp_path: Path) -> None:
    bundled(name, precision, tmp_path / "bundle")
    found = compared(tmp_path / "bundle", format, tmp_path / "export")
    assert found.holds, found
    assert found.greatest <= 1e-6
