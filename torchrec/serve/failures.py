"""What a server refuses, with the status that says so in HTTP."""

from __future__ import annotations


class RefusedError(Exception):
    """A request that is not answered, and why.

    Attributes:
        status: of HTTP, such as 404.
        headers: that go with it.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers


def busy(detail: str) -> RefusedError:
    """Return the refusal of a server that has enough to do: 429, to be asked again in a second."""
    return RefusedError(429, detail, {"retry-after": "1"})


def late(seconds: float) -> RefusedError:
    """Return the refusal of a request that has waited for too long: 503."""
    return RefusedError(
        503,
        f"A request should wait at most {seconds:g} s for the model. This one did: the server has more "
        "to do than it can.",
        {"retry-after": "1"},
    )
