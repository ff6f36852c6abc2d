"""How text files write times: the formats that all values of a column fit, beside ISO 8601."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from torchrec.datasets.number_text import MARKERS
from torchrec.datasets.source import TableSource
from torchrec.experiment.propose._times import is_text_of_time

_FEWEST = 3  # different values, of which fewer are told by chance
_FIRST, _SAMPLE = 20, 2000  # different values that are looked at: first few, then more
_DAYS = (
    *("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y.%m.%d"),
    *("%Y-%m-%d", "%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d-%b-%Y", "%d/%b/%Y", "%d-%b-%y"),
    *("%b %d, %Y", "%d %b %Y", "%B %d, %Y", "%d %B %Y", "%a, %d %b %Y", "%a %d %b %Y"),
)
_CLOCKS = ["", "%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p"]
_GAPS = [" ", ", ", "T", ":"]
_ZONES = ["", " UTC", " GMT", " %z", "%z"]
_WHOLE = ["%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %z %Y", "%Y%m%d %H:%M", "%Y%m%d %H:%M:%S"]
_LIKE_TIME = r"[0-9]{1,4}[-./ ][0-9A-Za-z]{1,9}[-./ ,]|[A-Za-z]{3} [0-9]{1,2}|^[0-9]{8} [0-9]{1,2}:"
_SWAPPED = [("%m/%d", "%d/%m"), ("%m-%d", "%d-%m")]


class TimeForm(NamedTuple):
    """How times are written.

    Attributes:
        times: formats as for ``strptime``.
        unsure: columns in which day and month may be the other way round.
    """

    times: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()

    @property
    def notice(self) -> str:
        """What a person should look at; empty where nothing is unusual."""
        if not self.times:
            return ""
        said = f"Times are read as {' and '.join(self.times)} (`data.times`)."
        if self.unsure:
            said += (
                f" Day and month may be the other way round in {', '.join(self.unsure)}: no day is "
                "above 12."
            )
        return said


def time_form_of(source: TableSource) -> TimeForm:
    r"""Return how text files write times, by their first rows.

    Where day and month could be either, time rises from row to row; where it does so in neither way,
    or in both, the month comes first, as between slashes in most files.

    Args:
        source: the files; of Parquet nothing is to be asked.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "log.csv")
        ...     _ = path.write_text("user,at\n1,1.10.2019 07:00\n2,13.10.2019 18:30\n3,14.10.2019 08:00\n")
        ...     time_form_of(TableSource(path)).times
        ('%d.%m.%Y %H:%M',)
    """
    text = [field.name for field in source.schema if pt.is_string(field.type)]
    if source.files[0].format == "parquet" or not text:
        return TimeForm()
    table = next(source.scan(text), None)
    if table is None:
        return TimeForm()
    found: dict[str, None] = {}
    unsure = []
    for name in text:
        if is_text_of_time(table[name]):
            continue
        formats = list(_formats_of(table[name]))
        if formats:
            chosen = _rising(table[name], formats)
            found[chosen or formats[0]] = None
            if len(formats) > 1 and chosen is None:
                unsure.append(name)
    return TimeForm(tuple(found), tuple(unsure))


def _formats_of(text: pa.ChunkedArray) -> Iterator[str]:
    """Yield the format that all values fit, and that with day and month the other way round if they fit it too."""
    values = pc.utf8_trim_whitespace(pc.unique(text.slice(0, 65_536).drop_null()))
    values = values.filter(pc.invert(pc.is_in(values, pa.array([*MARKERS, ""]))))[:_SAMPLE]
    if len(values) < _FEWEST or not pc.all(pc.match_substring_regex(values, _LIKE_TIME)).as_py():
        return
    has_year = pc.all(pc.match_substring_regex(values, "[0-9]{4}")).as_py()
    first = values[:_FIRST]
    for one in _candidates():
        if has_year == ("%Y" in one) and _fits(first, one) and _fits(values, one):
            yield one
            for part, other in _SWAPPED:
                if part in one and _fits(values, one.replace(part, other)):
                    yield one.replace(part, other)
            return


def _candidates() -> Iterator[str]:
    yield from _WHOLE
    for day, clock in itertools.product(_DAYS, _CLOCKS):
        for gap in _GAPS if clock else [""]:
            for zone in _ZONES if clock else [""]:
                yield day + gap + clock + zone


def _fits(values: pa.Array, format: str) -> bool:
    return not pc.strptime(values, format, "s", error_is_null=True).null_count


def _rising(text: pa.ChunkedArray, formats: Sequence[str]) -> str | None:
    """Return the format, of several, by which alone time rises from row to row; the only one if there is one."""
    if len(formats) == 1:
        return formats[0]
    rising = []
    for one in formats:
        times = pc.strptime(text, one, "s", error_is_null=True).drop_null().cast(pa.int64())
        steps = pc.pairwise_diff(times.combine_chunks())
        if pc.all(pc.greater_equal(steps, 0)).as_py():
            rising.append(one)
    return rising[0] if len(rising) == 1 else None
