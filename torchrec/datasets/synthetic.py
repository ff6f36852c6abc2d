"""A click log whose true click probabilities are known: how good a model can get is no guess.

Users and items have hidden tastes (vectors of four numbers). Someone clicks on what is close to
their own taste and to what they looked at last, on what many like, at some hours more than at
others, and less when it is dear. The file holds ids only, so a model has to learn the tastes as
embeddings. Over time new items come up and categories rise and fall.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from torchrec.datasets.parquet_writer import ParquetWriter
from torchrec.files import read_json
from torchrec.metrics import BinaryMetrics

LABEL = "click"
PROBABILITY = "click_probability"
"""The column of true probabilities: for measuring, never a feature."""

_METADATA_KEY = "torchrec.synthetic"
_CHUNK = 65_536  # rows drawn at once, and the rows of a row group
_TASTES = 4
_SEGMENTS = 8
_SEEN, _TAGS = 8, 4  # the longest lists
_COUNTRIES = ("de", "fr", "us", "br", "in", "jp", "ng", "se", "mx", "kr", "pl", "ca")
_DEVICES = ("phone", "desktop", "tablet", "tv")
_START = np.datetime64("2024-03-01T00:00:00", "ms")

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a model would reach that knew the true probability of every row.

    Attributes:
        rows: number of rows.
        auc: area under the ROC curve of the true probabilities against the clicks.
        ne: their normalised entropy: log loss over that of always guessing the mean click rate.
        logloss: their mean log loss.
        click_rate: clicks per row.
    """

    rows: int
    auc: float
    ne: float
    logloss: float
    click_rate: float


