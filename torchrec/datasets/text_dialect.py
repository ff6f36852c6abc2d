"""How text files are written: what stands between fields, around them, and for what is missing."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from torchrec.datasets.files import check_delimiter
from torchrec.datasets.number_text import Decimal

Quote = Literal['"', "none"]
BadLines = Literal["refuse", "skip"]


@dataclass(frozen=True)
class TextDialect:
    r"""How CSV, TSV and other text files are written, as `TableSource` reads them.

    Args:
        columns: names of the columns of files without a header. Default: the first line names them.
        delimiter: the character between columns, or several, such as ``"::"``, beside which quotes have
            no meaning. Default: a comma, or a tab.
        quote: ``'"'``, which may enclose a field, or ``"none"``: every character means itself, and
            each line is a record. Default ``'"'``.
        encoding: of the characters, by any name that Python knows. Default ``"utf-8"``.
        decimal: the sign before the decimals of numbers, ``"."`` or ``","``. Default a point.
        missing: texts that stand for a missing value in every column, beside those that do anyway.
            Default: none.
        times: how times are written, as for ``strptime``, beside ISO 8601; the first that all values of
            a column fit. Default: none.
        bad_lines: ``"refuse"`` or ``"skip"`` records that have more or fewer fields than there are
            columns. Default ``"refuse"``.

    Raises:
        ValueError: a delimiter that cannot stand between columns, an encoding that is not known.

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec.datasets.source import TableSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("Käse;1,5\nBrot;k.A.\n", "latin-1")
        ...     dialect = TextDialect(["name", "price"], ";", encoding="latin-1", decimal=",", missing=["k.A."])
        ...     source = TableSource(path, dialect=dialect, assumed={"price": "number"})
        ...     [table.to_pylist() for table in source.scan()]
        [[{'name': 'Käse', 'price': 1.5}, {'name': 'Brot', 'price': None}]]
    """

    columns: Sequence[str] | None = None
    delimiter: str | None = None
    quote: Quote = '"'
    encoding: str = "utf-8"
    decimal: Decimal = "."
    missing: Sequence[str] = ()
    times: Sequence[str] = ()
    bad_lines: BadLines = "refuse"

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            check_delimiter(self.delimiter)
        check_encoding(self.encoding)

    @property
    def given(self) -> list[str]:
        """What is said of the files, by name: all that is not as usual."""
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and value != []:
                found.append(field.name)
        return found


def check_encoding(encoding: str, name: str = "encoding") -> None:
    """Refuse what is no encoding of text.

    Args:
        encoding: its name.
        name: of the argument or key, for the message.

    Example:
        >>> check_encoding("klingon")
        Traceback (most recent call last):
            ...
        ValueError: `encoding` should be one that Python knows, such as 'latin-1'. Received 'klingon'.
    """
    try:
        "".encode(encoding)
    except LookupError:  # of bytes to bytes, as "hex", among them
        raise ValueError(
            f"`{name}` should be one that Python knows, such as 'latin-1'. Received {encoding!r}."
        ) from None


def recoded_from(encoding: str) -> str | None:
    """Return the encoding that text has to be recoded from to be UTF-8; None if it is read as it stands.

    Example:
        >>> recoded_from("UTF8"), recoded_from("cp1252")
        (None, 'cp1252')
    """
    return None if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii") else encoding
