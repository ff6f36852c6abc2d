"""Errors in data say which keys of the experiment file mend them."""

from __future__ import annotations

import pytest

from torchrec.datasets.data_error import DataError
from torchrec.datasets.text_types import MisfitError
from torchrec.experiment.advice import advice, advised

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            MisfitError("wrong.", {"y": "string"}, {"types": "{y: string}"}),
            "To mend it, set `data.types: {y: string}` in the experiment file.",
        ),
        (
            DataError("wrong.", {"columns": ""}),
            "To mend it, set `data.columns` (`--columns` of `torchrec init`) in the experiment file.",
        ),
        (DataError("wrong."), ""),
        (ValueError("wrong."), ""),
    ],
    ids=["types", "columns", "nothing to do", "another error"],
)
def test_advice_is_given_once(error: Exception, sentence: str) -> None:
    assert advice(error) == sentence

    def fail() -> None:
        with advised(), advised():
            raise error

    with pytest.raises(ValueError, match="wrong") as caught:
        fail()
    assert str(caught.value) == f"wrong. {sentence}".rstrip()
