"""Names of the original's kernels: registered when asked for, once, and not beside the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, OptimizerType
from torchrec.compat.enums import EmbOptimType
from torchrec.modules.fused_embedding_modules import (
    FusedEmbeddingBagCollection,
    convert_optimizer_type_and_kwargs,
    fuse_embedding_optimizer,
)
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.fusable import fused_rule
from torchrec.optim.optimizers import Adagrad
from torchrec.optim.owners import owner_of

pytestmark = pytest.mark.once


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


PROGRAM = """
import importlib.util, sys, torch
import torchrec.compat
assert "fbgemm_gpu" not in sys.modules
assert not hasattr(torch.ops.fbgemm, "dense_to_jagged")
torchrec.compat.install()
torchrec.compat.install()

import fbgemm_gpu
import fbgemm_gpu.sparse_ops
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import EmbeddingLocation, OptimType
from torchrec.modules import embedding_configs
assert fbgemm_gpu.split_embedding_configs.EmbOptimType is EmbOptimType is OptimType
assert PoolingMode is embedding_configs.PoolingMode and SparseType is embedding_configs.SparseType
assert embedding_configs.pooling_type_to_pooling_mode(embedding_configs.PoolingType.MEAN) == PoolingMode.MEAN == 1
assert BoundsCheckMode.WARNING == 1 and EmbeddingLocation.HOST.value == 3
assert importlib.util.find_spec("fbgemm_gpu") is not None
for missing in ("fbgemm_gpu.uvm", "fbgemm_gpu.split_embedding_configs.more"):
    try:
        importlib.import_module(missing)
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError(missing)
try:
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
except ImportError:
    pass
else:
    raise AssertionError("kernels")

values, (offsets,) = torch.ops.fbgemm.dense_to_jagged(torch.ones(2, 2, 1), [torch.tensor([0, 1, 3])])
print(values.shape, EmbOptimType.EXACT_SGD, sorted(name for name in sys.modules if name.startswith("fbgemm_gpu")))
"""


def test_a_program_finds_what_it_imports():
    run = python(PROGRAM)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(
        "torch.Size([3, 1]) exact_sgd ['fbgemm_gpu', 'fbgemm_gpu.sparse_ops'"
    )


def test_it_is_refused_beside_the_real_package(tmp_path):
    (tmp_path / "fbgemm_gpu").mkdir()
    (tmp_path / "fbgemm_gpu" / "__init__.py").write_text("raise SystemExit('was imported')")
    run = python("import torchrec.compat; torchrec.compat.install()", tmp_path)
    assert run.returncode == 1
    assert (
        "RuntimeError: `torchrec.compat.install` should not run beside the real 'fbgemm_gpu'"
        in run.stderr
    )


@pytest.mark.slow
def test_it_is_refused_beside_the_real_operators():
    run = python(
        "import torch, torchrec.compat\n"
        "other = torch.library.Library('fbgemm', 'DEF')\n"
        "other.define('dense_to_jagged(Tensor x) -> Tensor')\n"
        "torchrec.compat.install()"
    )
    assert run.returncode == 1
    assert "RuntimeError: `torchrec.compat.install` should be the only one" in run.stderr
    assert "Received a process that has 'dense_to_jagged' there." in run.stderr


@pytest.mark.parametrize("member", EmbOptimType)
def test_every_optimizer_is_taken_or_refused(member):
    taken = {
        "SGD": "SGD",
        "EXACT_SGD": "SGD",
        "LAMB": "LAMB",
        "ADAM": "ADAM",
        "EXACT_ADAGRAD": "ADAGRAD",
        "EXACT_ROWWISE_ADAGRAD": "ROWWISE_ADAGRAD",
        "ROWWISE_ADAGRAD": "ROWWISE_ADAGRAD",
        "LARS_SGD": "LARS_SGD",
        "PARTIAL_ROWWISE_ADAM": "PARTIAL_ROWWISE_ADAM",
        "PARTIAL_ROWWISE_LAMB": "PARTIAL_ROWWISE_LAMB",
    }
    for name in (member, member.value, member.name):
        if member.name in taken:
            config = EmbeddingBagConfig(4, 2, "t", optimizer=name, lr=0.1)
            assert config.optimizer is OptimizerType[taken[member.name]]
        else:
            with pytest.raises(ValueError, match="`optimizer` of table 't' should be one of"):
                EmbeddingBagConfig(4, 2, "t", optimizer=name, lr=0.1)
    assert str(member) == member.value


BAGS = [EmbeddingBagConfig(4, 2, "t", feature_names=["f"])]


@pytest.mark.parametrize("name", [EmbOptimType.EXACT_ADAGRAD, "exact_adagrad", "EXACT_ADAGRAD"])
@pytest.mark.parametrize(
    "kind_of",
    [
        lambda name: convert_optimizer_type_and_kwargs(name, {"lr": 0.1})[0],
        lambda name: fused_rule(name, {"lr": 0.1})[0],
        lambda name: FusedEmbeddingBagCollection(BAGS, name, {"lr": 0.1}).optimizer_type(),
        lambda name: applied(name),
        lambda name: fused(name)[0].optimizer_type(),
    ],
    ids=[
        "convert_optimizer_type_and_kwargs",
        "fused_rule",
        "FusedEmbeddingBagCollection",
        "apply_optimizer_in_backward",
        "fuse_embedding_optimizer",
    ],
)
def test_an_optimizer_is_named_wherever_one_is(name, kind_of):
    assert kind_of(name) in (OptimizerType.ADAGRAD, Adagrad)


def applied(name: EmbOptimType | str) -> type[torch.optim.Optimizer]:
    parameter = torch.nn.Parameter(torch.ones(2))
    apply_optimizer_in_backward(name, [parameter], {"lr": 0.1})
    return type(owner_of(parameter).optimizer)


def fused(name: EmbOptimType | str) -> torch.nn.Module:
    model = torch.nn.Sequential(EmbeddingBagCollection(tables=BAGS))
    return fuse_embedding_optimizer(model, name, {"lr": 0.1}, torch.device("cpu"))
