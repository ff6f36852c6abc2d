"""Parts of a ``KeyedJaggedTensor`` from Python lists and from tables, and back."""

from __future__ import annotations

from typing import Any

from torchrec.sparse._columns import KjtParts
from torchrec.sparse._read import (
    kjt_parts_from_arrow,
    kjt_parts_from_lists,
    kjt_parts_from_pandas,
    kjt_parts_from_polars,
)
from torchrec.sparse._text import bags_to_lists
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = [
    "KjtParts",
    "kjt_parts_from_arrow",
    "kjt_parts_from_lists",
    "kjt_parts_from_pandas",
    "kjt_parts_from_polars",
    "kjt_to_lists",
    "kjt_weights_to_lists",
]

Bags = list[list[Any]]


def kjt_to_lists(kjt: KeyedJaggedTensor) -> dict[str, Bags]:
    """Return the bags of each key as lists: the inverse of ``kjt_parts_from_lists``.

    Args:
        kjt: B samples, or as many as each key has where the batch size varies by key.

    Returns:
        For each key a list of the values of each sample.

    Example:
        >>> from torchrec import KeyedJaggedTensor
        >>> kjt = KeyedJaggedTensor.from_lists({"product": [[1, 2, 1], [5]], "user": [7, None]})
        >>> kjt_to_lists(kjt)
        {'product': [[1, 2, 1], [5]], 'user': [[7], []]}
    """
    return kjt.to_lists()


def kjt_weights_to_lists(kjt: KeyedJaggedTensor) -> dict[str, Bags]:
    """Return the weights of each key's bags as lists, in the shape of ``kjt_to_lists``.

    Raises:
        ValueError: ``kjt`` has no weights.
    """
    return bags_to_lists(kjt.bags, kjt.weights())
