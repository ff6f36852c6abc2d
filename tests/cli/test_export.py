"""``torchrec export``: what it writes, and what it refuses."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rowwise import cli
from torchrec.bundle import save_bundle
from torchrec.datasets.features import SparseFeature
from torchrec.datasets.synthetic import ClickLog, write_click_log
from torchrec.datasets.transform import FeatureTransform
from torchrec.inference import load
from torchrec.models.registry import ModelSection, build_model

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose model has not learned anything."""
    log = tmp_path / "log.parquet"
    write_click_log(ClickLog(rows=200), log)
    features = {"user": SparseFeature(rows=100), "category": SparseFeature(ids="vocabulary")}
    transform = FeatureTransform(features, "click").fit([pq.read_table(log)])
    section = ModelSection(name="lr")
    save_bundle(tmp_path / "model", build_model(section, transform), transform, section)
    return tmp_path


def test_a_run_becomes_a_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "-o", str(run / "out")]) == 0
    assert "model.pt2: " in capsys.readouterr().out.replace("\n", "")
    description = json.loads((run / "out" / "model.json").read_text())
    assert [each["ids"] for each in description["inputs"]["lengths"]["features"]] == [
        "hash",
        "vocabulary",
    ]
    table = pq.read_table(run / "log.parquet").slice(0, 7)
    predictor = load(run)
    raw = predictor.transform.read_raw(table)
    served = torch.export.load(run / "out" / "model.pt2").module()
    found = served(raw.numbers, raw.ids, raw.lengths)[0]
    torch.testing.assert_close(found, predictor.predict(table), rtol=0, atol=1e-6)


def test_what_exporters_say_of_themselves_is_kept_back(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    logger = logging.getLogger("torch.onnx")

    def export(*_: object) -> Path:
        logger.warning("is not installed")
        warnings.warn("is deprecated", UserWarning, stacklevel=1)  # an error in these tests
        return tmp_path / "model.pt2"

    monkeypatch.setattr("torchrec.inference.export", export)
    assert cli.main(["export", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    assert not caplog.records
    assert capsys.readouterr().err == ""
    assert logger.isEnabledFor(logging.WARNING)


def test_an_unknown_format_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "-o", str(run / "out"), "--format", "tensorrt"]) == 2
    assert "should be one of torch-export, aoti, onnx" in capsys.readouterr().err
    assert not (run / "out").exists()
