"""How columns write points in time: as numbers that count since 1970, as digits of a calendar, as text."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec.datasets.transform.columns import Array, read_numbers, whole
from torchrec.experiment.propose._roles import word_set, words_of

_TIME = word_set(
    "time timestamp ts dt ymd yymmdd yyyymmdd yyyymm "
    "date datetime day created updated at epoch when unix posted published "
    "modified occurred registered start end hour month"
)
_EARLIEST = datetime(1990, 1, 1, tzinfo=timezone.utc).timestamp()
_LATEST = datetime(2050, 1, 1, tzinfo=timezone.utc).timestamp()
_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_ENOUGH = 100  # times that a column whose name does not speak of time should have
_SUFFIX = r" ?(UTC|GMT|\+00:?00)$"


def epoch_unit(name: str, minimum: float, maximum: float, values: pa.ChunkedArray) -> str | None:
    """Return how numbers count time if name, range and values speak of it, None if not.

    Without a name that does, numbers since 1970 should rise from row to row, and those of a calendar
    be days that there are.

    Args:
        name: of the column.
        minimum: the smallest number.
        maximum: the largest.
        values: a sample.

    Example:
        >>> epoch_unit("created_at", 956_703_932, 1_046_454_590, pa.chunked_array([[956_703_932]]))
        'seconds'
        >>> epoch_unit("price", 956_703_932, 1_046_454_590, pa.chunked_array([[956_703_932]])) is None
        True
        >>> epoch_unit("hour", 14102100, 14103023, pa.chunked_array([[14102100, 14103023]]))
        'hours as YYMMDDHH'
    """
    if not (minimum >= 1e5 and maximum < 2**63):
        return None
    numbers = read_numbers(whole(values)).present()
    if not len(numbers):
        return None
    speaks = bool(words_of(name) & _TIME)
    # Seconds that all look like hours of days are none.
    dated = speaks and minimum >= 1_990_010_100 and maximum <= 2_049_123_123
    if dated and _are_hours(numbers.astype(np.int64)):
        return "hours as YYYYMMDDHH"
    for unit, factor in _UNITS.items():
        if factor * _EARLIEST <= minimum and maximum <= factor * _LATEST:
            rises = len(numbers) >= _ENOUGH and bool((np.diff(numbers) >= 0).all())
            return unit if speaks or (rises and numbers[0] < numbers[-1]) else None
    digits = numbers.astype(np.int64)
    if (digits != numbers).any():
        return None
    if minimum >= 19_900_101 and maximum <= 20_491_231:
        days = _are_days(digits)
        many = len(np.unique(digits)) >= 5 and len(digits) >= _ENOUGH
        return "days as YYYYMMDD" if days and (speaks or many) else None
    if not speaks:
        return None
    if minimum >= 199_001 and maximum <= 204_912:
        return "months as YYYYMM" if _are_days(digits * 100 + 1) else None
    if maximum <= 491_231 and _are_days(digits + 20_000_000):
        return "days as YYMMDD"
    if minimum * 10 >= 90_010_100 and maximum <= 49_123_123 and _are_hours(digits + 2_000_000_000):
        return "hours as YYMMDDHH"
    if minimum >= 19_900_101_000_000 and maximum <= 20_491_231_235_959:
        return "seconds as YYYYMMDDhhmmss" if _are_days(digits // 1_000_000) else None
    return None


def _are_days(digits: Array) -> bool:
    """Say whether all numbers are years, months and days as digits."""
    days, months = digits % 100, digits // 100 % 100
    return bool(((days >= 1) & (days <= 31) & (months >= 1) & (months <= 12)).all())


def _are_hours(digits: Array) -> bool:
    return _are_days(digits // 100) and bool((digits % 100 < 24).all())


def is_text_of_time(strings: pa.ChunkedArray) -> bool:
    """Say whether all strings are dates or times as in ISO 8601, maybe with UTC or GMT behind.

    Example:
        >>> is_text_of_time(pa.chunked_array([["2019-10-01 00:00:00 UTC", "2019-10-01"]]))
        True
    """
    sample = strings.slice(0, 1000).drop_null()
    if not len(sample):
        return False
    sample = pc.replace_substring_regex(sample, _SUFFIX, "")
    for zone in ("UTC", None):
        try:
            sample.cast(pa.timestamp("us", tz=zone))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        return True
    return False
