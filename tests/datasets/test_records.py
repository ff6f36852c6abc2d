"""Quotes that enclose, and quotes that are characters like others."""

from __future__ import annotations

import csv
import io
import itertools
import random

import pytest

from torchrec.datasets._records import (
    RecordForm,
    count_records,
    find_records,
    without_headers,
    written_plainly,
)

pytestmark = pytest.mark.once

COMMA = RecordForm(b",", 3)
TAB = RecordForm(b"\t", 3)


def records(data: bytes, form: RecordForm) -> list[bytes]:
    ends = [0, *(int(end) + 1 for end in find_records(data, form, whole=True).ends)]
    return [data[one:other] for one, other in itertools.pairwise(ends)]


def fields(data: bytes, form: RecordForm) -> list[list[str]]:
    """Read what is left to a parser that knows only quotes which enclose."""
    found = find_records(data, form, whole=True)
    text = written_plainly(data, found).decode()
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=form.delimiter.decode()))
    assert count_records(data, found) == len(rows)
    return rows


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'1,24" wide,0\n', ["1", '24" wide', "0"]),
        (b'1,"a, b",0\n', ["1", "a, b", "0"]),
        (b'1,"two\nlines",0\n', ["1", "two\nlines", "0"]),
        (b'1,"say ""hi""",0\n', ["1", 'say "hi"', "0"]),
        (b'1,"",0\n', ["1", "", "0"]),
        (b'1,"""",0\n', ["1", '"', "0"]),
        (b'1,"Heat" (1995),0\n', ["1", '"Heat" (1995)', "0"]),
        (b'1,"Best of,0\n', ["1", '"Best of', "0"]),
        (b'1,2,"Best of\n', ["1", "2", '"Best of']),
        (b'"5"" disk",x,0\r\n', ['5" disk', "x", "0"]),
        (b'"a,b"c,x,0\n', ["a,bc", "x", "0"]),
    ],
)
@pytest.mark.parametrize(
    "before", [b"", b"7,8,9\n", b'7,5" disk,9\n'], ids=["first", "second", "inch"]
)
def test_fields(line: bytes, expected: list[str], before: bytes) -> None:
    assert fields(before + line + b"4,5,6\n", COMMA)[-2:] == [expected, ["4", "5", "6"]]


@pytest.mark.parametrize("form", [COMMA, TAB], ids=["comma", "tab"])
@pytest.mark.parametrize("far", [5, 400, 2500])
@pytest.mark.parametrize("last", [b'a "quote"', b'5"', b'"Best of 2', b'x "y" z'])
def test_a_title_that_begins_with_a_quote_takes_no_rows_along(
    form: RecordForm, far: int, last: bytes
) -> None:
    between = form.delimiter
    lines = [between.join([b"%d" % i, b"title %d" % i, b"0"]) for i in range(far + 2)]
    lines[1] = between.join([b"1", b'"Best of 1', b"0"])
    lines[far] = between.join([b"9", last, b"1"])
    rows = fields(b"\n".join(lines) + b"\n", form)
    assert len(rows) == far + 2
    assert (rows[1][1], rows[far][1]) == ('"Best of 1', last.decode())


def test_text_of_several_lines_is_one_value() -> None:
    text = "\n".join(f"Line {i}, which says: well, {i}" for i in range(50))
    data = f'1,"{text}",0\n2,24" wide,1\n'.encode()
    assert fields(data, COMMA) == [["1", text, "0"], ["2", '24" wide', "1"]]
    text = "a\n" + "\n".join(f"Line {i}, which says: well, {i}" for i in range(50))
    assert fields(f'1,2,"{text}"\n'.encode(), COMMA) == [["1", "2", text]]


def test_several_characters_between_fields_know_no_quotes() -> None:
    data = b'1::"Heat::5\n2::Star" Wars::4\n'
    form = RecordForm(b"::", 3, has_quotes=False)
    assert records(data, form) == [b'1::"Heat::5\n', b'2::Star" Wars::4\n']


def test_an_open_quote_at_the_end_is_closed_by_what_follows() -> None:
    data = b'1,2,3\n4,"two\nlines'
    assert find_records(data, COMMA).ends.tolist() == [5]
    assert find_records(data, COMMA, whole=True).ends.tolist() == [5, 12]


def test_what_was_written_by_a_writer_is_read_as_it_was() -> None:
    draw = random.Random(0)
    for _ in range(300):
        rows = [
            ["".join(draw.choices('ab", \n', k=draw.randrange(6))) + "x" for _ in range(3)]
            for _ in range(draw.randrange(1, 6))
        ]
        out = io.StringIO()
        csv.writer(out, lineterminator=draw.choice(["\n", "\r\n"])).writerows(rows)
        assert fields(out.getvalue().encode(), COMMA) == rows


def test_headers_that_come_again_are_left_out() -> None:
    data = b"1,2\na,b\r\n3,4\na,bc\nxa,b\na,b"
    assert without_headers(data, b"a,b") == (b"1,2\n3,4\na,bc\nxa,b\n", 2)
    assert without_headers(data, b"") == (data, 0)
