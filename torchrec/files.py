"""Files and folders that are whole or not there, whose damage is noticed, and errors that name them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

INDEX = "index.json"
"""Where `write_folder` lists what is in a folder, unless it is told otherwise."""

_CHECKSUM = "checksum"
_DEEPEST = 100  # levels of JSON, beyond which Python's stack may end
_CHUNK = 1 << 20


class DamagedError(ValueError):
    """A file is not as it was written.

    Attributes:
        path: of the file.
        reason: in what it differs.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"'{path}' should be as it was written. It is damaged: {reason}.")

    def __reduce__(self) -> tuple[type[DamagedError], tuple[Path, str]]:
        """Pickle by the fields, so that the error crosses process borders."""
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class FileDigest:
    """By what a file is known again: its size, and a hash of its bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class FolderIndex:
    """What a folder that `write_folder` wrote says of itself.

    Attributes:
        format: version of what is in it, as its writer counts them.
        written_by: library and version, such as ``"rowwise 0.1.0"``; empty if it does not say.
        facts: whatever else the writer noted.
        files: digest of each file, by its path in the folder.
    """

    format: int
    written_by: str
    facts: Mapping[str, Json]
    files: Mapping[str, FileDigest]


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


def write_file(path: str | os.PathLike[str], text: str, *, durable: bool = False) -> None:
    """Write a file under another name and rename it; what was there before stays until then.

    Args:
        path: of the file; missing folders are made.
        text: its content.
        durable: bring it to the disk, so that it outlives a loss of power. Default False.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    path = Path(path)
    if not path.name:  # as "." and ""
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
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


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out whether `write_file` can write a file, before hours of work for it.

    Args:
        path: of the file; missing folders are made.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        beside.touch()
        beside.unlink()


@contextmanager
def write_folder(
    folder: str | os.PathLike[str],
    *,
    format: int,
    facts: Mapping[str, Json] | None = None,
    index: str = INDEX,
    unlisted: Collection[str] = (),
    what: str = "The folder",
) -> Iterator[Path]:
    """Give an empty folder to write to, which takes the place of ``folder`` when all went well.

    Then every file has its digest in an index, and all of it is on the disk before it gets its name.
    After an exception, Ctrl-C included, and after the process was killed, what was there before is
    whole; what a killed process left beside it is removed by the next that writes.

    Args:
        folder: new, or what is to be replaced; missing folders above it are made. A link stays one,
            and what it leads to is written.
        format: version of what is written, for `read_index`.
        facts: what else the index should say. Default: nothing.
        index: name of the index. Default ``"index.json"``.
        unlisted: files without a digest, as people may write into them. Default: none.
        what: what is written, to begin an error with. Default ``"The folder"``.

    Raises:
        OSError: it cannot be written, as on a full disk; names ``folder``. What is raised inside
            about a file elsewhere, as of data that are read meanwhile, stays as it is.
        ValueError: this process works in ``folder`` or below, or ``facts`` have a name that the
            index needs.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> with write_folder(folder, format=1, facts={"step": 3}) as beside:
        ...     _ = (beside / "weights.txt").write_text("0.5")
        >>> found = read_index(folder)
        >>> found.format, found.facts, found.files["weights.txt"].bytes
        (1, {'step': 3}, 3)
        >>> check_files(folder, found)
        >>> _ = (folder / "weights.txt").write_text("0.7")
        >>> check_files(folder, found)
        Traceback (most recent call last):
        torchrec.files.DamagedError: '...' should be as it was written. It is damaged: ...
    """
    content: dict[str, Json] = {"format": format, "written_by": _library(), "files": {}}
    for name in facts or {}:
        if name in (*content, _CHECKSUM):
            raise ValueError(
                f"`facts` should have other names than {', '.join(content)} and {_CHECKSUM}. "
                f"Received '{name}'."
            )
    given, folder = folder, Path(os.path.realpath(folder))
    if _is_worked_in(folder):
        raise ValueError(
            f"{what} should be written to a folder in which this process does not work. Received "
            f"'{given}'."
        )
    beside, former, _ = _beside(folder)
    with _not_written(what, given):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        beside.mkdir()
    try:
        with _not_written(what, given, only=beside):
            yield beside
        with _not_written(what, given):
            digests: dict[str, Json] = {}
            for path in sorted(beside.rglob("*")):
                name = path.relative_to(beside).as_posix()
                if path.is_file() and name not in unlisted:
                    digests[name] = dict(vars(digest_of(path)))
                sync(path)
            content = {**content, **(facts or {}), "files": digests}
            (beside / index).write_text(json_with_checksum(content, indent=1), encoding="utf-8")
            sync(beside / index)
            sync(beside)
            # No system renames over a folder that is not empty: for a moment there is none, and
            # whoever is killed there leaves the former one to the `_clear` of the next.
            if folder.exists():
                folder.rename(former)
            beside.rename(folder)
            sync(folder.parent)
    finally:
        _clear(folder)


