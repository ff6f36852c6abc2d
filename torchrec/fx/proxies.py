"""What stands in a module's way while ``torch.fx`` traces it: proxies, of which nothing can be asked.

A proxy has no shape, dtype, length or value; it only records what is done to it. This file alone says what is one, as
``torch.compiler.is_compiling`` says it for compilers:

- Checks of inputs step aside where `is_proxy` says so.
- What depends on the numbers of its input is recorded as one call: a module by being a `LeafModule`, a function by
  ``torch.fx.wrap``, the constructor of a class by being `Recordable`.
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.fx import Proxy

from torchrec.fx._private import ProxyableClassMeta


def is_proxy(value: object) -> TypeGuard[Proxy]:
    """Say whether ``torch.fx`` is recording what is done to a value, so that nothing can be asked of it.

    Args:
        value: such as the input of a module.

    Example:
        >>> import torch
        >>> is_proxy(torch.ones(2))
        False
    """
    return isinstance(value, Proxy)


def holds_proxy(*values: object) -> bool:
    """Say whether there is a proxy among values, or in the lists, tuples and dictionaries among these.

    Args:
        *values: arguments of a call.

    Example:
        >>> holds_proxy([1, 2], {"a": None})
        False
    """
    return next(_proxies_in(*values), None) is not None


def _proxies_in(*values: object) -> Iterator[Proxy]:
    for value in values:
        if isinstance(value, Proxy):
            yield value
        elif isinstance(value, list | tuple):
            yield from _proxies_in(*value)
        elif isinstance(value, dict):
            yield from _proxies_in(*value.values())


class RecordableMeta(ABCMeta, ProxyableClassMeta):
    """Makes objects constants of graphs, as PyTorch's own, but does not look for proxies whenever one is made.

    It does so for a class that is derived from ours with a constructor of its own, whose arguments only the call has.
    """

    __call__ = type.__call__

    def __new__(
        mcs, name: str, bases: tuple[type, ...], attrs: dict[str, Any], **options: Any
    ) -> RecordableMeta:
        """Make a class."""
        ours = [base for base in bases if isinstance(base, RecordableMeta)]
        if "__init__" in attrs and any(base.__bases__ != (object,) for base in ours):
            attrs = {"__new__": _new_or_recorded, **attrs}
        return super().__new__(mcs, name, bases, attrs, **options)


def _new_or_recorded(cls: type, *args: object, **kwargs: object) -> object:
    """Return a new object, or the proxy of the call that makes it."""
    proxy = next(_proxies_in(args, kwargs), None)
    if proxy is None:
        return object.__new__(cls)
    return proxy.tracer.create_proxy("call_function", cls, args, kwargs)


class Recordable(metaclass=RecordableMeta):
    """A class whose objects graphs hold: as constants, or by recording the call that makes them of proxies.

    It should be the first base of a class: Python lets an object change to a class only if both store what they hold
    in the same way, and goes by the first base.
    """

    def _become_recorded(self, variables: Mapping[str, object]) -> bool:
        """Turn this object into the proxy of the call that makes it, if one of the arguments is a proxy.

        For constructors whose arguments are not what they should be. They cannot return another object; and what can,
        a ``__new__`` or the ``__call__`` of a metaclass, would cost every object a fifth of a microsecond.

        Args:
            variables: those of the constructor, the arguments among them.

        Returns:
            Whether it was turned into a proxy. Not so an object of a class with a constructor of its own, which is
            made by another call.
        """
        if type(self).__new__ is not object.__new__:
            return False
        names = inspect.signature(type(self)).parameters
        given = {name: variables[name] for name in names if variables[name] is not None}
        proxy = next(_proxies_in(given), None)
        if proxy is None:
            return False
        call: Proxy = proxy.tracer.create_proxy("call_function", type(self), (), given)
        self.__class__, self.__dict__ = type(call), call.__dict__  # type: ignore[assignment]
        return True


class LeafModule:
    """A module that tracers of ``torch.fx`` record as one call, whichever tracer it is.

    PyTorch's tracer follows every module outside ``torch.nn``. A module that cannot be followed, because what it does
    depends on the keys or the numbers of its input, says so itself: where `is_proxy` says that its input is one,
    ``forward`` returns ``self.recorded(...)``.

    Example:
        >>> import torch
        >>> class Longest(nn.Module, LeafModule):
        ...     def forward(self, x):
        ...         return self.recorded(x) if is_proxy(x) else x[x.argmax()]
        >>> model = torch.fx.symbolic_trace(nn.Sequential(Longest(), nn.ReLU()))
        >>> print(model.code.strip())
        def forward(self, input):
            input_1 = input
            _0 = getattr(self, "0")(input_1);  input_1 = None
            _1 = getattr(self, "1")(_0);  _0 = None
            return _1
        >>> model(torch.tensor([1.0, 7.0, 3.0]))
        tensor(7.)
    """

    @property
    def leaf(self) -> LeafModule:
        """This module, under a name by which the graph of this module alone can call it."""
        return self

    def recorded(self, *args: object) -> Any:
        """Record the call of this module.

        Args:
            *args: of ``forward``, one of them a proxy, or in a list or dictionary.

        Returns:
            The proxy of the result.
        """
        assert isinstance(self, nn.Module)
        tracer: Any = next(_proxies_in(*args)).tracer
        # Of the module that is traced itself the path is empty, which no graph can call.
        path = tracer.path_of_module(self) or "leaf"
        return tracer.create_proxy("call_module", path, args, {})

    def recorded_with(self, args: Proxy, kwargs: object) -> Any:
        """Record the call of this module, if it is traced itself and its ``forward`` takes ``*args`` and ``**kwargs``.

        Args:
            args: what ``torch.fx`` has in the place of all of ``*args``.
            kwargs: likewise.
        """
        tracer: Any = args.tracer
        this = tracer.create_proxy("get_attr", "leaf", (), {})
        return tracer.create_proxy("call_function", _called, (this, args, kwargs), {})


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return module(*args, **dict(kwargs))  # `torch.fx.Interpreter` hands over an empty list


torch.fx.wrap("_called")
