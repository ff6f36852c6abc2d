"""Errors in data in the words of the experiment file: which of its keys would mend them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torchrec.datasets.data_error import DataError

_INIT_OPTIONS = ("columns", "delimiter", "drop", "quote", "encoding", "bad_lines")


def advice(error: BaseException) -> str:
    """Return a sentence that names the keys which mend an error in data, "" for other errors.

    Args:
        error: whatever was raised.

    Example:
        >>> advice(DataError("Labels should be there.", {"drop": "click is None"}))
        'To mend it, set `data.drop: click is None` (`--drop` of `torchrec init`) in the experiment file.'
        >>> advice(ValueError("Labels should be there."))
        ''
    """
    if not isinstance(error, DataError) or not error.remedy:
        return ""
    keys = []
    for name, value in error.remedy.items():
        key = f"`data.{name}: {value}`" if value else f"`data.{name}`"
        option = f"--{name.replace('_', '-')}"
        keys.append(key + (f" (`{option}` of `torchrec init`)" if name in _INIT_OPTIONS else ""))
    return f"To mend it, set {' and '.join(keys)} in the experiment file."


@contextmanager
def advised() -> Iterator[None]:
    """Let errors in data that are raised inside say which keys of the experiment file mend them."""
    try:
        yield
    except DataError as error:
        sentence = advice(error)
        if not sentence:
            raise
        raise DataError(f"{error} {sentence}") from error
