"""What the tests of runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.killing import write_clicks


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of clicks, written once for a module."""
    path = tmp_path_factory.mktemp("data") / "clicks.parquet"
    write_clicks(path)
    return path
