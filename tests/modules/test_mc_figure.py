"""The figure of docs/ids.md can be drawn."""

from __future__ import annotations

import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "id_policies.py"


def test_the_figure_is_drawn(tmp_path, monkeypatch, capsys):
    out = tmp_path / "figure.svg"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(out), "--batches", "150"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "managed, DistanceLFU" in printed
    lines = ElementTree.parse(out).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 13  # AUC of seven, occupancy of six


def test_auc_is_what_it_is():
    auc = runpy.run_path(str(EXAMPLE))["auc"]
    assert auc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0.0, 0, 1, 1])) == pytest.approx(
        3.5 / 4
    )
