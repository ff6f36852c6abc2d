"""The operators on the native library: addresses and sizes go to ``csrc/embedding``, and nothing is copied.

Tables of float64 take the plain-PyTorch operators: the kernels compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec.ops._library import native
from torchrec.ops._memory import is_wide, no_address, require_integers
from torchrec.ops._recycled import recycled
from torchrec.ops.embedding import reference
from torchrec.ops.embedding.failure import raise_bad_bag, raise_bad_id
from torchrec.ops.embedding.layout import VERSION
from torchrec.ops.embedding.spec import PolicyCode, read_spec

_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_NOTHING, _ID, _BAG = range(3)  # kinds of failure

# Said everywhere: another default device must not redirect what kernels write to.
_CPU = torch.device("cpu")

_native: Any = native
Input = Any  # _native.Pooled or _native.Sequence


def require_layout(library: Any) -> None:
    """Refuse kernels that were built from another source than this: they would read other fields."""
    of_library = library.embedding_layout()[0] if hasattr(library, "embedding_layout") else "none"
    if of_library != VERSION:
        raise ImportError(
            f"The kernels should have version {VERSION} of the layout of specs. Received "
            f"{of_library}: build them from this source, by `make native` or `pip install`."
        )


if native is not None:
    require_layout(native)


def _require_own_spec(spec: Tensor) -> None:
    if spec.is_neg():
        raise ValueError("`spec` should stand for itself. Received the lazy negative of a tensor.")


def _tables(spec: Tensor, weights: Sequence[Tensor], rows_dtype: torch.dtype) -> Any:
    """Return the tables of a call, None if kernels do not take the dtypes of the weights or of the rows."""
    _require_own_spec(spec)
    return _native.embedding_tables(spec, weights) if rows_dtype in _CODES else None


def factors(
    values: Tensor, offsets: Tensor, sample_weights: Tensor | None, divisors: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return sample weights and divisors as kernels read them: float32 and int64, contiguous."""
    if sample_weights is not None:
        if sample_weights.dim() != 1 or sample_weights.numel() != values.numel():
            raise ValueError(
                f"`sample_weights` should be as many as the values ({values.numel()}). "
                f"Received {sample_weights.numel()}."
            )
        if not sample_weights.data_ptr():
            no_address("sample_weights", sample_weights)
        sample_weights = sample_weights.float().contiguous()
    if divisors is not None:
        reference.check_divisors(divisors, offsets)
        if not divisors.data_ptr():
            no_address("divisors", divisors)  # which a conversion would read from
        divisors = divisors.long().contiguous()
    return sample_weights, divisors


def _pooled(
    rows: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
) -> Input:
    """Return the input of a kernel, which keeps its tensors."""
    read = factors(values, offsets, sample_weights, divisors)
    return _native.Pooled(values.contiguous(), offsets.contiguous(), *read, num_keys, rows)


