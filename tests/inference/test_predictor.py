"""Predictions from saved models: those of the model in memory, from whatever columns come in."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import torchrec.inference
from torchrec.bundle import save_bundle
from torchrec.datasets.features import (
    AnyFeature,
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
)
from torchrec.datasets.source import TableSource
from torchrec.datasets.transform import FeatureTransform, storage
from torchrec.experiment.build import build_model, table_optimizer
from torchrec.experiment.files import FILE_NAME, dump_experiment
from torchrec.experiment.schema import Experiment
from torchrec.inference import Predictor
from torchrec.inference.columns import to_table
from torchrec.inference.rows import plain_columns
from torchrec.models.registry import find, names
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.threads import using_threads
from torchrec.types import IdPolicy

ROWS = 500
FEATURES: dict[str, AnyFeature] = {
    "user": SparseFeature(ids="vocabulary", min_count=2),
    "shop": SparseFeature(ids="plain", rows=20, out_of_range=IdPolicy.UNKNOWN),
    "price": DenseFeature(log=True),
    "age": DenseFeature(buckets=4),
    "tags": MultiHotFeature(rows=50, separator="|"),
    "seen": SequenceFeature(rows=100, weights="seen_weights", max_length=3, column="history"),
}


def make_table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    history = [random.integers(0, 99, random.integers(0, 6)).tolist() for _ in range(rows)]
    names = np.array([f"user-{i}" for i in range(80)], dtype=object)
    return pa.table(
        {
            "user": random.choice(names, rows).tolist(),
            "unused": ["text"] * rows,
            "shop": random.integers(0, 20, rows),
            "price": np.exp(random.normal(size=rows)),
            "age": random.uniform(18, 80, rows),
            "tags": ["|".join(random.choice(list("abcdef"), 2)) for _ in range(rows)],
            "history": history,
            "seen_weights": [random.random(len(ids)).tolist() for ids in history],
            "click": random.integers(0, 2, rows),
        }
    )


def trained(
    name: str, folder: Path, features: dict[str, AnyFeature] = FEATURES
) -> tuple[FeatureTransform, nn.Module]:
    """Save a model after a few steps of training; return it as it is in memory."""
    table = make_table()
    options = {"dropout": 0.5, "batch_norm": True}
    section = find(name).section.model_fields
    experiment = Experiment.model_validate(
        {
            "data": {"train": "/data/clicks.parquet", "label": "click"},
            "features": features,
            "model": {
                "name": name,
                "dim": 8,
                **{key: value for key, value in options.items() if key in section},
            },
            "training": {"embedding_optimizer": "adagrad", "learning_rate": 0.05},
        }
    )
    transform = FeatureTransform(features, "click").fit([table])
    model = build_model(experiment.model, experiment.training, transform)
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1
    )
    for start in range(0, ROWS, 100):
        batch = transform(table.slice(start, 100))
        logits = model(batch.dense_features, batch.sparse_features).squeeze(-1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_bundle(
        folder,
        model,
        transform,
        experiment.model,
        table_optimizer(experiment.training),
        {FILE_NAME: dump_experiment(experiment)},
    )
    return transform, model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trained("dlrm_dcn", folder / "model")
    return folder


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return torchrec.inference.load(run)


def in_memory(
    transform: FeatureTransform, model: nn.Module, table: pa.Table, batch_size: int
) -> Tensor:
    """Predict as the model does; on one thread where few rows are, as the predictor."""
    parts = []
    with torch.no_grad():
        for start in range(0, table.num_rows, batch_size):
            batch = transform(table.slice(start, batch_size), labels=False)
            few = batch.labels.numel() < 256
            with using_threads(1) if few else nullcontext():
                logits = model(batch.dense_features, batch.sparse_features)
            parts.append(torch.sigmoid(logits.squeeze(-1)))
    return torch.cat(parts)


@pytest.mark.parametrize("name", names())
def test_predicts_what_the_model_in_memory_does(name: str, tmp_path: Path) -> None:
    """Bit for bit with the same batches, and but for rounding with others."""
    transform, model = trained(name, tmp_path / "model")
    predictor = torchrec.inference.load(tmp_path)
    table = make_table(rows=301, seed=1)
    whole = in_memory(transform, model, table, 1000)
    for batch_size in (1, 7, 64, 300, 1000):
        part = table.slice(0, 9 * batch_size)
        expected = in_memory(transform, model, part, batch_size)
        got = predictor.predict(part, batch_size=batch_size)
        assert torch.equal(got, expected)
        torch.testing.assert_close(got, whole[: len(got)], rtol=0, atol=1e-6)
    assert torch.equal(predictor.predict(table), whole)
    assert len(whole.unique()) > 100


@pytest.mark.parametrize("evict", ["lfu", "lru", "distance_lfu"])
def test_managed_ids_keep_their_rows(tmp_path: Path, evict: str) -> None:
    user = SparseFeature.model_validate(
        {"ids": "managed", "rows": 60, "evict": evict, "evict_every": 2}
    )
    transform, model = trained("dlrm", tmp_path / "model", {"user": user, "price": DenseFeature()})
    predictor = torchrec.inference.load(tmp_path)
    table = make_table(rows=301, seed=1)
    expected = in_memory(transform, model, table, 301)
    for _ in range(3):  # asking does not move ids
        assert torch.equal(predictor.predict(table), expected)
    strangers = {"user": ["new-1", "new-2"], "price": [1.0, 1.0]}
    one, two = predictor.predict(strangers)
    assert one == two


FORMS: dict[str, Callable[[pa.Table], object]] = {
    "table": lambda table: table,
    "record batch": lambda table: table.combine_chunks().to_batches()[0],
    "reader": lambda table: table.to_reader(max_chunksize=50),
    "pandas": lambda table: table.to_pandas(),
    "pandas, other index": lambda table: table.to_pandas().set_index("click"),
    "polars": pl.from_arrow,
    "lists": lambda table: table.to_pydict(),
    "rows": lambda table: table.to_pylist(),
    "numpy": lambda table: {name: table[name].to_numpy() for name in table.column_names},
    "arrow arrays": lambda table: {name: table[name] for name in table.column_names},
    "tensors": lambda table: {
        name: torch.from_numpy(column.to_numpy().copy())
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    },
    "lists of tensors": lambda table: {
        **table.to_pydict(),
        "history": [torch.tensor(ids, dtype=torch.int64) for ids in table["history"].to_pylist()],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_columns_come_in(predictor: Predictor, form: str) -> None:
    table = make_table(rows=120, seed=2)
    assert torch.equal(predictor.predict(FORMS[form](table)), predictor.predict(table))


@pytest.mark.parametrize("form", ["table", "pandas", "polars", "lists", "rows"])
def test_label_and_other_columns_may_be_missing(predictor: Predictor, form: str) -> None:
    table = make_table(rows=50)
    expected = predictor.predict(table)
    assert torch.equal(predictor.predict(FORMS[form](table.drop(["click", "unused"]))), expected)


@pytest.mark.parametrize("form", ["table", "pandas", "polars", "lists", "rows"])
def test_columns_that_are_not_read_may_be_anything(predictor: Predictor, form: str) -> None:
    table = make_table(rows=50)
    odd = table.set_column(1, "unused", pa.array([{"a": 1}] * 50))
    assert torch.equal(predictor.predict(FORMS[form](odd)), predictor.predict(table))


def test_one_sample(predictor: Predictor) -> None:
    table = make_table(rows=3)
    for row, sample in enumerate(table.to_pylist()):
        got = predictor.predict(sample)
        assert got.shape == (1,)
        assert torch.equal(got, predictor.predict(table.slice(row, 1)))


class Sum(nn.Module):
    """A model whose logits have no second dimension."""

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        return dense.sum(1)


def of_numbers(*names: str) -> Predictor:
    """A predictor that adds numbers up."""
    features = {name: DenseFeature(standardise=False, fill=0) for name in names}
    experiment = Experiment.model_validate(
        {"data": {"train": "/data/clicks.parquet", "label": "click"}, "features": features}
    )
    return Predictor(experiment, FeatureTransform(features), Sum())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_logits_of_one_dimension(batch_size: int) -> None:
    logits = of_numbers("a").logits({"a": [1.0, 2.0, 3.0]}, batch_size=batch_size)
    assert logits.tolist() == [1, 2, 3]


def test_what_is_not_finite_is_refused() -> None:
    predictor = of_numbers("a", "b")
    data = {"a": [1.0, 0.0, 3e38, 3e38], "b": [1.0, 1.0, 3.2e38, 0.0]}
    message = (
        r"should be finite\. Received inf for row 2, where dense feature 'b' is 3\.2e\+38 once "
        r"scaled; 1 of 2 rows are like this"
    )
    for predict in (predictor.predict, predictor.logits):
        with pytest.raises(ValueError, match=message):
            predict(data, batch_size=2)


DAY, SECONDS = datetime.datetime(2024, 3, 1), 1_709_251_200.0


@pytest.mark.parametrize(
    "value",
    [
        DAY,
        DAY.date(),
        pd.Timestamp(DAY),
        *(np.datetime64(DAY, unit) for unit in ("M", "D", "h", "s", "ns")),
        np.array(np.datetime64(DAY, "h")),
    ],
    ids=repr,
)
def test_one_time_is_one_sample_and_several_are_a_column(value: object) -> None:
    predictor = of_numbers("at")
    assert predictor.logits({"at": value}).tolist() == [SECONDS]
    expected = [SECONDS, 0, SECONDS]
    assert predictor.logits({"at": [value, None, value]}).tolist() == expected
    assert predictor.logits({"at": np.array([value], "M8[h]")}).tolist() == expected[:1]


def test_durations_of_numpy() -> None:
    days = [np.timedelta64(2, "D"), None, np.timedelta64(5, "ms")]
    assert of_numbers("for").logits({"for": days}).tolist() == pytest.approx([172_800, 0, 0.005])


def test_no_rows(predictor: Predictor) -> None:
    table = make_table(rows=4).slice(0, 0)
    assert predictor.predict(table).shape == (0,)
    assert predictor.predict(table.to_pandas()).shape == (0,)
    assert predictor.predict([]).shape == (0,)


def test_rows_have_every_column(predictor: Predictor) -> None:
    rows = make_table(rows=3).to_pylist()
    rows[1]["price"] = None
    assert predictor.predict(rows).shape == (3,)
    del rows[1]["price"]
    with pytest.raises(
        ValueError, match=r"'price', None where .* Received row 1 without it: user,"
    ):
        predictor.predict(rows)


def test_rows_stay_in_order(predictor: Predictor) -> None:
    table = make_table(rows=200)
    order = np.random.default_rng(3).permutation(200)
    straight = predictor.predict(table, batch_size=200)
    torch.testing.assert_close(
        predictor.predict(table.take(order), batch_size=200), straight[order], rtol=0, atol=1e-6
    )


def test_nulls_and_unknown_values(predictor: Predictor) -> None:
    table = make_table(rows=2)
    columns = {
        **table.to_pydict(),
        "user": ["nobody", None],
        "shop": [77, 3],
        "price": [None, float("inf")],
        "tags": [None, ""],
        "history": [[], None],
        "seen_weights": [[], None],
    }
    predictor.counts(reset=True)
    assert predictor.predict(columns).isfinite().all()
    features, tables = predictor.counts(reset=True)
    assert (features["user"].unknown, features["user"].missing) == (1, 1)
    assert (features["price"].missing, features["price"].infinite) == (1, 1)
    assert tables["shop"] == 1
    features, tables = predictor.counts()
    assert (features["user"].samples, tables["shop"]) == (0, 0)


def test_logits(predictor: Predictor) -> None:
    table = make_table(rows=100)
    assert torch.equal(torch.sigmoid(predictor.logits(table)), predictor.predict(table))


def test_streams(predictor: Predictor) -> None:
    table = make_table(rows=100)
    pieces = list(predictor.predict_batches(table.to_batches(max_chunksize=30)))
    assert [len(piece) for piece in pieces] == [30, 30, 30, 10]
    assert torch.equal(torch.cat(pieces), predictor.predict(table, batch_size=30))


@pytest.mark.parametrize("as_rows", [False, True])
def test_threads(predictor: Predictor, as_rows: bool) -> None:
    """Tables of some dozens, and a row each, which takes the way without Arrow."""
    tables = [make_table(rows=40 + i, seed=i) for i in range(32)]
    data = [table.slice(0, 1).to_pylist() if as_rows else table for table in tables]
    expected = [predictor.predict(one) for one in data]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(predictor.predict, data))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("rows", [1, 7, 64, 100, 255])
def test_few_rows_do_not_depend_on_the_number_of_threads(predictor: Predictor, rows: int) -> None:
    """Small products sum in another order on several threads; the predictor takes one."""
    found = []
    for threads in (1, 2, 3):
        with using_threads(threads):
            found.append(predictor.predict(make_table(rows=rows)))
            found.append(predictor.predict(make_table(rows=rows).to_pylist()))
    assert all(torch.equal(found[0], other) for other in found)


def test_many_rows_are_measured(predictor: Predictor) -> None:
    """The predictor tries one thread and those that there were; what was set for the caller stays."""
    before = torch.get_num_threads()
    for _ in range(3):
        predictor.predict(make_table(rows=300))
    assert torch.get_num_threads() == before


def test_a_copy_predicts_the_same(predictor: Predictor) -> None:
    rows = make_table(rows=5).to_pylist()
    expected = predictor.predict(rows)
    for other in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert torch.equal(other.predict(rows), expected)


def test_state_does_not_change(predictor: Predictor) -> None:
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    first = predictor.predict(make_table())
    assert not first.requires_grad
    assert torch.equal(predictor.predict(make_table()), first)
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(before[name], value)


def test_run_folder_or_bundle(run: Path) -> None:
    table = make_table(rows=20)
    one, two = torchrec.inference.load(run), torchrec.inference.load(str(run / "model"))
    assert torch.equal(one.predict(table), two.predict(table))


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"A bundle should be a folder with bundle\.json"):
        torchrec.inference.load(tmp_path)


@pytest.mark.parametrize("form", ["table", "record batch", "pandas", "polars", "lists", "rows"])
def test_missing_column(predictor: Predictor, form: str) -> None:
    table = make_table(rows=5).rename_columns(
        ["usr", "unused", "shop", "price", "age", "tags", "history", "seen_weights", "click"]
    )
    with pytest.raises(ValueError, match=r"(?s)Column 'user' of feature 'user'.*'usr'") as caught:
        predictor.predict(FORMS[form](table))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": [1.0]}, r"Columns should have the same length\. Received .*'price': 1"),
        (
            {"shop": [1, "two", 3]},
            r"Column 'shop' should hold integers, as in training\. Received 'two' in row 1\.",
        ),
        (
            {"price": [None, 2.5, "dear"]},
            r"Column 'price' should hold numbers, as in training\. Received 'dear' in row 2\.",
        ),
        (
            {"tags": ["a|b", None, ["a"]]},
            r"Column 'tags' should hold values of one type\. Received .* cannot take in row 2: ",
        ),
        ({"shop": [2**70, 1, 1]}, r"Column 'shop' should hold values of one type\."),
        ({"price": [np.datetime64("2024-01-01"), "x", 1]}, "'price' should .* a mixture of times"),
        ({"price": [np.timedelta64(1, "s"), "x", 1]}, "'price' should .* a mixture of times"),
        (
            {"price": ["dear", "cheap", "fair"]},
            "Column 'price' of feature 'price' should hold numbers",
        ),
        (
            {"user": [1, 2, 3]},
            "Column 'user' of feature 'user' should hold strings, as in training",
        ),
    ],
)
def test_columns_of_a_wrong_kind(
    predictor: Predictor, change: dict[str, object], message: str
) -> None:
    columns = {**make_table(rows=3).to_pydict(), **change}
    with pytest.raises(ValueError, match=message) as caught:
        predictor.predict(columns)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_none(predictor: Predictor) -> None:
    columns = {**make_table(rows=3).to_pydict(), "price": object()}
    with pytest.raises(
        TypeError, match="Column 'price' should be a list, an array or a single value"
    ):
        predictor.predict(columns)


def test_data_of_no_known_kind(predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=r"or an Arrow table\. Received list\."):
        predictor.predict([1, 2])
    for column in (pl.Series([1, 2]), pl.Series(["a"]), np.ones(3)):
        with pytest.raises(TypeError, match=r"or an Arrow table\. Received (Series|ndarray)\."):
            predictor.predict(column)
    with pytest.raises(ValueError, match=r"`batch_size` should be at least 1\. Received 0\."):
        predictor.predict(make_table(rows=2), batch_size=0)


def test_pandas_missing_values(predictor: Predictor) -> None:
    """pandas turns integers with gaps to floating point, and has several kinds of nothing."""
    frame = make_table(rows=3).to_pandas()
    frame["shop"] = pd.Series([1.0, float("nan"), 3.0])
    frame["user"] = pd.Series(["user-1", None, float("nan")], dtype=object)
    columns = {
        **make_table(rows=3).to_pydict(),
        "shop": [1, None, 3],
        "user": ["user-1", None, None],
    }
    assert torch.equal(predictor.predict(frame), predictor.predict(columns))


def test_a_row_of_a_frame_is_a_sample(predictor: Predictor) -> None:
    frame = make_table(rows=4).to_pandas()
    expected = predictor.predict(frame)
    for number in range(4):
        assert torch.equal(predictor.predict(frame.iloc[number]), expected[number : number + 1])
    gap = frame.iloc[0].copy()
    gap["shop"], gap["user"], gap["price"] = pd.NA, None, float("nan")
    columns = {name: [value] for name, value in frame.iloc[0].items()}
    missing = {"shop": [None], "user": [None], "price": [None]}
    assert torch.equal(predictor.predict(gap), predictor.predict(columns | missing))
    with pytest.raises(ValueError, match=r"'age' should be in the table once\. Received 2"):
        predictor.predict(pd.concat([frame.iloc[0], pd.Series({"age": 3.0})]))
    with pytest.raises(ValueError, match="Column 'user' of feature 'user'"):
        predictor.predict(frame.iloc[0].drop("user"))


@pytest.fixture(scope="module")
def shop_and_age(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("numbers")
    trained("lr", folder, {"shop": SparseFeature(rows=50), "age": DenseFeature()})
    return torchrec.inference.load(folder)


@pytest.mark.parametrize("dtype", ["float64", "float32", "Float64", "int64", "uint8", object])
def test_a_row_of_numbers_has_whatever_dtype_pandas_gives_it(
    shop_and_age: Predictor, dtype: str | type
) -> None:
    """pandas makes one of integers and floats one of floats: a whole number is the id that it was."""
    row = pd.Series({"shop": 7, "age": 30}, dtype=dtype)
    assert torch.equal(
        shop_and_age.predict(row), shop_and_age.predict({"shop": [7], "age": [30.0]})
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pd.Series({"shop": 7.5, "age": 30.0}), "'shop' should hold whole numbers .* Received 7.5"),
        (pd.Series({"shop": "7", "age": "30"}), "'age' should hold numbers.* Received string"),
        (pd.Series({"shop": "7", "age": 30}), "'shop' of feature 'shop' should hold integers"),
        (pd.Series({"shop": 7, "age": "30"}, dtype="string"), "'age' should hold numbers"),
        (pd.Series({"shop": pd.Timestamp("2024-01-31"), "age": 3}), "'shop' should hold integers"),
        (pd.Series({"shop": 7, "age": pd.Timedelta(days=1)}), "'age' should hold numbers"),
        (pd.Series({"shop": [1, 2], "age": 3}), "'shop' should hold one id a sample"),
        (pd.Series({"shop": 1 + 2j, "age": 3}), "'shop' should hold integers, as in training"),
        (pd.Series({"shop": {"a": 1}, "age": 3}), "'shop' should hold integers or strings"),
        (pd.Series([7, 30]), "Column 'shop' of feature 'shop' .* Received the columns 0, 1"),
    ],
    ids=lambda value: " ".join(str(value).split())[:24],
)
def test_a_row_that_does_not_fit_is_refused_in_words(
    shop_and_age: Predictor, row: pd.Series, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shop_and_age.predict(row)


def test_strings_that_look_like_numbers_in_a_file(predictor: Predictor, tmp_path: Path) -> None:
    assert set(predictor.text_types.names) == {"user", "tags"}
    (tmp_path / "data.csv").write_text("user,tags\n0123,7\n")
    source = TableSource(tmp_path / "data.csv", schema=predictor.text_types)
    assert next(source.scan()).to_pydict() == {"user": ["0123"], "tags": ["7"]}


class Line(nn.Module):
    """A model that the registry does not have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        return self.line(dense_features)


