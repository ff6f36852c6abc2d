"""Numbers that may still be on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

MetricValues = dict[str, Any]


class DeferrableMetrics(Mapping[str, Any]):
    """Metrics by name, there already or worked out by a thread; to read them waits for them.

    Args:
        inner: the metrics, or a future of them.

    Example:
        >>> metrics = DeferrableMetrics({"ne-click|window_ne": 0.8})
        >>> metrics["ne-click|window_ne"], metrics.is_resolved()
        (0.8, True)
        >>> metrics.subscribe(lambda values: print(sorted(values)))
        ['ne-click|window_ne']
    """

    def __init__(self, inner: MetricValues | Future[MetricValues]) -> None:
        self._future: Future[MetricValues]
        if isinstance(inner, Future):
            self._future = inner
        else:
            self._future = Future()
            self._future.set_result(dict(inner))
        # What was added here, on top of what the future brings.
        self._added: MetricValues = {}

    def is_resolved(self) -> bool:
        """Return whether nothing has to be waited for."""
        return self._future.done()

    def resolve(self) -> MetricValues:
        """Wait, and return the metrics by name.

        Raises:
            Exception: what went wrong where they were worked out.
        """
        return {**self._future.result(), **self._added}

    def subscribe(
        self,
        callback: Callable[[MetricValues], None],
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """Call a function when the metrics are there: at once if they are, or else by the thread that has them.

        Args:
            callback: takes the metrics by name.
            on_error: takes what went wrong; None: it is raised by whoever reads the metrics.
        """

        def tell(future: Future[MetricValues]) -> None:
            error = future.exception()
            if error is None:
                callback(self.resolve())
            elif on_error is not None and isinstance(error, Exception):
                on_error(error)

        self._future.add_done_callback(tell)

    def update(self, other: Mapping[str, Any]) -> None:
        """Add metrics, which take the places of those of the same names."""
        self._added.update(other)

    def __setitem__(self, key: str, value: Any) -> None:
        """Add one."""
        self._added[key] = value

    def __getitem__(self, key: str) -> Any:
        """Return one."""
        return self._added[key] if key in self._added else self._future.result()[key]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.resolve())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.resolve())

    def __bool__(self) -> bool:
        """Return whether there are any; those on their way count as some."""
        return not self.is_resolved() or len(self) > 0

    def __repr__(self) -> str:
        """Return how many there are, or that they are on their way."""
        state = f"resolved, {len(self)} keys" if self.is_resolved() else "pending"
        return f"DeferrableMetrics({state})"
