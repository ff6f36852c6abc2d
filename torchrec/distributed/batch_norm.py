"""Batch normalisation by the samples of all ranks, which gives what one process gives with all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from torchrec.distributed._private import not_compiled
from torchrec.distributed.wire import Wire

__all__ = [
    "SyncBatchNorm",
    "convert_sync_batchnorm",
    "revert_sync_batchnorm",
    "warn_of_share_statistics",
]

_log = logging.getLogger(__name__)


class SyncBatchNorm(nn.BatchNorm1d):
    r"""Normalises each column by the mean and variance of the samples of all ranks while training.

    As ranks have :math:`n_r` samples each, with means :math:`\mu_r` and sums of squared deviations :math:`M_r`,

    .. math:: \mu = \frac{1}{n} \sum_r n_r \mu_r, \quad
        \sigma^2 = \frac{1}{n} \sum_r \left(M_r + n_r (\mu_r - \mu)^2\right), \quad n = \sum_r n_r

    summed in float64, in the order of ranks. Ranks may have as many samples as they will, or none. All of
    them call it, and go back through it, alike: each time they exchange two vectors of numbers. One sample
    of all ranks together has no variance, and is normalised by the running statistics.

    `torch.nn.SyncBatchNorm` is the same for GPUs alone. There are no second derivatives.

    Args:
        former: the module in whose place it stands, and whose parameters and statistics it has.
        name: of the module, for errors.
        wire: the ranks.

    References:
        https://arxiv.org/abs/1502.03167; sums of parts: Chan, Golub, LeVeque, Updating Formulae and a Pairwise
        Algorithm for Computing Sample Variances, equation 2.1.
    """

    def __init__(self, former: nn.BatchNorm1d, name: str, wire: Wire) -> None:
        super().__init__(former.num_features, former.eps, former.momentum, False, False)
        self.affine, self.track_running_stats = former.affine, former.track_running_stats
        self.weight, self.bias = former.weight, former.bias
        self.running_mean, self.running_var = former.running_mean, former.running_var
        self.num_batches_tracked = former.num_batches_tracked
        self.training = former.training
        # In a tuple it is no part of this module, which has its parameters already.
        self._former, self._name, self._wire = (former,), name, wire

    @not_compiled
    def forward(self, input: Tensor) -> Tensor:
        """Normalise; all ranks call this.

        Args:
            input: ``(B, C)`` or ``(B, C, L)``, floating; B may differ from rank to rank, and be 0.

        Returns:
            of the shape and type of the input.

        Raises:
            ValueError: if all ranks have one sample together, and there are no running statistics.
        """
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return self._by_running_statistics(input)
        axes = [0, *range(2, input.dim())]
        counts, means, deviations = self._of_ranks(input, axes)
        count = int(counts.sum())
        if count < 2 and self.running_mean is not None:
            return self._by_running_statistics(input)
        if count < 2:
            raise ValueError(
                f"Module '{self._name}' should be given more than one sample of all ranks, as it has no running "
                f"statistics. Received {count}."
            )
        mean = (counts * means).sum(0) / count
        squares = (deviations + counts * (means - mean).square()).sum(0)
        if self.training:
            self._track(mean, squares / (count - 1))
        scale = (squares / count + self.eps).rsqrt()
        normalised: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean, scale, count, axes, self._name, self._wire
        )
        return normalised

    def _by_running_statistics(self, input: Tensor) -> Tensor:
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _of_ranks(self, input: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the number of samples, the means and the sums of squared deviations of each rank, a row each."""
        with torch.no_grad():
            wide = _at_least_single(input)
            count = wide.numel() // self.num_features
            mean = wide.sum(axes, dtype=torch.float64) / max(count, 1)
            near = mean.to(wide.dtype)  # what is subtracted is rounded, and the rest of it follows
            squares = (wide - _along(near, wide)).square().sum(axes, dtype=torch.float64)
            squares -= count * (mean - near).square()
            mine = torch.cat([mean.new_tensor([count]), mean, squares])
        of_ranks = _tell(self._wire, mine, f"batch normalisation by module '{self._name}'")
        counts, means, deviations = of_ranks.split([1, *[self.num_features] * 2], 1)
        return counts, means, deviations

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # the mean of all batches
            share = 1.0 / float(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def former(self) -> nn.BatchNorm1d:
        """Return the module in whose place this stands, with the parameters and statistics that there are now."""
        (former,) = self._former
        former.weight, former.bias = self.weight, self.bias
        former.running_mean, former.running_var = self.running_mean, self.running_var
        former.num_batches_tracked = self.num_batches_tracked
        return former.train(self.training)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: int,
        axes: list[int],
        name: str,
        wire: Wire,
    ) -> Tensor:
        wide = _at_least_single(input)
        even = (wide - _along(mean, wide)) * _along(scale, wide)
        ctx.save_for_backward(even, weight, scale)
        ctx.count, ctx.axes, ctx.wire = count, axes, wire
        ctx.topic = f"the backward pass of batch normalisation by module '{name}'"
        ctx.dtype = input.dtype
        ctx.has_bias = bias is not None
        # Not what is kept: who gets the output may change it in place.
        output = even.clone() if weight is None else even * _along(weight, wide)
        return (output if bias is None else output.add_(_along(bias, wide))).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        even, weight, scale = ctx.saved_tensors
        grad = grad.to(even.dtype)
        sums = [each.sum(ctx.axes, dtype=torch.float64) for each in (grad, grad * even)]
        total, along = _tell(ctx.wire, torch.cat(sums), ctx.topic).sum(0).div(ctx.count).chunk(2)
        rest = grad - _along(total, even) - even * _along(along, even)
        factor = scale if weight is None else scale * weight
        of_input = (rest * _along(factor, even)).to(ctx.dtype)
        of_weight = None if weight is None else sums[1].to(weight.dtype)
        of_bias = sums[0].to(even.dtype) if ctx.has_bias else None
        return of_input, of_weight, of_bias, *[None] * 6


