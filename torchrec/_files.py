"""Files that are whole or not there, and errors that name them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the system name a file: a full disk does not say what did not fit.

    Args:
        path: the file that the user asked for, whatever name it is written under.

    Example:
        >>> with naming("clicks.csv"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'clicks.csv'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        # Libraries put the number into their own words; those of the system are clearer.
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def write_whole(path: str | os.PathLike[str], text: str, *, durable: bool = False) -> None:
    """Write a file under another name and rename it; what was there before stays until then.

    Args:
        path: of the file; missing folders are made.
        text: its content.
        durable: bring it to the disk, so that it outlives a loss of power. Default False.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            if durable:
                sync(beside)
            os.replace(beside, path)
            if durable:
                sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def open_to_others(path: str | os.PathLike[str]) -> None:
    """Give a file the permissions of a new one, where a library keeps what it writes to the owner."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def sync(path: str | os.PathLike[str]) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
