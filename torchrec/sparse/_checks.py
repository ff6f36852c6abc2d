"""The checks made when a sparse type is built: cheap, and on an accelerator without synchronising.

Shapes, dtypes and devices are checked wherever tensors are real; the numbers in lengths and offsets only on a CPU,
where one pass over them is enough to know that they fit. What went wrong is looked into afterwards. While a graph is
traced nothing is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.checks import require_integer, require_list
from torchrec.ops import is_readable
from torchrec.ops.jagged import bags_surely_fit, lengths_fit, offsets_fit

_INT64, _INT32 = torch.int64, torch.int32
_ONE_KEY = [""]  # of a JaggedTensor, as it were


def check_jagged(
    values: Tensor, weights: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check the parts of a JaggedTensor: types, dtypes, devices, and that they fit one another.

    Returns:
        Lengths and offsets, as integers where they are empty and were none.
    """
    if is_compiling() or bags_surely_fit(_ONE_KEY, values, weights, lengths, offsets):
        return lengths, offsets
    count = _count_values(values, weights)
    if lengths is not None:
        lengths = _integers("lengths", lengths, values)
        if _are_seen_not_to_fit(lengths, count):
            raise ValueError(_explain_lengths(lengths, count, [], []))
    elif offsets is None:
        raise ValueError("`lengths` or `offsets` should be given. Received neither.")
    if offsets is not None:
        offsets = _checked_offsets(offsets, values, count, [], [])
        if lengths is not None:
            _check_agreement(lengths, offsets)
    return lengths, offsets


