"""Which backend each operator uses, and how the environment chooses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from torchrec import ops
from torchrec.modules import embedding_modules  # noqa: F401  (the import defines the operators)
from torchrec.ops import _library

pytestmark = pytest.mark.once

REPORT = """
import json, torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, ops
config = EmbeddingBagConfig(4, 2, "t", feature_names=["f"], init_fn=torch.nn.init.ones_)
ebc = EmbeddingBagCollection(tables=[config])
values = ebc(KeyedJaggedTensor.from_lists({"f": [[1, 2], []]})).values().tolist()
print(json.dumps([values, ops.backends()]))
"""


def report(**environment: str) -> subprocess.CompletedProcess[str]:
    everything = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run(
        [sys.executable, "-c", REPORT], capture_output=True, text=True, env=everything
    )


def test_the_environment_forces_the_reference() -> None:
    done = report(ROWWISE_BACKEND="reference")
    values, used = json.loads(done.stdout)
    assert values == [[2.0, 2.0], [0.0, 0.0]]
    assert {tuple(u["cpu"]) for u in used.values()} == {("reference", "ROWWISE_BACKEND=reference")}


@pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")
@pytest.mark.parametrize("isa", ["baseline", pytest.param("avx2", marks=pytest.mark.slow)])
def test_the_environment_chooses_the_instruction_set(isa: str) -> None:
    done = report(ROWWISE_ISA=isa)
    values, used = json.loads(done.stdout)
    assert values == [[2.0, 2.0], [0.0, 0.0]]
    name, why = used["embedding_bag"]["cpu"]
    assert name == "native"
    assert f", {isa}," in why


def test_an_unknown_backend_is_refused() -> None:
    done = report(ROWWISE_BACKEND="cuda")
    assert done.returncode != 0
    assert "ROWWISE_BACKEND should be 'native' or 'reference'. Received 'cuda'." in done.stderr


def test_backends_say_why() -> None:
    used = ops.backends()
    assert {"embedding_bag", "embedding_bag_update_", "embedding_sequence"} <= used.keys()
    expected = "native" if _library.native is not None else "reference"
    assert used["embedding_bag"]["cpu"].name == expected
    assert all(backend.why for chosen in used.values() for backend in chosen.values())
    assert all(chosen["other"].name == "reference" for chosen in used.values())


def test_the_answer_is_a_copy() -> None:
    ops.backends()["embedding_bag"].clear()
    assert "cpu" in ops.backends()["embedding_bag"]
