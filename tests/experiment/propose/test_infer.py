"""What columns are taken for, and the experiment file that says so."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from torchrec.datasets.features import DenseFeature
from torchrec.datasets.source import TableSource
from torchrec.datasets.text_dialect import TextDialect
from torchrec.datasets.transform import FeatureTransform
from torchrec.datasets.transform.sketches import DistinctCounter
from torchrec.experiment.files import load_experiment
from torchrec.experiment.propose import Inference, infer_features, write_experiment
from torchrec.experiment.schema import DataSection
from torchrec.experiment.sources import check_columns
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

pytestmark = pytest.mark.once

ROWS = 2000
DATA = Path(os.environ.get("ROWWISE_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def infer(
    tmp_path: Path, columns: dict[str, object], label: str = "click", **kwargs: object
) -> Inference:
    """Infer from columns written to a Parquet file, with a label if they have none."""
    length = len(next(iter(columns.values())))
    clicks = np.random.default_rng(1).integers(0, 2, length)
    table = pa.table(columns if "click" in columns else {**columns, "click": clicks})
    path = tmp_path / "data.parquet"
    pq.write_table(table, path)
    return infer_features(path, label, **kwargs)


def feature_of(tmp_path: Path, name: str, values: object) -> dict[str, object]:
    """Return what is proposed for one column, without defaults."""
    beside = {"other": np.arange(len(values)) % 3, name: values}
    feature = infer(tmp_path, beside).features[name]
    return {"type": feature.type, **feature.model_dump(mode="json", exclude_defaults=True)}


def reason_of(tmp_path: Path, name: str, values: object) -> str:
    """Return why one column is left out."""
    beside = {"other": np.arange(len(values)) % 3, name: values}
    inference = infer(tmp_path, beside)
    assert name not in inference.features
    return next(column.reason for column in inference.columns if column.name == name)


def drawn(random: np.random.Generator, choices: list[object], rows: int = ROWS) -> list[object]:
    return [choices[at] for at in random.integers(0, len(choices), rows)]


class TestRoles:
    def test_numbers(self, tmp_path: Path, random: np.random.Generator) -> None:
        assert feature_of(tmp_path, "x", random.normal(size=ROWS)) == {"type": "dense"}

    def test_long_tails_get_a_logarithm(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = np.exp(2 * random.normal(size=ROWS))
        assert feature_of(tmp_path, "price", values) == {"type": "dense", "log": True}

    def test_counts_are_numbers(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = random.poisson(3, ROWS)
        assert feature_of(tmp_path, "num_clicks", values) == {"type": "dense"}

    def test_negative_integers_are_numbers(
        self, tmp_path: Path, random: np.random.Generator
    ) -> None:
        assert feature_of(tmp_path, "x", random.integers(-50, 50, ROWS)) == {"type": "dense"}

    def test_sparse_integers_without_a_telling_name_are_numbers(
        self, tmp_path: Path, random: np.random.Generator
    ) -> None:
        values = (random.random(ROWS) ** 3 * 100_000).astype(np.int64) // 10
        assert feature_of(tmp_path, "x", values)["type"] == "dense"

    @pytest.mark.parametrize("name", ["cost", "price", "amount", "num_items", "x"])
    @pytest.mark.parametrize("type", [np.int64, np.float32, np.int8], ids=str)
    def test_two_values_are_no_quantity(
        self, tmp_path: Path, random: np.random.Generator, name: str, type: type
    ) -> None:
        found = feature_of(tmp_path, name, random.integers(0, 2, ROWS).astype(type))
        assert (found["type"], found["ids"], found["rows"]) == ("sparse", "plain", 2)
        found = feature_of(tmp_path, name, random.choice([19, 49], ROWS).astype(type))
        assert (found["type"], found["ids"], found["rows"]) == ("sparse", "vocabulary", 2)

    def test_three_prices_are_a_quantity(self, tmp_path: Path, random: np.random.Generator) -> None:
        assert feature_of(tmp_path, "price", random.choice([9, 19, 49], ROWS))["type"] == "dense"
        assert feature_of(tmp_path, "x", random.choice([0.5, 1.5], ROWS))["type"] == "dense"

    def test_one_value_or_none_is_a_category(
        self, tmp_path: Path, random: np.random.Generator
    ) -> None:
        """As a number, it would be filled with itself."""
        values = pa.array([7.0 if x else None for x in random.integers(0, 2, ROWS)])
        assert feature_of(tmp_path, "price", values)["type"] == "sparse"
        assert infer(tmp_path, {"price": values}).notes["price"].endswith("One value, or none.")

    @pytest.mark.parametrize("first", [1000, 1919, 1_000_000])
    def test_ids_that_start_high_leave_no_row_empty(self, tmp_path: Path, first: int) -> None:
        for distinct in (82, 900):
            values = np.arange(ROWS) % distinct + first
            found = feature_of(tmp_path, "year_id", values)
            assert (found["ids"], found["rows"]) == ("vocabulary", distinct)

    @pytest.mark.parametrize("name", ["zip", "postcode", "zip_code", "sku", "fips", "browser"])
    def test_codes_are_categories(
        self, tmp_path: Path, random: np.random.Generator, name: str
    ) -> None:
        values = random.choice(random.integers(10_000, 99_999, 300), ROWS)
        assert feature_of(tmp_path, name, values)["type"] == "sparse"

    def test_none_of_a_few_is_one_more(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = random.integers(-1, 9, ROWS)
        assert feature_of(tmp_path, "x", values) == {
            "type": "sparse",
            "ids": "vocabulary",
            "rows": 10,
        }

    def test_small_integers(self, tmp_path: Path) -> None:
        assert feature_of(tmp_path, "occupation", np.arange(ROWS) % 21) == {
            "type": "sparse",
            "ids": "plain",
            "rows": 21,
            "out_of_range": "unknown",
        }

    def test_booleans(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = random.integers(0, 2, ROWS).astype(bool)
        assert feature_of(tmp_path, "member", values)["rows"] == 2

    def test_ids_spread_wide(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = random.choice(random.integers(0, 2**60, 300), ROWS)
        assert feature_of(tmp_path, "user_id", values) == {
            "type": "sparse",
            "ids": "vocabulary",
            "rows": 300,
            "min_count": 2,
        }

    def test_ids_that_were_turned_to_floating_point(self, tmp_path: Path) -> None:
        values = pa.array([None if i % 7 == 0 else float(i % 50) for i in range(ROWS)])
        assert feature_of(tmp_path, "item_id", values)["type"] == "sparse"

    @pytest.mark.parametrize(
        "type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    )
    def test_strings(self, tmp_path: Path, random: np.random.Generator, type: pa.DataType) -> None:
        values = pa.array(drawn(random, ["de", "fr", "us", None])).cast(type)
        assert feature_of(tmp_path, "country", values) == {
            "type": "sparse",
            "ids": "vocabulary",
            "rows": 3,
        }

    def test_more_ids_than_a_vocabulary_takes(self) -> None:
        from torchrec.experiment.propose._sizes import proposed_ids

        ids = proposed_ids(3_000_000, 0, 2**62, integers=True)
        assert (ids.ids, ids.rows) == ("hash", 1 << 22)
        assert proposed_ids(10**9, 0, 2**62, integers=True).rows == 1 << 24

    def test_lists(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = [list(range(i % 4)) for i in range(ROWS)]
        assert feature_of(tmp_path, "genres", values)["type"] == "multi_hot"

    @pytest.mark.parametrize("name", ["history", "last_clicked", "hist_items", "seqItems"])
    def test_lists_in_order(self, tmp_path: Path, name: str) -> None:
        values = [[str(i % 5), str(i % 3)] for i in range(ROWS)]
        assert feature_of(tmp_path, name, values)["type"] == "sequence"

    @pytest.mark.parametrize("separator", ["|", ",", ", ", ";", " "])
    def test_strings_that_are_lists(
        self, tmp_path: Path, random: np.random.Generator, separator: str
    ) -> None:
        words = np.array(["red", "green", "blue", "big", "small", "old", "new"])
        values = [
            separator.join(random.choice(words, random.integers(1, 4), replace=False))
            for _ in range(ROWS)
        ]
        found = feature_of(tmp_path, "tags", values)
        assert (found["type"], found["separator"], found["rows"]) == ("multi_hot", separator, 7)

    def test_strings_of_ids_in_order(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = [" ".join(map(str, random.integers(0, 10_000, 5))) for _ in range(ROWS)]
        found = feature_of(tmp_path, "history", values)
        assert (found["type"], found["separator"]) == ("sequence", " ")

    @pytest.mark.parametrize("write", [repr, json.dumps, np.array], ids=["python", "json", "numpy"])
    @pytest.mark.parametrize("kind", [int, lambda part: f"no. {part}"], ids=["integers", "words"])
    def test_lists_in_brackets(
        self,
        tmp_path: Path,
        random: np.random.Generator,
        write: Callable[[object], object],
        kind: Callable[[int], object],
    ) -> None:
        lists = [list(map(kind, range(i % 3, 20, 1 + i % 5))) for i in range(ROWS)]
        texts = [str(write(one)) for one in (*lists[:-1], [])]
        found = feature_of(tmp_path, "tags", texts)
        assert (found["type"], found["separator"], found["rows"]) == ("multi_hot", "[]", 20)

    @pytest.mark.parametrize(
        ("texts", "reason"),
        [
            (
                ["[0.25, 1.5]", "[0.5, 1e-05, 2]"],
                "lists of numbers are a feature where all have one",
            ),
            (["[[1, 2], [3]]", "[[3]]"], "records or lists in lists, written as text"),
            (['{"a": 1}', "{'b': 2}"], "records or lists in lists, written as text"),
        ],
        ids=["lengths", "nested", "records"],
    )
    def test_lists_that_are_no_feature(
        self, tmp_path: Path, random: np.random.Generator, texts: list[str], reason: str
    ) -> None:
        assert reason_of(tmp_path, "x", drawn(random, texts)).startswith(reason)

    def test_some_words_in_brackets_are_no_lists(
        self, tmp_path: Path, random: np.random.Generator
    ) -> None:
        found = feature_of(tmp_path, "title", drawn(random, ["(None)", "Heat (1995)", "[REC]"]))
        assert (found["type"], "separator" in found) == ("sparse", False)

    def test_titles_are_no_lists(self, tmp_path: Path, random: np.random.Generator) -> None:
        titles = [f"The {word} of {i}, Part {i % 7}" for i, word in enumerate("abcdefgh" * 20)]
        found = feature_of(tmp_path, "title", drawn(random, titles))
        assert (found["type"], "separator" in found) == ("sparse", False)

    @pytest.mark.parametrize("type", [pa.duration("ms"), pa.time32("s"), pa.time64("us")], ids=str)
    def test_durations_and_times_of_day_are_numbers(
        self, tmp_path: Path, type: pa.DataType
    ) -> None:
        numbers = pa.array(np.arange(ROWS, dtype=np.int64))
        values = numbers.cast(pa.int32()) if type == pa.time32("s") else numbers
        inference = infer(tmp_path, {"time_spent": values.cast(type)})
        assert inference.features["time_spent"].type == "dense"
        assert inference.time_column is None
        assert inference.notes["time_spent"].endswith("In seconds.")

    def test_half_precision(self, tmp_path: Path, random: np.random.Generator) -> None:
        values = random.normal(size=ROWS).astype(np.float16)
        assert feature_of(tmp_path, "x", values) == {"type": "dense"}

    def test_tables_are_not_named_as_attributes_of_modules(self, tmp_path: Path) -> None:
        columns = {name: np.arange(ROWS) % 5 for name in ("train", "t_train", "type", "user")}
        features = infer(tmp_path, columns).features
        tables = {name: getattr(feature, "table", None) for name, feature in features.items()}
        assert tables == {"train": "t_train_", "t_train": None, "type": "t_type", "user": None}
        EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(5, 2, spec.name, feature_names=list(spec.features))
                for spec in FeatureTransform(features, "click").tables
            ]
        )


class TestSharedTables:
    def columns(self, random: np.random.Generator, **lists: int) -> dict[str, object]:
        """Ids of items, and lists of them that begin elsewhere in their range."""
        columns: dict[str, object] = {"item_id": random.permutation(ROWS) % 1000}
        for name, first in lists.items():
            columns[name] = [list(random.integers(first, first + 800, i % 4)) for i in range(ROWS)]
        return columns

    def test_lists_share_the_table_of_their_ids(
        self, tmp_path: Path, random: np.random.Generator
    ) -> None:
        columns = self.columns(random, seen_items=100, bought_items=250)
        inference = infer(tmp_path, columns)
        for feature in inference.features.values():
            assert (feature.table, feature.ids, feature.rows) == ("item_id", "plain", 1050)
        assert inference.notes["seen_items"].endswith("Ids of `item_id`, whose table it shares.")
        transform = FeatureTransform(inference.features, "click")
        transform.fit([pq.read_table(tmp_path / "data.parquet")])
        assert [table.name for table in transform.tables] == ["item_id"]

    @pytest.mark.parametrize("write", ["|".join, lambda parts: f"[{', '.join(parts)}]"])
    @pytest.mark.parametrize("kind", [int, str], ids=["integers", "strings"])
    def test_lists_as_text_share_too(
        self,
        tmp_path: Path,
        random: np.random.Generator,
        write: Callable[[list[str]], str],
        kind: Callable[[int], object],
    ) -> None:
        columns = self.columns(random, seen_items=100)
        columns["item_id"] = [kind(int(one)) for one in columns["item_id"]]
        columns["seen_items"] = [write(list(map(str, one))) for one in columns["seen_items"]]
        features = infer(tmp_path, columns).features
        assert [one.table for one in features.values()] == ["item_id", "item_id"]
        ids = {"plain"} if kind is int else {"vocabulary"}
        assert {one.ids for one in features.values()} == ids
        transform = FeatureTransform(features, "click")
        table = pq.read_table(tmp_path / "data.parquet")
        batch = transform.fit([table])(table).sparse_features
        shared = np.isin(batch["seen_items"].values(), batch["item_id"].values()).mean()
        assert shared == 1  # all items of the lists are among those of the column

    def test_codes_with_zeros_share_no_table_of_integers(
        self, tmp_path: Path, random: np.random.Generator
    ) -> None:
        columns = self.columns(random, seen_items=100)
        lists = columns["seen_items"]
        columns["seen_items"] = ["|".join(f"{one:04}" for one in items) for items in lists]
        assert {one.table for one in infer(tmp_path, columns).features.values()} == {None}

    @pytest.mark.parametrize(
        ("name", "first"), [("seen_items", 300), ("seen_ids", 100), ("history", 100)]
    )
    def test_other_lists_have_their_own(
        self, tmp_path: Path, random: np.random.Generator, name: str, first: int
    ) -> None:
        features = infer(tmp_path, self.columns(random, **{name: first})).features
        assert [getattr(one, "table", None) for one in features.values()] == [None, None]

    def test_overlap_is_estimated_beyond_what_is_counted_exactly(self) -> None:
        small, large, both = (DistinctCounter(4096) for _ in range(3))
        small.update(np.arange(80_000, 100_000))
        large.update(np.arange(95_000))
        assert small.overlap(large) == large.overlap(small) == pytest.approx(0.75, abs=0.04)
        both.merge(small)
        both.merge(large)
        assert both.estimate() == pytest.approx(100_000, rel=0.05)


class TestLeftOut:
    def test_constant(self, tmp_path: Path) -> None:
        assert reason_of(tmp_path, "x", ["a"] * ROWS) == "the same value in every row"

    @pytest.mark.parametrize("type", [pa.null(), pa.float64(), pa.string(), pa.list_(pa.int64())])
    def test_all_null(self, tmp_path: Path, type: pa.DataType) -> None:
        assert reason_of(tmp_path, "x", pa.nulls(ROWS, type)) == "there is no value in any row"

    @pytest.mark.parametrize("kind", [int, str])
    def test_row_keys(self, tmp_path: Path, random: np.random.Generator, kind: type) -> None:
        values = [kind(key) for key in random.permutation(ROWS)]
        assert reason_of(tmp_path, "request_id", values) == "a value of its own in every row"

    def test_row_keys_of_few_rows_cannot_be_told(self, tmp_path: Path) -> None:
        assert feature_of(tmp_path, "user", ["ann", "ben", "cem"])["type"] == "sparse"

    def test_nested(self, tmp_path: Path) -> None:
        reason = reason_of(tmp_path, "x", [{"a": 1}] * ROWS)
        assert reason == "values of type struct<a: int64> are no feature"

    def test_lists_of_measurements(self, tmp_path: Path) -> None:
        reason = reason_of(tmp_path, "vector", [[0.5, 0.25], [0.5]] * (ROWS // 2))
        assert reason == "lists of numbers are a feature where all have one length, up to 4,096"

    def test_what_label_and_drop_read(self, tmp_path: Path, random: np.random.Generator) -> None:
        columns = {
            "rating": random.integers(1, 6, ROWS),
            "test": random.integers(0, 2, ROWS),
            "user": random.integers(0, 9, ROWS),
        }
        inference = infer(tmp_path, columns, "rating > 3", drop="test == 1")
        assert list(inference.features) == ["user", "click"]
        assert inference.notes["rating"].endswith("The label is made from it.")
        assert inference.notes["test"].endswith("It decides which rows are dropped.")
        assert infer(tmp_path, columns, "test").notes["test"] == "It is the label."
        assert inference.rows == int((columns["test"] == 0).sum())

    def test_only_what_is_left_out(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"a column that can be a feature\. Received none \('x': the"
        ):
            infer(tmp_path, {"x": [1] * ROWS})

    @pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "dictionary"])
    @pytest.mark.parametrize(
        ("write", "reason"),
        [
            (lambda i: f"{i / 100:.2f}".replace(".", ","), "numbers with a decimal comma"),
            (lambda i: f"{i:,.2f}".translate({44: 46, 46: 44}), "numbers with a decimal comma"),
            (lambda i: f"{i * 7:,}", "numbers with commas between thousands"),
            (lambda i: f"{i * 7:,.2f}", "numbers with commas between thousands"),
            (lambda i: f"{i % 28 + 1:02d}.{i % 12 + 1:02d}.2026 {i % 24:02d}:00", "dates"),
            (lambda i: f"{i % 12 + 1}/{i % 28 + 1}/2026", "dates"),
        ],
        ids=["decimal", "german", "thousands", "english", "moments", "days"],
    )
    def test_numbers_and_dates_as_people_write_them(
        self, tmp_path: Path, write: Callable[[int], str], reason: str, dictionary: bool
    ) -> None:
        values = pa.array([None if i % 11 == 0 else write(i % 900) for i in range(ROWS)])
        found = reason_of(tmp_path, "x", values.dictionary_encode() if dictionary else values)
        assert found.startswith(reason)
        assert ": convert them, e.g. with pandas." in found

    @pytest.mark.parametrize(
        "write",
        [
            lambda i: f"{i % 40},{i % 17}",
            lambda i: ",".join(str(100 + i % 60 + k) for k in range(i % 4 + 1)),
            lambda i: f"{i % 9}.{i % 7}.{i % 30}",
        ],
        ids=["pairs", "ids", "versions"],
    )
    def test_lists_and_versions_are_no_numbers(
        self, tmp_path: Path, write: Callable[[int], str]
    ) -> None:
        feature_of(tmp_path, "x", [write(i) for i in range(ROWS)])


class TestTime:
    @pytest.mark.parametrize(
        "values",
        [
            np.arange(ROWS) + 956_703_932,
            (np.arange(ROWS) + 956_703_932) * 1000,
            np.arange(ROWS) % 28 + 20_240_101,
            [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=i) for i in range(ROWS)],
            [datetime.date(2024, 1, 1) + datetime.timedelta(days=i % 90) for i in range(ROWS)],
        ],
        ids=["seconds", "milliseconds", "yyyymmdd", "timestamp", "date"],
    )
    def test_times(self, tmp_path: Path, values: object) -> None:
        inference = infer(tmp_path, {"user": np.arange(ROWS) % 5, "created_at": values})
        assert inference.time_column == "created_at"
        assert list(inference.features) == ["user"]

    @pytest.mark.parametrize(
        ("name", "values", "unit"),
        [
            ("x", np.arange(ROWS) // 2 + 1_600_000_000, "seconds"),
            ("x", (np.arange(ROWS) + 1_600_000_000) * 1000, "milliseconds"),
            ("start", (np.arange(ROWS) % 7 + 1.6e9) * 1e6, "microseconds"),
            ("x", np.arange(ROWS) % 28 + 20_240_101, "days as YYYYMMDD"),
            ("month", np.arange(ROWS) % 12 + 202_301, "months as YYYYMM"),
            ("hour", np.arange(ROWS) % 24 + 14_102_100, "hours as YYMMDDHH"),
            ("hour", np.arange(ROWS) % 24 + 2_014_102_100, "hours as YYYYMMDDHH"),
            ("time", np.arange(ROWS) % 60 + 20_240_131_235_900, "seconds as YYYYMMDDhhmmss"),
        ],
    )
    def test_times_as_numbers(self, tmp_path: Path, name: str, values: object, unit: str) -> None:
        inference = infer(tmp_path, {"user": np.arange(ROWS) % 5, name: values})
        assert inference.time_column == name
        assert f"A time ({unit})" in inference.notes[name]

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("x", np.random.default_rng(0).integers(1_600_000_000, 1_700_000_000, ROWS)),
            ("x", np.arange(ROWS) % 90 + 20_240_101),  # no days 32 to 90
            ("hour", np.arange(ROWS) % 24),
            ("month", np.arange(ROWS) % 12 + 1),
            ("hour", np.arange(ROWS) % 90 + 14_102_100),
        ],
        ids=["unordered", "no days", "hours", "months", "no hours"],
    )
    def test_numbers_that_are_no_times(self, tmp_path: Path, name: str, values: object) -> None:
        assert infer(tmp_path, {"user": np.arange(ROWS) % 5, name: values}).time_column is None

    @pytest.mark.parametrize("suffix", [" UTC", " GMT", "Z", "+00:00"])
    def test_text_of_time_with_its_zone(self, tmp_path: Path, suffix: str) -> None:
        times = [f"2024-01-01 {i % 24:02d}:00:00{suffix}" for i in range(ROWS)]
        inference = infer(tmp_path, {"user": np.arange(ROWS) % 5, "seen": times})
        assert list(inference.features) == ["user"]

    def test_text_of_time_is_nothing_to_split_by(self, tmp_path: Path) -> None:
        times = [f"2024-01-01 {i % 24:02d}:00:00" for i in range(ROWS)]
        inference = infer(tmp_path, {"user": np.arange(ROWS) % 5, "created_at": times})
        assert list(inference.features) == ["user"]
        assert inference.time_column is None
        assert "to split by it, store it as timestamps" in inference.notes["created_at"]

    def test_numbers_like_times_under_another_name(self, tmp_path: Path) -> None:
        inference = infer(tmp_path, {"price": np.arange(ROWS) % 1500 * 1000 + 956_703_932})
        assert inference.time_column is None


class TestLeaks:
    def test_a_copy_of_the_label(self, tmp_path: Path, random: np.random.Generator) -> None:
        click = random.integers(0, 2, ROWS)
        columns = {"user": np.arange(ROWS) % 5, "bought": click.astype(str), "click": click}
        inference = infer(tmp_path, columns)
        assert list(inference.features) == ["user"]
        assert inference.warnings == [
            "Column 'bought' is left out: it tells the label by itself; add it if it is known before "
            "the label is."
        ]

    def test_a_number_that_decides_it(self, tmp_path: Path, random: np.random.Generator) -> None:
        score = random.normal(size=ROWS)
        columns = {"user": np.arange(ROWS) % 5, "dwell": score, "click": (score > 0.3).astype(int)}
        assert list(infer(tmp_path, columns).features) == ["user"]

    def test_a_name_made_from_the_label(self, tmp_path: Path, random: np.random.Generator) -> None:
        columns = {"user": np.arange(ROWS) % 5, "click_probability": random.random(ROWS)}
        inference = infer(tmp_path, columns)
        assert list(inference.features) == ["user"]
        assert "its name says that it is made from the label" in inference.warnings[0]

    def test_a_good_feature_is_no_leak(self, tmp_path: Path, random: np.random.Generator) -> None:
        score = random.normal(size=ROWS)
        click = (score + 0.1 * random.normal(size=ROWS) > 0).astype(int)
        assert "score" in infer(tmp_path, {"score": score, "click": click}).features

    @pytest.mark.parametrize(("rows", "users", "leaks"), [(20, 20, False), (100, 20, True)])
    def test_values_that_come_once_are_no_proof(
        self, tmp_path: Path, rows: int, users: int, leaks: bool
    ) -> None:
        user = np.arange(rows) % users
        columns = {"x": np.arange(rows) % 3, "user": user.astype(str), "click": user % 2}
        assert ("user" not in infer(tmp_path, columns).features) == leaks

    def test_a_rare_label_is_no_proof(self, tmp_path: Path) -> None:
        click = [1 if i == 5 else 0 for i in range(ROWS)]
        shop = ["only" if i == 5 else "abc"[i % 3] for i in range(ROWS)]
        assert "shop" in infer(tmp_path, {"shop": shop, "click": click}).features


class TestCounts:
    def test_notes_say_what_was_seen(self, tmp_path: Path) -> None:
        columns = {
            "user": [None if i % 500 == 0 else i % 1234 for i in range(ROWS)],
            "tags": [["a", "b"][: i % 3] for i in range(ROWS)],
            "price": [float("nan") if i % 4 == 0 else i / 4 for i in range(ROWS)],
        }
        notes = infer(tmp_path, columns).notes
        assert notes["user"].startswith("1,233 distinct, 0 to 1,233, 0.2 % null.")
        assert notes["tags"] == "2 distinct, 1.0 in a row, 2 at most."
        assert notes["price"] == "0.25 to 499.8, 25.0 % null."

    def test_distinct_values_beyond_what_is_counted_exactly(self, tmp_path: Path) -> None:
        ids = np.arange(300_000) * 7919 % 150_000
        inference = infer(tmp_path, {"user": ids})
        column = inference.columns[0]
        assert column.seen.startswith("about ")
        assert column.distinct == pytest.approx(150_000, rel=0.02)

    def test_row_keys_beyond_what_is_counted_exactly(self, tmp_path: Path) -> None:
        keys = np.random.default_rng(0).permutation(100_000)
        inference = infer(tmp_path, {"key": keys, "user": keys % 10})
        assert list(inference.features) == ["user"]

    def test_no_more_rows_than_asked_for(self, tmp_path: Path) -> None:
        columns = {"user": np.arange(ROWS) % 5}
        few = infer(tmp_path, columns, max_rows=700)
        assert (few.rows, few.complete) == (700, False)
        assert infer(tmp_path, columns, max_rows=ROWS).complete

    def test_positives(self, tmp_path: Path) -> None:
        columns = {"user": np.arange(ROWS) % 5, "click": (np.arange(ROWS) % 4 == 0).astype(int)}
        assert infer(tmp_path, columns).positives == 0.25

    def test_dim_goes_with_the_distinct_values(self, tmp_path: Path) -> None:
        """6 x 16 ** 0.25 is 12, 6 x 625 ** 0.25 is 30; 21 on average."""
        columns = {"a": np.arange(ROWS) % 16, "b": np.arange(ROWS) % 625, "x": np.arange(ROWS) / 7}
        assert infer(tmp_path, columns).dim == 16
        assert infer(tmp_path, {"x": np.arange(ROWS) / 7}).dim == 16


class TestMistakes:
    def test_label_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"Received 'clik'; did you mean `click`\? Columns: user, click"
        ):
            infer(tmp_path, {"user": [1, 2]}, "clik")

    @pytest.mark.parametrize("label", ["click rate", "is-click", "label:ctr", "click.1"])
    def test_labels_that_are_no_words(self, tmp_path: Path, label: str) -> None:
        values = np.arange(40) * 7 % 11 % 2
        inference = infer(tmp_path, {"click": values, "u": np.arange(40) % 4, label: values}, label)
        assert inference.label == f"`{label}`"
        assert list(inference.features) == ["u"]
        path = tmp_path / "x.yaml"
        data = DataSection(train=[str(tmp_path / "data.parquet")], label=inference.label)
        write_experiment(path, inference, data)
        assert load_experiment(path).data.label == f"`{label}`"

    def test_label_not_0_and_1(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"The label 'click' should hold 0 and 1\. Received 5"):
            infer(tmp_path, {"user": [1, 2], "click": [1, 5]})

    def test_everything_dropped(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"The data should have rows\. Received none\."):
            infer(tmp_path, {"user": [1, 2]}, drop="user > 0")


class TestFile:
    """What is written, and read back."""

    columns: dict[str, object] = {  # noqa: RUF012
        "time": np.arange(ROWS) + 956_703_932,
        "user": np.arange(ROWS) % 300,
        "no": ["yes", "no"] * (ROWS // 2),
        "a: b # c": np.arange(ROWS) % 7,
        "price": np.exp(np.arange(ROWS) % 13),
        "history": [["x", "y"][: i % 3] for i in range(ROWS)],
        "key": [f"k{i}" for i in range(ROWS)],
    }

    def test_there_and_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inference = infer(tmp_path, self.columns)
        monkeypatch.chdir(tmp_path)
        data = DataSection(train=["data.parquet"], label="click")
        written = write_experiment("clicks.yaml", inference, data)
        loaded = load_experiment("clicks.yaml")
        assert loaded == written
        assert loaded.features == inference.features
        assert loaded.data.train == [str(tmp_path / "data.parquet")]
        assert (loaded.model.dim, loaded.output) == (inference.dim, "runs/clicks")
        check_columns(loaded, TableSource(loaded.data.train).schema)

    def test_other_sections_of_data(self, tmp_path: Path) -> None:
        inference = infer(tmp_path, self.columns)
        data = DataSection.model_validate(
            {
                "train": [str(tmp_path / "data.parquet"), "/elsewhere/*.csv"],
                "valid": "/elsewhere/v.csv",
                "label": "rating > 3",
                "drop": "rating == 'a, b: #'",
                "format": "csv",
                "columns": ["user", "no"],
                "split": {"by": "time", "column": "time", "valid": 0.2, "test": 0.05, "seed": 3},
            }
        )
        written = write_experiment(tmp_path / "new" / "x.yaml", inference, data)
        assert written.data == data
        assert load_experiment(tmp_path / "new" / "x.yaml") == written

    def test_comments(self, tmp_path: Path) -> None:
        inference = infer(tmp_path, self.columns)
        path = tmp_path / "clicks.yaml"
        write_experiment(
            path, inference, DataSection(train=[str(tmp_path / "data.parquet")], label="click")
        )
        text = path.read_text()
        assert "from 2,000 rows" in text
        assert "  train: [data.parquet]\n" in text
        assert "  # 300 distinct, 0 to 299.\n  user: {type: sparse, ids: plain, rows: 300" in text
        assert "  #   key: a value of its own in every row (2,000 distinct)\n" in text
        assert "    # by: time\n    # column: time\n" in text
        assert max(map(len, text.splitlines())) <= 100

    def test_an_existing_file_stays(self, tmp_path: Path) -> None:
        inference = infer(tmp_path, self.columns)
        path = tmp_path / "clicks.yaml"
        path.write_text("mine")
        data = DataSection(train=["data.parquet"], label="click")
        with pytest.raises(FileExistsError, match="should be a new one"):
            write_experiment(path, inference, data)
        assert path.read_text() == "mine"
        write_experiment(path, inference, data, overwrite=True)
        assert load_experiment(path).data.label == "click"
        assert sorted(one.name for one in tmp_path.iterdir()) == ["clicks.yaml", "data.parquet"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    lines = [f"{i % 7},{i / 4},{'a|b' if i % 2 else 'b'},{i % 3 % 2}" for i in range(300)]
    path.write_text("\n".join(["user,price,tags,click", *lines]))
    inference = infer_features(path, "click")
    found = {name: feature.type for name, feature in inference.features.items()}
    assert found == {"user": "sparse", "price": "dense", "tags": "sparse"}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec.datasets.csv_reader.CHUNK_BYTES", 400)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [50, 64, 301])
def test_labels_are_those_of_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Where they were those of other rows, nothing would tell the label."""
    monkeypatch.setattr("torchrec.experiment.propose.infer._SAMPLE", size)
    labels = [i * i % 7 % 2 for i in range(300)]
    lines = [f"{i % 9},{label + 3},{(label + i) % 3},{label}" for i, label in enumerate(labels)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["user,same,near,click", *lines]))
    inference = infer_features(path, "click")
    assert [one.name for one in inference.columns if one.gives_away] == ["same"]
    assert inference.positives == sum(labels) / 300


