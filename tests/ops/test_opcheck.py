"""`torch.library.opcheck` over every operator of the namespace."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrec.ops import backends

_path = Path(__file__).with_name("opcheck_samples.py")
_spec = importlib.util.spec_from_file_location(_path.stem, _path)
assert _spec is not None
assert _spec.loader is not None
_samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_samples)
SAMPLES = _samples.OPCHECK_SAMPLES


@pytest.mark.parametrize(
    ("name", "arguments"),
    SAMPLES,
    ids=[f"{i}-{name}" for i, (name, _) in enumerate(SAMPLES)],
)
# opcheck itself asks for gradients in a way that PyTorch warns about.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_operator(name: str, arguments: tuple[Any, ...]) -> None:
    torch.use_deterministic_algorithms(False)
    result = torch.library.opcheck(getattr(torch.ops.rowwise, name).default, arguments)
    assert set(result.values()) == {"SUCCESS"}, result


def test_every_operator_has_a_sample() -> None:
    assert sorted(set(backends()) - {name for name, _ in SAMPLES}) == []
