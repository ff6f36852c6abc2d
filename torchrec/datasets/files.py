"""The files that data is read from: found by name, path or pattern, and looked at before anything is read."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Format = Literal["parquet", "csv", "tsv", "json"]
Compression = Literal["gzip", "zstd"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_PARQUET_MAGIC = b"PAR1"

_SAMPLES = 64  # places of a large file that its fingerprint covers


@dataclass(frozen=True)
class DataFile:
    """A file of samples.

    Args:
        path: where it is.
        format: ``"parquet"``, ``"csv"``, ``"tsv"`` or ``"json"``, which `query_to_parquet` reads.
        compression: ``"gzip"`` or ``"zstd"`` of a text file. Default: none.
    """

    path: str
    format: Format
    compression: Compression | None = None

    @cached_property
    def name(self) -> str:
        """Its name without folders and suffixes, which stays when it is moved, compressed or made Parquet.

        Folders directly above that tell a value of the data are part of it.

        Example:
            >>> DataFile("/data/clicks/day=3/part-0.csv.gz", "csv", "gzip").name
            'day=3/part-0'
        """
        *folders, stem = self.path.replace(os.sep, "/").split("/")
        for suffixes in (_COMPRESSIONS, _FORMATS):
            short, last = os.path.splitext(stem)
            stem = short if last.lower() in suffixes else stem
        values = list(itertools.takewhile(lambda folder: "=" in folder, reversed(folders)))
        return "/".join([*reversed(values), stem])

    def fingerprint(self, most: int | None = 1 << 26) -> str:
        """Return a digest of the file's size and bytes: other data, another digest.

        Args:
            most: number of bytes to read; of a larger file, as many at 64 places, start and end among
                them. Default 64 MiB. None: all of them.
        """
        size = os.path.getsize(self.path)
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        with open(self.path, "rb") as file:
            if most is None or size <= most:
                while part := file.read(1 << 20):
                    digest.update(part)
            else:
                step = max(1, most // _SAMPLES)
                for sample in range(_SAMPLES):
                    file.seek((size - step) * sample // (_SAMPLES - 1))
                    digest.update(file.read(step))
        return digest.hexdigest()


def resolve_files(
    patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    format: Literal["auto", "parquet", "csv", "tsv", "json"] = "auto",
) -> list[DataFile]:
    r"""Find the files that paths, folders and patterns mean, in a fixed order.

    A pattern (``data/day_*.parquet``, ``data/**/*.csv``) gives its matches sorted by name, a folder
    its data files and those of the folders in it, sorted by name; names that begin with a dot or an
    underscore are left out. A file that is found twice is taken once.

    Args:
        patterns: paths, folders or patterns.
        format: of all files; ``"auto"`` goes by the suffix: ``.parquet``, ``.pq``, ``.csv``,
            ``.tsv``, ``.json``, ``.jsonl``, ``.ndjson``, text also with ``.gz`` or ``.zst``. Default ``"auto"``.

    Returns:
        At least one file; all of one format.

    Raises:
        ValueError: nothing is found, a file is empty, no (complete) Parquet file or of a format
            that cannot be told, or formats differ.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.csv", "a.csv"):
        ...         _ = pathlib.Path(folder, name).write_text("x\n1\n")
        ...     [os.path.basename(file.path) for file in resolve_files([folder + "/*.csv"])]
        ['a.csv', 'b.csv']
    """
    if isinstance(patterns, str | os.PathLike):
        patterns = [patterns]
    paths: dict[str, None] = {}
    for pattern in patterns:
        paths |= dict.fromkeys(_matches(pattern, format))
    if not paths:
        raise ValueError("The list of data files should name at least one. Received none.")
    files = [_data_file(path, format) for path in paths]
    for file in files:
        if file.format != files[0].format:
            raise ValueError(
                f"Files of one data set should have one format; '{files[0].path}' is "
                f"{files[0].format}. Received '{file.path}', which is {file.format}."
            )
        _check_content(file)
    return files


def _matches(pattern: str | os.PathLike[str], format: str) -> list[str]:
    path = os.path.expanduser(os.fspath(pattern))
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        found = list(_files_below(path, format))
        kind = "Folder"
    else:
        found = []
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isfile(match):
                found.append(match)
            elif os.path.basename(match)[:1] not in tuple("._"):
                found += _files_below(match, format)
        kind = "Pattern" if glob.has_magic(path) else "Data file"
    if not found:
        what = "should exist" if kind == "Data file" else "should match at least one data file"
        raise ValueError(f"{kind} '{path}' {what}. Received none.")
    return found


def _files_below(folder: str, format: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the data files in a folder and in the folders in it, in order of their names."""
    above = (*above, os.path.realpath(folder))
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name[0] in "._":  # what writers leave beside the data: _SUCCESS, .crc, _temporary
            continue
        if os.path.isdir(path):
            if os.path.realpath(path) not in above:  # a link to where it lies has no end
                yield from _files_below(path, format, above)
        elif os.path.isfile(path) and (format != "auto" or suffixes_of(path)[0]):
            yield path


def check_delimiter(delimiter: str, name: str = "delimiter") -> None:
    """Refuse what cannot stand between the columns of text files.

    Args:
        delimiter: the character, or several; quotes have no meaning in files with several.
        name: of the argument or key, for the message.
    """
    characters = set(delimiter)
    if (
        not 1 <= len(delimiter) <= 8
        or not delimiter.isascii()
        or characters & set('"\r\n')
        or any(map(str.isalnum, characters))
    ):
        raise ValueError(
            f"`{name}` should be one character that is no letter, digit or quote, such as ';', or "
            f"several, such as '::'. Received {delimiter!r}."
        )


def suffixes_of(path: str) -> tuple[Format | None, Compression | None]:
    """Return what the suffixes of a path say: the format, if any, and the compression, if any.

    Args:
        path: of a file.

    Example:
        >>> suffixes_of("clicks.csv.gz"), suffixes_of("clicks.txt")
        (('csv', 'gzip'), (None, None))
    """
    stem, last = os.path.splitext(path.lower())
    compression = _COMPRESSIONS.get(last)
    if compression is not None:
        last = os.path.splitext(stem)[1]
    return _FORMATS.get(last), compression


def _data_file(path: str, format: Literal["auto", "parquet", "csv", "tsv", "json"]) -> DataFile:
    by_suffix, compression = suffixes_of(path)
    chosen = by_suffix if format == "auto" else format
    if chosen is None:
        raise ValueError(
            "Data files should end in .parquet, .csv, .tsv, .jsonl, .csv.gz, .csv.zst or the like, or their "
            f"format be given. Received '{path}'."
        )
    if chosen == "parquet" and compression is not None:
        raise ValueError(
            f"Parquet files are compressed inside and should not end in .gz or .zst. Received '{path}'."
        )
    return DataFile(path, chosen, compression)


def _check_content(file: DataFile) -> None:
    size = os.path.getsize(file.path)
    if size == 0:
        raise ValueError(f"Data file '{file.path}' should hold samples. Received an empty file.")
    if file.format != "parquet":
        return
    with open(file.path, "rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, size - 4))
        tail = stream.read(4)
    if head != _PARQUET_MAGIC:
        raise ValueError(f"'{file.path}' should be a Parquet file. Received something else.")
    if tail != _PARQUET_MAGIC or size < 12:
        raise ValueError(
            f"Parquet file '{file.path}' should be complete. Received one without its end: "
            "it was cut off while it was written or copied."
        )
