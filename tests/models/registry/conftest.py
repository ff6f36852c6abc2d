"""Folders of models that are known for the time of a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchrec.models import registry

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the registry forget after the test what it came to know in it."""
    monkeypatch.setattr(registry, "__path__", list(registry.__path__))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("torchrec.models.registry."):
            del sys.modules[name]


@pytest.fixture
def toys(forgotten: None) -> None:
    """Add the models of the test folder ``toys``."""
    registry.add_folder(TOYS)