def test_a_model_of_ones_own_without_an_experiment(tmp_path: Path) -> None:
    features = {"price": DenseFeature(), "age": DenseFeature(), "user": SparseFeature(rows=9)}
    table = make_table()
    transform = FeatureTransform(features, "click").fit([table])
    model = Line(2)
    save_bundle(tmp_path / "model", model, transform)
    with pytest.raises(ValueError, match="`builder` should be given for bundle"):
        torchrec.inference.load(tmp_path)
    predictor = torchrec.inference.load(tmp_path, builder=lambda t: Line(len(t.dense_names)))
    assert torch.equal(predictor.predict(table), in_memory(transform, model, table, 8192))
    assert predictor.text_types.names == ["user"]
    assert predictor.counts()[1] == {}
    with pytest.raises(ValueError, match=r"should hold experiment\.yaml, .* Received none"):
        _ = predictor.experiment


@pytest.mark.parametrize("form", ["column", "rows", "one"])
def test_ids_of_64_bits_without_a_sign(form: str) -> None:
    features = {
        "user": SparseFeature(ids="hash", rows=1_000),
        "seen": MultiHotFeature(ids="hash", rows=1_000),
    }
    transform = FeatureTransform(features)
    ids, lists = [2**63, 3, None, 2**64 - 1], [[2**64 - 5, 1], [], None, [7]]
    given = {"user": ids, "seen": lists}
    expected = pa.table(
        {"user": pa.array(ids, pa.uint64()), "seen": pa.array(lists, pa.list_(pa.uint64()))}
    )
    data: object = given
    if form == "rows":
        data = [{"user": user, "seen": seen} for user, seen in zip(ids, lists, strict=True)]
    if form == "one":
        data, expected = {"user": 2**63, "seen": [2**64 - 5, 1]}, expected.slice(0, 1)
        data = [data]
    found = transform(to_table(data, transform), labels=False).sparse_features
    wanted = transform(expected, labels=False).sparse_features
    assert found.lengths().tolist() == wanted.lengths().tolist()
    assert found.values().tolist() == wanted.values().tolist()
    with pytest.raises(ValueError, match=r"Column 'user' should hold values of one type"):
        to_table({"user": [2**64], "seen": [[1]]}, transform)
    with pytest.raises(ValueError, match=r"Column 'user' should hold values of one type"):
        to_table({"user": [2**63, -1], "seen": [[1], [2]]}, transform)


