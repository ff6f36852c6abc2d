"""Values that are still on their way: what a step has asked of other ranks and will need later."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

W = TypeVar("W")
KT = TypeVar("KT")
VT_co = TypeVar("VT_co", covariant=True)
ParentW = TypeVar("ParentW")


class Awaitable(ABC, Generic[W]):
    """A value that may not be here yet. `wait` gives it; a second `wait` gives the same object.

    Subclasses say in ``_wait_impl`` how it is waited for. That runs once: where it fails, every later
    `wait` raises the same error, as the other ranks are not there to answer again.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[W], W]] = []
        self._result: list[W] = []
        self._error: Exception | None = None

    @abstractmethod
    def _wait_impl(self) -> W:
        """Wait for the value and return it."""

    @property
    def callbacks(self) -> list[Callable[[W], W]]:
        """What the value still goes through, in this order, before `wait` gives it. Each runs once."""
        return self._callbacks

    def wait(self) -> W:
        """Return the value, as the callbacks have left it.

        Example:
            >>> NoWait(3).wait()
            3
        """
        if self._error is not None:
            raise self._error
        try:
            value = self._result.pop() if self._result else self._wait_impl()
            while self._callbacks:
                value = self._callbacks.pop(0)(value)
        except Exception as error:
            self._error = error
            raise
        self._result.append(value)
        return value


class NoWait(Awaitable[W]):
    """A value that is here already, where one to wait for is asked for.

    Args:
        obj: the value.
    """

    def __init__(self, obj: W) -> None:
        super().__init__()
        self._obj = obj

    def _wait_impl(self) -> W:
        return self._obj


class Deferred(Awaitable[W]):
    """A value that a function gives when it is waited for.

    Args:
        give: the function; called once.

    Example:
        >>> Deferred(lambda: 3).wait()
        3
    """

    def __init__(self, give: Callable[[], W]) -> None:
        super().__init__()
        self._give = give

    def _wait_impl(self) -> W:
        return self._give()


def _waited(value: Any) -> Any:
    """Replace what is lazy by its value, in lists, tuples and dictionaries as well."""
    if issubclass(type(value), LazyAwaitable):
        return value.wait()
    if type(value) in (list, tuple):
        return type(value)(_waited(item) for item in value)
    if type(value) is dict:
        return {key: _waited(item) for key, item in value.items()}
    return value


