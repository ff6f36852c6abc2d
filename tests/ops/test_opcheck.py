"""`torch.library.opcheck` over every operator of the namespace."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torchrec.modules.embedding_modules
import torchrec.ops.collision
import torchrec.ops.hashing
import torchrec.ops.interaction
import torchrec.sparse.jagged_tensor  # noqa: F401  (the imports define the operators)
from torchrec.ops import backends

HERE = Path(__file__).parent
SOURCES = [
    "test_collision.py",
    "test_embedding.py",
    "test_hashing.py",
    "test_interaction.py",
    "test_jagged.py",
    "test_permute.py",
]


def samples() -> list[tuple[str, Any]]:
    """Collect `OPCHECK_SAMPLES` = [(operator or its name, arguments), ...] of the test files."""
    found = []
    for source in SOURCES:
        path = HERE / source
        if not path.exists():
            continue
        spec = importlib.util.spec_from_file_location(f"samples_of_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        for op, arguments in getattr(module, "OPCHECK_SAMPLES", []):
            name = op if isinstance(op, str) else op.__name__
            found.append((name.removeprefix("rowwise::").split(".")[0], arguments))
    return found


SAMPLES = samples()


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
