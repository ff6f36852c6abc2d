"""Decorators by which classes of hardware say what differs.

Example:
    >>> from torchrec.distributed.planner.estimator.types import HardwarePerfConfig
    >>> @device_bw(2e9, device="cuda", compute_kernel="fused")
    ... class Fast(HardwarePerfConfig):
    ...     @forward_compute(sharding_type="row_wise")
    ...     def forward(self, ctx):
    ...         return 3.0  # milliseconds
    >>> Fast.kernel_device_bandwidths
    {('cuda', 'fused'): 2000000000.0}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torchrec.distributed.planner.estimator._declared import Declared, types_of
from torchrec.distributed.planner.estimator.types import HardwarePerfConfig

__all__ = [
    "backward_compute",
    "bwd_coefficient",
    "device_bw",
    "forward_compute",
    "fwd_coefficient",
    "output_write_size",
    "prefetch_coefficient",
    "ssd_mem_bw",
    "supported_sharding_types",
]

C = TypeVar("C", bound=HardwarePerfConfig)
_Types = str | Sequence[str] | None


def forward_compute(
    method_or_sharding_type: Callable[..., float] | _Types = None,
    *,
    sharding_type: _Types = None,
) -> Any:
    """Declare that a method ``(self, context)`` returns the milliseconds of a look-up.

    Args:
        method_or_sharding_type: the method, or for which types it is.
        sharding_type: likewise.
    """
    return _method("forward", method_or_sharding_type, sharding_type)


def backward_compute(
    method_or_sharding_type: Callable[..., float] | _Types = None,
    *,
    sharding_type: _Types = None,
) -> Any:
    """Declare the same of the backward pass; the arguments as those of `forward_compute`."""
    return _method("backward", method_or_sharding_type, sharding_type)


def output_write_size(
    method_or_sharding_type: Callable[..., float] | _Types = None,
    *,
    sharding_type: _Types = None,
) -> Any:
    """Declare that a method ``(self, context)`` returns bytes of vectors; arguments as of `forward_compute`."""
    return _method("output", method_or_sharding_type, sharding_type)


def fwd_coefficient(
    sharding_type: str | list[str] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Declare that a method ``(self)`` returns the `PerfCoefficient` of a look-up.

    Args:
        sharding_type: for which types. Default: all.
    """
    return lambda method: Declared(method, "fwd", types_of(sharding_type))


def bwd_coefficient(
    sharding_type: str | list[str] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Declare that a method ``(self)`` returns the `PerfCoefficient` of the backward pass.

    Args:
        sharding_type: for which types. Default: all.
    """
    return lambda method: Declared(method, "bwd", types_of(sharding_type))


def prefetch_coefficient() -> Callable[[Callable[..., Any]], Any]:
    """Declare that a method ``(self)`` returns the `PrefetchCoefficients` of a cache."""
    return lambda method: Declared(method, "prefetch")


def device_bw(
    bandwidth: float | None = None,
    *,
    device: str | None = None,
    compute_kernel: str | list[str] | None = None,
) -> Callable[[type[C]], type[C]]:
    """Say how fast the memory is that tables are in, in bytes a millisecond.

    Args:
        bandwidth: of it.
        device: on which device. Default: any.
        compute_kernel: with which kernels. Default: any.
    """

    def changed(cls: type[C]) -> type[C]:
        if bandwidth is None:
            return cls
        if compute_kernel is None:
            return _with(cls, device_bw=bandwidth)
        kernels = types_of(compute_kernel) or ()
        more = {(device, kernel): bandwidth for kernel in kernels}
        return _with(cls, kernel_device_bandwidths={**cls.kernel_device_bandwidths, **more})

    return changed


def ssd_mem_bw(value: float) -> Callable[[type[C]], type[C]]:
    """Say how fast the disk is, in bytes a millisecond."""
    return lambda cls: _with(cls, ssd_mem_bw=value)


def supported_sharding_types(*sharding_types: str) -> Callable[[type[C]], type[C]]:
    """Say for which sharding types there are estimates; others are refused."""
    return lambda cls: _with(cls, supported=frozenset(sharding_types))


def _method(role: str, given: Callable[..., float] | _Types, sharding_type: _Types) -> Any:
    if callable(given):
        return Declared(given, role, types_of(sharding_type))
    types = types_of(given if sharding_type is None else sharding_type)
    return lambda method: Declared(method, role, types)


def _with(cls: type[C], **attributes: object) -> type[C]:
    """Return a class that is the same but for some attributes, under the same name."""
    return type(
        cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": cls.__doc__, **attributes}
    )
