"""The threads of a run: as its experiment says, or the number that is faster, where no result depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from torchrec.experiment.schema import TrainingSection
from torchrec.ops.linear import linear
from torchrec.threads import ThreadChooser, usable_processors, using_threads
from torchrec.training.optimizers import dense_parameters


@contextmanager
def run_threads(wanted: int | None) -> Iterator[None]:
    """Compute inside on as many threads as wanted; by default PyTorch's, but no more than may be used."""
    most = min(torch.get_num_threads(), usable_processors())
    with using_threads(most if wanted is None else wanted):
        yield


def thread_chooser(
    options: TrainingSection,
    model: nn.Module,
    sizes: Sequence[int],
    tell: Callable[[str], object],
) -> ThreadChooser | None:
    """Return what chooses the number of threads; None where it is not free.

    It is not where the experiment gives it. Nor where results would depend on it: PyTorch's products
    in bfloat16 and compiled code sum in another order on another number of threads. Those in float32
    do not on the machines that we know; that is tried on the model's own matrices.

    Args:
        options: the section of the experiment.
        model: what is trained.
        sizes: of batches, of training and evaluation.
        tell: is told what is chosen.
    """
    threads = torch.get_num_threads()
    if options.threads is not None or options.precision != "fp32" or options.compile:
        return None
    if threads == 1 or not products_agree(model, sizes, threads):
        return None
    return ThreadChooser(threads, tell=tell)


def products_agree(model: nn.Module, sizes: Sequence[int], threads: int) -> bool:
    """Return whether the products of a model's matrices are the same, to the bit, on one thread.

    Args:
        model: whose dense parameters of two dimensions are tried, one of each shape.
        sizes: rows of the batches that they are multiplied with.
        threads: the other number.

    Example:
        >>> products_agree(nn.Linear(8, 4), [128], 2)
        True
    """
    shapes = {tuple(each.shape) for each in dense_parameters(model).values() if each.dim() == 2}
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs in sorted(shapes):
        weight = torch.randn(outputs, inputs, generator=generator, requires_grad=True)
        for size in dict.fromkeys(sizes):
            x = torch.randn(size, inputs, generator=generator, requires_grad=True)
            grad = torch.randn(size, outputs, generator=generator)
            found = []
            for number in (1, threads):
                with using_threads(number):
                    y = linear(x, weight)
                    found.append((y.detach(), *torch.autograd.grad(y, (x, weight), grad)))
            if not all(map(torch.equal, *found)):
                return False
    return True
