"""Losses of tasks, by name: one a sample, of a model's outputs and the targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

NamedLoss = Callable[[Tensor, Tensor], Tensor]


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Return the focal loss of each sample, which counts those less that are right already.

    .. math:: -(1 - p_t)^2 \log p_t,\qquad p_t = \sigma(z) \text{ if } y = 1 \text{ else } 1 - \sigma(z)

    Lin et al., https://arxiv.org/abs/1708.02002, equation 4 with their :math:`\gamma = 2`.
    Probabilities learned by it are not calibrated.

    Args:
        logits: ``(B,)``.
        targets: 0 or 1, ``(B,)``.

    Example:
        >>> focal(torch.tensor([0.0]), torch.tensor([1.0]))  # log(2) / 4
        tensor([0.1733])
    """
    loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (1.0 - torch.exp(-loss)).square() * loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log of the softmax of each sample's class.

    Args:
        logits: one a class, ``(B, K)``.
        targets: classes, 0 to K - 1, ``(B,)``.
    """
    return functional.cross_entropy(logits, targets.long(), reduction="none")


def continuation(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Return the negative log of the probability of each sample's class, of classes in order.

    Each class but the last has a yes or no, whether the sample is above it, which is asked only of those that are not
    below:

    .. math:: \sum_{k < K-1,\; k \le y} \mathrm{BCE}(z_k, [y > k])

    Shi, Cao and Raschka, https://arxiv.org/abs/2111.08851, equation 5. The probabilities are those of
    ``Target.scores``: whatever the logits, they are above 0 and sum to 1.

    Args:
        logits: of each class but the last, ``(B, K - 1)``; of two classes ``(B,)`` as well.
        targets: classes, 0 to K - 1, ``(B,)``.

    Example:
        >>> continuation(torch.zeros(1, 3), torch.tensor([1.0]))  # 2 log(2): above 0, but not above 1
        tensor([1.3863])
    """
    logits = logits.reshape(len(targets), -1)
    classes = torch.arange(logits.size(1), device=logits.device)
    losses = functional.binary_cross_entropy_with_logits(
        logits, (targets.unsqueeze(1) > classes).to(logits.dtype), reduction="none"
    )
    return torch.where(targets.unsqueeze(1) >= classes, losses, 0.0).sum(dim=1)


def pairwise(scores: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
    r"""Return, for each sample, how far it is from being above those of its group that should be below.

    .. math:: \ell_i = \frac{1}{|L_i|} \sum_{j \in L_i} \log(1 + e^{s_j - s_i}),\qquad
        L_i = \{j : g_j = g_i,\; y_j < y_i\}

    and 0 where there are none. The cost of RankNet, Burges et al.,
    https://doi.org/10.1145/1102351.1102363, equation 3, as a mean over the pairs of a sample. Memory is
    that of all pairs within groups.

    Args:
        scores: s, ``(B,)``.
        targets: y, ``(B,)``.
        groups: ids of the groups, ``(B,)``.

    Example:
        >>> scores, targets = torch.tensor([0.0, 0.0, 9.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> pairwise(scores, targets, torch.tensor([7, 7, 8]))  # log(2), nobody below, nobody beside
        tensor([0.6931, 0.0000, 0.0000])
    """
    order = torch.argsort(groups, stable=True)
    _, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    starts = sizes.cumsum(0) - sizes
    # Of each sample, in the order of the groups, all samples of its group.
    times = sizes.repeat_interleave(sizes)
    first = torch.arange(len(order), device=order.device).repeat_interleave(times)
    begins = starts.repeat_interleave(sizes)
    within = torch.arange(len(first), device=order.device)
    within = within - (times.cumsum(0) - times).repeat_interleave(times)
    one, other = order[first], order[begins.repeat_interleave(times) + within]
    chosen = targets[one] > targets[other]
    one, other = one[chosen], other[chosen]
    costs = functional.softplus(scores[other] - scores[one])
    zeros = torch.zeros_like(scores)
    counts = zeros.index_add(0, one, torch.ones_like(costs))
    return zeros.index_add(0, one, costs) / counts.clamp(min=1)


LOSSES: dict[str, NamedLoss] = {
    "focal": focal,
    "cross_entropy": cross_entropy,
    "continuation": continuation,
}
