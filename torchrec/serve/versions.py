"""The versions of a model on disk: which there are, and whether they have changed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torchrec.bundle import INDEX, is_bundle
from torchrec.runs import RunFolder

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Found:
    """A version that lies on disk.

    Attributes:
        folder: of its bundle.
        name: of the version, if its folder has a number for a name; else None: it is that of its contents.
        stamp: differs where a file does.
    """

    folder: Path
    name: str | None
    stamp: Stamp


def find_versions(path: str | os.PathLike[str]) -> list[Found]:
    """Return the versions of a model, the newest first.

    Args:
        path: a bundle; a run, which has one; or a folder whose folders have numbers for names, each of them a
            run or a bundle, the largest the newest.

    Raises:
        FileNotFoundError: it is none of these.
    """
    folder = Path(path)
    if (bundle := _bundle(folder)) is not None:
        return [Found(bundle, None, _stamp(bundle))]
    numbers = [one for one in _folders(folder) if one.name.isdecimal() and one.name.isascii()]
    bundles = [(one.name, _bundle(one)) for one in sorted(numbers, key=lambda one: -int(one.name))]
    found = [Found(one, name, _stamp(one)) for name, one in bundles if one is not None]
    if not found:
        why = RunFolder(folder).single() or (
            "which has neither" if folder.is_dir() else "which is no folder"
        )
        raise FileNotFoundError(
            f"What is served should be a run, a bundle, or a folder of such with numbers for names. Received '{path}', "
            f"{why}."
        )
    return found


def _bundle(folder: Path) -> Path | None:
    """Return the bundle that a folder is or has."""
    return next((one for one in (folder, RunFolder(folder).model) if is_bundle(one)), None)


def _folders(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []


def _stamp(folder: Path) -> Stamp:
    """Return what differs where a file does; what goes away at this moment is left out, and seen by the next look."""
    found = []
    for place, folders, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            name = os.path.relpath(path, folder)
            found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def digest_of_index(folder: Path) -> str:
    """Return the digest of a bundle: that of its index, which has those of all its files."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()


def default_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a model that was given none: that of its folder.

    Args:
        path: of a run, a bundle, or versions.

    Example:
        >>> default_name("runs/clicks"), default_name("runs/clicks/model")
        ('clicks', 'clicks')
    """
    folder = Path(os.path.abspath(path))
    return folder.parent.name if folder.name == "model" else folder.name