def _at_least_single(input: Tensor) -> Tensor:
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def _along(columns: Tensor, like: Tensor) -> Tensor:
    """Return a number for each column in the type of an input, to be combined with it."""
    return columns.to(like.dtype).view(-1, *[1] * (like.dim() - 2))


def _tell(wire: Wire, numbers: Tensor, topic: str) -> Tensor:
    """Return what each rank has, ``(W, N)``, of numbers ``(N,)``."""
    wire.begin(topic).numbers()
    ranks, size = wire.world_size, numbers.numel()
    return wire.swap(numbers.repeat(ranks), [size] * ranks, [size] * ranks).view(ranks, size)


def convert_sync_batchnorm(
    module: nn.Module, process_group: dist.ProcessGroup | None = None
) -> nn.Module:
    """Have a model normalise by the samples of all ranks, before `DistributedModelParallel` is put around it.

    Names in its ``state_dict()`` stay, and what an optimizer has been given is trained as before.

    Args:
        module: changed in place: a `SyncBatchNorm` takes the place of each `torch.nn.BatchNorm1d`.
        process_group: the ranks, all of which call this. Default: all; where there is none, or one rank,
            nothing is changed.

    Returns:
        the model; or what takes its place, if it is a `torch.nn.BatchNorm1d` itself.

    Example:
        >>> layers = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> convert_sync_batchnorm(layers) is layers, type(layers[1]).__name__  # of one process
        (True, 'BatchNorm1d')
    """
    if process_group is None and not (dist.is_available() and dist.is_initialized()):
        return module
    group = process_group or dist.group.WORLD
    if group is None or dist.get_world_size(group) == 1:
        return module
    wire = Wire(group)

    def synced(path: str, child: nn.Module) -> nn.Module:
        if isinstance(child, nn.BatchNorm1d) and not isinstance(child, SyncBatchNorm):
            return SyncBatchNorm(child, path, wire)
        return child

    return _replaced(module, synced)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Give a model back the modules that `convert_sync_batchnorm` has replaced, as they are trained now.

    Args:
        module: changed in place.

    Returns:
        the model, or what takes its place.
    """
    return _replaced(
        module, lambda _, child: child.former() if isinstance(child, SyncBatchNorm) else child
    )


def warn_of_share_statistics(module: nn.Module) -> None:
    """Say so where a model normalises by the samples of a rank, so that more ranks learn something else.

    Args:
        module: the model.
    """
    plain = [
        path
        for path, child in module.named_modules()
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        and not isinstance(child, SyncBatchNorm)
        and (child.training or not child.track_running_stats)
    ]
    if plain:
        _log.warning(
            "Module '%s' normalises by the samples of each rank, not of all (modules that do: %d). "
            "`torchrec.distributed.batch_norm.convert_sync_batchnorm(model)`, before the model is sharded, has "
            "BatchNorm1d go by those of all ranks.",
            plain[0],
            len(plain),
        )


def _replaced(module: nn.Module, replace: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Put other modules in the place of some; one that stands in several places is replaced by one."""
    others = {child: replace(path, child) for path, child in module.named_modules()}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if path and others[child] is not child:
            parent, _, name = path.rpartition(".")
            module.get_submodule(parent).register_module(name, others[child])
    return others[module]
