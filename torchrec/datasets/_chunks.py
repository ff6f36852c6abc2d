"""What readers of all formats have in common: chunks, in an order that is known before they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from torchrec.datasets.features import TextType
    from torchrec.datasets.files import DataFile

# Rows of a chunk of a Parquet file, bytes of a chunk of text: large enough for columnar work to pay,
# small enough to hold several at once.
CHUNK_ROWS = 1 << 16
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Reading:
    """In which order to read; the same for all ranks.

    Args:
        seed: shuffles row groups (of text, files). Default: the order of the files.
        chunk_rows: most rows of a chunk of a Parquet file.
    """

    seed: int | None = None
    chunk_rows: int = CHUNK_ROWS

    def order(self, units: int) -> list[int]:
        """Return the order in which so many units are read."""
        if self.seed is None:
            return list(range(units))
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = torch.randperm(units, generator=generator).tolist()
        return order


class ChunkStart(NamedTuple):
    """Where a chunk starts, so that reading can go on there.

    ``unit`` counts row groups or files in the order of reading; ``row`` and ``byte`` count within it.
    """

    unit: int = 0
    row: int = 0
    byte: int = 0


class Chunk(NamedTuple):
    """Some rows of a file.

    Attributes:
        start: where it starts.
        file: number of the file.
        first_row: number of its first row in that file.
        rows: how many rows it has; dropping and splitting come later.
        decode: gives them as a table; may run in any thread, once.
    """

    start: ChunkStart
    file: int
    first_row: int
    rows: int
    decode: Callable[[], pa.Table]


class Span(NamedTuple):
    """Rows of a file that follow one another.

    Attributes:
        file: number of the file.
        first_row: number of the first of them.
        rows: how many they are.
    """

    file: int
    first_row: int
    rows: int


class Reader(Protocol):
    """Reads the files of a data set, which are of one format.

    Attributes:
        schema: names and types of the columns.
    """

    schema: pa.Schema

    @property
    def names(self) -> list[str]:
        """Columns of the first file."""
        ...

    @property
    def given(self) -> Set[str]:
        """Columns whose type the caller gave."""
        ...

    @property
    def rows(self) -> int | None:
        """Number of rows in all files; None where only reading tells."""
        ...

    @property
    def notices(self) -> list[str]:
        """What was odd in what has been read so far, a sentence each."""
        ...

    @property
    def seen(self) -> Sequence[Span]:
        """Rows that are known to be there before anything is read: all, of text some at the start."""
        ...

    def chunks(
        self, columns: list[str], reading: Reading, start: ChunkStart, *, use_threads: bool = False
    ) -> Iterator[Chunk]:
        """Read the rows in order."""
        ...

    def retyped(self, types: Mapping[str, TextType]) -> Reader:
        """Return a reader of the same files, those of text with other types of some columns."""
        ...

    def over(self, files: list[DataFile]) -> Reader:
        """Return a reader of other files of the format, with the types that columns have here."""
        ...


def unreadable(file: DataFile, error: Exception) -> ValueError:
    """Return the error to raise for a file whose content the reader refused."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"{file.format.upper() if file.format != 'parquet' else 'Parquet'} file '{file.path}' should "
        f"be whole and readable. Received: {reason}"
    )
