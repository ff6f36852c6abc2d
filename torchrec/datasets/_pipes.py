"""Data pipes over files and lines, and splits of a stream into training and validation data."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any, TypeVar

from torch.utils.data import IterDataPipe, functional_datapipe, get_worker_info

T = TypeVar("T")
V = TypeVar("V")


@functional_datapipe("limit")
class Limit(IterDataPipe):  # type: ignore[type-arg]
    """The first elements of a data pipe.

    Args:
        datapipe: where the elements come from.
        limit: how many there are at most.

    Raises:
        ValueError: ``limit`` is negative.

    Example:
        >>> from torch.utils.data.datapipes.iter import IterableWrapper
        >>> from torchrec.datasets.utils import Limit
        >>> list(Limit(IterableWrapper(range(10)), limit=3))
        [0, 1, 2]
    """

    def __init__(self, datapipe: IterDataPipe[T], limit: int) -> None:
        super().__init__()
        if limit < 0:
            raise ValueError(f"`limit` should be at least 0. Received {limit}.")
        self.datapipe = datapipe
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        # Asking for one element more than are wanted could wait for a slow source in vain.
        if self.limit == 0:
            return
        for number, element in enumerate(self.datapipe, start=1):
            yield element
            if number == self.limit:
                return


class LoadFiles(IterDataPipe):  # type: ignore[type-arg]
    r"""Opened files, each with its path.

    Args:
        datapipe: paths.
        mode: how files are opened: ``"b"`` bytes, ``"t"`` or ``"r"`` text. Default ``"b"``.
        length: what ``len()`` says; negative: it is not known. Default -1.
        path_manager_key: taken for compatibility; paths are those of the file system.
        **open_kw: further arguments of `open`: ``encoding="latin-1"`` say.

    Yields:
        ``(path, file)``; the file is closed when the next one is asked for.

    Example:
        >>> import pathlib, tempfile
        >>> from torchrec.datasets.utils import LoadFiles
        >>> path = pathlib.Path(tempfile.mkdtemp(), "day_0")
        >>> _ = path.write_text("0\t1\n")
        >>> [file.read() for _, file in LoadFiles([str(path)], mode="r")]
        ['0\t1\n']
    """

    def __init__(
        self,
        datapipe: Iterable[str],
        mode: str = "b",
        length: int = -1,
        path_manager_key: str = "torchrec",
        **open_kw: Any,
    ) -> None:
        super().__init__()
        self.datapipe = datapipe
        self.mode = mode if mode in ("b", "t") or mode.startswith("r") else ""
        if not self.mode:
            raise ValueError(f"`mode` should be one to read in: 'b', 't', 'r'. Received {mode!r}.")
        self.length = length
        self.open_kw = open_kw

    def __iter__(self) -> Iterator[tuple[str, IO[Any]]]:
        mode = self.mode if self.mode.startswith("r") else "r" + self.mode
        for path in self.datapipe:
            with open(path, mode, **self.open_kw) as file:
                yield path, file

    def __len__(self) -> int:
        if self.length < 0:
            raise TypeError("`len()` of LoadFiles is not known: no `length` was given.")
        return self.length


class ReadLinesFromCSV(IterDataPipe):  # type: ignore[type-arg]
    r"""The lines of delimited text files, each a list of strings.

    Args:
        datapipe: ``(path, file)`` of files opened as text: a :class:`LoadFiles`.
        skip_first_line: leave out the first line of each file. Default False.
        **kw: further arguments of `csv.reader`: ``delimiter="\t"`` say.

    Example:
        >>> import io
        >>> from torchrec.datasets.utils import ReadLinesFromCSV
        >>> list(ReadLinesFromCSV([("a.csv", io.StringIO("id,n\n1,2\n"))], skip_first_line=True))
        [['1', '2']]
    """

    def __init__(
        self,
        datapipe: Iterable[tuple[str, Any]],
        skip_first_line: bool = False,
        **kw: Any,
    ) -> None:
        super().__init__()
        self.datapipe = datapipe
        self.skip_first_line = skip_first_line
        self.kw = kw

    def __iter__(self) -> Iterator[list[str]]:
        for _, file in self.datapipe:
            lines = csv.reader(file, **self.kw)
            if self.skip_first_line:
                next(lines, None)
            yield from lines


def _share_of_worker(datapipes: Sequence[IterDataPipe[Any]]) -> Sequence[IterDataPipe[Any]]:
    worker = get_worker_info()
    return datapipes if worker is None else datapipes[worker.id :: worker.num_workers]


class ParallelReadConcat(IterDataPipe):  # type: ignore[type-arg]
    """Data pipes one after the other; with several workers each worker reads a share of them.

    Args:
        *datapipes: what is read.
        dp_selector: chooses, in a worker process of a `torch.utils.data.DataLoader`, the data pipes
            that it reads. Default: every ``num_workers``-th one, from the worker's number on.

    Raises:
        ValueError: there is no data pipe.

    Example:
        >>> from torch.utils.data.datapipes.iter import IterableWrapper
        >>> from torchrec.datasets.utils import ParallelReadConcat
        >>> list(ParallelReadConcat(IterableWrapper([1, 2]), IterableWrapper([3])))
        [1, 2, 3]
    """

    def __init__(
        self,
        *datapipes: IterDataPipe[Any],
        dp_selector: Callable[
            [Sequence[IterDataPipe[Any]]], Sequence[IterDataPipe[Any]]
        ] = _share_of_worker,
    ) -> None:
        super().__init__()
        if not datapipes:
            raise ValueError("ParallelReadConcat should have at least one data pipe. Received 0.")
        self.datapipes = datapipes
        self.dp_selector = dp_selector

    def __iter__(self) -> Iterator[Any]:
        for datapipe in self.dp_selector(self.datapipes):
            yield from datapipe


class _Filtered(IterDataPipe):  # type: ignore[type-arg]
    def __init__(
        self, datapipe: IterDataPipe[Any], new_choice: Callable[[], Callable[[int], bool]]
    ) -> None:
        super().__init__()
        self.datapipe = datapipe
        self.new_choice = new_choice

    def __iter__(self) -> Iterator[Any]:
        chosen = self.new_choice()
        for number, element in enumerate(self.datapipe):
            if chosen(number):
                yield element


def _itself(index: int) -> int:
    return index


def train_filter(
    key_fn: Callable[[int], int], train_perc: float, decimal_places: int, idx: int
) -> bool:
    """Tell whether element ``idx`` is one to train with.

    Of every ``10 ** decimal_places`` consecutive keys the first ``train_perc`` are.

    Args:
        key_fn: makes a key of an index.
        train_perc: share of training data, between 0 and 1.
        decimal_places: how finely the share is kept.
        idx: number of the element.

    Example:
        >>> from torchrec.datasets.utils import train_filter
        >>> [train_filter(lambda i: i, 0.7, 1, i) for i in (0, 6, 7, 9, 10)]
        [True, True, False, False, True]
    """
    period = 10**decimal_places
    return bool(key_fn(idx) % period < round(train_perc * period))


def val_filter(
    key_fn: Callable[[int], int], train_perc: float, decimal_places: int, idx: int
) -> bool:
    """Tell whether element ``idx`` is one to validate with: where :func:`train_filter` is not.

    Example:
        >>> from torchrec.datasets.utils import val_filter
        >>> val_filter(lambda i: i, 0.7, 1, 8)
        True
    """
    return not train_filter(key_fn, train_perc, decimal_places, idx)


def _check_share(train_perc: float) -> None:
    if not 0.0 < train_perc < 1.0:
        raise ValueError(f"`train_perc` should be between 0 and 1. Received {train_perc}.")


def idx_split_train_val(
    datapipe: IterDataPipe[T],
    train_perc: float,
    decimal_places: int = 2,
    key_fn: Callable[[int], int] = _itself,
) -> tuple[IterDataPipe[T], IterDataPipe[T]]:
    """Split a stream by the numbers of its elements.

    Args:
        datapipe: what is split. Both parts read it from its beginning.
        train_perc: share of training data, between 0 and 1.
        decimal_places: how finely the share is kept. Default 2.
        key_fn: makes a key of an index; elements of one key stay together. Default: the index.

    Returns:
        The training part and the validation part.

    Raises:
        ValueError: ``train_perc`` is not between 0 and 1.

    Example:
        >>> from torch.utils.data.datapipes.iter import IterableWrapper
        >>> from torchrec.datasets.utils import idx_split_train_val
        >>> train, valid = idx_split_train_val(IterableWrapper(range(10)), 0.7, decimal_places=1)
        >>> list(train), list(valid)
        ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
    """
    _check_share(train_perc)
    arguments = (key_fn, train_perc, decimal_places)
    return (
        _Filtered(datapipe, partial(partial, train_filter, *arguments)),
        _Filtered(datapipe, partial(partial, val_filter, *arguments)),
    )


def _new_draws(train_perc: float, random_seed: int, train: bool) -> Callable[[int], bool]:
    generator = random.Random(random_seed)
    return lambda _: (generator.random() < train_perc) == train


def rand_split_train_val(
    datapipe: IterDataPipe[T], train_perc: float, random_seed: int = 0
) -> tuple[IterDataPipe[T], IterDataPipe[T]]:
    """Split a stream at random; every element is in one of the two parts.

    Args:
        datapipe: what is split. Both parts read it from its beginning.
        train_perc: probability of an element to be in the training part, between 0 and 1.
        random_seed: the split is the same for the same seed. Default 0.

    Returns:
        The training part and the validation part.

    Raises:
        ValueError: ``train_perc`` is not between 0 and 1.

    Example:
        >>> from torch.utils.data.datapipes.iter import IterableWrapper
        >>> from torchrec.datasets.utils import rand_split_train_val
        >>> train, valid = rand_split_train_val(IterableWrapper(range(10)), 0.7)
        >>> sorted([*train, *valid])
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    _check_share(train_perc)
    return (
        _Filtered(datapipe, partial(_new_draws, train_perc, random_seed, True)),
        _Filtered(datapipe, partial(_new_draws, train_perc, random_seed, False)),
    )


def safe_cast(val: T, dest_type: Callable[[T], V], default: V) -> V:
    """Convert a value, or return a default where that cannot be done.

    Args:
        val: the value.
        dest_type: ``int`` or ``float``, say.
        default: returned where ``dest_type`` raises a `ValueError`.

    Example:
        >>> from torchrec.datasets.utils import safe_cast
        >>> safe_cast("3", int, 0), safe_cast("", int, 0)
        (3, 0)
    """
    try:
        return dest_type(val)
    except ValueError:
        return default


for _name in (Limit, LoadFiles, ReadLinesFromCSV, ParallelReadConcat):
    _name.__module__ = "torchrec.datasets.utils"
