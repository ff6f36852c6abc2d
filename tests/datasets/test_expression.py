"""Expressions over columns: against Python's own evaluation, row by row, with nulls as in SQL."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec.datasets.expression import parse_expression

pytestmark = pytest.mark.once

TABLE = pa.table(
    {
        "rating": pa.array([5, 3, None, 1]),
        "price": pa.array([0.5, 2.0, 1.0, None]),
        "country": pa.array(["de", "fr", None, "us"]).dictionary_encode(),
        "user id": pa.array([1, 2, 3, 4]),
        "bought": pa.array([True, False, None, True]),
        "day": pa.array([datetime.date(2024, 1, d) for d in (1, 2, 3, 4)]),
        "at": pa.array([datetime.datetime(2024, 1, d) for d in (1, 2, 3, 4)]),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rating > 3", [True, False, None, False]),
        ("3 < rating", [True, False, None, False]),
        ("1 < rating <= 3", [False, True, None, False]),
        ("rating >= 3 and price < 1", [True, False, False, False]),
        ("rating > 3 or price < 3", [True, True, True, None]),
        ("not rating > 3", [False, True, None, True]),
        ("country in ['de', \"fr\"]", [True, True, None, False]),
        ("country not in ('de',)", [False, True, None, True]),
        ("country == 'us'", [False, False, None, True]),
        ("rating in [-1, 1]", [False, False, None, True]),
        ("rating is None", [False, False, True, False]),
        ("country is not None", [True, True, False, True]),
        ("rating * 2 - 1 == 9", [True, False, None, False]),
        ("rating / 2 > 1", [True, True, None, False]),
        ("-rating < -2", [True, True, None, False]),
        ("`user id` > 2", [False, False, True, True]),
        ("bought", [True, False, None, True]),
        ("bought == True", [True, False, None, True]),
        ("True", [True] * 4),
        ("day >= '2024-01-03'", [False, False, True, True]),
        ("'2024-01-02' >= day", [True, True, False, False]),
        ("at < '2024-01-02'", [True, False, False, False]),
        ("country != '`x`'", [True, True, None, True]),
        ("rating + price", [5.5, 5.0, None, None]),
    ],
)
def test_values(text: str, expected: list[object]) -> None:
    assert parse_expression(text).evaluate(TABLE).to_pylist() == expected


WIDE = pa.table(
    {
        "small": pa.array([3, 200, None], pa.uint8()),
        "signed": pa.array([-128, 100, 1], pa.int8()),
        "middle": pa.array([2**31 - 1, 1, -(2**31)], pa.int32()),
        "large": pa.array([2**53 + 1, 1, -(2**63)]),
        "huge": pa.array([2**63 + 5, 0, None], pa.uint64()),
        "gaps": pa.array([float("nan"), 5.0, None]),
        "single": pa.array([float("nan"), 5.0, None], pa.float32()),
        "number": pa.array([float("inf"), 0.0, 1.5]),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("small - 5 < 0", [True, False, None]),
        ("small + small", [6, 400, None]),
        ("-small < 0", [True, True, None]),
        ("-signed", [128, -100, -1]),
        ("small - signed", [131, 100, None]),
        ("middle * middle > 2147483647", [True, False, True]),
        ("large > 1.5", [True, False, False]),
        ("large / 2 > 1", [True, False, False]),
        ("large == 9007199254740993", [True, False, False]),
        ("large >= -9223372036854775808", [True, True, True]),
        ("large < 9223372036854775808", [True, True, True]),
        ("large < 99999999999999999999", [True, True, True]),
        ("large > -99999999999999999999", [True, True, True]),
        ("large in [9223372036854775808, 1]", [False, True, False]),
        ("huge > 5", [True, False, None]),
        ("huge > -1", [True, True, None]),
        ("huge > 1.5", [True, False, None]),
        ("huge - 1 > 0", [True, False, None]),
        ("-huge < -5.5", [True, False, None]),
        ("huge / 2 > 1", [True, False, None]),
        ("huge == 9223372036854775813", [True, False, None]),
        ("huge > large", [True, False, None]),
        ("huge == small", [False, False, None]),
        ("gaps > 3", [None, True, None]),
        ("not gaps > 3", [None, False, None]),
        ("gaps != 1 and number > 9", [None, False, False]),
        ("single == 5", [None, True, None]),
        ("gaps is None", [True, False, True]),
        ("gaps", [None, 5.0, None]),
        ("number - number == 0", [None, True, True]),
        ("number / number is None", [True, True, False]),
        ("-gaps + small", [None, 195.0, None]),
        ("1e999 - 1e999 > 0", [None, None, None]),
    ],
)
def test_numbers_of_every_width(text: str, expected: list[object]) -> None:
    assert parse_expression(text).evaluate(WIDE).to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("large * 2 > 1", r"`large \* 2 > 1`, the values of `large \* 2` should fit in 64 bits"),
        ("-large > 1", r"the values of `-large` should fit in 64 bits\. Received int64\."),
        ("huge * huge > 1", r"should fit in 64 bits\. Received uint64 and uint64\."),
    ],
)
def test_overflow_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_expression(text).evaluate(WIDE)


def test_numbers_that_nothing_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"should fit in 64 bits\. Received one of 401 digits"):
        parse_expression(f"large > 1{'0' * 400}").evaluate(WIDE)


def test_columns() -> None:
    assert parse_expression("rating > 3 and `user id` in [1, 2]").columns == {"rating", "user id"}
    assert parse_expression("1 < 2").columns == set()


NUMBERS = st.integers(-3, 3)
ATOMS = st.sampled_from(["a", "b"]) | NUMBERS.map(lambda n: f"({n})")
SUMS = st.builds("({} {} {})".format, ATOMS, st.sampled_from(["+", "-", "*"]), ATOMS) | ATOMS
COMPARED = st.builds(
    "{} {} {}".format, SUMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), SUMS
) | st.builds("a in [{}, {}]".format, NUMBERS, NUMBERS)
TRUTHS = st.recursive(
    COMPARED,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=6,
)


@given(text=TRUTHS, rows=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_without_nulls_it_is_what_python_says(text: str, rows: list[tuple[int, int]]) -> None:
    table = pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    expected = [eval(text, {"a": a, "b": b}) for a, b in rows]
    assert parse_expression(text).evaluate(table).to_pylist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "rating.__class__",
        "rating[0]",
        "lambda: 1",
        "[x for x in rating]",
        "rating if bought else 1",
        "f'{rating}'",
        "rating ** 99",
        "abs(rating)",
        "rating in country",
        "rating is 3",
        "rating < 3 in [1]",
        "...",
        "b'x' == country",
    ],
)
def test_what_does_more_than_compare_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^Expression `.*` should be made of columns, numbers"):
        parse_expression(text)


@pytest.mark.parametrize(
    "text", ["rating == None", "None != rating", "rating > 3 or None", "None", "rating + None > 1"]
)
def test_none_is_asked_for_with_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"should ask with `is None` or `is not None` whether"):
        parse_expression(text)


@pytest.mark.parametrize("text", ["", "rating >", "rating = 3", "rating > 3; 1", "(" * 500])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^An expression should be made of .* as in `rating > 3`"):
        parse_expression(text)


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ValueError, match=r"should be nested at most 100 deep\. Received `not not"):
        parse_expression("not " * 120 + "bought")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratin > 3", r"Expression `ratin > 3` .* Received 'ratin'; did you mean 'rating'\?"),
        ("xyz > 3", r"should name columns of the data\. Received 'xyz'\.$"),
        ("country > 3", r"the values of `country > 3` should be of types .* string and int64"),
        ("country + 1 > 3", r"Received string and int64"),
        ("rating and bought", r"`rating` should be true or false\. Received int64"),
        ("`user id` + country > 2", r"the values of ``user id` \+ country`"),
        ("day > 'soon'", r"In expression `day > 'soon'`, .* date32\[day\] and string; a time is"),
        (
            "at in ['soon']",
            r"Received timestamp\[us\] and string; a time is written as '2024-01-31 ",
        ),
    ],
)
def test_what_does_not_fit_the_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_expression(text).evaluate(TABLE)
