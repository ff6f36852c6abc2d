"""Two forms of a model beside each other: nothing differs where nothing should, and what does is named."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rowwise import cli
from tests.inference.exports.test_formats import FEATURES, rows, trained
from torchrec.bundle import save_bundle
from torchrec.datasets.features import (
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
    VectorFeature,
)
from torchrec.datasets.transform import FeatureTransform
from torchrec.inference import Predictor, export
from torchrec.inference.exports._inputs import RawModel
from torchrec.inference.exports.formats import description
from torchrec.inference.exports.replay import ExportedModel
from torchrec.inference.modules import quantize_embeddings
from torchrec.inference.parity import compare
from torchrec.models.registry import ModelSection, build_model

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    found = trained("lr", FEATURES)
    with torch.no_grad():  # which begins with zeros
        for one in found.model.parameters():
            one.normal_()
    return found


@pytest.fixture(scope="module")
def exported(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(predictor, tmp_path_factory.mktemp("export") / "out", "torch-export").parent


def save(predictor: Predictor, folder: Path) -> Path:
    section = ModelSection.model_validate({"name": "lr", "dim": 4})
    save_bundle(folder, predictor.model, predictor.transform, section)
    return folder


def changed(exported: Path, folder: Path, change: Any) -> Path:
    """Copy an export, with another description."""
    shutil.copytree(exported, folder)
    path = folder / "model.json"
    description = json.loads(path.read_text())
    change(description["inputs"])
    path.write_text(json.dumps(description))
    return folder


@pytest.mark.slow
def test_an_export_is_the_same(
    predictor: Predictor, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare(predictor, exported, [rows(60, 3), rows(40, 4)])
    assert (found.rows, found.beyond, found.holds) == (100, 0, True)
    assert found.greatest < 1e-6
    assert set(found.features) == set(FEATURES)
    assert not any(one.inputs for one in found.features.values())
    price = pa.array([1e300, float("inf"), float("nan")], pa.float64())
    odd = rows(3, 3).drop_columns("price").append_column("price", price)
    assert compare(predictor, exported, [odd]).holds
    monkeypatch.setattr(ExportedModel, "predict", lambda _, raw: torch.full((3, 1), torch.nan))
    broken = compare(predictor, exported, [odd])
    assert (broken.beyond, broken.greatest, broken.holds) == (3, float("inf"), False)


def test_tables_are_read_as_the_transform_reads_them(tmp_path: Path) -> None:
    """By the description alone: times, separators, brackets, weights in text, wide and negative integers, NaN."""
    features = {
        "when": DenseFeature(),
        "day": DenseFeature(),
        "id": SparseFeature(rows=50),
        "parts": MultiHotFeature(rows=50, separator="|", weights="part_weights", max_length=2),
        "numbers": SequenceFeature(rows=50, ids="plain", separator=" ", max_length=3),
        "brackets": MultiHotFeature(rows=50, separator="[]"),
        "nested": MultiHotFeature(rows=50),
        "pairs": MultiHotFeature(rows=50, separator="|", weight_separator=":"),
        "vector": VectorFeature(size=2, separator=" "),
    }
    table = pa.table(
        {
            "when": pa.array([0, 1_700_000_000_123_456, None], pa.timestamp("us", "UTC")),
            "day": pa.array([0, 19_000, None], pa.date32()),
            "id": pa.array([2**64 - 1, 0, None], pa.uint64()),
            "parts": ["a|b||c", "", None],
            "part_weights": ["1|1e39|3|4", "5", None],
            "numbers": ["7 8  9 10", "1", None],
            "brackets": ["['a', 'b']", "[]", None],
            "nested": [[["a"], ["b", None]], [[]], None],
            "pairs": ["a:b:0.5|c|d:", "", None],
            "vector": ["1 2.5", "", " 4"],
        }
    )
    transform = FeatureTransform(features).fit([table])
    model = RawModel(transform, build_model(ModelSection(name="lr"), transform))
    text = json.dumps(description(transform, model, "torch-export"))
    (tmp_path / "model.json").write_text(text)
    read, expected = ExportedModel(tmp_path).read(table), transform.read_raw(table)
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(read, name).nan_to_num(-1), tensor.nan_to_num(-1)), name


@pytest.mark.slow
def test_features_that_are_read_otherwise_are_named(
    predictor: Predictor, exported: Path, tmp_path: Path
) -> None:
    """With all columns of the feature, others missing, it is the only one whose predictions differ."""

    def change(found: dict[str, Any]) -> None:
        features = {one["feature"]: one for one in found["lengths"]["features"]}
        features["tags"]["at_most"] = 1
        features["seen"]["keep"] = "first"
        found["numbers"]["columns"][0]["column"] = "age"  # price

    other = changed(exported, tmp_path / "other", change)
    found = compare(predictor, other, [rows(80, 3)], tolerance=100.0)
    assert not found.holds  # whatever is predicted
    assert {name for name, one in found.features.items() if one.inputs} == {"price", "tags", "seen"}
    # Where age alone is there, price is read from it as well.
    apart = {name for name, one in found.features.items() if one.alone > 1e-6}
    assert apart == {"price", "tags", "seen", "age"}


def test_a_table_that_is_another_is_named(predictor: Predictor, tmp_path: Path) -> None:
    other = Predictor(None, predictor.transform, copy.deepcopy(predictor.model))
    weights = {name: one for name, one in other.model.named_parameters() if "shop" in name}
    with torch.no_grad():
        for one in weights.values():
            one += 0.25
    table = rows(80, 3)
    found = compare(predictor, save(other, tmp_path / "model"), [table])
    assert not found.holds
    named = [name for name, one in found.features.items() if one.vectors]
    assert named == ["shop"]
    assert found.features["shop"].vectors == pytest.approx(0.25, abs=1e-6)
    differences = (predictor.predict(table) - other.predict(table)).abs()
    assert found.greatest == pytest.approx(float(differences.max()))
    assert found.worst == int(differences.argmax())
    assert found.beyond == int((differences > 1e-6).sum())


def test_a_quantised_bundle(predictor: Predictor, tmp_path: Path) -> None:
    small = quantize_embeddings(copy.deepcopy(predictor.model), torch.qint8, inplace=False)
    folder = save(Predictor(None, predictor.transform, small), tmp_path / "model")
    found = compare(predictor, folder, [rows(80, 3)], tolerance=0.05)
    assert found.holds
    assert 0 < found.greatest < 0.05
    assert not compare(predictor, folder, [rows(80, 3)], tolerance=0).holds


@pytest.mark.slow
def test_the_command(
    predictor: Predictor, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = tmp_path / "data.parquet"
    pq.write_table(rows(50, 3), data)
    run = str(save(predictor, tmp_path / "run" / "model").parent)
    # A bundle without an experiment tells nothing of files.
    from rowwise.cli import parity as module
    from torchrec.datasets.source import TableSource

    monkeypatch.setattr(module, "open_source", lambda data, *_, **__: TableSource(data))
    assert cli.main(["parity", run, str(exported), str(data), "--rows", "30"]) == 0
    assert "30 rows: predictions differ by " in capsys.readouterr().out
    other = changed(
        exported,
        tmp_path / "other",
        lambda found: found["numbers"]["columns"][0].update(column="age"),
    )
    assert cli.main(["parity", run, str(other), str(data)]) == 1
    assert "Not the same." in capsys.readouterr().out
    assert cli.main(["parity", run, str(tmp_path / "nowhere"), str(data)]) == 2


def test_what_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    table = rows(5, 3)
    with pytest.raises(FileNotFoundError, match=r"should be a folder with model\.json"):
        ExportedModel(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"It is damaged, or of another: KeyError\('inputs'\)"):
        ExportedModel(tmp_path)
    model = RawModel(predictor.transform, predictor.model)
    text = json.dumps(description(predictor.transform, model, "torch-export"))
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"The data should have column 'price', .* did you mean"):
        ExportedModel(tmp_path).read(table.rename_columns(["prize", *table.column_names[1:]]))
    fewer = trained("lr", {name: one for name, one in FEATURES.items() if name != "shop"})
    folder = save(predictor, tmp_path / "model")
    with pytest.raises(ValueError, match="should read the same features"):
        compare(fewer, folder, [table])
    with pytest.raises(ValueError, match=r"`tolerance` should be at least 0\. Received -1"):
        compare(predictor, folder, [table], tolerance=-1)
    assert compare(predictor, folder, []).worst is None


@pytest.mark.slow
def test_an_export_as_onnx(tmp_path: Path) -> None:
    few = trained("lr", {name: FEATURES[name] for name in ("price", "user")})
    with torch.no_grad():
        for one in few.model.parameters():
            one.normal_()
    folder = export(few, tmp_path / "out", "onnx").parent
    assert compare(few, folder, [rows(200, 3)]).holds
