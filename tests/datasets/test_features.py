"""Declarations of features: defaults, and what they refuse."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from torchrec.datasets.features import AnyFeature, MultiHotFeature, SequenceFeature, SparseFeature

pytestmark = pytest.mark.once

FEATURE: TypeAdapter[AnyFeature] = TypeAdapter(AnyFeature)


def test_the_type_chooses_the_class():
    assert FEATURE.validate_python({"type": "sequence"}) == SequenceFeature()
    assert FEATURE.validate_python({"type": "sparse", "rows": 5}) == SparseFeature(rows=5)
    assert MultiHotFeature().pooling == "sum"
    assert (SequenceFeature().pooling, SequenceFeature().max_length) == ("mean", 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": 2}, "`min_count` should be left out unless `ids` is vocabulary. Received 2"),
        (
            {"evict": "lru", "ids": "plain"},
            "`evict` .* `ids` is managed. Received lru with .* plain",
        ),
        ({"evict_every": 5}, "`evict_every` should be left out unless `ids` is managed"),
        ({"row": 5}, "Extra inputs are not permitted"),
        ({"rows": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        FEATURE.validate_python({"type": "sparse", **options})


def test_options_of_their_kind_are_taken():
    assert SparseFeature(ids="vocabulary", min_count=2).min_count == 2
    assert SparseFeature(ids="managed", evict="lru", evict_every=5).evict == "lru"
