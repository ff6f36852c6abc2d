"""Checks of arguments, and words of their errors."""

from __future__ import annotations

from typing import Any

import pytest

from torchrec.checks import did_you_mean, nearest, printable, require_integer

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (True, TypeError, "`rows` should be an integer. Received True."),
        (1.0, TypeError, "`rows` should be an integer. Received 1.0."),
        ("1", TypeError, "`rows` should be an integer. Received '1'."),
        (None, TypeError, "`rows` should be an integer. Received None."),
        (1, ValueError, "`rows` should be at least 2. Received 1."),
        (6, ValueError, "`rows` should be at most 5. Received 6."),
    ],
)
def test_what_is_no_integer_in_range_is_refused(
    value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        require_integer(value, "`rows`", 2, 5)
    assert str(caught.value) == message


def test_an_integer_in_range_is_returned() -> None:
    assert [require_integer(n, "`rows`", 2, 5) for n in (2, 5)] == [2, 5]
    assert require_integer(-7, "`rows`") == -7


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("user", "user"),
        ("USER", "User"),
        ("usr", "user"),
        ("ITEMS", "item"),
        ("price", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found(name: str, found: str | None) -> None:
    names = ["User", "user", "item"] if name != "usr" else ["item", "user"]
    assert nearest(name, iter(names)) == found
    assert did_you_mean(name, names) == ("" if found is None else f"; did you mean '{found}'?")


def test_of_no_names_none_is_near() -> None:
    assert nearest("user", []) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("price", "price"),
        ("prix d'été 価格 🙂", "prix d'été 価格 🙂"),
        ("a\u00a0b", "a\u00a0b"),
        ("\x00\x1b[31m\x7f\x9b", r"\x00\x1b[31m\x7f\x9b"),
        ("a\tb\r\nc", r"a\tb\r\nc"),
        ("\u202e\u2066\u200b\u200d\ufeff\u00ad", r"\u202e\u2066\u200b\u200d\ufeff\xad"),
        ("\u2028\u2029\U000e0041", r"\u2028\u2029\U000e0041"),
        ("\udcff", r"\udcff"),
        ("", ""),
    ],
    ids=lambda text: text.encode("unicode_escape").decode(),
)
def test_what_is_not_seen_is_shown(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_line_breaks_may_stay():
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