@contextmanager
def _not_written(
    what: str, folder: str | os.PathLike[str], only: Path | None = None
) -> Iterator[None]:
    """Say of errors of the system that a folder could not be written.

    Args:
        what: is written.
        folder: as the caller named it.
        only: errors that name a file elsewhere are none of writing. Default: all are.
    """
    try:
        yield
    except OSError as error:
        if only is not None and _is_elsewhere(error, only):
            raise
        raise OSError(
            error.errno or errno.EIO,
            f"{what} should be written to '{folder}'. Received: {error.strerror or error}. "
            "What was there before is whole",
        ) from error


def _is_worked_in(folder: Path) -> bool:
    """Return whether this process works in a folder: replaced, it would go on in the former one."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody removed it
        return False
    return folder in (here, *here.parents)


def _is_elsewhere(error: OSError, folder: Path) -> bool:
    """Return whether an error names a file that is not in a folder; a full disk names none."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    path = Path(os.path.abspath(os.fsdecode(error.filename)))
    return folder not in (path, *path.parents)


def read_index(
    folder: str | os.PathLike[str], *, index: str = INDEX, unchecked_format: int = 0
) -> FolderIndex:
    """Return what a folder says of itself; its files are left to `check_files`.

    Args:
        folder: as `write_folder` wrote it.
        index: name of the index. Default ``"index.json"``.
        unchecked_format: indexes of formats up to this one have no checksum of themselves. Default 0.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is not as it was written.
    """
    path = Path(folder) / index
    text = path.read_bytes()
    try:
        content, checked = _parse(text)
    except ValueError as error:
        raise DamagedError(path, str(error)) from None
    format, files = content.pop("format", None), content.pop("files", None)
    if isinstance(format, bool) or not isinstance(format, int) or not isinstance(files, dict):
        raise DamagedError(path, "it should say its format and list the files")
    if format > unchecked_format and not checked:
        raise DamagedError(path, "it has no checksum")
    written_by = str(content.pop("written_by", ""))
    digests = {name: _digest(path, name, entry) for name, entry in files.items()}
    return FolderIndex(format, written_by, content, digests)


def check_files(folder: str | os.PathLike[str], index: FolderIndex) -> None:
    """Read all files that an index lists.

    Args:
        folder: that it is of.
        index: from `read_index`.

    Raises:
        DamagedError: one is missing, or not as it was written.
    """
    for name, expected in index.files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise DamagedError(path, "it is missing")
        size = path.stat().st_size
        if size != expected.bytes:
            raise DamagedError(path, f"it has {size:,} bytes instead of {expected.bytes:,}")
        if digest_of(path) != expected:
            raise DamagedError(path, "it has other contents than when it was written")


def remove_folder(folder: str | os.PathLike[str]) -> None:
    """Remove a folder, its name first, so that nobody takes what is left of it for whole."""
    folder = Path(folder)
    removed = _beside(folder).removed
    _remove(removed)
    folder.rename(removed)
    if removed.is_symlink():
        removed.unlink()
    else:
        shutil.rmtree(removed)


def clear_remains(parent: str | os.PathLike[str]) -> None:
    """Clear away what killed processes left in a folder that only `write_folder` writes folders to.

    A folder whose replacement they had not finished gets its name back.
    """
    kinds = "|".join(_Beside._fields)
    for path in list(Path(parent).glob(".*")):
        if found := re.fullmatch(rf"\.(.+)\.(?:{kinds})", path.name):
            _clear(path.with_name(found[1]))