@pytest.mark.usefixtures("small_blocks")
class TestTypesOfText:
    """What the first lines look like is not what later ones hold."""

    def write(self, path: Path, **last: str) -> TableSource:
        columns = {"user": "7", "price": "3", "zip": "12345", "note": "", **last}
        lines = [f"{i % 5},{i % 8},{10000 + i % 30},,{i * i % 3 % 2}" for i in range(300)]
        lines.append(",".join(columns[name] for name in ("user", "price", "zip", "note")) + ",1")
        path.write_text("\n".join(["user,price,zip,note,click", *lines]))
        return TableSource(path)

    def test_are_widened(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "a.csv", price="1.5", zip="02134", note="seven")
        inference = infer_features(source, "click")
        assert inference.types == {"price": "number", "zip": "string"}
        assert (inference.rows, inference.complete) == (301, True)
        assert {name: feature.type for name, feature in inference.features.items()} == {
            "user": "sparse", "price": "dense", "zip": "sparse", "note": "sparse",
        }  # fmt: skip
        assert infer_features(self.write(tmp_path / "a.csv"), "click").types == {}

    def test_fit_other_files_too(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "a.csv", price="1.5")
        self.write(tmp_path / "b.csv", user="ann", price="many")
        others = [source.over([tmp_path / "b.csv"])]
        inference = infer_features(source, "click", others=others)
        assert inference.types == {"price": "string", "user": "string"}

    def test_that_were_given_stay(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a.csv", price="1.5")
        source = TableSource(tmp_path / "a.csv", schema=pa.schema({"price": pa.int64()}))
        with pytest.raises(
            ValueError, match=r"'price', should hold integers, as was asked for\. Received"
        ):
            infer_features(source, "click")

    def test_are_written(self, tmp_path: Path) -> None:
        source = self.write(tmp_path / "a.csv", price="1.5", zip="02134")
        path = tmp_path / "x.yaml"
        data = DataSection(train=[str(tmp_path / "a.csv")], label="click")
        written = write_experiment(path, infer_features(source, "click"), data)
        text = path.read_text()
        assert "  # What columns hold where the first lines do not show it:\n" in text
        assert "  types: {price: number, zip: string}\n" in text
        loaded = load_experiment(path)
        assert loaded == written
        assert loaded.data.types == {"price": "number", "zip": "string"}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the data sets in {DATA}, or in $ROWWISE_DATA")
class TestRealData:
    def test_movielens(self) -> None:
        inference = infer_features(DATA / "ml-1m" / "split" / "valid.parquet", "label")
        found = {name: feature.type for name, feature in inference.features.items()}
        assert found == {
            "user_id": "sparse",
            "movie_id": "sparse",
            "gender": "sparse",
            "age": "sparse",
            "occupation": "sparse",
            "zip": "sparse",
            "title": "sparse",
            "genres": "multi_hot",
            "year": "sparse",
        }
        assert inference.time_column == "timestamp"
        assert inference.warnings == []

    def test_criteo(self) -> None:
        numbers = [f"int_{i}" for i in range(13)]
        categories = [f"cat_{i}" for i in range(26)]
        # resolve_files goes by the suffix, and this file has another
        from torchrec.datasets.files import resolve_files

        files = resolve_files(DATA / "criteo" / "train_first_10000.txt", "tsv")
        source = TableSource(files, dialect=TextDialect(columns=["label", *numbers, *categories]))
        features = infer_features(source, "label").features
        dense = [name for name, feature in features.items() if isinstance(feature, DenseFeature)]
        assert dense == numbers
        assert [name for name in features if name not in dense] == categories


def test_progress_is_told(tmp_path) -> None:
    table = pa.table({"user": list(range(50)) * 4, "click": [0, 1] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=60)
    told: list[int] = []
    infer_features(tmp_path / "a.parquet", "click", max_rows=150, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 150


def test_it_is_found_where_it_was_before() -> None:
    from torchrec.experiment import infer

    assert infer.infer_features is infer_features
    assert infer.__all__ == ["Inference", "infer_features"]
