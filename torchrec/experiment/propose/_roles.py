"""What names and values of a column say about its role: time, id, number, list, sequence, leak."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from functools import lru_cache
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from torch import nn

from torchrec.datasets.transform.columns import Array

_TIME = frozenset(
    ["time", "timestamp", "ts", "date", "datetime", "day", "created", "updated", "at", "epoch"]
)
_ID = frozenset(
    [
        "id",
        "ids",
        "uid",
        "gid",
        "code",
        "zip",
        "zipcode",
        "postcode",
        "category",
        "cat",
        "class",
        "type",
        "brand",
        "user",
        "item",
        "movie",
        "product",
        "ad",
        "campaign",
        "shop",
        "store",
        "site",
        "country",
        "city",
        "region",
        "device",
        "gender",
        "sex",
        "occupation",
    ]
)
_NUMBER = frozenset(
    [
        "int",
        "num",
        "number",
        "count",
        "cnt",
        "n",
        "price",
        "amount",
        "cost",
        "rate",
        "ratio",
        "ctr",
        "avg",
        "mean",
        "median",
        "sum",
        "total",
        "duration",
        "seconds",
        "minutes",
        "size",
        "width",
        "height",
        "weight",
        "length",
        "distance",
        "score",
        "quantity",
        "balance",
        "income",
    ]
)
_ORDERED = frozenset(
    [
        "history",
        "hist",
        "seq",
        "sequence",
        "last",
        "recent",
        "recently",
        "clicked",
        "viewed",
        "watched",
        "past",
        "previous",
        "prev",
        "session",
        "bought",
        "seen",
    ]
)
# Words that say how ids are listed, not of what they are; as in a singular.
LIST_WORDS = frozenset(word.removesuffix("s") for word in _ORDERED) | {"id", "list", "code", "num"}
_SEPARATORS = ("|", ", ", ",", ";", " ")
_MODULES = nn.ModuleDict()
_EARLIEST = datetime(1990, 1, 1, tzinfo=timezone.utc).timestamp()
_LATEST = datetime(2050, 1, 1, tzinfo=timezone.utc).timestamp()


@lru_cache(1024)
def words_of(name: str) -> frozenset[str]:
    """Return the words of a column's name, lower case.

    Example:
        >>> sorted(words_of("lastClicked_itemIDs2"))
        ['clicked', 'ids', 'item', 'last']
    """
    return frozenset(map(str.lower, re.findall(r"[A-Z]?[a-z]+|[A-Z]+s?(?![a-z])", name)))


def table_name(feature: str) -> str:
    """Return a name for the table of a feature: its own, unless an `nn.ModuleDict` does not take that.

    Example:
        >>> table_name("train"), table_name("user")
        ('t_train', 'user')
    """
    return f"t_{feature}" if hasattr(_MODULES, feature) else feature


def looks_ordered(name: str) -> bool:
    """Say whether the name of a list column speaks of an order in time."""
    return bool(words_of(name) & _ORDERED)


def looks_like_id(name: str) -> bool:
    """Say whether the name of a column of integers speaks of ids or categories."""
    words = words_of(name)
    return bool(words & _ID) and not words & _NUMBER


def looks_like_number(name: str) -> bool:
    """Say whether the name of a column of integers speaks of a quantity."""
    return bool(words_of(name) & _NUMBER)


def epoch_unit(name: str, minimum: float, maximum: float) -> str | None:
    """Return what integers count since 1970 if name and range speak of time, None if not.

    Example:
        >>> epoch_unit("created_at", 956_703_932, 1_046_454_590)
        'seconds'
        >>> epoch_unit("price", 956_703_932, 1_046_454_590) is None
        True
    """
    if not words_of(name) & _TIME:
        return None
    for unit, factor in (
        ("seconds", 1),
        ("milliseconds", 1e3),
        ("microseconds", 1e6),
        ("nanoseconds", 1e9),
    ):
        if factor * _EARLIEST <= minimum and maximum <= factor * _LATEST:
            return unit
    return "days as YYYYMMDD" if minimum >= 19_900_101 and maximum <= 20_491_231 else None


def is_text_of_time(strings: pa.ChunkedArray) -> bool:
    """Say whether all strings are dates or times as in ISO 8601."""
    sample = strings.slice(0, 1000).drop_null()
    if not len(sample):
        return False
    try:
        sample.cast(pa.timestamp("us", tz="UTC"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        try:
            sample.cast(pa.timestamp("us"))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return False
    return True


# Numbers and dates that readers take for text: how they look, and what to do with the column.
_THOUSANDS = r"^\s*[-+]?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?\s*$"
_DECIMAL_COMMA = r"^\s*[-+]?([0-9]+|[0-9]{1,3}(\.[0-9]{3})+),[0-9]+\s*$"
_DAY = r"([0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{4}|[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2}|[0-9]{2}[./][0-9]{2}[./][0-9]{2})"
_DATE = rf"^\s*{_DAY}([ T]+[0-9]{{1,2}}:[0-9]{{2}}(:[0-9]{{2}})?( ?[AaPp][Mm])?)?\s*$"


def unconverted(name: str, strings: pa.ChunkedArray) -> str | None:
    """Return what to do with strings that are numbers or dates as people write them; None if they are none.

    Nine in ten of them should be. What may as well be lists of ids, as "3,17", needs a sign of numbers: a
    part that no id has (",05", "1,234" beside "12"), or the name.

    Example:
        >>> unconverted("amount", pa.chunked_array([["1.196,17", "0,05"]]))
        'numbers with a decimal comma: convert them, e.g. with pandas.read_csv(..., decimal=",")'
        >>> unconverted("history", pa.chunked_array([["3,17", "5"]])) is None
        True
    """
    strings = pc.unique(strings.slice(0, 10_000).drop_null())
    if _share(strings, _DATE) >= 0.9:
        return (
            "dates that are not written as in ISO 8601: convert them, e.g. with pandas.to_datetime"
        )
    if _share(strings, ",") < 0.1:
        return None
    short, numeric = r"^\s*[-+]?[0-9]{1,2}(,[0-9]{3})+(\.|\s*$)", looks_like_number(name)
    if _share(strings, _THOUSANDS) >= 0.9 and (
        numeric or _share(strings, short) > 0.05 or _share(strings, r",[0-9]{3}\.[0-9]") > 0.05
    ):
        return (
            "numbers with commas between thousands: convert them, e.g. with "
            'pandas.read_csv(..., thousands=",")'
        )
    if _share(strings, _DECIMAL_COMMA) >= 0.9 and (
        numeric or _share(strings, r",0[0-9]|\.[0-9]{3},") > 0.01
    ):
        return (
            "numbers with a decimal comma: convert them, e.g. with "
            'pandas.read_csv(..., decimal=",")'
        )
    return None


def _share(strings: pa.Array, pattern: str) -> float:
    """Return the share of strings in which a pattern is found."""
    found = pc.sum(pc.match_substring_regex(strings, pattern)).as_py()
    return (found or 0) / max(1, len(strings))


def text_of(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of text as strings, however it is stored; None if it is none."""
    if pt.is_dictionary(values.type):  # as readers of Parquet give them
        values = values.cast(values.type.value_type)
    is_text = pt.is_string(values.type) or pt.is_large_string(values.type)
    return values if is_text else None


