"""What every test and every example in a docstring starts from: fixed seeds, telling memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Properties run the same examples everywhere, and more of them in the long suites; a failure prints how to repeat it.
for profile, examples in (("quick", 15), ("long", 100)):
    hypothesis.settings.register_profile(
        profile, deadline=None, derandomize=True, print_blob=True, max_examples=examples
    )
hypothesis.settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was there before the first test, and most full rounds: each walks over all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)


@pytest.fixture(autouse=True)
def _fixed_start() -> Iterator[None]:
    """Seed the generators, and let ``torch.empty`` return NaN (integers: their largest value)."""
    random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _new_enough(request: pytest.FixtureRequest) -> None:
    """Skip a test of what only later versions of PyTorch can do: ``since_torch(version, why)``."""
    mark = request.node.get_closest_marker("since_torch")
    if mark and torch.__version__ < mark.args[0]:
        version, why = mark.args
        pytest.skip(f"PyTorch {torch.__version__} (before {version}) {why}")


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace: dict[str, object]) -> None:
    """Examples in docstrings have ``torch`` at hand, wherever their class is re-exported."""
    doctest_namespace["torch"] = torch