MOMENTS = [datetime.datetime(2024, 1, 1, hour, tzinfo=datetime.timezone.utc) for hour in range(4)]


@pytest.fixture
def timed() -> FeatureTransform:
    """A transform that was fitted to times."""
    features = {"at": DenseFeature(column="when"), "user": SparseFeature(rows=10)}
    moments = pa.array(MOMENTS, pa.timestamp("us", "UTC"))
    return FeatureTransform(features).fit([pa.table({"when": moments, "user": [1, 2, 3, 4]})])


@pytest.mark.parametrize("form", ["columns", "rows", "pandas", "one"])
@pytest.mark.parametrize("zone", ["Z", "+02:00", " UTC", " GMT", " +0000"])
def test_times_as_json_has_them(timed: FeatureTransform, form: str, zone: str) -> None:
    text = [moment.strftime("%Y-%m-%dT%H:%M:%S") + zone for moment in MOMENTS]
    shift = datetime.timedelta(hours=2 if zone == "+02:00" else 0)
    columns: dict[str, list[object]] = {"when": list(text), "user": [1, 2, 3, 4]}
    wanted = pa.table(columns | {"when": [moment - shift for moment in MOMENTS]})
    data: object = columns
    if form == "rows":
        data = [{"when": when, "user": user} for when, user in zip(*columns.values(), strict=True)]
    if form == "pandas":
        data = pd.DataFrame(columns)
    if form == "one":
        data, wanted = {"when": text[0], "user": 1}, wanted.slice(0, 1)
    found = timed(to_table(data, timed)).dense_features
    assert torch.equal(found, timed(wanted).dense_features)


