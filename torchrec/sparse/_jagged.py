"""JaggedTensor: one list of values for each sample of a batch."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchrec.checks import checked_device, require_type
from torchrec.fx.proxies import Recordable
from torchrec.ops.jagged import jagged_to_padded, lengths_to_offsets, padded_to_jagged
from torchrec.sparse._checks import check_jagged, check_same_sizes
from torchrec.sparse._construct import empty_parts
from torchrec.sparse._lengths import BagLengths, bound_pairs, number_in, set_computed
from torchrec.sparse._meta import JaggedTensorMeta
from torchrec.sparse._text import jagged_text
from torchrec.streamable import Pipelineable


class JaggedTensor(Recordable, BagLengths, Pipelineable, metaclass=JaggedTensorMeta):
    """A batch of bags of different lengths: all values in one tensor, and where each bag ends.

    Bag b is ``values[offsets[b] : offsets[b + 1]]``, and ``lengths[b]`` values long. Lengths and offsets say the same;
    give one, and the other is computed when it is asked for.

    Args:
        values: ``[N, ...]`` values (ids, floats, or one embedding a row), any dtype.
        weights: ``[N]`` one weight a value. Default: unweighted.
        lengths: ``[B]`` number of values of each bag, int32 or int64.
        offsets: ``[B + 1]`` where each bag starts, and the end of the last, int32 or int64.

    Raises:
        ValueError: neither lengths nor offsets given, or they do not fit the values.
        TypeError: lengths or offsets that are not int32 or int64.

    Example:
        >>> jt = JaggedTensor(torch.tensor([5, 7, 1]), lengths=torch.tensor([1, 2]))
        >>> jt.offsets()
        tensor([0, 1, 3])
        >>> jt.to_dense()
        [tensor([5]), tensor([7, 1])]
        >>> print(jt)
        JaggedTensor({
            [[5], [7, 1]]
        })
        <BLANKLINE>
    """

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        try:
            lengths, offsets = check_jagged(values, weights, lengths, offsets)
        except (TypeError, ValueError):
            if self._become_recorded(locals()):
                return
            raise
        self._values = values
        self._weights = weights
        self._lengths = lengths
        self._offsets = offsets

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int32,
    ) -> JaggedTensor:
        """Make a jagged tensor of no bags.

        Args:
            is_weighted: whether it has weights. Default False.
            device: where. Default: PyTorch's.
            values_dtype: Default int64, the dtype of ids.
            weights_dtype: Default: PyTorch's floating-point dtype.
            lengths_dtype: Default int32.
        """
        parts = empty_parts(is_weighted, device, values_dtype, weights_dtype, lengths_dtype)
        return JaggedTensor(*parts)

    @staticmethod
    def empty_like(jt: JaggedTensor, device: torch.device | None = None) -> JaggedTensor:
        """Make a jagged tensor of no bags, with the dtypes, row shape and device of another.

        Args:
            jt: the other.
            device: where, if not there.
        """
        return _empty_like(jt, device)

    @staticmethod
    def from_dense(values: list[Tensor], weights: list[Tensor] | None = None) -> JaggedTensor:
        """Join one tensor a bag.

        Args:
            values: one tensor a bag; the first dimension may differ.
            weights: their weights. Default: unweighted.

        Raises:
            ValueError: weights that do not fit the values.

        Example:
            >>> jt = JaggedTensor.from_dense([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
            >>> jt.lengths()
            tensor([2, 1], dtype=torch.int32)
        """
        return _from_dense(values, weights)

    @staticmethod
    def from_dense_lengths(
        values: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> JaggedTensor:
        """Take the first ``lengths[b]`` values of each row b.

        Args:
            values: ``[B, L, ...]``.
            lengths: ``[B]`` int32 or int64, at most L.
            weights: ``[B, L]``. Default: unweighted.

        Raises:
            ValueError: lengths that do not fit the rows.

        Example:
            >>> padded = torch.tensor([[5, 0], [7, 1]])
            >>> JaggedTensor.from_dense_lengths(padded, torch.tensor([1, 2])).values()
            tensor([5, 7, 1])
        """
        return _from_dense_lengths(values, lengths, weights)

    def values(self) -> Tensor:
        """Return the values of all bags, ``[N, ...]``."""
        return self._values

    def weights(self) -> Tensor:
        """Return the weights, ``[N]``.

        Raises:
            ValueError: there are none.
        """
        if self._weights is None:
            raise ValueError("`weights` should be given to be read. This JaggedTensor has none.")
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        """Return the weights, or None."""
        return self._weights

    def device(self) -> torch.device:
        """Return the device of the values."""
        return self._values.device

    def to_dense(self) -> list[Tensor]:
        """Return one tensor a bag: views of the values. On an accelerator this waits for the lengths.

        Example:
            >>> JaggedTensor(torch.tensor([5, 7, 1]), lengths=torch.tensor([1, 2])).to_dense()
            [tensor([5]), tensor([7, 1])]
        """
        return list(torch.split_with_sizes(self._values, self.lengths().tolist()))

    def to_dense_weights(self) -> list[Tensor] | None:
        """Return one tensor of weights a bag, or None without weights; see ``to_dense``."""
        if self._weights is None:
            return None
        return list(torch.split_with_sizes(self._weights, self.lengths().tolist()))

    def to_padded_dense(
        self, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor:
        """Return bag b in row b of a dense tensor. Differentiable.

        Args:
            desired_length: length of the rows; longer bags are cut. Default: that of the longest bag, for which an
                accelerator is waited for.
            padding_value: what stands behind shorter bags. Default 0.

        Returns:
            ``[B, desired_length, ...]`` of the dtype of the values.

        Example:
            >>> JaggedTensor(torch.tensor([5, 7, 1]), lengths=torch.tensor([1, 2])).to_padded_dense()
            tensor([[5, 0],
                    [7, 1]])
        """
        return self._pad(self._values, desired_length, padding_value)

    def to_padded_dense_weights(
        self, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor | None:
        """Return the weights of bag b in row b of a dense tensor, or None; see ``to_padded_dense``."""
        if self._weights is None:
            return None
        return self._pad(self._weights, desired_length, padding_value)

    def _pad(self, rows: Tensor, width: int | None, padding: float) -> Tensor:
        if width is None:
            width = _longest(self.lengths())
        elif not isinstance(width, (int, torch.SymInt)):
            raise TypeError(f"`desired_length` should be an integer. Received {width!r}.")
        if isinstance(padding, Tensor) or not isinstance(padding, Real | torch.SymFloat):
            raise TypeError(f"`padding_value` should be a number. Received {padding!r}.")
        return jagged_to_padded(rows, self.offsets(), width, padding)

    def to(self, device: torch.device, non_blocking: bool = False) -> JaggedTensor:
        """Return this jagged tensor on ``device``.

        Args:
            device: target device.
            non_blocking: copy without waiting where memory is pinned. Default False.
        """
        device = checked_device(device)

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        values = self._values.to(device, non_blocking=non_blocking)
        jt = make_jagged(values, move(self._weights), move(self._lengths), move(self._offsets))
        set_computed(jt, self._computed)
        return jt

    def copy_(self, jt: JaggedTensor, non_blocking: bool = False) -> JaggedTensor:
        """Copy another jagged tensor of the same sizes into this one's tensors, and return this.

        Args:
            jt: what to copy.
            non_blocking: copy without waiting where memory is pinned. Default False.

        Raises:
            ValueError: sizes differ.
        """
        require_type(jt, "`jt`", JaggedTensor)
        pairs = [(self._values, jt._values), *bound_pairs(self, jt)]
        if self._weights is not None and jt._weights is not None:
            pairs.append((self._weights, jt._weights))
        check_same_sizes("jt", pairs, jt._weights, self._weights)
        for own, other in pairs:
            own.copy_(other, non_blocking)
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory alive until the work queued on ``stream`` is done."""
        for t in (self._values, self._weights, self._lengths, self._offsets):
            if t is not None:
                t.record_stream(stream)

    def size_in_bytes(self) -> int:
        """Return the size of the tensors held, in bytes."""
        tensors = (self._values, self._weights, self._lengths, self._offsets)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def __str__(self) -> str:
        return jagged_text(self._values, self._weights, self.offsets())


def _longest(lengths: Tensor) -> int:
    if not lengths.numel():
        return 0
    if (
        is_compiling()
    ):  # a number yet to come, of which a graph does not know that it is not negative
        return torch.sym_max(lengths.max().item(), 0)  # type: ignore[no-any-return]
    return int(lengths.max())


def _empty_like(jt: JaggedTensor, device: torch.device | None) -> JaggedTensor:
    require_type(jt, "`jt`", JaggedTensor)
    weights = jt.weights_or_none()
    empty = make_jagged(
        jt.values()[:0], None if weights is None else weights[:0], jt.lengths()[:0], None
    )
    return empty if device is None else empty.to(device)


def _from_dense(values: list[Tensor], weights: list[Tensor] | None) -> JaggedTensor:
    sizes = _sizes("values", values)
    if weights is not None and _sizes("weights", weights) != sizes:
        raise ValueError(
            f"`weights` should be as many as the values of each bag ({sizes}). "
            f"Received {_sizes('weights', weights)}."
        )
    if not values:
        return JaggedTensor.empty(weights is not None)
    lengths = torch.tensor(sizes, dtype=torch.int32, device=values[0].device)
    joined = None if weights is None else torch.cat(weights)
    return JaggedTensor(torch.cat(values), joined, lengths)


def _from_dense_lengths(values: Tensor, lengths: Tensor, weights: Tensor | None) -> JaggedTensor:
    require_type(values, "`values`", Tensor)
    require_type(lengths, "`lengths`", Tensor)
    if weights is not None:
        require_type(weights, "`weights`", Tensor)
    if values.dim() < 2 or lengths.dim() != 1 or lengths.size(0) != values.size(0):
        raise ValueError(
            "`lengths` should be one for each row of `values`, shaped [B, L, ...]. "
            f"Received {list(lengths.shape)} for {list(values.shape)}."
        )
    is_seen = lengths.is_cpu and not is_compiling()
    if is_seen and lengths.numel() and int(lengths.max()) > values.size(1):
        raise ValueError(
            f"`lengths` should be at most the length of the rows ({values.size(1)}). "
            f"Received {int(lengths.max())}."
        )
    offsets = lengths_to_offsets(lengths)
    total = number_in(offsets[-1])
    return JaggedTensor(
        padded_to_jagged(values, offsets, total),
        None if weights is None else padded_to_jagged(weights, offsets, total),
        lengths,
        offsets,
    )


def _sizes(name: str, bags: list[Tensor]) -> list[int]:
    """Check that these are tensors that can be joined, and return how many rows each has."""
    if not isinstance(bags, list | tuple) or not all(isinstance(bag, Tensor) for bag in bags):
        raise TypeError(f"`{name}` should be a list of tensors, one a bag. Received {bags!r}.")
    if len({bag.shape[1:] for bag in bags}) > 1 or any(bag.dim() == 0 for bag in bags):
        raise ValueError(
            f"`{name}` should have one dimension or more, alike but for the first. "
            f"Received {[list(bag.shape) for bag in bags]}."
        )
    return [bag.size(0) for bag in bags]


def make_jagged(
    values: Tensor, weights: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
) -> JaggedTensor:
    """Make a JaggedTensor of parts that were checked before."""
    jt = object.__new__(JaggedTensor)
    jt._values = values
    jt._weights = weights
    jt._lengths = lengths
    jt._offsets = offsets
    return jt


for _name in ("_empty_like", "_from_dense", "_from_dense_lengths"):
    torch.fx.wrap(_name)  # tracers record calls of these
JaggedTensor.__module__ = "torchrec.sparse.jagged_tensor"