def new_bag_output(offsets: Tensor, num_keys: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return memory for what a pooled look-up gives."""
    if width < 0:
        raise ValueError(f"`width` should be 0 or more. Received {width}.")
    # Arguments that do not fit are refused by the binding, which takes the output, too.
    return recycled(((offsets.numel() - 1) // max(num_keys, 1), width), dtype)


def new_counts(num_tables: int) -> Tensor:
    """Return what kernels add the numbers of ids to that were out of range."""
    return torch.zeros(num_tables, dtype=torch.int64, device=_CPU)


def embedding_bag(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    offsets: Tensor,
    sample_weights: Tensor | None,
    divisors: Tensor | None,
    num_keys: int,
    width: int,
    dtype: torch.dtype,
    names: str,
) -> tuple[Tensor, Tensor]:
    """See ``reference.embedding_bag``."""
    _require_own_spec(spec)
    failure = None
    if dtype in _CODES:
        read: tuple[Tensor | None, Tensor | None] = (None, None)
        if sample_weights is not None or divisors is not None:
            read = factors(values, offsets, sample_weights, divisors)
        output = new_bag_output(offsets, num_keys, width, dtype)
        out_of_range = new_counts(len(weights))
        failure = _native.embedding_bag(
            spec,
            weights,
            values.contiguous(),
            offsets.contiguous(),
            *read,
            num_keys,
            output,
            out_of_range.data_ptr(),
            torch.get_num_threads(),
        )
    if failure is None:  # of dtypes that kernels do not take
        return reference.embedding_bag(
            weights, spec, values, offsets, sample_weights, divisors, num_keys, width, dtype, names
        )
    if failure[0] != _NOTHING:
        raise_failure(failure, spec, names)
    return output, out_of_range


def raise_failure(failure: tuple[int, int, int, int], spec: Tensor, names: str) -> None:
    """Raise for what a kernel has refused, if anything."""
    kind, slot, bag, value = failure
    if kind == _NOTHING:
        return
    if kind == _BAG:
        raise_bad_bag(names, slot, bag, value)
    tables, slots = read_spec(spec)
    table = tables[slots[slot].table]
    end = table.rows if table.policy == PolicyCode.ROWS else table.num_embeddings
    raise_bad_id(names, slot, bag, value, end)


def _rows_of(grad: Tensor) -> Tensor:
    """Return the gradient with its columns next to one another."""
    if grad.dim() != 2:
        raise ValueError(f"`grad` should have two dimensions. Received {list(grad.shape)}.")
    return grad if grad.stride(1) == 1 else grad.contiguous()


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _dense_grad(tables: Any, weights: Sequence[Tensor], input: Input) -> list[Tensor]:
    grads = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights]
    _native.embedding_dense_grad(tables, input, _addresses(grads), torch.get_num_threads())
    return grads


def _sparse_grad(
    tables: Any, weights: Sequence[Tensor], input: Input, most: list[int]
) -> list[Tensor]:
    """Run the kernel into room for ``most[t]`` rows, whose unused end is never touched."""
    room = [min(n, w.shape[0]) for n, w in zip(most, weights, strict=True)]
    rows = [torch.empty(n, dtype=torch.int64, device=_CPU) for n in room]
    sums = [w.new_empty((n, w.shape[1])) for n, w in zip(room, weights, strict=True)]
    counts = _native.embedding_sparse_grad(
        tables, input, _addresses(rows), _addresses(sums), torch.get_num_threads()
    )
    result: list[Tensor] = []
    for r, s, n in zip(rows, sums, counts, strict=True):
        result += [r.narrow(0, 0, n).clone(), s.narrow(0, 0, n)]
    return result


# The operators below take the arguments of those of `reference`. What they only hand on is in `*bags`: spec, values,
# offsets, sample_weights, divisors, num_keys; or in `*ids`: spec, values, starts, counts.


def embedding_bag_dense_grad(grad: Tensor, weights: Sequence[Tensor], *bags: Any) -> list[Tensor]:
    """See ``reference.embedding_bag_dense_grad``."""
    spec, *rest = bags
    tables = _tables(spec, weights, grad.dtype)
    if tables is None:
        return reference.embedding_bag_dense_grad(grad, weights, *bags)
    return _dense_grad(tables, weights, _pooled(_rows_of(grad), *rest))


def embedding_bag_sparse_grad(grad: Tensor, weights: Sequence[Tensor], *bags: Any) -> list[Tensor]:
    """See ``reference.embedding_bag_sparse_grad``."""
    spec, values, offsets, sample_weights, divisors, num_keys = bags
    tables = _tables(spec, weights, grad.dtype)
    if tables is None:
        return reference.embedding_bag_sparse_grad(grad, weights, *bags)
    input = _pooled(_rows_of(grad), values, offsets, sample_weights, divisors, num_keys)
    size = reference.batch_size(values, offsets, num_keys)
    # Without samples none: as many zeros as `num_keys` says may not fit the memory.
    ends = offsets[::size].tolist() if size else []
    specs, slots = read_spec(spec)
    most = [0] * len(specs)
    for slot in slots:
        reference.check_key(slot.key, num_keys)
        most[slot.table] += max(0, ends[slot.key + 1] - ends[slot.key]) if ends else 0
    return _sparse_grad(tables, weights, input, most)


def embedding_bag_update_(
    grad: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor], hyper: Tensor, *bags: Any
) -> None:
    """See ``reference.embedding_bag_update_``."""
    spec, *rest = bags
    tables = _tables(spec, weights, grad.dtype)
    if tables is None:
        return reference.embedding_bag_update_(grad, weights, states, hyper, *bags)
    return _update(tables, weights, _pooled(_rows_of(grad), *rest), states, hyper)


def embedding_bag_weights_grad(grad: Tensor, weights: Sequence[Tensor], *bags: Any) -> Tensor:
    """See ``reference.embedding_bag_weights_grad``."""
    spec, values, offsets, sample_weights, divisors, num_keys = bags
    tables = _tables(spec, weights, grad.dtype)
    if tables is None:
        return reference.embedding_bag_weights_grad(grad, weights, *bags)
    if sample_weights is None:
        raise TypeError("`sample_weights` should be a tensor. Received None.")
    input = _pooled(_rows_of(grad), values, offsets, sample_weights, divisors, num_keys)
    result = torch.zeros(sample_weights.shape, dtype=torch.float32, device=_CPU)
    _native.embedding_weights_grad(tables, input, result.data_ptr(), torch.get_num_threads())
    return result.to(sample_weights.dtype)


def _require_own(states: Sequence[Tensor], hyper: Tensor) -> None:
    if hyper.is_neg() or any(map(Tensor.is_neg, states)):
        raise TypeError(
            "`hyper` and `states` should stand for themselves. Received the lazy negative of a tensor."
        )


def _update(
    tables: Any, weights: Sequence[Tensor], input: Input, states: Sequence[Tensor], hyper: Tensor
) -> None:
    _require_own(states, hyper)
    _native.embedding_update(tables, input, hyper, states, torch.get_num_threads())
    # The kernels write behind PyTorch's back; autograd has to know.
    torch.autograd.graph.increment_version([*weights, *states, hyper])


def _sequence(
    rows: Sequence[Tensor | None],
    dtype: torch.dtype,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
) -> tuple[Input, list[Tensor | None]]:
    """Return the input of a kernel and the tensors that have to outlive it."""
    if len(rows) != len(counts):
        raise ValueError(f"`grads` should be one a slot ({len(counts)}). Received {len(rows)}.")
    if values.dim() != 1:
        raise ValueError(f"`values` should have one dimension. Received {values.dim()}.")
    values = values.contiguous()
    kept: list[Tensor | None] = [values]
    addresses, dims = [], []
    for row, count in zip(rows, counts, strict=True):
        if row is None:
            addresses.append(0)
            dims.append(0)
            continue
        if row.dim() == 0 or row.shape[0] != count:
            raise ValueError(
                f"`grads` should have a row for each id ({count}). Received {len(row) if row.dim() else row}."
            )
        if row.dtype is not dtype:
            raise TypeError(f"`grads` should be of one dtype ({dtype}). Received {row.dtype}.")
        row = row.contiguous()
        kept.append(row)
        addresses.append(row.data_ptr() or no_address("grads", row))
        dims.append(row.size(1) if row.dim() == 2 else -1)
    wide = is_wide("values", values)
    return _native.Sequence(
        values.data_ptr(),
        values.numel(),
        wide,
        list(starts),
        list(counts),
        addresses,
        dims,
        _CODES.get(dtype, 0),  # `choose_rows` writes int64 whatever this says
    ), kept


def new_sequence(
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Input, list[Tensor], object]:
    """Return the input of a look-up of sequences, its outputs, and what has to outlive the input."""
    reference.check_ranges(values, starts, counts)
    if len(dims) != len(counts) or min(dims, default=0) < 0:
        raise ValueError(f"`dims` should be one a slot ({len(counts)}). Received {list(dims)}.")
    outputs = [recycled((n, d), dtype) for n, d in zip(counts, dims, strict=True)]
    input, kept = _sequence(outputs, dtype, values, starts, counts)
    return input, outputs, kept


def embedding_sequence(
    weights: Sequence[Tensor],
    spec: Tensor,
    values: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype,
    names: str,
) -> list[Tensor]:
    """See ``reference.embedding_sequence``."""
    tables = _tables(spec, weights, dtype)
    if tables is None:
        return reference.embedding_sequence(
            weights, spec, values, starts, counts, dims, dtype, names
        )
    input, outputs, _kept = new_sequence(values, starts, counts, dims, dtype)
    out_of_range = new_counts(len(weights))
    failure = _native.embedding_forward(
        tables, input, out_of_range.data_ptr(), torch.get_num_threads()
    )
    raise_failure(failure, spec, names)
    return [*outputs, out_of_range]


def choose_rows(
    spec: Tensor,
    values: Tensor,
    offsets: Tensor | None,
    starts: Sequence[int],
    counts: Sequence[int],
    num_keys: int,
    num_tables: int,
    names: str,
) -> tuple[Tensor, Tensor]:
    """See ``reference.choose_rows``."""
    if offsets is not None:
        require_integers("offsets", offsets)
        reference.batch_size(values, offsets, num_keys)
    tables = _native.Tables(spec)
    reference.check_num_tables(num_tables, tables.size)
    reference.check_ranges(values, starts, counts)
    rows = torch.empty(sum(counts), dtype=torch.int64, device=_CPU)
    input, _kept = _sequence(rows.split(list(counts)), torch.int64, values, starts, counts)
    out_of_range = new_counts(num_tables)
    failure = _native.embedding_choose_rows(
        tables, input, out_of_range.data_ptr(), torch.get_num_threads()
    )
    if failure[0] != _NOTHING:
        kind, slot, position, value = failure
        _, slots = read_spec(spec)
        samples = reference.samples_of(offsets, slots[slot], starts[slot] + position, 1, num_keys)
        sample = position if samples is None else int(samples)
        raise_failure((kind, slot, sample, value), spec, names)
    return rows, out_of_range


def _dtype_of(grads: Sequence[Tensor | None]) -> torch.dtype:
    return next((g.dtype for g in grads if g is not None), torch.float32)


def embedding_sequence_dense_grad(
    grads: Sequence[Tensor | None], weights: Sequence[Tensor], *ids: Any
) -> list[Tensor]:
    """See ``reference.embedding_sequence_dense_grad``."""
    dtype = _dtype_of(grads)
    spec, *rest = ids
    tables = _tables(spec, weights, dtype)
    if tables is None:
        return reference.embedding_sequence_dense_grad(grads, weights, *ids)
    input, _kept = _sequence(grads, dtype, *rest)
    return _dense_grad(tables, weights, input)


def embedding_sequence_sparse_grad(
    grads: Sequence[Tensor | None], weights: Sequence[Tensor], *ids: Any
) -> list[Tensor]:
    """See ``reference.embedding_sequence_sparse_grad``."""
    dtype = _dtype_of(grads)
    spec, values, starts, counts = ids
    tables = _tables(spec, weights, dtype)
    if tables is None:
        return reference.embedding_sequence_sparse_grad(grads, weights, *ids)
    input, _kept = _sequence(grads, dtype, values, starts, counts)
    specs, slots = read_spec(spec)
    if len(slots) != len(counts):
        raise ValueError(f"`counts` should be one a slot ({len(slots)}). Received {len(counts)}.")
    most = [0] * len(specs)
    for slot, count in zip(slots, counts, strict=True):
        most[slot.table] += max(0, count)
    return _sparse_grad(tables, weights, input, most)


def embedding_sequence_update_(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    hyper: Tensor,
    *ids: Any,
) -> None:
    """See ``reference.embedding_sequence_update_``."""
    dtype = _dtype_of(grads)
    spec, *rest = ids
    tables = _tables(spec, weights, dtype)
    if tables is None:
        return reference.embedding_sequence_update_(grads, weights, states, hyper, *ids)
    input, _kept = _sequence(grads, dtype, *rest)
    return _update(tables, weights, input, states, hyper)


def has_kernels_for(weights: Sequence[Tensor]) -> bool:
    """Return whether there are kernels, and they take these tables."""
    return _native is not None and all(w.is_cpu and w.dtype in _CODES for w in weights)


def split_bag_update(
    grad: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    hyper: Tensor,
    shares: Sequence[float],
    *bags: Any,
) -> tuple[Any, Any]:
    """Make the first half of an update; return it, and what has to outlive it."""
    spec, *rest = bags
    _require_own(states, hyper)
    grad = _rows_of(grad if grad.dtype in _CODES else grad.float())
    tables, input = _tables(spec, weights, grad.dtype), _pooled(grad, *rest)
    threads = torch.get_num_threads()
    held = _native.embedding_split_update(tables, input, hyper, states, shares, threads)
    return held, (tables, input, spec)


def split_sequence_update(
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    hyper: Tensor,
    shares: Sequence[float],
    *ids: Any,
) -> tuple[Any, Any]:
    """Make the first half of an update; return it, and what has to outlive it."""
    spec, *rest = ids
    _require_own(states, hyper)
    if _dtype_of(grads) not in _CODES:
        grads = [None if grad is None else grad.float() for grad in grads]
    dtype = _dtype_of(grads)
    tables = _tables(spec, weights, dtype)
    input, kept = _sequence(grads, dtype, *rest)
    threads = torch.get_num_threads()
    held = _native.embedding_split_update(tables, input, hyper, states, shares, threads)
    return held, (tables, input, spec, kept)
