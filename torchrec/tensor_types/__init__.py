"""Tensors of unsigned integers of fewer than eight bits, packed several to a byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from torchrec.tensor_types._private import PIN_MEMORY, TO_COPY, UNSAFE_VIEW, make_wrapper_subclass

T = TypeVar("T")
X = TypeVar("X", bound="UIntXTensor")
_HANDLERS: dict[Any, Callable[..., Any]] = {}


def up_size(N: int, size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in values of a packed tensor from its shape in bytes.

    Args:
        N: values in a byte.
        size: shape in bytes; the last dimension is the packed one.

    Raises:
        ValueError: ``size`` has no dimension.

    Example:
        >>> up_size(2, torch.Size([3, 4]))
        (3, 8)
    """
    if not size:
        raise ValueError("`size` of a packed tensor should have a last dimension. Received ().")
    return (*size[:-1], size[-1] * N)


def down_size(N: int, size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in bytes of a packed tensor from its shape in values.

    Args:
        N: values in a byte.
        size: shape in values; the last dimension is the packed one.

    Raises:
        ValueError: ``size`` has no dimension, or ``N`` does not divide the last one.

    Example:
        >>> down_size(4, torch.Size([3, 8]))
        (3, 2)
    """
    if not size:
        raise ValueError("`size` of a packed tensor should have a last dimension. Received ().")
    if size[-1] % N:
        raise ValueError(
            f"The last dimension of `size` should be a multiple of {N}, the values in a byte. "
            f"Received {tuple(size)}."
        )
    return (*size[:-1], size[-1] // N)


def fill_defaults(args: Sequence[Any], n: int, defaults_tail: Sequence[Any]) -> list[Any]:
    """Return ``args`` as a list of at least ``n``, the missing ones taken from the defaults.

    The dispatcher leaves out trailing arguments that have their default value.

    Args:
        args: the arguments given.
        n: how many there should be.
        defaults_tail: defaults of the last ``len(defaults_tail)`` of the ``n`` arguments.

    Raises:
        ValueError: an argument is missing that has no default.

    Example:
        >>> fill_defaults((7, 8), 4, [0, 1])
        [7, 8, 0, 1]
    """
    missing = n - len(args)
    if missing > len(defaults_tail):
        raise ValueError(
            f"`args` should hold at least {n - len(defaults_tail)} of {n} arguments, as "
            f"{len(defaults_tail)} have a default. Received {len(args)}."
        )
    return [*args, *(defaults_tail[-missing:] if missing > 0 else ())]


def find_arg_of_type(it: Iterable[object], t: type[T]) -> T | None:
    """Return the first item of ``it`` that is an instance of ``t``, or None.

    Example:
        >>> find_arg_of_type([1, "a", 2.0, "b"], str)
        'a'
    """
    return next((item for item in it if isinstance(item, t)), None)


class UIntXTensor(torch.Tensor):
    """Unsigned integers of ``8 / N`` bits, ``N`` to a byte along the last dimension.

    The tensor has the shape of its values and the storage of its bytes, which ``elem`` holds as a
    plain ``torch.uint8`` tensor. Within a byte the first value lies in the lowest bits. Operations
    that move whole bytes work and share or copy memory as they do for a plain tensor: ``view``,
    ``reshape``, indexing and slicing by whole bytes, ``clone``, ``detach``, ``copy_``, ``to``,
    ``empty_like``, ``equal``, saving and printing. For arithmetic, ``unpack`` first.

    Args:
        N: values in a byte: 2 or 4.
        elem: packed bytes, dtype ``torch.uint8``, at least one dimension.

    Raises:
        TypeError: ``elem`` is not a ``torch.uint8`` tensor.
        ValueError: ``elem`` has no dimension, its last one is strided, or ``N`` is neither 2 nor 4.

    Example:
        >>> packed = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
        >>> x = UIntXTensor(2, packed)
        >>> x.shape, x.tolist()
        (torch.Size([1, 4]), [[1, 2, 3, 4]])
    """

    N: int
    elem: torch.Tensor

    @staticmethod
    def __new__(cls: type[X], N: int, elem: torch.Tensor) -> X:
        """Wrap the bytes without copying them."""
        if N not in (2, 4):
            raise ValueError(f"`N`, the values in a byte, should be 2 or 4. Received {N}.")
        if not isinstance(elem, torch.Tensor) or elem.dtype != torch.uint8:
            kind = elem.dtype if isinstance(elem, torch.Tensor) else type(elem).__name__
            raise TypeError(f"`elem` should be a tensor of torch.uint8. Received {kind}.")
        if isinstance(elem, UIntXTensor):
            raise TypeError(f"`elem` should hold plain bytes. Received {type(elem).__name__}.")
        shape = up_size(N, elem.shape)
        if elem.stride(-1) != 1 and elem.shape[-1] > 1:
            raise ValueError(
                "`elem` should have the bytes of its last dimension side by side. "
                f"Received strides {elem.stride()}."
            )
        packed: X = make_wrapper_subclass(
            cls,
            shape,
            strides=(*(N * stride for stride in elem.stride()[:-1]), 1),
            dtype=torch.uint8,
            device=elem.device,
        )
        packed.N = N
        packed.elem = elem
        return packed

    def __init__(self, N: int, elem: torch.Tensor) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` on the bytes, if it moves whole bytes only."""
        handler = _HANDLERS.get(func)
        source = find_arg_of_type((*args, *(kwargs or {}).values()), UIntXTensor)
        if handler is None or source is None:
            raise NotImplementedError(
                f"{func} should be called on the values of a packed tensor, x.unpack(). "
                f"Received {cls.__name__}."
            )
        return handler(func, *args, **(kwargs or {}))

    def unpack(self) -> torch.Tensor:
        """Return the values, one to a byte, as a new ``torch.uint8`` tensor of this tensor's shape.

        Example:
            >>> UInt4Tensor(torch.tensor([0x21, 0x43], dtype=torch.uint8)).unpack()
            tensor([1, 2, 3, 4], dtype=torch.uint8)
        """
        bits = 8 // self.N
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=self.elem.device)
        values = (self.elem.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return torch.reshape(values, self.shape)

    def tolist(self) -> list[Any]:
        """Return the values as nested lists of Python integers."""
        values: list[Any] = self.unpack().tolist()
        return values

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"UInt{8 // self.N}Tensor(shape={self.shape}, elem={self.elem})"

    def __deepcopy__(self: X, memo: dict[int, Any]) -> X:
        """Copy the bytes once, however often the tensor occurs in what is copied."""
        if id(self) not in memo:
            memo[id(self)] = _wrap(self, self.elem.clone())
        copied: X = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Pickle by the bytes."""
        own = type(self) is UIntXTensor
        return type(self), ((self.N, self.elem) if own else (self.elem,))


class UInt4Tensor(UIntXTensor):
    """Unsigned integers of four bits, two to a byte along the last dimension.

    Args:
        elem: packed bytes, dtype ``torch.uint8``, shape ``[..., n]``; the tensor is ``[..., 2 n]``.

    Raises:
        TypeError: ``elem`` is not a ``torch.uint8`` tensor.
        ValueError: ``elem`` has no dimension, or its last one is strided.

    Example:
        >>> x = UInt4Tensor(torch.tensor([[0x10, 0x32], [0x54, 0x76]], dtype=torch.uint8))
        >>> x[:, 2:].tolist()
        [[2, 3], [6, 7]]
        >>> x.view(torch.uint8)  # the bytes, not a copy of them
        tensor([[ 16,  50],
                [ 84, 118]], dtype=torch.uint8)
    """

    @staticmethod
    def __new__(cls: type[X], elem: torch.Tensor) -> X:
        """Wrap the bytes without copying them."""
        return UIntXTensor.__new__(cls, 2, elem)

    def __init__(self, elem: torch.Tensor) -> None:
        super().__init__(2, elem)


class UInt2Tensor(UIntXTensor):
    """Unsigned integers of two bits, four to a byte along the last dimension.

    Args:
        elem: packed bytes, dtype ``torch.uint8``, shape ``[..., n]``; the tensor is ``[..., 4 n]``.

    Raises:
        TypeError: ``elem`` is not a ``torch.uint8`` tensor.
        ValueError: ``elem`` has no dimension, or its last one is strided.

    Example:
        >>> UInt2Tensor(torch.tensor([0b11100100], dtype=torch.uint8)).tolist()
        [0, 1, 2, 3]
    """

    @staticmethod
    def __new__(cls: type[X], elem: torch.Tensor) -> X:
        """Wrap the bytes without copying them."""
        return UIntXTensor.__new__(cls, 4, elem)

    def __init__(self, elem: torch.Tensor) -> None:
        super().__init__(4, elem)


def _wrap(source: X, elem: torch.Tensor) -> X:
    """Return ``elem`` as a packed tensor of the kind of ``source``."""
    return UIntXTensor.__new__(type(source), source.N, elem)


def _handles(*funcs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLERS.update(dict.fromkeys(funcs, handler))
        return handler

    return register


_aten = torch.ops.aten


@_handles(_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten.empty_like.default)
def _same_shape(func: Callable[..., Any], x: X, **kwargs: Any) -> X:
    _check_dtype(kwargs.get("dtype"))
    return _wrap(x, func(x.elem, **kwargs))


@_handles(TO_COPY, PIN_MEMORY)
def _to(func: Callable[..., Any], x: X, *args: Any, **kwargs: Any) -> X:
    _check_dtype(kwargs.get("dtype"))
    return _wrap(x, func(x.elem, *args, **kwargs))


@_handles(_aten.is_pinned.default)
def _is_pinned(func: Callable[..., Any], x: X, *args: Any) -> bool:
    return bool(func(x.elem, *args))


@_handles(_aten.view.dtype)
def _bytes(func: Callable[..., Any], x: X, dtype: torch.dtype) -> torch.Tensor:
    _check_dtype(dtype)
    return x.elem


@_handles(_aten.view.default, UNSAFE_VIEW, _aten.reshape.default)
def _view(func: Callable[..., Any], x: X, size: Sequence[int]) -> X:
    # A last dimension of -1 is for the bytes to find out.
    packed = (*size[:-1], -1) if size and size[-1] == -1 else down_size(x.N, size)
    return _wrap(x, func(x.elem, packed))


@_handles(_aten.select.int)
def _select(func: Callable[..., Any], x: X, dim: int, index: int) -> X:
    if dim in (-1, x.dim() - 1):
        raise ValueError(
            "One value of the packed, last dimension should be read by x.unpack(). "
            f"Received index {index} in dimension {dim}."
        )
    return _wrap(x, func(x.elem, dim, index))


@_handles(_aten.unbind.int)
def _unbind(func: Callable[..., Any], x: X, dim: int = 0) -> list[X]:
    return [_select(_aten.select.int, x, dim, index) for index in range(x.shape[dim])]


@_handles(_aten.slice.Tensor)
def _slice(func: Callable[..., Any], x: X, *args: Any) -> X:
    dim, start, end, step = fill_defaults(args, 4, [0, None, None, 1])
    if dim in (-1, x.dim() - 1):
        start, end, _ = slice(start, end).indices(x.shape[-1])
        if start % x.N or end % x.N or step != 1:
            raise ValueError(
                f"A slice of the packed, last dimension should start and end at a multiple of "
                f"{x.N} with step 1. Received {start}:{end}:{step}."
            )
        start, end = start // x.N, end // x.N
    return _wrap(x, func(x.elem, dim, start, end, step))


@_handles(_aten.copy_.default)
def _copy(func: Callable[..., Any], x: X, source: object, non_blocking: bool = False) -> X:
    if not isinstance(source, UIntXTensor) or not isinstance(x, UIntXTensor) or source.N != x.N:
        raise TypeError(
            "A packed tensor should be copied from or to one of as many values in a byte. "
            f"Received {_describe(x)}.copy_({_describe(source)})."
        )
    func(x.elem, source.elem, non_blocking)
    return x


@_handles(_aten.equal.default)
def _equal(func: Callable[..., Any], x: object, y: object) -> bool:
    if not isinstance(x, UIntXTensor) or not isinstance(y, UIntXTensor) or x.N != y.N:
        raise TypeError(
            "A packed tensor should be compared to one of as many values in a byte. "
            f"Received {_describe(x)} and {_describe(y)}."
        )
    return bool(func(x.elem, y.elem))


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.uint8):
        raise TypeError(
            f"A packed tensor should be unpacked, x.unpack(), to change its dtype. "
            f"Received {dtype}."
        )


def _describe(x: object) -> str:
    return f"UInt{8 // x.N}Tensor" if isinstance(x, UIntXTensor) else type(x).__name__


# Checkpoints with packed tables load with weights_only=True, which trusts named classes only.
torch.serialization.add_safe_globals([UIntXTensor, UInt4Tensor, UInt2Tensor])
