"""A run folder is trained by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has nothing that ends with the process, and locks a folder
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a run folder while inside. The lock ends with the process, and leaves no file behind.

    Not on Windows, nor on file systems without locks: there it is up to the user.

    Args:
        folder: is made if it is not there.

    Raises:
        ValueError: if another process has it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, lock(Path(folder)):
        ...     with lock(Path(folder)):
        ...         pass
        Traceback (most recent call last):
        ValueError: A run folder should have one process at a time. Received ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"A run folder should have one process at a time. Received '{folder}', in which "
                "another one trains: wait for its end, or choose another folder."
            ) from None
        except OSError:
            pass  # a file system that has no locks
        yield
    finally:
        os.close(handle)
