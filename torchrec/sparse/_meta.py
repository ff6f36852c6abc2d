"""The type of the sparse types."""

from __future__ import annotations

from typing import Any

from torchrec.fx.proxies import RecordableMeta


class JaggedTensorMeta(RecordableMeta):
    """Makes a class that says it is of a public module, while its source stands in a private one.

    Files and graphs name a class by its ``__module__``, which so has to stay what it is. But ``inspect`` goes by the
    same name to find the source. It follows ``__wrapped__``, as of a function that a decorator has replaced; here that
    is a stand-in of the module where the class is written.
    """

    _written_in: str

    def __init__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> None:  # noqa: N805
        super().__init__(name, bases, attrs)
        cls._written_in = attrs["__module__"]

    @property
    def __wrapped__(self) -> type:
        if self._written_in == self.__module__:  # so are classes derived from ours
            raise AttributeError("__wrapped__")
        same = ("__doc__", "__init__", "__qualname__", "__firstlineno__")
        attrs = {name: value for name, value in vars(self).items() if name in same}
        return type(self.__name__, (), {**attrs, "__module__": self._written_in})