def separator_of(name: str, values: pa.ChunkedArray) -> str | None:
    """Return what separates the parts of a column of strings that are lists, None if they are none.

    A separator is in a tenth of the distinct strings or more, and the parts are few beside the
    strings that they make up: half as many, or all whole numbers. So it is with genres or ids, and
    not with titles.

    Example:
        >>> separator_of("tags", pa.chunked_array([["a|b", "b", "b|c", "a", "c|a", "a|b|c"]]))
        '|'
        >>> titles = pa.chunked_array([["Elephant Man, The", "Heat", "Son in Law"]])
        >>> separator_of("title", titles) is None
        True
    """
    strings = text_of(values)
    if strings is None or is_text_of_time(strings) or unconverted(name, strings):
        return None
    strings = pc.unique(strings.drop_null())
    if not len(strings):
        return None
    for separator in _SEPARATORS:
        having = strings.filter(pc.match_substring(strings, separator))
        if len(having) < max(2, len(strings) / 10):
            continue
        parts = pc.unique(pc.split_pattern(strings, separator).flatten())
        numbers = pc.all(pc.match_substring_regex(parts, r"^-?[0-9]+$")).as_py()
        if numbers or 2 * len(parts) <= len(strings):
            return separator
    return None


def made_from_label(name: str, label: str) -> bool:
    """Say whether a name begins with that of the label, as in ``click_probability``."""
    return label.isidentifier() and name.startswith(f"{label}_")


def gives_away(values: pa.ChunkedArray, label: Array) -> bool:
    """Say whether a column alone decides the label: by a threshold, or value by value.

    Args:
        values: numbers, or anything with few distinct values.
        label: 0 and 1, NaN for unknown; of as many rows. With less than ten rows of either, or less
            than five to a value, nothing is said.
    """
    if pt.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pt.is_float16(values.type):  # has no kernels
        values = values.cast(pa.float32())
    known = np.isfinite(label) & ~values.is_null().to_numpy()
    if min((known & (label == 0)).sum(), (known & (label == 1)).sum()) < 10:
        return False
    table = pa.table({"value": values, "label": label}).filter(pa.array(known))
    if pt.is_floating(values.type) or pt.is_integer(values.type):
        ranges = table.group_by("label").aggregate([("value", "min"), ("value", "max")]).to_pylist()
        low, high = sorted(ranges, key=itemgetter("value_min"))
        if low["value_max"] < high["value_min"]:
            return True
    if pt.is_nested(values.type):
        return False
    groups = table.group_by("value").aggregate([("label", "min"), ("label", "max")])
    few = groups.num_rows <= min(20, table.num_rows / 5)
    return few and bool(groups["label_min"].equals(groups["label_max"]))