def check_keyed_jagged(
    keys: list[str],
    values: Tensor,
    weights: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    stride: int | None,
    strides: Sequence[int] | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Check the parts of a KeyedJaggedTensor.

    Args:
        keys: the F keys.
        values: the values of all keys.
        weights: their weights, or None.
        lengths: the number of values of each bag, or None.
        offsets: where each bag starts, or None.
        stride: size of the batch, if given.
        strides: size of each key's batch, if they differ.

    Returns:
        Lengths and offsets, as integers where they are empty and were none; without keys and values neither needs to
        be given.
    """
    if not _are_distinct_strings(keys):
        checked_keys(keys)
        raise ValueError(f"`keys` should be distinct. Received {repeated(keys)} more than once.")
    count = _count_values(values, weights)
    num_keys = len(keys)
    if lengths is None and offsets is None and num_keys == 0 == count:
        lengths = torch.empty(0, dtype=_INT64, device=values.device)
    if lengths is not None:
        lengths = _integers("lengths", lengths, values)
        bags = lengths.numel()
    elif offsets is not None:
        offsets = _integers("offsets", offsets, values)
        bags = offsets.numel() - 1
    else:
        raise ValueError("`lengths` or `offsets` should be given. Received neither.")
    if strides is not None:
        _check_strides(keys, strides, bags)
    else:
        _check_bags(
            bags, num_keys, stride, "`lengths`" if offsets is None else "`offsets`, less one,"
        )
        strides = [bags // num_keys] * num_keys if num_keys else []
    if lengths is not None and _are_seen_not_to_fit(lengths, count):
        raise ValueError(_explain_lengths(lengths.reshape(-1), count, keys, strides))
    if offsets is not None:
        offsets = _checked_offsets(offsets, values, count, keys, strides)
        if lengths is not None:
            _check_agreement(lengths, offsets)
    return lengths, offsets


def _are_seen_not_to_fit(lengths: Tensor, count: int) -> bool:
    return is_readable(lengths) and not lengths_fit(lengths, count)


def _are_distinct_strings(keys: list[str]) -> bool:
    try:
        return len(set(keys)) == len(keys) and all(isinstance(key, str) for key in keys)
    except TypeError:  # a key that cannot be hashed is no string
        return False


def _are_strings(keys: list[str]) -> bool:
    try:
        "".join(keys)  # the quickest way to see it
    except TypeError:
        return False
    return True


def checked_keys(keys: object) -> list[str]:
    """Return keys as a list, if they are strings one by one."""
    if type(keys) is not list:
        if not isinstance(keys, Sequence) or isinstance(keys, str):
            raise TypeError(f"`keys` should be a list of strings. Received {keys!r}.")
        keys = list(keys)
    if not _are_strings(keys):
        raise TypeError(f"`keys` should be strings. Received {keys}.")
    return keys


def check_same_sizes(
    name: str, pairs: Sequence[tuple[Tensor, Tensor]], weights: Tensor | None, own: Tensor | None
) -> None:
    """Check that what is copied fits what it is copied into."""
    if (weights is None) is not (own is None):
        received = "none" if weights is None else "some"
        raise ValueError(
            f"`{name}` should have weights if this has, and else none. Received {received}."
        )
    for into, given in pairs:
        if into.shape != given.shape:
            raise ValueError(
                f"`{name}` should have tensors of the same sizes ({list(into.shape)}). "
                f"Received {list(given.shape)}."
            )


def _count_values(values: Tensor, weights: Tensor | None) -> int:
    if not isinstance(values, Tensor):
        raise TypeError(f"`values` should be a tensor. Received {type(values).__name__}.")
    dims = values.dim()
    if dims == 0:
        raise ValueError("`values` should have one dimension or more. Received a scalar.")
    count = values.numel() if dims == 1 else values.size(0)
    if weights is not None:
        if not isinstance(weights, Tensor):
            raise TypeError(f"`weights` should be a tensor. Received {type(weights).__name__}.")
        if weights.dim() == 0 or weights.size(0) != count:
            raise ValueError(
                f"`weights` should be as many as the values ({count}). Received {list(weights.shape)}."
            )
        if weights.device != values.device:
            raise ValueError(
                f"`weights` should be on the device of the values ({values.device}). "
                f"Received {weights.device}."
            )
    return count


def _integers(name: str, tensor: Tensor, values: Tensor) -> Tensor:
    """Check lengths or offsets, and return them; empty ones, which are float32 by default, as integers.

    Empty offsets stand for those of no bags, where there are no values: they become ``[0]``.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` should be a tensor. Received {type(tensor).__name__}.")
    if tensor.numel() == 0 == values.numel() and (tensor.is_floating_point() or name == "offsets"):
        tensor = tensor.new_zeros(1 if name == "offsets" else 0, dtype=_integer_dtype(tensor))
    dtype = tensor.dtype
    if dtype is not _INT64 and dtype is not _INT32:
        raise TypeError(f"`{name}` should be of dtype int32 or int64. Received {dtype}.")
    if not (tensor.is_cpu and values.is_cpu) and tensor.device != values.device:
        raise ValueError(
            f"`{name}` should be on the device of the values ({values.device}). Received {tensor.device}."
        )
    return tensor


def _integer_dtype(tensor: Tensor) -> torch.dtype:
    return _INT64 if tensor.is_floating_point() else tensor.dtype


def _checked_offsets(
    offsets: Tensor, values: Tensor, count: int, keys: Sequence[str], strides: Sequence[int]
) -> Tensor:
    offsets = _integers("offsets", offsets, values)
    if offsets.dim() != 1 or offsets.size(0) == 0:
        raise ValueError(
            "`offsets` should be one-dimensional and hold one number more than there are bags. "
            f"Received shape {list(offsets.shape)}."
        )
    if is_readable(offsets) and not offsets_fit(offsets, count):
        raise ValueError(_explain_offsets(offsets, count, keys, strides))
    return offsets


def _check_agreement(lengths: Tensor, offsets: Tensor) -> None:
    if type(lengths) is not Tensor or type(offsets) is not Tensor:
        return
    if lengths.numel() != offsets.numel() - 1:
        raise ValueError(
            f"`offsets` should be one more than `lengths` ({lengths.numel()}). "
            f"Received {offsets.numel()}."
        )
    if is_readable(lengths) and bool((offsets[1:] - offsets[:-1] != lengths.reshape(-1)).any()):
        raise ValueError(
            "`offsets` should be the running sums of `lengths`. "
            f"Received offsets {_short(offsets)} and lengths {_short(lengths)}."
        )


def _check_strides(keys: Sequence[str], strides: Sequence[int], bags: int) -> None:
    if len(strides) != len(keys):
        raise ValueError(
            f"`stride_per_key` should hold one size a key ({len(keys)}). Received {len(strides)}."
        )
    for key, stride in zip(keys, strides, strict=True):
        if stride < 0:
            raise ValueError(
                f"`stride_per_key` of key '{key}' should be 0 or more. Received {stride}."
            )
    if sum(strides) != bags:
        raise ValueError(
            f"`stride_per_key` should sum to the number of lengths ({bags}). "
            f"Received {list(strides)}, which sum to {sum(strides)}."
        )


def strides_of_ranks(keys: Sequence[str], per_rank: list[list[int]] | Tensor) -> list[int]:
    """Check ``stride_per_key_per_rank`` and return the sizes of each key's batch, all ranks together."""
    rows = per_rank.tolist() if isinstance(per_rank, Tensor) else per_rank
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(
            "`stride_per_key_per_rank` should hold one list of sizes a key. "
            f"Received {type(per_rank).__name__} {rows}."
        )
    if len(rows) != len(keys) or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"`stride_per_key_per_rank` should be [F, W]: for each of {len(keys)} keys as many sizes. "
            f"Received {rows}."
        )
    for key, row in zip(keys, rows, strict=True):
        if any(size < 0 for size in row):
            raise ValueError(
                f"`stride_per_key_per_rank` of key '{key}' should be 0 or more. Received {row}."
            )
    return [sum(row) for row in rows]


def check_inverse_indices(
    keys: Sequence[str], strides: Sequence[int], inverse: tuple[list[str], Tensor]
) -> None:
    """Check that inverse indices cover every key, and point into its batch."""
    if not (isinstance(inverse, tuple) and len(inverse) == 2 and isinstance(inverse[1], Tensor)):
        raise TypeError(
            f"`inverse_indices` should be a tuple of keys and a tensor. Received {type(inverse).__name__}."
        )
    names, indices = inverse
    require_list(names, "The keys of `inverse_indices`", str)
    if indices.dim() != 2 or indices.size(0) != len(names):
        raise ValueError(
            f"`inverse_indices` should be [F, B] with one row for each of {len(names)} keys. "
            f"Received {list(indices.shape)}."
        )
    if indices.dtype is not _INT64 and indices.dtype is not _INT32:
        raise TypeError(
            f"`inverse_indices` should be of dtype int32 or int64. Received {indices.dtype}."
        )
    position = {name: i for i, name in enumerate(names)}
    for key in keys:
        if key not in position:
            raise ValueError(f"`inverse_indices` should cover key '{key}'. Received keys {names}.")
    if not (is_readable(indices) and indices.numel()):
        return
    lowest, highest = indices.amin(1).tolist(), indices.amax(1).tolist()
    for key, stride in zip(keys, strides, strict=True):
        low, high = lowest[position[key]], highest[position[key]]
        if low < 0 or high >= stride:
            raise ValueError(
                f"`inverse_indices` of key '{key}' should be in [0, {stride}), the size of its batch. "
                f"Received {low if low < 0 else high}."
            )


def check_runs(name: str, runs: list[int], keys: Sequence[str]) -> None:
    """Check numbers of keys that should be those of all keys together."""
    try:
        total = sum(runs)
        fit = isinstance(total, int) and total == len(keys) and min(runs, default=0) >= 0
    except (TypeError, RuntimeError):
        fit = False
    if not fit or not isinstance(runs, list | tuple):
        require_list(runs, f"`{name}`", int)
        raise ValueError(
            f"`{name}` should not be negative and sum to the number of keys ({len(keys)}). Received {runs}."
        )


def check_positions(indices: list[int], keys: Sequence[str]) -> None:
    """Say which position is that of no key."""
    require_list(indices, "`indices`", int)
    for i in indices:
        if not 0 <= i < len(keys):
            raise IndexError(
                f"`indices` should be in [0, {len(keys)}), those of keys. Received {i}."
            )


def check_metadata(name: str, given: object, true: object) -> None:
    """Check a number given for what could be computed."""
    if type(given) is not type(true) or given != true:
        raise ValueError(f"`{name}` should be {true}, as the tensors say. Received {given}.")


def repeated(keys: Sequence[str]) -> str:
    """Name the keys that stand more than once."""
    seen: set[str] = set()
    twice = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    return ", ".join(f"'{key}'" for key in dict.fromkeys(twice))


def _short(tensor: Tensor) -> str:
    flat = tensor.reshape(-1)
    return str(flat.tolist()) if flat.numel() <= 16 else f"{flat[:16].tolist()[:-1]}..."


def _check_bags(bags: int, num_keys: int, stride: int | None, what: str) -> None:
    if num_keys == 0 and bags:
        raise ValueError(f"`keys` should name the {bags} numbers of {what} Received none.")
    if stride is not None and not isinstance(stride, torch.SymInt):
        require_integer(stride, "`stride`", least=0)
    if stride is not None and bags != num_keys * stride:
        raise ValueError(
            f"{what} should be {num_keys} keys x stride {stride} = {num_keys * stride} numbers. "
            f"Received {bags}."
        )
    if num_keys and (bags < 0 or bags % num_keys):
        raise ValueError(
            f"{what} should be equally many numbers for each of {num_keys} keys. Received {bags}."
        )


def _key_at(bag: int, keys: Sequence[str], strides: Sequence[int]) -> tuple[str, int]:
    """Return which key the bag belongs to, as text, and its place in that key's batch."""
    for key, stride in zip(keys, strides, strict=True):
        if bag < stride:
            return f" of key '{key}'", bag
        bag -= stride
    return "", bag


def _explain_lengths(
    lengths: Tensor, count: int, keys: Sequence[str], strides: Sequence[int]
) -> str:
    negative = (lengths < 0).nonzero()
    if negative.numel():
        bag = int(negative[0])
        of_key, sample = _key_at(bag, keys, strides)
        return f"`lengths`{of_key} should be 0 or more. Received {int(lengths[bag])} in sample {sample}."
    numbers = lengths.reshape(-1).tolist()  # Python's sums do not wrap
    sums = ""
    if keys:
        ends = list(accumulate(strides, initial=0))
        pairs = list(zip(keys, pairwise(ends), strict=True))[:32]
        sums = ": " + ", ".join(f"{sum(numbers[a:b])} for key '{key}'" for key, (a, b) in pairs)
    return (
        f"`lengths` should sum to the number of values ({count}). "
        f"Received a sum of {sum(numbers)}{sums}."
    )


def _explain_offsets(
    offsets: Tensor, count: int, keys: Sequence[str], strides: Sequence[int]
) -> str:
    if int(offsets[0]) != 0:
        return f"`offsets` should start at 0. Received {int(offsets[0])}."
    falls = (offsets[1:] < offsets[:-1]).nonzero()
    if falls.numel():
        bag = int(falls[0])
        of_key, sample = _key_at(bag, keys, strides)
        return (
            f"`offsets`{of_key} should never fall. "
            f"Received {int(offsets[bag])} and then {int(offsets[bag + 1])} in sample {sample}."
        )
    return f"`offsets` should end at the number of values ({count}). Received {int(offsets[-1])}."
