"""Columns of bags: the form between lists or tables and the parts of a ``KeyedJaggedTensor``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import index
from typing import Any, NamedTuple

import torch


class KjtParts(NamedTuple):
    """What a ``KeyedJaggedTensor`` is made of.

    Attributes:
        keys: the F feature names.
        values: ids, key by key and sample by sample, shape ``[N]``.
        lengths: ids in each bag, ``torch.int64``, shape ``[F * B]``.
        weights: one ``torch.float32`` for each id, shape ``[N]``, or None.
    """

    keys: list[str]
    values: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None


@dataclass(frozen=True)
class Column:
    """The bags of one key: B lengths, and the values in as many pieces as they lie in memory."""

    lengths: torch.Tensor
    pieces: list[torch.Tensor]


def assemble(ids: dict[str, Column], weights: dict[str, Column] | None) -> KjtParts:
    """Join the columns, each copied at most once."""
    if weights is not None:
        _check_weights(ids, weights)
    first = next(iter(ids), "")
    for key, column in ids.items():
        if column.lengths.numel() != ids[first].lengths.numel():
            raise ValueError(
                f"Every key should have as many samples as key '{first}' "
                f"({ids[first].lengths.numel()}). "
                f"Received {column.lengths.numel()} for key '{key}'."
            )
    pieces = [piece for column in ids.values() for piece in column.pieces]
    narrow = bool(pieces) and all(piece.dtype == torch.int32 for piece in pieces)
    values = join(pieces, torch.int32 if narrow else torch.int64)
    lengths = join([column.lengths for column in ids.values()], torch.int64)
    if weights is None:
        return KjtParts(list(ids), values, lengths, None)
    weight_pieces = [piece for key in ids for piece in weights[key].pieces]
    return KjtParts(list(ids), values, lengths, join(weight_pieces, torch.float32))


def join(pieces: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Concatenate; a single piece of the right dtype is returned as it is."""
    pieces = [piece for piece in pieces if piece.numel()]
    if len(pieces) == 1 and pieces[0].dtype == dtype:
        return pieces[0]
    joined = torch.empty(sum(piece.numel() for piece in pieces), dtype=dtype, device="cpu")
    start = 0
    for piece in pieces:
        joined[start : start + piece.numel()].copy_(piece)
        start += piece.numel()
    return joined


def _check_weights(ids: dict[str, Column], weights: dict[str, Column]) -> None:
    if ids.keys() != weights.keys():
        raise ValueError(
            f"`weights` should have the keys of the ids, {list(ids)}. Received {list(weights)}."
        )
    for key, column in weights.items():
        expected = ids[key].lengths
        if column.lengths.numel() != expected.numel():
            raise ValueError(
                f"`weights` of key '{key}' should have {expected.numel()} samples, as its ids. "
                f"Received {column.lengths.numel()}."
            )
        wrong = (column.lengths != expected).nonzero()
        if wrong.numel():
            sample = int(wrong[0])
            raise ValueError(
                f"`weights` of key '{key}' should have {int(expected[sample])} entries in sample "
                f"{sample}, as its ids. Received {int(column.lengths[sample])}."
            )


def checked_items(name: str, mapping: object) -> Iterable[tuple[str, Any]]:
    """Return the items of a mapping with str keys, which messages call ``name``."""
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"`{name}` should be a mapping of keys to bags. Received {type(mapping).__name__}."
        )
    for key in mapping:
        check_key(key)
    return mapping.items()


def check_key(key: object) -> None:
    """Refuse a key that is not a str."""
    if not isinstance(key, str):
        raise TypeError(f"Keys should be str. Received {key!r}.")


def ids_from_lists(key: str, bags: object, dtype: torch.dtype) -> Column:
    """Return bags of integers that fit ``dtype``."""
    lengths, flat = _flatten(key, bags)
    if not set(map(type, flat)) <= {int}:
        flat = _convert(key, lengths, flat, "ids", "integers", index)
    limits = torch.iinfo(dtype)
    if flat and not (limits.min <= min(flat) and max(flat) <= limits.max):
        at = next(i for i, id in enumerate(flat) if not limits.min <= id <= limits.max)
        raise ValueError(
            f"The ids of key '{key}' should fit {dtype}. "
            f"Received {flat[at]} in sample {sample_of(lengths, at)}."
        )
    return _column(lengths, flat, dtype)


def weights_from_lists(key: str, bags: object) -> Column:
    """Return bags of numbers as float32."""
    lengths, flat = _flatten(key, bags)
    if not set(map(type, flat)) <= {float}:
        flat = _convert(key, lengths, flat, "weights", "numbers", float)
    return _column(lengths, flat, torch.float32)


def _column(lengths: list[int], flat: list[Any], dtype: torch.dtype) -> Column:
    # Host memory, like that of a table, whatever device is the default: `to` moves all of it at once.
    values = torch.tensor(flat, dtype=dtype, device="cpu")
    return Column(torch.tensor(lengths, dtype=torch.int64, device="cpu"), [values])


def _flatten(key: str, bags: Any) -> tuple[list[int], list[Any]]:
    """Return the length of each bag, and the entries of all of them."""
    if hasattr(bags, "tolist"):
        bags = bags.tolist()
    if not isinstance(bags, Sequence) or isinstance(bags, str | bytes):
        raise TypeError(
            f"The bags of key '{key}' should be a list, one for each sample. "
            f"Received {type(bags).__name__}."
        )
    lengths: list[int] = []
    flat: list[Any] = []
    for bag in bags:
        if hasattr(bag, "tolist"):
            bag = bag.tolist()
        if isinstance(bag, list | tuple):
            lengths.append(len(bag))
            flat.extend(bag)
        elif bag is None:
            lengths.append(0)
        else:
            lengths.append(1)
            flat.append(bag)
    return lengths, flat


def _convert(
    key: str,
    lengths: list[int],
    flat: list[Any],
    what: str,
    kind: str,
    convert: Callable[[Any], Any],
) -> list[Any]:
    """Make Python numbers of those of other libraries, and refuse what is no number."""
    converted = []
    for at, entry in enumerate(flat):
        number = entry.tolist() if hasattr(entry, "tolist") else entry
        try:
            # bool is an integer and float() reads text: neither is meant as a number here.
            converted.append(convert(None if isinstance(number, bool | str | bytes) else number))
        except (TypeError, OverflowError) as error:
            raise TypeError(
                f"The {what} of key '{key}' should be {kind}. "
                f"Received {entry!r} in sample {sample_of(lengths, at)}."
            ) from error
    return converted


def sample_of(lengths: Sequence[int], at: int) -> int:
    """Return the sample that holds entry ``at``."""
    return bisect_right(list(accumulate(lengths)), at)
