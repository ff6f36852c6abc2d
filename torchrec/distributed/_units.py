"""Bytes, for people."""

from __future__ import annotations

import math


def bytes_to_gb(num_bytes: float) -> float:
    """Return gigabytes of 2**30 bytes.

    Example:
        >>> bytes_to_gb(2**31)
        2.0
    """
    return float(num_bytes / 2**30)


def bytes_to_mb(num_bytes: float) -> float:
    """Return megabytes of 2**20 bytes.

    Example:
        >>> bytes_to_mb(2**21)
        2.0
    """
    return float(num_bytes / 2**20)


def gb_to_bytes(gb: float) -> int:
    """Return the bytes of gigabytes of 2**30 bytes.

    Example:
        >>> gb_to_bytes(1.5)
        1610612736
    """
    return int(gb * 2**30)


def bytes_to_text(num_bytes: float) -> str:
    """Return bytes in the unit that people would take.

    Example:
        >>> bytes_to_text(850), bytes_to_text(3 * 2**29)
        ('850 B', '1.5 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} GiB"


def round_up_bytes(num_bytes: float) -> int:
    """Return as many bytes as `bytes_to_text` can write exactly, and no fewer.

    Example:
        >>> bytes_to_text(10_001), round_up_bytes(10_001), bytes_to_text(round_up_bytes(10_001))
        ('9.767 KiB', 10002, '9.768 KiB')
    """
    unit = 1
    while num_bytes / unit >= 1024 and unit < 2**30:
        unit *= 1024
    if unit == 1:
        return math.ceil(num_bytes)
    step = 10.0 ** (math.floor(math.log10(num_bytes / unit)) - 3)
    return math.ceil(math.ceil(num_bytes / unit / step) * step * unit)
