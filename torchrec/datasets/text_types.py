"""Types of columns of text files, and the error where one is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from torchrec.datasets.data_error import DataError

if TYPE_CHECKING:
    from torchrec.datasets.features import TextType

_TYPES: dict[TextType, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "string": pa.string(),
}


class MisfitError(DataError):
    """A value of a text file does not fit the type of its column.

    Args:
        message: names file, line, column and value.
        wider: types that the value, and others near it, would fit; without columns whose type was given.
        remedy: see `DataError`.
    """

    def __init__(
        self, message: str, wider: dict[str, TextType], remedy: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, remedy)
        self.wider = wider

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the arguments."""
        return type(self), (*self.args, self.wider, self.remedy)


def schema_of(types: Mapping[str, TextType]) -> pa.Schema:
    """Return the schema for `TableSource` that says what columns of text files hold.

    Example:
        >>> schema_of({"zip": "string", "price": "number"}).types
        [DataType(string), DataType(double)]
    """
    return pa.schema([(name, _TYPES[type]) for name, type in types.items()])
