"""The page on which models are tried by hand: one file, which asks nobody but this server."""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def page() -> bytes:
    """Return the page. Its form is made of what ``/v1/models`` says of the features."""
    return resources.files("torchrec.serve").joinpath("page.html").read_bytes()
