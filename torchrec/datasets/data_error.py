"""What is wrong with data, and with which arguments they could be read."""

from __future__ import annotations

from collections.abc import Mapping


class DataError(ValueError):
    """Data are not as they should be, but can be read otherwise.

    Attributes:
        remedy: arguments that help, by name as `TableSource` has them (and ``types``, of columns of
            text), each with its value as YAML; "" where only who knows the data can tell it.

    Example:
        >>> error = DataError("Labels should be there.", {"drop": "click is None"})
        >>> error.remedy["drop"]
        'click is None'
    """

    def __init__(self, message: str, remedy: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.remedy: Mapping[str, str] = remedy or {}

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the remedy, so that the error crosses process borders (DataLoader workers)."""
        return type(self), (*self.args, self.remedy)
