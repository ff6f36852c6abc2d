"""The most memory that this process has had."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory so far; None where the system does not say.

    Example:
        >>> peak_rss_bytes() is None or peak_rss_bytes() > 10_000_000
        True
    """
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes the process that started this one
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
