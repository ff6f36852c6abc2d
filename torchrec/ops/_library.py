"""The native library and the table of operators: which backends each one has, and which is in use.

An operator is defined once, by its family's ``schema.py``, and gets up to three implementations: ``reference.py``
(plain PyTorch, any device; the specification), ``native.py`` (C++ kernels, CPU) and ``triton.py`` (CUDA). The
PyTorch dispatcher chooses by the device of the tensors.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

ENVIRONMENT_VARIABLE = "ROWWISE_BACKEND"

_library = torch.library.Library("rowwise", "DEF")


def _load_native() -> tuple[ModuleType | None, str]:
    """Return the native library, or None, and the reason for either."""
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "native")
    if choice not in ("native", "reference"):
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE} should be 'native' or 'reference'. Received {choice!r}."
        )
    if choice == "reference":
        return None, f"{ENVIRONMENT_VARIABLE}=reference"
    if importlib.util.find_spec("torchrec.ops._native") is None:
        return None, "the package was installed without a C++ compiler"
    # A library that is there but broken raises here: it is never skipped quietly.
    module = importlib.import_module("torchrec.ops._native")
    threads = "OpenMP" if module.openmp() else "one thread, no OpenMP"
    return module, f"C++ kernels, {module.isa()}, {threads}"


native, _why = _load_native()


class Backend(NamedTuple):
    """What an operator uses for tensors of one device type."""

    name: str
    why: str


_backends: dict[str, dict[str, Backend]] = {}


def define(
    schema: str,
    *,
    reference: Callable[..., object],
    fake: Callable[..., object],
    native_kernel: Callable[..., object] | None = None,
    tags: tuple[torch.Tag, ...] = (),
) -> Callable[..., Any]:
    """Define the operator ``rowwise::<schema>`` and register its implementations.

    Args:
        schema: name, arguments and results in the schema language of ``torch.library``.
        reference: plain PyTorch, right on every device.
        fake: shapes and dtypes of the results, for tracing.
        native_kernel: the CPU implementation on the native library; used where that library is in use.
        tags: tags of the operator, such as ``torch.Tag.needs_fixed_stride_order``.

    Returns:
        The operator's default overload, to be called.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=tags)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rowwise::{name}", fake, lib=_library)
    chosen = {"cpu": Backend("reference", _why), "other": Backend("reference", "any device")}
    if native is not None:
        if native_kernel is None:
            chosen["cpu"] = Backend("reference", "no native kernel: plain PyTorch is as fast")
        else:
            _library.impl(name, native_kernel, "CPU")
            chosen["cpu"] = Backend("native", _why)
    _backends[name] = chosen
    return getattr(torch.ops.rowwise, name).default  # type: ignore[no-any-return]


def backends() -> dict[str, dict[str, Backend]]:
    """Say what each operator uses, by device type, and why.

    Returns:
        Operator name -> device type ("cpu", "other") -> ``Backend(name, why)``.

    Example:
        >>> from torchrec import ops
        >>> sorted(ops.backends()["embedding_bag"])
        ['cpu', 'other']
    """
    return {name: dict(chosen) for name, chosen in _backends.items()}
