"""What ``import torchrec`` may load, and what it refuses to run beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
MEASURE = ROOT / "tools" / "measure_import.py"

# Loaded modules first, then what touching every public name and subpackage gives.
OBSERVE = """
import json, sys, torch
before = set(sys.modules)
import torchrec
loaded = sorted(set(sys.modules) - before)
try:
    torchrec.nothing
except AttributeError as error:
    unknown = str(error)
print(json.dumps({
    "loaded": loaded,
    "missing": [name for name in torchrec.__all__ if not hasattr(torchrec, name)],
    "hidden": sorted(set(torchrec.__all__) - set(dir(torchrec))),
    "subpackages": [getattr(torchrec, name).__name__ for name in torchrec._SUBPACKAGES],
    "unknown": unknown,
}))
"""


def python(code: str, *path: Path, backend: str = "native") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        "ROWWISE_BACKEND": backend,
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(
    scope="module", params=["native", pytest.param("reference", marks=pytest.mark.slow)]
)
def observed(request: pytest.FixtureRequest) -> dict:
    done = python(OBSERVE, backend=request.param)
    assert not done.stderr
    return json.loads(done.stdout)


def test_loads_nothing_but_itself(observed: dict) -> None:
    """No extra, no compiler, no part of ``torch.distributed``: only the standard library."""
    tops = {name.split(".")[0] for name in observed["loaded"]}
    assert "torchrec" in tops
    assert tops - sys.stdlib_module_names == {"torchrec"}, observed["loaded"]


def test_leaves_the_upper_layers_alone(observed: dict) -> None:
    upper = {"cli", "datasets", "distributed", "inference", "metrics", "models", "quant"}
    ours = [name.split(".") for name in observed["loaded"] if name.startswith("torchrec.")]
    assert upper.isdisjoint(name[1] for name in ours)


def test_leaves_what_few_programs_need(observed: dict) -> None:
    """Readers of lists and tables, wrappers of optimizers and refused policies come when they are first used."""
    late = {
        "torchrec.modules._virtual_tables",
        "torchrec.optim.clipping",
        "torchrec.optim.warmup",
        "torchrec.sparse._read",
    }
    assert late.isdisjoint(observed["loaded"])


def test_public_names_are_there(observed: dict) -> None:
    assert (observed["missing"], observed["hidden"]) == ([], [])


def test_subpackages_are_reached_from_the_root(observed: dict) -> None:
    assert "torchrec.models" in observed["subpackages"]


def test_unknown_attribute(observed: dict) -> None:
    assert observed["unknown"] == "module 'torchrec' has no attribute 'nothing'"


def test_what_needs_no_extra_runs_without_them() -> None:
    """The API runs where only PyTorch is; what needs an extra names what is missing."""
    done = python(
        """
import sys
for name in ("duckdb", "jinja2", "pyarrow", "pydantic", "rich", "safetensors", "typer", "yaml"):
    sys.modules[name] = None  # as if it were not installed
import torchrec
import torchrec.modules.mc_embedding_modules, torchrec.models.dlrm, torchrec.models.deepfm
from torchrec.datasets import Batch, criteo, movielens, random, utils
from torchrec.metrics import BinaryMetrics
try:
    torchrec.inference
except ImportError as error:
    print(error)
from rowwise.cli import main
sys.exit(main(["info"]))
"""
    )
    assert "halted" in done.stdout, done.stderr
    assert done.returncode == 2
    assert "install it with `pip install 'rowwise[train]'`" in done.stderr


@pytest.mark.parametrize("name", ["torchrec", "torchrec-nightly"])
def test_refuses_the_other_distribution(tmp_path: Path, name: str) -> None:
    info = tmp_path / f"{name.replace('-', '_')}-1.8.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.8.0\n")
    done = python("import torchrec", tmp_path)
    assert done.returncode == 1
    assert f"Received two: 'rowwise' and '{name}' 1.8.0" in done.stderr
    assert f"`pip uninstall {name}`" in done.stderr


def test_accepts_its_own_distribution_and_similar_names(tmp_path: Path) -> None:
    for name in ("rowwise-0.1.0", "torchrec_tools-1.0"):
        info = tmp_path / f"{name}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
    done = python("import torchrec._environment as e; e.refuse_other_distributions()", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_cost_is_reported() -> None:
    done = subprocess.run(
        [sys.executable, str(MEASURE), "--repeat", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("import torchrec: ")
    assert "torchrec train --help: " in done.stdout
