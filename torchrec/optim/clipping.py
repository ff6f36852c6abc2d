"""Gradient clipping as part of the optimizer, over one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, unique
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchrec.optim.keyed import KeyedOptimizer, OptimizerWrapper

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@unique
class GradientClipping(Enum):
    """What is clipped: the norm of all gradients together, each element, or nothing."""

    NORM = "norm"
    VALUE = "value"
    NONE = "none"


class GradientClippingOptimizer(OptimizerWrapper):
    r"""Clips the gradients before each step of the optimizer inside.

    NORM scales all gradients by one factor, so that their common norm is at most ``max_gradient``:

    .. math:: g \leftarrow g \cdot \min(1, c / (|g|_p + 10^{-6}))

    (Pascanu, Mikolov, Bengio, https://arxiv.org/abs/1211.5063). VALUE clamps each element to
    :math:`[-c, c]`. Sparse gradients are summed up by row first. Tables that are updated in the
    backward pass show no gradient here; give their optimizer ``max_gradient``.

    Args:
        optimizer: the optimizer inside.
        clipping: what to clip.
        max_gradient: the bound :math:`c`; 0 stops all parameters. Of no account where nothing is
            clipped.
        norm_type: :math:`p`; ``"inf"`` or ``math.inf`` for the largest element.
        enable_global_grad_clip: whether ``param_to_pgs`` is heeded.
        param_to_pgs: parameter -> process groups that its gradient is cut up over; the norm counts
            the pieces of all their ranks. Other parameters count as they are here.
        track_grad_norm: whether to compute the norm at each step whatever is clipped.

    Raises:
        ValueError: if ``max_gradient`` is below 0, or ``norm_type`` not above it.

    Example:
        >>> from torchrec.optim.keyed import KeyedOptimizerWrapper
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> inner = KeyedOptimizerWrapper({"w": weight}, lambda ps: torch.optim.SGD(ps, lr=1.0))
        >>> optimizer = GradientClippingOptimizer(inner, GradientClipping.VALUE, max_gradient=0.5)
        >>> weight.grad = torch.tensor([2.0, -0.25])
        >>> optimizer.step()
        >>> weight.tolist()
        [-0.5, 0.25]
    """

    def __init__(
        self,
        optimizer: KeyedOptimizer,
        clipping: GradientClipping = GradientClipping.NONE,
        max_gradient: float = 0.1,
        norm_type: float | str = 2.0,
        enable_global_grad_clip: bool = False,
        param_to_pgs: dict[nn.Parameter, list[ProcessGroup]] | None = None,
        track_grad_norm: bool = False,
    ) -> None:
        if clipping is not GradientClipping.NONE and not max_gradient >= 0.0:
            raise ValueError(f"`max_gradient` should be at least 0. Received {max_gradient}.")
        try:
            self._norm_type = float(norm_type)
        except ValueError:
            self._norm_type = -1.0
        if not self._norm_type > 0.0:
            raise ValueError(f"`norm_type` should be above 0, or 'inf'. Received {norm_type!r}.")
        self._clipping = clipping
        self._max_gradient = max_gradient
        self._groups: Mapping[Any, list[ProcessGroup]] = {}
        if enable_global_grad_clip and param_to_pgs is not None:
            self._groups = param_to_pgs
        self._track = track_grad_norm
        self._last_norm: Tensor | None = None
        super().__init__(optimizer)

    @property
    def last_total_grad_norm(self) -> Tensor | None:
        """The norm before clipping at the last step; ``None`` if it was not computed."""
        return self._last_norm

    def step(self, closure: Any = None) -> Any:
        """Clip, then step.

        Args:
            closure: computes the loss and the gradients anew; called once, before clipping.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._clipping is GradientClipping.NORM:
            self._last_norm = self.clip_grad_norm_()
        elif self._track:
            self._last_norm, _ = self.compute_total_grad_norm()
        if self._clipping is GradientClipping.VALUE:
            for _, grad in self._gradients():
                grad.clamp_(-self._max_gradient, self._max_gradient)
        super().step()
        return loss

    @torch.no_grad()
    def clip_grad_norm_(self) -> Tensor:
        """Scale all gradients so that their norm is at most ``max_gradient``.

        Returns:
            The norm before, a tensor of one number.
        """
        norm, grads = self.compute_total_grad_norm()
        factor = (self._max_gradient / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.to(grad.device))
        return norm

    @torch.no_grad()
    def compute_total_grad_norm(self) -> tuple[Tensor, list[Tensor]]:
        """Compute the norm of all gradients together.

        Returns:
            The norm, a tensor of one number, and the gradients; of sparse ones, their values.
        """
        pairs = self._gradients()
        # All ranks reduce over the same groups in the same order, with gradients there or without.
        by_groups: dict[tuple[ProcessGroup, ...], list[Tensor]] = {
            tuple(groups): [] for groups in self._groups.values()
        }
        for param, grad in pairs:
            if grad.numel() == 0:  # of nothing there is no largest element
                continue
            norm = torch.linalg.vector_norm(grad, self._norm_type, dtype=_wide(grad))
            by_groups.setdefault(tuple(self._groups.get(param, ())), []).append(norm)
        # Not of the gradients: a rank that has none reduces on the same kind of device as the others.
        device = next((p.device for p in self.params.values() if p.numel()), torch.device("cpu"))
        norms = [
            _reduce(_join(norms, self._norm_type, device), groups, self._norm_type)
            for groups, norms in by_groups.items()
        ]
        return _join(norms, self._norm_type, device), [grad for _, grad in pairs]

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Return parameters with their gradients; of sparse ones, the summed values."""
        pairs = []
        for param in self.params.values():
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                param.grad = param.grad.coalesce()
                pairs.append((param, param.grad.values()))
            else:
                pairs.append((param, param.grad))
        return pairs


def _wide(grad: Tensor) -> torch.dtype:
    """Return the type that the norm of a gradient is computed in."""
    return torch.promote_types(grad.dtype, torch.float32)


def _join(norms: list[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """Return the norm of everything together from the norms of its parts."""
    if not norms:
        return torch.zeros((), device=device)
    joined: Tensor = torch.linalg.vector_norm(
        torch.stack([norm.to(device) for norm in norms]), norm_type
    )
    return joined


def _reduce(norm: Tensor, groups: tuple[ProcessGroup, ...], norm_type: float) -> Tensor:
    """Return the norm of the pieces of all ranks of the groups together."""
    if not groups:
        return norm
    from torch.distributed import ReduceOp

    from torchrec.process_groups import all_reduce

    largest = norm_type == float("inf")
    wide = norm.double()  # on every rank, whatever gradients it has
    value = wide if largest else wide**norm_type
    for group in groups:
        how = ReduceOp.MAX if largest else ReduceOp.SUM
        all_reduce(value, "the norm of all gradients", group, how)
    return (value if largest else value ** (1.0 / norm_type)).to(norm.dtype)
