"""``torchrec quantize``: a smaller bundle that predicts nearly the same, and what it says of the difference."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rowwise import cli
from torchrec.bundle import load_bundle, save_bundle
from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.synthetic import ClickLog, write_click_log
from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment.build import build_model
from torchrec.experiment.files import dump_experiment
from torchrec.experiment.schema import Experiment
from torchrec.inference import load
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.collections import QuantizedCollection
from torchrec.quant.convert import quantize_embeddings
from torchrec.quant.preparation import quant_prep_customize_row_alignment
from torchrec.training.run import run_experiment

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has not learned anything, which is saved like any other."""
    folder = tmp_path_factory.mktemp("run")
    log = folder / "log.parquet"
    write_click_log(ClickLog(rows=2_000), log)
    experiment = Experiment.model_validate(
        {
            "data": {"train": [str(log)], "label": "click"},
            "model": {"name": "dlrm", "dim": 8, "dense_layers": [8], "layers": [8]},
            "features": {
                "price": DenseFeature(log=True),
                "user": SparseFeature(rows=1_000),
                "category": SparseFeature(ids="vocabulary"),
            },
        }
    )
    assert experiment.features is not None
    transform = FeatureTransform(experiment.features, "click").fit([pq.read_table(log)])
    torch.manual_seed(0)
    model = build_model(experiment.model, experiment.training, transform)
    documents = {"experiment.yaml": dump_experiment(experiment)}
    save_bundle(folder / "model", model, transform, experiment.model, documents=documents)
    return folder


@pytest.mark.parametrize("to", ["int8", "int4", "int2", "fp16", "bf16"])
def test_the_bundle_predicts_nearly_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    out = tmp_path / "small"
    assert cli.main(["quantize", str(run), "--to", to, "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert to in told
    assert "normalised entropy" in told
    rows = pq.read_table(run / "log.parquet").slice(0, 300)
    small, expected = load(out), load(run).predict(rows)
    assert any(isinstance(module, QuantizedCollection) for module in small.model.modules())
    found = small.predict(rows)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="should be floats to be trained on"):
        load_bundle(out, trainable=True)


def test_it_is_written_into_the_run_and_is_smaller(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", str(run), str(run / "log.parquet"), "--clip", "--to", "int4"]) == 0
    assert "2,000 rows; tables of " in capsys.readouterr().out
    sizes = [
        (run / folder / "weights.safetensors").stat().st_size for folder in ("model", "model-int4")
    ]
    assert sizes[1] < 0.7 * sizes[0]
    assert load(run / "model-int4").experiment == load(run).experiment


def test_rows_that_a_bundle_cannot_say_are_not_saved(run: Path, tmp_path: Path) -> None:
    bundle = load_bundle(run / "model")
    quant_prep_customize_row_alignment(bundle.model, [EmbeddingBagCollection], 1)
    model = quantize_embeddings(bundle.model, torch.qint8, inplace=False)
    with pytest.raises(ValueError, match="should be padded to a multiple of 16 bytes"):
        save_bundle(tmp_path / "new", model, bundle.transform, bundle.section)


def test_clipping_of_floats_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(run), "--to", "fp16", "--clip"]) == 2
    assert "should come with int8, int4 or int2" in capsys.readouterr().err


def test_tasks_and_weights_are_measured_as_by_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.parquet"
    write_click_log(ClickLog(rows=500), log)
    experiment = Experiment.model_validate(
        {
            "data": {"train": [str(log)], "weight": "price", "drop": "price is None"},
            "tasks": {
                "click": {"label": "click"},
                "hour": {"label": "hour", "kind": "regression"},
            },
            "model": {"name": "shared_bottom", "dim": 4, "layers": [4], "tower_layers": []},
            "features": {"user": SparseFeature(rows=100)},
        }
    )
    run_experiment(experiment, tmp_path / "run", observers=[])
    capsys.readouterr()
    run, result = str(tmp_path / "run"), tmp_path / "result.json"
    assert cli.main(["evaluate", run, str(log), "--json", str(result)]) == 0
    capsys.readouterr()
    assert cli.main(["quantize", run, str(log)]) == 0
    told = capsys.readouterr().out
    for name in ("click.auc", "click.logloss", "hour.mse"):
        assert f" {json.loads(result.read_text())[name]:.6f} " in told