@pytest.mark.parametrize(
    "text",
    [
        ["yesterday"],
        ["2024-01-01T00:00:00"],
        ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00"],
        ["2024-13-01"],
    ],
)
def test_text_that_is_no_time(timed: FeatureTransform, text: list[str]) -> None:
    with pytest.raises(
        ValueError,
        match=r"Column 'when' should hold zoned times, as in training: .* with a zone in every row",
    ):
        to_table({"when": text, "user": [1] * len(text)}, timed)
    empty = to_table({"when": [None, None], "user": [1, 2]}, timed)
    assert timed(empty).dense_features.isfinite().all()


def test_seconds_are_times_with_a_zone(timed: FeatureTransform) -> None:
    seconds = [moment.timestamp() + 0.25 for moment in MOMENTS]
    wanted = [moment + datetime.timedelta(seconds=0.25) for moment in MOMENTS]
    users = [1, 2, 3, 4]
    found = timed(to_table({"when": seconds, "user": users}, timed)).dense_features
    expected = timed(pa.table({"when": wanted, "user": users})).dense_features
    assert torch.equal(found, expected)
    message = (
        r"'when' should hold zoned times, .* or as seconds since 1970\. Received 1704067200250\."
    )
    with pytest.raises(ValueError, match=message):
        to_table({"when": [1000 * seconds[0]], "user": [1]}, timed)


