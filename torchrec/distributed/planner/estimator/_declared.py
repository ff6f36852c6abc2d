"""What classes of hardware declare with decorators: methods with a role, for all sharding types or for some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Declared", "declared_of"]


@dataclass(frozen=True)
class Declared:
    """A method with a role.

    Attributes:
        method: of the class.
        role: what it says: ``"forward"``, ``"backward"``, ``"output"``, ``"fwd"``, ``"bwd"`` or ``"prefetch"``.
        sharding_types: for which; None: for all.
    """

    method: Callable[..., object]
    role: str
    sharding_types: frozenset[str] | None = None

    def __call__(self, *args: object) -> object:
        return self.method(*args)


def declared_of(cls: type, role: str, sharding_type: str) -> Declared | None:
    """Return the method of a class with a role, one that is for the sharding type alone before one for all.

    Args:
        cls: of hardware.
        role: what the method says.
        sharding_type: value of a `ShardingType`.
    """
    found = [
        member
        for base in cls.__mro__
        for member in vars(base).values()
        if isinstance(member, Declared) and member.role == role
    ]
    for_it = [
        m for m in found if m.sharding_types is not None and sharding_type in m.sharding_types
    ]
    for_all = [m for m in found if m.sharding_types is None]
    return next(iter([*for_it, *for_all]), None)


def types_of(given: str | Sequence[str] | None) -> frozenset[str] | None:
    """Return sharding types as a set, however they are given."""
    if given is None:
        return None
    return frozenset([given]) if isinstance(given, str) else frozenset(given)
