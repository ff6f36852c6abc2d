r"""The two halves of DeepFM, over embeddings of any dimensions.

- :class:`FactorizationMachine` learns interactions of second order, without parameters of its own;
- :class:`DeepFM` learns those of high order, with the network it is given.

Both take the same list of embeddings. Paper: https://arxiv.org/abs/1703.04247.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import holds_proxy


class DeepFM(nn.Module):
    """The deep component of DeepFM: a network over the embeddings, flattened and concatenated.

    It differs from the paper in two ways: the input is embeddings and not raw sparse features, so
    their dimensions and number are free; and the hidden part may be any module.

    Args:
        dense_module: network from ``(B, M)`` to the output, with ``M`` elements of all embeddings
            of a sample. For embeddings of shapes ``(B, 2, 3)`` and ``(B, 4, 5)``, ``M`` is
            ``2 * 3 + 4 * 5 = 26``.

    Raises:
        TypeError: ``dense_module`` is no module.

    Example:
        >>> import torch
        >>> from torchrec.modules.deepfm import DeepFM
        >>> deepfm = DeepFM(torch.nn.Linear(2 * 3 + 4 * 5, 8))
        >>> deepfm([torch.zeros(3, 2, 3), torch.zeros(3, 4, 5)]).shape
        torch.Size([3, 8])
    """

    def __init__(self, dense_module: nn.Module) -> None:
        super().__init__()
        if not isinstance(dense_module, nn.Module):
            raise TypeError(
                f"`dense_module` should be an nn.Module. Received {type(dense_module).__name__}."
            )
        self.dense_module = dense_module

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """Apply the network to the embeddings.

        Args:
            embeddings: floating tensors of shape ``(B, *)``, of one batch size: ``(B, D)`` for one
                embedding, ``(B, F, D)`` for ``F`` stacked ones of the same dimension.

        Returns:
            What ``dense_module`` makes of the flattened and concatenated embeddings ``(B, M)``.

        Raises:
            ValueError: there is no embedding, one has no batch dimension, the batch sizes differ,
                or ``M`` is not the ``in_features`` that ``dense_module`` has.
        """
        traced = _check(embeddings)
        input = _side_by_side(embeddings)
        expected = getattr(self.dense_module, "in_features", None)
        # 0: a lazy module that has seen nothing yet
        if not traced and expected and input.shape[1] != expected:
            raise ValueError(
                f"`embeddings` should have {expected} elements a sample, as `dense_module`. "
                f"Received {input.shape[1]}, from shapes {[tuple(e.shape) for e in embeddings]}."
            )
        output: Tensor = self.dense_module(input)
        return output


class FactorizationMachine(nn.Module):
    r"""The second-order component of DeepFM.

    With :math:`x` the ``M`` elements of all embeddings of a sample,

    .. math:: y = \sum_{i<j} x_i x_j = \frac{1}{2} \Big( \big(\sum_i x_i\big)^2 - \sum_i x_i^2 \Big)

    The two sums are taken tensor by tensor, so nothing is concatenated, and in float32 at least:
    their difference is small next to either.

    Example:
        >>> import torch
        >>> from torchrec.modules.deepfm import FactorizationMachine
        >>> fm = FactorizationMachine()
        >>> fm([torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0], [4.0]]])])  # 2+3+4+6+8+12
        tensor([[35.]])
    """

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """Sum the products of all pairs of elements.

        Args:
            embeddings: floating tensors of shape ``(B, *)``, of one batch size: ``(B, D)`` for one
                embedding, ``(B, F, D)`` for ``F`` stacked ones of the same dimension. Few large
                tensors are quicker than many small ones.

        Returns:
            A tensor of shape ``(B, 1)``, in the dtype that the inputs promote to.

        Raises:
            ValueError: there is no embedding, one has no batch dimension, or the batch sizes
                differ.
        """
        _check(embeddings)
        return _sum_of_pairs(embeddings)


def _side_by_side(embeddings: list[Tensor]) -> Tensor:
    """Return the embeddings as one matrix ``(B, elements)``."""
    if len(embeddings) == 1:
        return embeddings[0].flatten(1)
    return torch.cat([embedding.flatten(1) for embedding in embeddings], dim=1)


def _sum_of_pairs(embeddings: list[Tensor]) -> Tensor:
    """Return the sum of the products of all pairs of elements, ``(B, 1)``."""
    dtype = embeddings[0].dtype
    for embedding in embeddings[1:]:
        dtype = torch.promote_types(dtype, embedding.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    first = embeddings[0].flatten(1).to(wide)
    total, squares = first.sum(1), torch.linalg.vecdot(first, first)
    for embedding in embeddings[1:]:
        flat = embedding.flatten(1).to(wide)
        total = total + flat.sum(1)
        squares = squares + torch.linalg.vecdot(flat, flat)
    pairs: Tensor = 0.5 * (total * total - squares)
    return pairs.unsqueeze(1).to(dtype)


# A tracer does not know how many embeddings there will be. TorchScript compiles both functions as they stand.
torch.fx.wrap("_side_by_side")
torch.fx.wrap("_sum_of_pairs")


def _check(embeddings: Sequence[Tensor]) -> bool:
    """Check that the embeddings are of one batch size, and return whether that cannot be seen: a tracer is at work."""
    if holds_proxy(embeddings):
        return True
    if isinstance(embeddings, Tensor) or not len(embeddings):
        received = "a tensor" if isinstance(embeddings, Tensor) else "none"
        raise ValueError(
            f"`embeddings` should be a list of one or more tensors. Received {received}."
        )
    for i, embedding in enumerate(embeddings):
        if embedding.dim() < 2 or embedding.shape[0] != embeddings[0].shape[0]:
            batch = embeddings[0].shape[0] if embeddings[0].dim() > 1 else "B"
            raise ValueError(
                f"`embeddings[{i}]` should have shape ({batch}, *), two dimensions or more and the "
                f"batch size of all. Received {tuple(embedding.shape)}."
            )
    return False
