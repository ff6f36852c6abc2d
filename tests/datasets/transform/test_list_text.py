"""Lists written as text, and what their ids are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from torchrec.datasets.features import AnyFeature, MultiHotFeature, SequenceFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.transform.list_text import split_brackets

pytestmark = pytest.mark.once

LISTS = [
    ["a", "b"],
    ["it's", 'say "x"', "\"'"],
    ["a, b", "[c]", "(d)"],
    [],
    ["é", "日本", "😀"],
    ["back\\slash", "tab\t", "line\n"],
    [1, -2, 30],
    ["one"],
]


@pytest.mark.parametrize(
    "write",
    [repr, json.dumps, lambda one: json.dumps(one, indent=1), lambda one: repr(tuple(one))],
    ids=["python", "json", "json on lines", "tuples"],
)
def test_text_gives_back_the_list_that_was_written(write: Callable[[object], str]) -> None:
    written = pa.array([write(one) for one in LISTS])
    assert split_brackets(written).to_pylist() == [[str(part) for part in one] for one in LISTS]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[1 2\n 3]", ["1", "2", "3"]),
        (str(np.array(["a", "b c"])), ["a", "b c"]),
        ("[1.0, 20.]", ["1", "20"]),
        ('{1,NULL,"New York",Rome}', ["1", None, "New York", "Rome"]),
        ("[None, nan, 'None']", [None, None, "None"]),
        ("[New York]", ["New York"]),
        (" [ a ,b ] ", ["a", "b"]),
        ("['a',]", ["a"]),
        ("['', 'a']", ["", "a"]),
        ("[007]", ["007"]),
        ("[]", []),
        ("", []),
        ("a", ["a"]),
        (None, None),
    ],
)
def test_other_ways_to_write_lists(text: str | None, parts: list[str | None] | None) -> None:
    beside = ["[0]", None, "['x', 'y']"]
    found = split_brackets(pa.array([*beside, text, *beside]).slice(1)).to_pylist()
    assert found == [None, ["x", "y"], parts, ["0"], None, ["x", "y"]]


@pytest.mark.parametrize("weighted", [False, True], ids=["ids", "with weights"])
def test_lists_in_brackets_are_bags_as_lists_are(weighted: bool) -> None:
    tags, weights = (
        [["a", "b"], None, [], ["b", None, "a"]],
        [[1.0, 0.5], None, [], [2.0, 3.0, 4.0]],
    )
    options = {"rows": 50, "weights": "w" if weighted else None}
    as_lists = pa.table({"tags": tags, "w": weights})
    as_text = pa.table(
        {
            "tags": ["['a', 'b']", None, "[]", '["b", null, "a"]'],
            "w": ["[1.0, .5]", None, "[]", "[2 3. 4]"],
        }
    )
    lists = FeatureTransform({"tags": MultiHotFeature(**options)}).fit([as_lists])
    text = FeatureTransform({"tags": MultiHotFeature(separator="[]", **options)}).fit([as_text])
    expected, found = lists(as_lists).sparse_features, text(as_text).sparse_features
    assert found.lengths().tolist() == [2, 0, 0, 2]
    assert torch.equal(found.values(), expected.values())
    assert torch.equal(found.lengths(), expected.lengths())
    if weighted:
        assert found.weights().tolist() == [1.0, 0.5, 2.0, 4.0]


IDS = {"item": [1005, 1010, 1005, 1010], "seen": ["1010|1005", None, "1005", "1010||1005|9"]}


@pytest.mark.parametrize("ids", ["hash", "vocabulary", "plain", "managed"])
@pytest.mark.parametrize("order", [["item", "seen"], ["seen", "item"]], ids="-".join)
def test_text_shares_the_table_of_integers(ids: str, order: list[str], tmp_path: Path) -> None:
    rows = None if ids == "vocabulary" else 2000
    options = {"table": "item", "ids": ids, "rows": rows}
    declared: dict[str, AnyFeature] = {
        "item": SparseFeature(**options),
        "seen": SequenceFeature(separator="|", **options),
    }
    features = {name: declared[name] for name in order}
    table = pa.table(IDS)
    lists = [text and [int(one) for one in text.split("|") if one] for text in IDS["seen"]]
    as_lists = table.set_column(1, "seen", pa.array(lists))
    expected = FeatureTransform(features).fit([as_lists])(as_lists).sparse_features
    transform = FeatureTransform(features).fit([table])
    transform.save(tmp_path)
    for one in (transform, FeatureTransform.load(tmp_path)):
        found = one(table).sparse_features
        assert torch.equal(found.values(), expected.values())
        assert torch.equal(found.lengths(), expected.lengths())
        few = one.encode(IDS, 4).sparse_features
        assert torch.equal(few.values(), expected.values())
        assert one.kinds == {"item": "integers", "seen": "integers"}


def test_text_that_is_no_integer_does_not_share_a_table_of_integers() -> None:
    options = {"table": "item", "rows": 100}
    features = {
        "item": SparseFeature(**options),
        "seen": SequenceFeature(separator="|", **options),
    }
    table = pa.table({"item": [1, 2], "seen": ["1|2", "x|1"]})
    transform = FeatureTransform(features).fit([table])
    with pytest.raises(
        ValueError,
        match="Column 'seen' of feature 'seen' should hold whole numbers between the separators, as "
        "other columns of its table do",
    ):
        transform(table)


def test_text_of_a_table_of_strings_stays_text() -> None:
    options = {"table": "item", "rows": 100}
    features = {
        "item": SparseFeature(**options),
        "seen": SequenceFeature(separator="|", **options),
    }
    table = pa.table({"item": ["1", "2"], "seen": ["1|2", "2"]})
    transform = FeatureTransform(features).fit([table])
    assert transform.kinds == {"item": "strings", "seen": "strings"}
    batch = transform(table).sparse_features
    assert batch["seen"].values()[0] == batch["item"].values()[0]
