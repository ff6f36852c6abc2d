"""Saved transforms: exact, and refused when damaged or too new."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform

pytestmark = pytest.mark.once

TABLE = pa.table({"x": [0.1, 0.2, None], "user": ["b", "a", "b"], "y": [0, 1, 1]})


@pytest.fixture
def saved(tmp_path):
    features = {
        "x": DenseFeature(log=True),
        "bucket": DenseFeature(column="x", buckets=3),
        "user": SparseFeature(ids="vocabulary"),
    }
    FeatureTransform(features, "y").fit([TABLE]).save(tmp_path / "made" / "here")
    return tmp_path / "made" / "here"


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as error:
        FeatureTransform.load(folder)
    assert "\n" not in str(error.value)


def test_one_that_is_not_fitted_stays_so(tmp_path):
    transform = FeatureTransform({"x": DenseFeature(), "user": SparseFeature()})
    transform.save(tmp_path)
    loaded = FeatureTransform.load(tmp_path)
    assert loaded.needs_fit
    assert loaded.label is None
    assert loaded.fit([TABLE])(TABLE).dense_features.shape == (3, 1)


def test_kinds_of_ids_are_remembered(saved):
    loaded = FeatureTransform.load(saved)
    assert loaded.label == "y"
    with pytest.raises(ValueError, match=r"should hold strings, as in training. Received int64"):
        loaded(pa.table({"x": [1.0], "user": [5]}), labels=False)


@pytest.mark.parametrize("name", ["transform.json", "transform.arrow"])
def test_missing_files(saved, name):
    (saved / name).unlink()
    refused(saved, f"here' should hold a saved transform. Received no {name}")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"state": ' * 300 + "1" + "}" * 300])
def test_nesting_without_end(saved, text):
    (saved / "transform.json").write_text(text)
    refused(saved, "should hold a whole transform. Received what is no JSON")


def test_another_file(saved):
    (saved / "transform.json").write_text("[]")
    refused(saved, "should hold a whole transform. Received no document of format")
    (saved / "transform.json").write_text("{")
    refused(saved, "Received what is no JSON")
    (saved / "transform.json").write_bytes(b"\xff\xfe")
    refused(saved, "Received what is no JSON")


@pytest.mark.parametrize("version", [4, "1", None])
def test_newer_versions(saved, version):
    document = json.loads((saved / "transform.json").read_text())
    (saved / "transform.json").write_text(json.dumps({**document, "version": version}))
    refused(saved, f"version 3 or earlier. Received version {version}: a newer version")


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_changed_byte(saved, where):
    path = saved / "transform.arrow"
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(bytes(data))
    refused(saved, "contents that do not have the digest")


def test_a_changed_number(saved):
    path = saved / "transform.json"
    document = json.loads(path.read_text())
    document["state"]["scales"]["x"][0] += 1e-12
    path.write_text(json.dumps(document))
    refused(saved, "contents that do not have the digest")


def test_half_a_file(saved):
    path = saved / "transform.arrow"
    path.write_bytes(path.read_bytes()[:100])
    refused(saved, "contents that do not have the digest")