def _forwarded(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def operation(self: LazyAwaitable[Any], other: object) -> Any:
        return function(self.wait(), _waited(other))

    return operation


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def operation(self: LazyAwaitable[Any], other: object) -> Any:
        return function(_waited(other), self.wait())

    return operation


class LazyAwaitable(Awaitable[W]):
    """A value that is waited for when it is first used.

    Attributes, items, arithmetic, comparisons, loops and functions of PyTorch wait for it and go on with it, so that
    a program may take it for the value. `repr` does not wait, so that a debugger does not.

    What ``isinstance`` says: a subclass that stands for a class written in Python names it in ``stands_for``.
    It should not be `torch.Tensor`, nor one made of it, whose memory PyTorch would look for in this object.

    Example:
        >>> lazy = LazyNoWait(torch.tensor([1.0, 2.0]))
        >>> lazy + 1, torch.sum(lazy), lazy.shape
        (tensor([2., 3.]), tensor(3.), torch.Size([2]))
    """

    stands_for: type[object] | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> type[object]:  # type: ignore[override]
        return self.stands_for or type(self)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: tuple[type[object], ...],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        waited = {name: _waited(value) for name, value in (kwargs or {}).items()}
        return func(*(_waited(value) for value in args), **waited)

    def __getattr__(self, name: str) -> Any:
        # Protocols that look for a method of two underscores on an object are not uses of the value, and an
        # object that is being made, copied or unpickled has none yet.
        if name.startswith("__") or "_result" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wait(), name)

    def __repr__(self) -> str:
        value = repr(self._result[0]) if self._result else "not waited for"
        return f"{type(self).__name__}({value})"

    def __str__(self) -> str:
        return str(self.wait())

    def __format__(self, format_spec: str) -> str:
        return format(self.wait(), format_spec)

    def __hash__(self) -> int:
        return id(self)

    # Python looks methods of two underscores up in the class, so that they have to stand here one by one.
    def __bool__(self) -> bool:
        return bool(self.wait())

    def __len__(self) -> int:
        value: Any = self.wait()
        return len(value)

    def __iter__(self) -> Iterator[Any]:
        value: Any = self.wait()
        return iter(value)

    def __contains__(self, item: object) -> bool:
        value: Any = self.wait()
        return item in value

    def __getitem__(self, key: Any) -> Any:
        value: Any = self.wait()
        return value[_waited(key)]

    def __setitem__(self, key: Any, item: object) -> None:
        value: Any = self.wait()
        value[_waited(key)] = _waited(item)

    def __int__(self) -> int:
        value: Any = self.wait()
        return int(value)

    def __float__(self) -> float:
        value: Any = self.wait()
        return float(value)

    def __index__(self) -> int:
        value: Any = self.wait()
        return operator.index(value)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        value: Any = self.wait()
        return value.__array__(*args, **kwargs)

    def __neg__(self) -> Any:
        value: Any = self.wait()
        return -value

    def __invert__(self) -> Any:
        value: Any = self.wait()
        return ~value

    def __abs__(self) -> Any:
        value: Any = self.wait()
        return abs(value)

    __lt__ = _forwarded(operator.lt)
    __le__ = _forwarded(operator.le)
    __gt__ = _forwarded(operator.gt)
    __ge__ = _forwarded(operator.ge)
    __eq__ = _forwarded(operator.eq)
    __ne__ = _forwarded(operator.ne)
    __add__ = _forwarded(operator.add)
    __sub__ = _forwarded(operator.sub)
    __mul__ = _forwarded(operator.mul)
    __truediv__ = _forwarded(operator.truediv)
    __floordiv__ = _forwarded(operator.floordiv)
    __mod__ = _forwarded(operator.mod)
    __pow__ = _forwarded(operator.pow)
    __matmul__ = _forwarded(operator.matmul)
    __and__ = _forwarded(operator.and_)
    __or__ = _forwarded(operator.or_)
    __xor__ = _forwarded(operator.xor)
    __lshift__ = _forwarded(operator.lshift)
    __rshift__ = _forwarded(operator.rshift)
    __radd__ = _reflected(operator.add)
    __rsub__ = _reflected(operator.sub)
    __rmul__ = _reflected(operator.mul)
    __rtruediv__ = _reflected(operator.truediv)
    __rfloordiv__ = _reflected(operator.floordiv)
    __rmod__ = _reflected(operator.mod)
    __rpow__ = _reflected(operator.pow)
    __rmatmul__ = _reflected(operator.matmul)
    __rand__ = _reflected(operator.and_)
    __ror__ = _reflected(operator.or_)
    __rxor__ = _reflected(operator.xor)
    __rlshift__ = _reflected(operator.lshift)
    __rrshift__ = _reflected(operator.rshift)


class LazyNoWait(LazyAwaitable[W]):
    """A value that is here already, where a lazy one is asked for.

    Args:
        obj: the value.
    """

    def __init__(self, obj: W) -> None:
        super().__init__()
        self._obj = obj

    def _wait_impl(self) -> W:
        return self._obj


class GetItemLazyAwaitable(LazyAwaitable[W], Generic[W, ParentW, KT]):
    """An item of a lazy value, which is waited for when the item is first used.

    Args:
        parent: the value.
        key: of the item.

    Example:
        >>> vectors = LazyNoWait({"user": torch.ones(2)})
        >>> GetItemLazyAwaitable(vectors, "user") * 3
        tensor([3., 3.])
    """

    def __init__(self, parent: LazyAwaitable[ParentW], key: KT) -> None:
        super().__init__()
        self._parent = parent
        self._key = key

    def _wait_impl(self) -> W:
        parent: Any = self._parent.wait()
        item: W = parent[self._key]
        return item


class LazyGetItemMixin(Generic[KT, VT_co]):
    """Has the items of a lazy value be lazy too; stands before `LazyAwaitable` among the bases."""

    def __getitem__(self, key: KT) -> LazyAwaitable[VT_co]:
        """Return an item, which is waited for when it is first used."""
        if not issubclass(type(self), LazyAwaitable):
            raise TypeError(
                "LazyGetItemMixin should be mixed into a LazyAwaitable. "
                f"Received {type(self).__name__}."
            )
        return GetItemLazyAwaitable(self, key)  # type: ignore[arg-type]
