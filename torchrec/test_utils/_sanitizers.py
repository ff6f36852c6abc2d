"""Whether this process runs under a sanitizer, and tests that are left out there."""

from __future__ import annotations

import ctypes
import unittest
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def _has_symbol(name: str) -> bool:
    return hasattr(ctypes.CDLL(None), name)


def is_asan() -> bool:
    """Say whether this process runs under AddressSanitizer.

    Example:
        >>> is_asan()
        False
    """
    return _has_symbol("__asan_init")


def is_tsan() -> bool:
    """Say whether this process runs under ThreadSanitizer."""
    return _has_symbol("__tsan_init")


def is_asan_or_tsan() -> bool:
    """Say whether this process runs under either."""
    return is_asan() or is_tsan()


def skip_if_asan(func: Callable[P, R]) -> Callable[P, R]:
    """Have a test skipped when it runs under a sanitizer, where forked processes hang.

    Args:
        func: the test.

    Example:
        >>> skip_if_asan(lambda: "ran")()
        'ran'
    """

    @wraps(func)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_asan_or_tsan():
            raise unittest.SkipTest("Sanitizers do not get on with forked processes.")
        return func(*args, **kwargs)

    return run


def skip_if_asan_class(cls: C) -> C | None:
    """Return a class of tests, or None under a sanitizer.

    Args:
        cls: the class.
    """
    return None if is_asan_or_tsan() else cls
