"""What a server counts, for Prometheus, and what it logs, a JSON object a line."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic_core import to_json

from torchrec.inference import Predictor

LOG = logging.getLogger("torchrec.serve")

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class _Tally:
    """What is counted of the requests of a model and method."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(_SECONDS) + 1)
        self.seconds = 0.0
        self.rows = 0


class _Requests(Collector):
    """Gives what was counted of requests, in plain numbers: counters with locks would be a sixth of our part of one."""

    def __init__(self, tallies: Mapping[tuple[str, str], _Tally]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of requests."""
        requests = CounterMetricFamily(
            "torchrec_requests", "Requests.", labels=["model", "method", "status"]
        )
        seconds = HistogramMetricFamily(
            "torchrec_request_seconds",
            "Time from a request's head to its answer.",
            labels=["model", "method"],
        )
        rows = CounterMetricFamily("torchrec_rows", "Rows predicted.", labels=["model"])
        bounds = [*map(str, _SECONDS), "+Inf"]
        rows_of: dict[str, int] = {}
        for (model, method), tally in self._tallies.items():
            for status, number in tally.statuses.items():
                requests.add_metric([model, method, str(status)], number)
            buckets = list(zip(bounds, accumulate(tally.buckets), strict=True))
            seconds.add_metric([model, method], buckets, tally.seconds)
            rows_of[model] = rows_of.get(model, 0) + tally.rows
        for model, number in rows_of.items():
            if number:
                rows.add_metric([model], number)
        yield from (requests, seconds, rows)


class Meters:
    """Counts requests, batches, versions, and what was odd about features.

    Example:
        >>> meters = Meters()
        >>> meters.batch("clicks", 5, 0)
        >>> b'torchrec_batch_rows_sum{model="clicks"} 5.0' in meters.text()
        True
    """

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        self._tallies: dict[tuple[str, str], _Tally] = {}
        own.register(_Requests(self._tallies))
        self._batch_rows = Histogram(
            "torchrec_batch_rows", "Rows of a batch.", ["model"], buckets=_ROWS, registry=own
        )
        self._waiting = Gauge(
            "torchrec_waiting_requests",
            "Requests that waited when the last batch began.",
            ["model"],
            registry=own,
        )
        self._loads = Counter(
            "torchrec_version_loads", "Versions that took over.", ["model"], registry=own
        )
        self._failures = Counter(
            "torchrec_version_failures",
            "Versions that could not be loaded.",
            ["model"],
            registry=own,
        )
        self._served = Gauge(
            "torchrec_version_served",
            "1 for the version that answers.",
            ["model", "version"],
            registry=own,
        )
        self._values = Counter(
            "torchrec_feature_values",
            "Values of features by what was odd about them; samples and values are those of all rows.",
            ["model", "feature", "what"],
            registry=own,
        )
        self._outside = Counter(
            "torchrec_ids_out_of_range",
            "Ids outside the rows of a table.",
            ["model", "table"],
            registry=own,
        )
        self._versions: dict[str, str] = {}
        self._predictors: dict[str, Sequence[Predictor]] = {}
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)

    def request(self, model: str, method: str, status: int, seconds: float, rows: int) -> None:
        """Count a request that has been answered.

        Args:
            model: that was asked; empty for other paths.
            method: ``"predict"``, ``"recommend"`` or ``"other"``.
            status: of HTTP.
            seconds: that it took.
            rows: that were predicted.
        """
        tally = self._tallies.get((model, method))
        if tally is None:
            tally = self._tallies[model, method] = _Tally()
        tally.statuses[status] = tally.statuses.get(status, 0) + 1
        tally.buckets[bisect_left(_SECONDS, seconds)] += 1
        tally.seconds += seconds
        tally.rows += rows

    def batch(self, model: str, rows: int, waiting: int) -> None:
        """Count a batch of few rows.

        Args:
            model: that computes it.
            rows: that it has.
            waiting: requests that are left for the next.
        """
        self._batch_rows.labels(model).observe(rows)
        self._waiting.labels(model).set(waiting)

    def serves(self, model: str, version: str, predictors: Sequence[Predictor]) -> None:
        """Note which version of a model answers from now on, and all of its that are loaded."""
        if model in self._versions:
            self._served.remove(model, self._versions[model])
        self._versions[model] = version
        self._served.labels(model, version).set(1)
        self._loads.labels(model).inc()
        self._failures.labels(model)
        self._take_counts()  # also of those that go
        self._predictors[model] = predictors
        log("version", model=model, version=version)

    def failed(self, model: str, error: Exception) -> None:
        """Note a version of a model that could not be loaded."""
        self._failures.labels(model).inc()
        text = str(error).encode(errors="replace").decode()  # names of files may be no text
        log("version failed", level=logging.ERROR, model=model, error=text)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        self._take_counts()
        text: bytes = generate_latest(self._registry)
        return text

    def _take_counts(self) -> None:
        """Add what models have counted since the last time."""
        for model, predictors in self._predictors.items():
            for one in predictors:
                features, tables = one.counts(reset=True)
                for feature, counts in features.items():
                    for what, count in dataclasses.asdict(counts).items():
                        self._values.labels(model, feature, what).inc(count)
                for table, count in tables.items():
                    self._outside.labels(model, table).inc(count)


def log(event: str, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields."""
    if LOG.isEnabledFor(level):  # `Logger.log` looks for who calls it, a fifth of what a line takes
        record = LOG.makeRecord(LOG.name, level, "", 0, event, (), None, extra={"fields": fields})
        LOG.handle(record)


class JsonLines(logging.Formatter):
    """Formats records as JSON objects, a line each.

    Example:
        >>> record = logging.LogRecord("torchrec.serve", logging.INFO, "", 0, "started", None, None)
        >>> record.created = 0.5
        >>> JsonLines().format(record)
        '{"time":"1970-01-01T00:00:00.500Z","level":"info","event":"started"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as a line."""
        seconds, milliseconds = divmod(math.floor(record.created * 1000), 1000)
        line: dict[str, object] = {
            "time": f"{_second(seconds)}.{milliseconds:03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return to_json(line, fallback=str).decode()


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
