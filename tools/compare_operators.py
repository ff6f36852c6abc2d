"""Compares the operators of `torchrec.compat` with those of the original's kernels, on what is drawn at random.

``python -m tools.compare_operators --peer /path/to/python`` runs every operator under both: outputs, dtypes and
gradients. Drawn is what the original computes right: no gradient of a key that is permuted twice, no softmax of a bag
that is cut.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

SEEDS = range(20)
NO_GRADIENT = "block_bucketize", "bucketize", "segment"  # there


class Bags(NamedTuple):
    """A batch: bags of several features, and a dense tensor that the longest bag does not always fit."""

    features: int
    lengths: Tensor  # (features * samples,)
    offsets: Tensor
    ids: Tensor
    weights: Tensor
    vectors: Tensor  # (N, 3)
    dense: Tensor  # (features * samples, width, 3)


def draw_bags(rng: Generator) -> Bags:
    """Draw one."""
    features, samples, width = (int(torch.randint(1, 5, (), generator=rng)) for _ in range(3))
    lengths = torch.randint(0, 5, (features * samples,), generator=rng)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    total = int(offsets[-1])
    ids = torch.randint(-3, 60, (total,), generator=rng)
    vectors = torch.randn(total, 3, generator=rng)
    dense = torch.randn(lengths.numel(), width, 3, generator=rng)
    return Bags(features, lengths, offsets, ids, torch.rand(total, generator=rng), vectors, dense)


def _order(bags: Bags, rng: Generator) -> Tensor:
    return torch.randperm(bags.features, generator=rng).int()


def _by_key(bags: Bags) -> Tensor:
    return bags.lengths.view(bags.features, -1)


def _bucketize(bags: Bags, rng: Generator, ranks: int, **more: Any) -> tuple[Any, ...]:
    sizes = torch.randint(1, 20, (bags.features,), generator=rng)
    return bags.lengths, bags.ids, True, True, sizes, ranks, bags.weights, more


# Operator -> its arguments; a dictionary at their end holds those by name.
CASES: dict[str, Callable[[Bags, Generator], tuple[Any, ...]]] = {
    "asynchronous_complete_cumsum": lambda b, _: (b.lengths,),
    "asynchronous_inclusive_cumsum": lambda b, _: (b.lengths.int(),),
    "asynchronous_exclusive_cumsum": lambda b, _: (b.lengths,),
    "jagged_to_padded_dense": lambda b, _: (b.vectors, [b.offsets], [b.dense.size(1)], 2.0),
    "dense_to_jagged": lambda b, _: (b.dense, [b.offsets]),
    "jagged_dense_elementwise_add": lambda b, _: (b.vectors, [b.offsets], b.dense),
    "jagged_dense_elementwise_add_jagged_output": lambda b, _: (b.vectors, [b.offsets], b.dense),
    "jagged_dense_elementwise_mul": lambda b, _: (b.vectors, [b.offsets], b.dense),
    "jagged_2d_to_dense": lambda b, _: (b.vectors, b.offsets, b.dense.size(1)),
    "jagged_1d_to_dense": lambda b, _: (b.ids, b.offsets, b.dense.size(1), 7),
    "jagged_softmax": lambda b, _: (b.vectors, b.offsets, 4),
    "jagged_index_select": lambda b, rng: (
        b.vectors,
        b.lengths,
        torch.randint(0, b.lengths.numel(), (3,), generator=rng),
    ),
    "permute_2D_sparse_data": lambda b, rng: (_order(b, rng), _by_key(b), b.ids, b.weights),
    "permute_1D_sparse_data": lambda b, rng: (
        torch.randperm(b.lengths.numel(), generator=rng).int(),
        b.lengths,
        b.ids,
    ),
    "invert_permute": lambda b, rng: (_order(b, rng),),
    "offsets_range": lambda b, _: (b.offsets[:-1], b.ids.numel()),
    "segment_sum_csr": lambda b, _: (1, b.offsets, b.ids.float()),
    "block_bucketize_sparse_features": lambda b, rng: _bucketize(b, rng, 3),
    "block_bucketize_sparse_features, blocks": lambda b, rng: _bucketize(
        b, rng, 2, total_num_blocks=2 * torch.randint(1, 4, (b.features,), generator=rng)
    ),
    "block_bucketize_sparse_features, boundaries": lambda b, rng: _bucketize(
        b, rng, 2, block_bucketize_pos=[torch.tensor([0, 9, 40])] * b.features
    ),
    "bucketize_sparse_features": lambda b, _: (b.lengths.int(), b.ids.int(), True, 3, b.weights),
}


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = result if isinstance(result, Iterable) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _is_floating(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _called(name: str, seed: int) -> list[Tensor]:
    """Return the outputs of an operator, and the gradients of its floating arguments."""
    rng = Generator().manual_seed(seed)
    arguments = CASES[name](draw_bags(rng), rng)
    by_name = next((a for a in arguments if isinstance(a, dict)), {})
    positional = [a for a in arguments if not isinstance(a, dict)]
    trained = [] if name.startswith(NO_GRADIENT) else [a for a in positional if _is_floating(a)]
    for tensor in trained:
        tensor.requires_grad_()
    outputs = _tensors(getattr(torch.ops.fbgemm, name.partition(",")[0])(*positional, **by_name))
    found = [output.detach() for output in outputs]
    for output in outputs:
        if output.requires_grad:
            scale = torch.arange(1.0, output.numel() + 1).view(output.shape)
            loss = (output * scale).sum()
            grads = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
            found += [grad for grad in grads if grad is not None]
    return found


def work(out: str) -> None:
    """Write what all operators give, for every seed."""
    warnings.simplefilter("ignore")
    try:
        import fbgemm_gpu  # noqa: F401 - registers the operators
    except ImportError:
        from torchrec.compat import install

        install()
    torch.save({name: [_called(name, seed) for seed in SEEDS] for name in CASES}, out)


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.allclose(a.double(), b.double(), 1e-5, 1e-6)
        for a, b in zip(ours, theirs, strict=True)
    )


def main() -> int:
    """Compare all operators; return how many differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="another Python, with the original's kernels")
    parser.add_argument("--worker", help="write what this Python gives, and end")
    given = parser.parse_args()
    if given.worker:
        work(given.worker)
        return 0
    written = []
    with tempfile.TemporaryDirectory() as folder:
        for python in (sys.executable, given.peer):
            out = Path(folder) / f"{len(written)}.pt"
            subprocess.run(
                [python, __file__, "--worker", str(out)],
                check=True,
                capture_output=True,
                cwd=folder,
            )
            written.append(torch.load(out))
    differ = 0
    for name in CASES:
        seeds = [s for s in SEEDS if not _same(written[0][name][s], written[1][name][s])]
        differ += bool(seeds)
        print(f"{name:45} {'differs at ' + str(seeds) if seeds else 'same'}")
    print(f"{len(CASES)} operators, {len(SEEDS)} batches each: {differ} differ")
    return differ


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