@dataclasses.dataclass(frozen=True)
class ClickLog:
    """A click log to be drawn: how long, how many users and items, and the seed of it all.

    Args:
        rows: number of rows (impressions).
        users: number of users; a few of them make most of the rows, as Zipf's law has it.
        items: number of items, skewed more strongly.
        days: the time that the log spans; rows are in its order.
        seed: equal seeds and sizes give equal logs.

    Example:
        >>> log = ClickLog(rows=1_000, seed=1)
        >>> table = next(log.tables())
        >>> table.num_rows, table.column_names[:4]
        (1000, ['time', 'user', 'item', 'category'])
    """

    rows: int
    users: int = 5_000
    items: int = 2_000
    days: float = 14.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "users", "items", "days"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` should be positive. Received {getattr(self, name)}.")

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows in order of time, up to 65,536 at once."""
        world = _World(self)
        for start in range(0, self.rows, _CHUNK):
            yield world.draw(start, min(start + _CHUNK, self.rows))


class _World:
    """The hidden truth: tastes, biases and effects. The same for every chunk of a log."""

    def __init__(self, log: ClickLog) -> None:
        rng = np.random.default_rng([log.seed, 0])
        self.log = log
        # Ids as they are in life: neither from 0 on nor in order of how frequent they are.
        self.user_id = rng.permutation(10 * log.users)[: log.users].astype(np.int64)
        self.item_id = rng.permutation(10 * log.items)[: log.items].astype(np.int64)
        self.user_bias = _normal(rng, 0.5, log.users)
        self.item_bias = _normal(rng, 0.7, log.items)
        self.categories = [f"category-{n:02d}" for n in range(40)]
        self.tags = [f"tag-{n:03d}" for n in range(400)]
        self.item_category = rng.integers(0, len(self.categories), log.items).astype(np.int8)
        # Items of a category are much alike, and so are users of a segment, which no column names.
        segment = rng.integers(0, _SEGMENTS, log.users)
        self.user_taste = _normal(rng, 0.4, _SEGMENTS, _TASTES)[segment]
        self.user_taste += _normal(rng, 0.1, log.users, _TASTES)
        self.item_taste = _normal(rng, 0.7, len(self.categories), _TASTES)[self.item_category]
        self.item_taste += _normal(rng, 0.2, log.items, _TASTES)
        self.user_country = _zipf(rng, log.users, len(_COUNTRIES), 1.0).astype(np.int8)
        self.local = _normal(rng, 0.3, len(_COUNTRIES), len(self.categories))
        self.trend = _normal(rng, 0.3, len(self.categories))
        self.tag_effect = _normal(rng, 0.5, len(self.tags))
        self.price = np.exp(_normal(rng, 0.8, log.items) + np.float32(3))

    def draw(self, start: int, stop: int) -> pa.Table:
        """Draw the rows ``[start, stop)``."""
        log, n = self.log, stop - start
        rng = np.random.default_rng([log.seed, 1, start])
        time = (np.arange(start, stop) + rng.random(n)) / log.rows  # in [0, 1), rising
        user = _zipf(rng, n, log.users, 0.8)
        # New items take the place of old ones: by the end a tenth of them has moved on.
        item = (
            _zipf(rng, n, log.items, 1.0) + (time * log.items / 10).astype(np.int64)
        ) % log.items
        seen = _zipf(rng, n * _SEEN, log.items, 1.0).reshape(n, _SEEN)
        seen_lengths = rng.integers(0, _SEEN + 1, n)
        tags = _zipf(rng, n * _TAGS, len(self.tags), 0.9).reshape(n, _TAGS)
        tag_lengths = rng.integers(0, _TAGS + 1, n)
        device = _zipf(rng, n, len(_DEVICES), 1.2).astype(np.int8)
        hour = (time * log.days * 24 % 24).astype(np.float32)
        price = self.price[item] * np.exp(_normal(rng, 0.1, n))
        no_price = rng.random(n, np.float32) < 0.05

        seen_mask = np.arange(_SEEN) < seen_lengths[:, None]
        tag_mask = np.arange(_TAGS) < tag_lengths[:, None]
        looks = self._taste_of(seen, seen_mask)
        category, country = self.item_category[item], self.user_country[user]
        logit = self.user_bias[user] + self.item_bias[item] - np.float32(1.5)
        logit += ((self.user_taste[user] + looks) * self.item_taste[item]).sum(1)
        logit += self.local[country, category]
        logit += self.trend[category] * (time - 0.5).astype(np.float32)
        logit += (self.tag_effect[tags] * tag_mask).sum(1)
        logit += np.float32(0.4) * np.sin(hour * np.float32(np.pi / 12))
        logit -= np.where(no_price, np.float32(0.3), np.float32(0.5) * (np.log(price) - 3))
        probability = 1 / (1 + np.exp(-logit))
        click = (rng.random(n, np.float32) < probability).astype(np.int8)

        moments = _START + (time * log.days * 86_400_000).astype("timedelta64[ms]")
        return pa.table(
            {
                "time": pa.array(moments),
                "user": self.user_id[user],
                "item": self.item_id[item],
                "category": _strings(category, self.categories),
                "country": _strings(country, _COUNTRIES),
                "device": _strings(device, _DEVICES),
                "seen": _lists(pa.array(self.item_id[seen[seen_mask]]), seen_lengths),
                "tags": _lists(_strings(tags[tag_mask].astype(np.int16), self.tags), tag_lengths),
                "hour": hour,
                "price": pa.array(price, mask=no_price),
                LABEL: click,
                PROBABILITY: probability,
            }
        )

    def _taste_of(self, items: Integers, mask: npt.NDArray[np.bool_]) -> Floats:
        """Return twice the mean taste of the items of each row, 0 for none."""
        total = np.zeros((len(items), _TASTES), np.float32)
        for column in range(items.shape[1]):
            total += self.item_taste[items[:, column]] * mask[:, column, None]
        count = np.maximum(mask.sum(1), 1).astype(np.float32)
        taste: Floats = 2 * total / count[:, None]
        return taste


def write_click_log(
    log: ClickLog, output: str | os.PathLike[str], valid: float = 0.1, test: float = 0.1
) -> dict[Path, Limits]:
    """Write a log to Parquet, with what can be reached on it in the metadata of each file.

    Memory stays bounded whatever the number of rows. Files appear when all are whole.

    Args:
        log: what to draw.
        output: a file (``.parquet``), or a folder that gets ``train.parquet``, ``valid.parquet``
            and ``test.parquet``: the last rows are for the test, those before for validation.
        valid: fraction of the rows in ``valid.parquet``.
        test: fraction of the rows in ``test.parquet``.

    Returns:
        The files, and what a perfect model would reach on each.

    Raises:
        ValueError: if nothing would be left to train on, or a file without rows.

    Example:
        >>> import tempfile
        >>> files = write_click_log(ClickLog(rows=5_000), tempfile.mkdtemp())
        >>> {path.stem: limits.rows for path, limits in files.items()}
        {'train': 4000, 'valid': 500, 'test': 500}
    """
    parts = _parts(log.rows, Path(output), valid, test)
    metrics = {path: BinaryMetrics() for path in parts}
    with ExitStack() as stack:
        files = {path: stack.enter_context(ParquetWriter(path)) for path in parts}
        row = 0  # the first of the table
        for table in log.tables():
            for path, (start, stop) in parts.items():
                part = table[max(start - row, 0) : max(stop - row, 0)]
                files[path].write(part)
                _measure(metrics[path], part)
            row += table.num_rows
        limits = {path: _limits(metric) for path, metric in metrics.items()}
        for path, file in files.items():
            file.describe({_METADATA_KEY: json.dumps(dataclasses.asdict(limits[path]))})
    return limits


def read_limits(path: str | os.PathLike[str]) -> Limits | None:
    """Return what a perfect model would reach on a file, or None if its metadata do not say.

    Args:
        path: a Parquet file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.parquet"
        >>> written = write_click_log(ClickLog(rows=5_000), path)
        >>> read_limits(path) == written[path]
        True
    """
    metadata = pq.read_metadata(path).metadata or {}
    text = metadata.get(_METADATA_KEY.encode())
    try:
        return None if text is None else Limits(**read_json(text))
    except (ValueError, TypeError):  # the key is another's, too
        return None


def _parts(rows: int, output: Path, valid: float, test: float) -> dict[Path, tuple[int, int]]:
    """Return the first row of each file, and the one after its last."""
    if output.suffix == ".parquet":
        return {output: (0, rows)}
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ValueError(
            "`valid` and `test` should not be negative and sum to less than 1. "
            f"Received {valid} and {test}."
        )
    test_start = rows - round(rows * test)
    valid_start = test_start - round(rows * valid)
    bounds = {
        "train": (0, valid_start),
        "valid": (valid_start, test_start),
        "test": (test_start, rows),
    }
    return {output / f"{name}.parquet": span for name, span in bounds.items() if span[0] < span[1]}


def _measure(metrics: BinaryMetrics, table: pa.Table) -> None:
    probability = torch.from_numpy(table[PROBABILITY].to_numpy().astype(np.float64))
    label = torch.from_numpy(table[LABEL].to_numpy().astype(np.float32))
    metrics.update(torch.logit(probability).float(), label)


def _limits(metrics: BinaryMetrics) -> Limits:
    report = metrics.compute()
    return Limits(
        rows=int(report.samples),
        auc=report.auc,
        ne=report.ne,
        logloss=report.logloss,
        click_rate=report.positives / report.samples,
    )


def _zipf(rng: np.random.Generator, size: int, n: int, exponent: float) -> Integers:
    """Draw from 0 … n-1, where k has a probability of about ``(k + 1) ** -exponent``.

    By inverting the distribution of a continuous power law: one power a draw and no table.
    """
    u = rng.random(size)
    if exponent == 1.0:
        x = np.exp(u * np.log(n + 1))
    else:
        power = 1 - exponent
        x = (((n + 1) ** power - 1) * u + 1) ** (1 / power)
    drawn: Integers = np.minimum(x.astype(np.int64), n) - 1
    return drawn


def _normal(rng: np.random.Generator, scale: float, *shape: int) -> Floats:
    drawn: Floats = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return drawn


def _strings(codes: npt.NDArray[np.integer], names: tuple[str, ...] | list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names))


def _lists(values: pa.Array, lengths: Integers) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)
