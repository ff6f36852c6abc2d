"""How much a server takes on at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torchrec.inference.rows import MOST_ROWS


@dataclass(frozen=True)
class Limits:
    """What a server refuses rather than runs out of memory, and how it joins rows to batches.

    Attributes:
        body: bytes of a request. Default 16 MiB.
        pending: bytes of all requests that are under way. Default 256 MiB.
        rows: rows of a request; of a recommendation, pairs of user and candidate. Default 1,000,000.
        queue: requests that wait for a model. Default 1,000.
        wait: seconds after which a request that waits is given up, and one whose body does not come. Default 10.
        batch: rows of a batch that is made of several requests. Default 64, up to which a predictor
            needs no Arrow table.
        gather: seconds that a batch waits for more rows while nothing is computed. Default 0: rows gather while
            a batch is computed, and whoever finds nothing under way is answered at once.

    Raises:
        ValueError: one is not positive (``gather``: negative).

    Example:
        >>> Limits(rows=100).rows
        100
        >>> Limits(queue=0)
        Traceback (most recent call last):
        ValueError: `queue` of a server should be above 0. Received 0.
    """

    body: int = 16 << 20
    pending: int = 256 << 20
    rows: int = 1_000_000
    queue: int = 1_000
    wait: float = 10.0
    batch: int = MOST_ROWS
    gather: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, may_be_0 = getattr(self, field.name), field.name == "gather"
            if not (value > 0 or (may_be_0 and value == 0)):
                least = "at least 0" if may_be_0 else "above 0"
                raise ValueError(f"`{field.name}` of a server should be {least}. Received {value}.")
