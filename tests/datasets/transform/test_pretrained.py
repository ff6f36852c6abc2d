"""Tables that begin with vectors of another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from torchrec.datasets.features import SparseFeature
from torchrec.datasets.initial_weights import Pretrained
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.transform.pretrained import PretrainedRows

pytestmark = pytest.mark.once

VECTORS = {"b": [1.0, 2.0], "z": [9.0, 9.0], "a": [3.0, 4.0]}


def rule_for(folder: Path, **options: object) -> Pretrained:
    path = folder / "vectors.parquet"
    vectors = {"id": list(VECTORS), "vector": list(VECTORS.values())}
    pq.write_table(pa.table(vectors), path)
    return Pretrained.model_validate({"file": str(path), **options})


def filled(
    rule: Pretrained, ids: list[object], kind: str = "vocabulary", dim: int = 2
) -> list[list[float]]:
    feature = SparseFeature.model_validate({"ids": kind, "table": "t", "init": rule})
    transform = FeatureTransform({"x": feature}).fit([pa.table({"x": ids})])
    (spec,) = transform.tables
    weight = torch.full((spec.rows or 0, dim), torch.nan)
    return PretrainedRows(rule, spec, transform.rows_of)(weight).tolist()


@pytest.mark.parametrize(
    ("missing", "other"), [("zeros", [0, 0]), ("mean", [13 / 3, 5])], ids=["zeros", "mean"]
)
def test_ids_have_their_vectors(tmp_path, missing, other):
    rows = filled(rule_for(tmp_path, missing=missing), ["a", "c", "a", "b", "a", "b"])
    expected = [VECTORS["a"], VECTORS["b"], other, other]  # by frequency, and unknown ids
    torch.testing.assert_close(rows, torch.tensor(expected).tolist())


@pytest.mark.parametrize(("kind", "ids"), [("plain", [3, 0, 1]), ("vocabulary", [1, 1, 3])])
def test_a_matrix_has_the_vectors_of_its_rows(tmp_path, kind, ids):
    matrix = np.arange(6).reshape(3, 2)
    np.save(tmp_path / "v.npy", matrix)
    rows = filled(Pretrained(file=str(tmp_path / "v.npy")), ids, kind)
    assert rows == [[0, 1], [2, 3], [4, 5], [0, 0]] if kind == "plain" else [[2, 3], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("options", "ids", "dim", "message"),
    [
        ({"id": "ids"}, ["a"], 2, "`id` of pretrained vectors should name a column of .*did you mean `id`"),
        ({"vector": "id"}, ["a"], 2, "Column 'id' of .* should hold lists of numbers. Received string"),
        ({}, ["a"], 3, "Table 't' should have the dimension of the vectors in .*, 2: `dim`.* Received 3"),
        ({}, ["x"], 2, "should have vectors of ids of table 't'. Received 3 of other ids"),
        ({}, [7], 2, "Ids of table 't' should be integers, as in training. Received string"),
        ({"file": "v.csv"}, ["a"], 2, "`file` of pretrained vectors should be Parquet or .npy"),
        ({"file": "none.npy"}, [1], 2, "'none.npy' should be a matrix of NumPy. Received"),
    ],
    ids=["id", "vector", "dim", "others", "kind", "format", "file"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, options, ids, dim, message):
    with pytest.raises(ValueError, match=message):
        filled(rule_for(tmp_path, **options), ids, dim=dim)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0], [1.0, 2.0]], "a vector in each row, all of one length. Received lengths from 1 to 2"),
        ([[1.0, 2.0], None], "a vector in each row, all of one length. Received lengths from 0 to 2"),
        ([[1.0, None], [1.0, 2.0]], "should hold finite numbers. Received others, or missing ones"),
        ([["1"], ["2"]], "should hold lists of numbers. Received list<.*string>"),
    ],
    ids=["lengths", "null", "number", "text"],
)  # fmt: skip
def test_vectors_that_are_none_are_refused(tmp_path, vectors, message):
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "vector": vectors}), path)
    with pytest.raises(ValueError, match=message):
        filled(Pretrained(file=str(path)), ["a"])


@pytest.mark.parametrize("rows_together", [1, 9], ids=["groups", "one group"])
def test_two_vectors_of_an_id_of_the_table_are_refused(tmp_path, rows_together):
    table = pa.table({"id": ["z", "z", "a", "b", "a"], "vector": [[1.0]] * 5})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=rows_together)
    rule = Pretrained(file=str(tmp_path / "v.parquet"))
    with pytest.raises(
        ValueError, match=r"should have one vector of each id\. Received another of 'a'"
    ):
        filled(rule, ["a", "b"], dim=1)
    assert filled(rule, ["b"], dim=1) == [[1], [0]]


def test_a_matrix_of_no_numbers_is_refused(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros(3))
    with pytest.raises(
        ValueError, match=r"a matrix of numbers, .* Received shape \(3,\) of float64"
    ):
        filled(Pretrained(file=str(tmp_path / "v.npy")), [1])


@pytest.mark.parametrize("kind", ["hash", "managed"])
def test_ids_that_share_rows_are_refused(kind):
    with pytest.raises(ValidationError, match="`init` should have another rule than pretrained"):
        SparseFeature(ids=kind, init=Pretrained(file="v.npy"))