def test_times_of_another_kind_than_in_training_are_refused() -> None:
    local = pa.array([DAY], pa.timestamp("us"))
    columns = {
        "local times": local,
        "zoned times": local.cast(pa.timestamp("us", "UTC")),
        "durations": pa.array([datetime.timedelta(1)]),
        "times of day": pa.array([datetime.time(1)]),
    }
    for kind, column in columns.items():
        transform = FeatureTransform({"at": DenseFeature()}).fit([pa.table({"at": column})])
        assert transform.kinds == {"at": kind}
        for other, given in columns.items():
            if kind != other:
                message = rf"'at' of feature 'at' should hold {kind}, as in training\. Received "
                with pytest.raises(ValueError, match=message):
                    transform(pa.table({"at": given}))
                with pytest.raises(
                    ValueError, match=message.replace("in training", "before in the training data")
                ):
                    FeatureTransform({"at": DenseFeature()}).fit(
                        [pa.table({"at": column}), pa.table({"at": given})]
                    )


def test_models_of_before_take_times_of_any_kind(timed: FeatureTransform, tmp_path: Path) -> None:
    """They did not note whether theirs had a zone."""
    timed.save(tmp_path)
    state, arrays = storage.load(tmp_path)
    before = dataclasses.replace(state, kinds={**state.kinds, "at": "times"})
    storage.save(tmp_path, before, arrays)
    loaded = FeatureTransform.load(tmp_path)
    columns: dict[str, Any] = {"when": MOMENTS, "user": [1, 2, 3, 4]}
    expected = timed(pa.table(columns)).dense_features
    columns["when"] = [moment.replace(tzinfo=None) for moment in MOMENTS]
    assert torch.equal(loaded(pa.table(columns)).dense_features, expected)
    columns["when"] = [moment.isoformat() for moment in columns["when"]]
    assert torch.equal(loaded(to_table(columns, loaded)).dense_features, expected)
    assert torch.equal(
        loaded.encode(*plain_columns(columns, loaded.input_columns)).dense_features, expected
    )
