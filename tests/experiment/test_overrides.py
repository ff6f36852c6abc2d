"""Values behind the file; how they act on a whole file, test_files.py shows."""

from __future__ import annotations

import pytest

from torchrec.experiment._overrides import apply_overrides

pytestmark = pytest.mark.once


@pytest.mark.parametrize("separator", [*"|>,#-:?;\"'[{*&!%@`/+=", "||"])
def test_a_separator_is_taken_as_it_is_typed(separator: str) -> None:
    values: dict[str, object] = {"features": {"genres": {"type": "multi_hot"}}}
    apply_overrides(values, [f"features.genres.separator= {separator} "], "e.yaml")
    assert values["features"] == {"genres": {"type": "multi_hot", "separator": separator}}
