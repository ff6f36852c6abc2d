"""The kernels give the same bits for any number of threads, in every run, on every instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from torchrec.ops import _library
from torchrec.ops.embedding import (
    LookupSpec,
    PolicyCode,
    PoolingCode,
    SlotSpec,
    TableSpec,
    native,
    new_hyper,
    write_hyper,
)
from torchrec.ops.embedding.updates import RULES
from torchrec.types import OptimizerType

pytestmark = pytest.mark.skipif(_library.native is None, reason="the kernels are not in use")

OPTIONS: dict[OptimizerType, dict[str, object]] = {
    OptimizerType.SGD: {"momentum": 0.9, "weight_decay": 0.01},
    OptimizerType.LARS_SGD: {"momentum": 0.9, "eta": 0.1},
}
# rows, dim, features, bags, longest bag: many small tables, or one big one whose rows the threads share
LAYOUTS = {
    "many_tables": (300, 16, 6, 400, 3),
    "one_big_table": (20_000, 20, 1, 1200, 8),
    "narrow_rows": (500, 19, 2, 700, 4),
}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def skewed(count: int, rows: int) -> Tensor:
    """Few ids that come often, many that come once."""
    return (torch.rand(count) ** 6 * rows).long()


def run(layout: str, kind: OptimizerType, dtype: torch.dtype) -> list[Tensor]:
    """Return everything that a look-up, its gradients and two fused updates give."""
    torch.manual_seed(1)
    rows, dim, features, bags, longest = LAYOUTS[layout]
    tables = features if layout == "many_tables" else 1
    rule = RULES[kind]
    settings = rule.hyper({"lr": 0.1, **OPTIONS.get(kind, {})})
    names = rule.state_names(settings)
    specs = [
        TableSpec(f"t{t}", dim, rows + 7, rows, PolicyCode.OVERFLOW, kind, len(names))
        for t in range(tables)
    ]
    pooling = [PoolingCode.SUM, PoolingCode.MEAN]
    slots = [SlotSpec(f"f{f}", f % tables, f, pooling[f % 2], f * dim) for f in range(features)]
    spec = LookupSpec(specs, slots, features, features * dim)
    lengths = torch.randint(0, longest + 1, (features * bags,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = skewed(int(offsets[-1]), rows + 50)
    factors = torch.rand(len(values))
    weights = [torch.randn(rows + 7, dim).to(dtype) for _ in range(tables)]
    states = [rule.new_state(n, w, settings) for w in weights for n in names]
    hyper = new_hyper(tables)
    for row in hyper:
        write_hyper(row, settings)
    grad = torch.randn(bags, features * dim)
    bag = (spec.tensor, values, offsets, factors, None, features)
    results = list(native.embedding_bag(weights, *bag, spec.width, torch.float32, spec.names))
    results += native.embedding_bag_dense_grad(grad, weights, *bag)
    results += native.embedding_bag_sparse_grad(grad, weights, *bag)
    results.append(native.embedding_bag_weights_grad(grad, weights, *bag))
    for _ in range(2):
        native.embedding_bag_update_(grad, weights, states, hyper, *bag)
    starts, counts = [0] * features, [len(values)] * features
    native.embedding_sequence_update_(
        [torch.randn(len(values), dim) for _ in range(features)],
        weights, states, hyper, spec.tensor, values, starts, counts,
    )  # fmt: skip
    return [*results, *weights, *states]


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", OptimizerType, ids=lambda kind: kind.value)
def test_threads_make_no_difference(kind: OptimizerType, layout: str, threads: None) -> None:
    torch.set_num_threads(1)
    expected = run(layout, kind, torch.float32)
    for count in (2, 3, 5, 2):
        torch.set_num_threads(count)
        for ours, theirs in zip(run(layout, kind, torch.float32), expected, strict=True):
            assert torch.equal(ours, theirs), count


def digests() -> str:
    """Digest every case; also run in other processes, on other instruction sets."""
    lines = []
    for layout in LAYOUTS:
        for kind in OptimizerType:
            for name, dtype in DTYPES.items():
                if (layout == "narrow_rows") == (name == "f32"):
                    continue  # float32 in the large layouts, the narrow types in the small one
                sha = hashlib.sha256()
                for result in run(layout, kind, dtype):
                    sha.update(result.contiguous().view(torch.uint8).numpy().tobytes())
                lines.append(f"{layout} {kind.value} {name} {sha.hexdigest()[:16]}")
    lines.append(f"rounding {rounding()}")
    return "\n".join(lines)


def rounding() -> str:
    """Digest what conversions do with ties, tiny and huge numbers, infinities and NaN."""
    special = torch.tensor([0.0, -0.0, 1e-8, 6e-8, 6.1e-5, 65504.0, 65520.0, 1e38, 3.4e38])
    special = torch.cat([special, -special, torch.tensor([float("inf"), float("nan"), 1e-45])])
    ties = (torch.arange(0x3F80_0000, 0x3F84_0000, 0x800, dtype=torch.int32)).view(torch.float32)
    weight = torch.cat([special, ties])[:, None].contiguous()
    spec = LookupSpec([TableSpec("t", 1, len(weight), len(weight))], [SlotSpec("f", 0, 0)], 1, 1)
    offsets = torch.arange(len(weight) + 1)
    sha = hashlib.sha256()
    for table in DTYPES.values():
        for output in DTYPES.values():
            arguments = (spec.tensor, offsets[:-1], offsets, None, None, 1, 1, output, spec.names)
            got = native.embedding_bag([weight.to(table)], *arguments)[0][:, 0]
            expected = weight.to(table).to(output)[:, 0]
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
            sha.update(got[~got.isnan()].view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def test_conversions_round_as_pytorch_does() -> None:
    rounding()


@pytest.fixture(scope="module")
def here() -> list[str]:
    """Digest the cases on the instruction set that is in use."""
    return digests().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_instruction_sets_make_no_difference(isa: str, here: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ROWWISE_ISA": isa}
    there = subprocess.check_output([sys.executable, __file__], text=True, env=environment)
    assert there.splitlines() == here


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    print(digests())