def digest_of(path: str | os.PathLike[str]) -> FileDigest:
    """Return the digest of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(size, digest.hexdigest())


def json_with_checksum(content: Mapping[str, Json], indent: int | None = None) -> str:
    """Return an object as JSON that a reader can check, with a ``checksum`` as its last key.

    The checksum is of the values, not of the characters: a file may be formatted anew.

    Args:
        content: strings, numbers (not NaN, nor infinite), lists and dictionaries.
        indent: spaces a level. Default: all on one line.

    Example:
        >>> line = json_with_checksum({"step": 3})
        >>> line, parse_json(line)
        ('{"step": 3, "checksum": "crc32:232fcf13"}', {'step': 3})
        >>> parse_json(line.replace("3", "7", 1))
        Traceback (most recent call last):
        ValueError: its content has checksum crc32:... instead of crc32:232fcf13
    """
    return json.dumps({**content, _CHECKSUM: _checksum(content)}, allow_nan=False, indent=indent)


def parse_json(text: str | bytes) -> dict[str, Json]:
    """Return the object in a JSON text, checked against its ``checksum`` if it has one.

    Args:
        text: as `json_with_checksum` gives it, or from before there were checksums.

    Raises:
        ValueError: it is no JSON, no object, or other than what was written.
    """
    return _parse(text)[0]


def read_json(text: str | bytes) -> Any:
    """Return what a JSON text says, however hostile it is.

    Raises:
        ValueError: it is no JSON, or is nested more deeply than anything that we write.

    Example:
        >>> read_json('{"step": [1, 2]}')
        {'step': [1, 2]}
        >>> read_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it should be nested at most 100 deep
    """
    too_deep = f"it should be nested at most {_DEEPEST} deep"
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # of `int`
        raise ValueError("it should have no number of thousands of digits") from None
    if _is_deeper(content, _DEEPEST):
        raise ValueError(too_deep)
    return content


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write a file of safetensors.

    Args:
        path: of the file.
        tensors: by name, of any device; no two share memory.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # The library gives errors of the system as text, with their number in it.
        number = re.search(r"(?:os error |code: )(\d+)", str(error))
        if number is None:
            raise OSError(None, str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    open_to_others(path)


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


def _library() -> str:
    # Not imported: nothing inside of the package imports from its top, which is there by now.
    return f"rowwise {sys.modules['torchrec'].__version__}"


class _Beside(NamedTuple):
    """Hidden folders beside one while it is written, replaced or removed; each is named after its field."""

    writing: Path
    former: Path
    removed: Path


def _beside(folder: Path) -> _Beside:
    start = f".{folder.name}."
    return _Beside(
        folder.with_name(f"{start}writing"),
        folder.with_name(f"{start}former"),
        folder.with_name(f"{start}removed"),
    )


def _clear(folder: Path) -> None:
    """Remove what lies beside a folder; one without its successor gets its name back."""
    beside = _beside(folder)
    if beside.former.exists() and not folder.exists():
        beside.former.rename(folder)
    for path in filter(os.path.lexists, beside):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder as far as possible, or the link or file in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _parse(text: str | bytes) -> tuple[dict[str, Json], bool]:
    """Return the object in a JSON text, and whether it had a checksum, which it then agrees with."""
    content = read_json(text)
    if not isinstance(content, dict):
        raise ValueError(f"it should be a JSON object, and is {type(content).__name__}")
    if _CHECKSUM not in content:
        return content, False
    written, received = content.pop(_CHECKSUM), _checksum(content)
    if written != received:
        raise ValueError(f"its content has checksum {received} instead of {written}")
    return content, True


def _is_deeper(value: object, levels: int) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return False
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _checksum(content: Mapping[str, Json]) -> str:
    # Of the values: what was written, read and written again has the same text.
    text = json.dumps(content, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return f"crc32:{zlib.crc32(text.encode()):08x}"


def _digest(path: Path, name: str, entry: Json) -> FileDigest:
    """Return an entry of an index as a digest; no entry leads out of the folder."""
    inside = not os.path.isabs(name) and ".." not in Path(name).parts
    if inside and isinstance(entry, dict):
        size, sha256 = entry.get("bytes"), entry.get("sha256")
        if isinstance(size, int) and isinstance(sha256, str):
            return FileDigest(size, sha256)
    raise DamagedError(path, f"it should have size and digest of '{name}'")
