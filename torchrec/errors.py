"""Errors with more to say than their message."""

from __future__ import annotations


class IdOutOfRangeError(IndexError):
    """An id that its table has no row for, under the policy ``"error"``.

    Attributes:
        table: name of the table.
        feature: name of the feature that the id came from.
        sample: position of the sample in the batch.
        id: the id.
        rows: number of rows of the table: valid ids are ``0 <= id < rows``.
        rank: whose batch it is, where tables are sharded over ranks; all of them raise the error.
    """

    def __init__(
        self, table: str, feature: str, sample: int, id: int, rows: int, rank: int | None = None
    ) -> None:
        self.table, self.feature, self.sample, self.id, self.rows = table, feature, sample, id, rows
        self.rank = rank
        where = "" if rank is None else f" of rank {rank}"
        super().__init__(
            f"Ids of feature '{feature}' should be in [0, {rows}), the rows of table '{table}'. "
            f"Received {id} in sample {sample}{where}."
        )

    def __reduce__(
        self,
    ) -> tuple[type[IdOutOfRangeError], tuple[str, str, int, int, int, int | None]]:
        """Pickle by the fields, so that the error crosses process borders (DataLoader workers)."""
        fields = self.table, self.feature, self.sample, self.id, self.rows, self.rank
        return type(self), fields
