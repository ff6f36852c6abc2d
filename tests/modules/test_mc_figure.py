"""The figure of docs/ids.md can be drawn."""

from __future__ import annotations

import runpy
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "id_policies.py"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tables gain nothing from more, and lose much where others want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_the_figure_is_drawn(tmp_path, monkeypatch, capsys):
    out = tmp_path / "figure.svg"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(out), "--batches", "150"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "managed, DistanceLFU" in printed
    lines = ElementTree.parse(out).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 13  # AUC of seven, occupancy of six


def test_all_policies_have_the_same_memory():
    example = runpy.run_path(str(EXAMPLE))
    size_of, most = example["size_of"], example["ROWS"]
    size = 4 * most * (example["DIM"] + 1)  # and the step of the optimizer, and a counter
    assert size_of(example["plain"](num_embeddings=most)) == size + 16
    for make in example["POLICIES"].values():
        rows = example["rows_within"](size + 16, make)
        assert size_of(make(rows)) <= size + 16
        assert rows == most or size_of(make(rows + 1)) > size + 16
    module = example["managed"](100, example["LFU_EvictionPolicy"]())
    in_map = 99 * (8 + 1 + 8) + 4 * 256  # ids, whether held, counts; the index
    assert 0 <= size_of(module) - size_of(example["plain"](num_embeddings=100)) - in_map < 200


def test_auc_is_what_it_is():
    auc = runpy.run_path(str(EXAMPLE))["auc"]
    assert auc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0.0, 0, 1, 1])) == pytest.approx(
        3.5 / 4
    )
