"""Which part of a map an id belongs to, where the rows of the map are divided into several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from torchrec.ops.hashing import hash_ids

# Other bits of the hash than those that the residual zone takes: else a part would use a part of it only.
_SALT = 0x5BD1E995_9D2C5681


HashFunction = Callable[[Tensor, int], Tensor]


def apply_hash(function: HashFunction, size: int, name: str, ids: Tensor) -> Tensor:
    """Return what the ``input_hash_func`` of a map makes of ids.

    Args:
        function: ``(ids, size) -> ids``.
        size: range of the ids.
        name: of the map, for messages.
        ids: int64 ``(N,)``.
    """
    hashed = function(ids, size)
    if hashed.shape != ids.shape:
        raise ValueError(
            f"`input_hash_func` of map '{name}' should return one id for each "
            f"({ids.numel()}). Received shape {tuple(hashed.shape)}."
        )
    return hashed


class Homes(Protocol):
    """Names a row for each id: the part of a map that has this row is the only one that the id comes to.

    It depends on the id and the whole map alone: not on the parts, nor on what came before.
    """

    @property
    def least_rows(self) -> int:
        """How many rows a part has at least."""
        ...

    def require_part(self, rows: range) -> None:
        """Raise a ValueError for rows that cannot be a part."""
        ...

    def require_ids(self, ids: Tensor, feature: str) -> None:
        """Raise a ValueError for ids that the map does not take, naming the feature."""
        ...

    def homes_of(self, ids: Tensor, feature: str) -> Tensor:
        """Return the row of each id, int64 ``(N,)``.

        Args:
            ids: int64 ``(N,)``, as they come.
            feature: they are of, for messages.
        """
        ...


class HashedHomes:
    """Deals ids out by a hash, evenly over rows: a part gets as many as it has rows.

    Args:
        rows: of the whole map.
        hashed: what the map makes of ids first; None: nothing.

    Example:
        >>> import torch
        >>> HashedHomes(range(10, 20), None).homes_of(torch.tensor([7, -1]), "user")
        tensor([16, 12])
    """

    least_rows = 2  # one for an id, and one that the others share

    def __init__(self, rows: range, hashed: Callable[[Tensor], Tensor] | None) -> None:
        self._rows, self._hashed = rows, hashed

    def require_part(self, rows: range) -> None:
        """Do nothing: rows may be divided anywhere."""

    def require_ids(self, ids: Tensor, feature: str) -> None:
        """Do nothing: any id will do."""

    def homes_of(self, ids: Tensor, feature: str) -> Tensor:
        """Return the row of each id; see `Homes`."""
        return self.homes_of_hashed(ids if self._hashed is None else self._hashed(ids))

    def homes_of_hashed(self, ids: Tensor) -> Tensor:
        """Return the row of each id, as the map knows it."""
        return hash_ids(ids ^ _SALT, len(self._rows)) + self._rows.start
