"""The interactions of DLRM: what is made of the dense vector and the sparse vectors of a sample."""

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import is_proxy
from torchrec.models._pooled import check_module
from torchrec.modules.sizes import checked_size
from torchrec.ops.cross import side_by_side
from torchrec.ops.interaction import dot_interaction


def choose(n: int, k: int) -> int:
    """Return in how many ways ``k`` of ``n`` can be chosen; 0 where that is not possible.

    Args:
        n: how many there are.
        k: how many to choose.

    Example:
        >>> choose(5, 2)
        10
    """
    if not 0 <= k <= n:
        return 0
    ways = 1
    for i in range(min(k, n - k)):
        ways = ways * (n - i) // (i + 1)
    return ways


def check_vectors(
    dense_features: Tensor, sparse_features: Tensor, num_sparse_features: int
) -> None:
    """Raise unless these are the vectors of one batch.

    Raises:
        ValueError: ``dense_features`` is not of shape ``(B, D)`` or ``sparse_features`` is not of
            shape ``(B, num_sparse_features, D)``.
    """
    if is_proxy(dense_features) or is_proxy(sparse_features):
        return
    if dense_features.dim() != 2:
        raise ValueError(
            f"`dense_features` should have shape (B, D). Received {tuple(dense_features.shape)}."
        )
    expected = (dense_features.size(0), num_sparse_features, dense_features.size(1))
    if sparse_features.shape != expected:
        raise ValueError(
            f"`sparse_features` should have shape (B, F, D) = {expected}, as `dense_features` "
            f"and `num_sparse_features`. Received {tuple(sparse_features.shape)}."
        )


class LearnedVector(nn.Module):
    """Stands in for the vector of the dense features where there are none: one for all samples.

    Args:
        dim: D.
        device: of the parameter. Default: PyTorch's default device.
    """

    def __init__(self, dim: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, device=device))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Return the vector ``B`` times, ``(B, D)``, whatever the features ``(B, *)`` are."""
        return self.weight.expand(features.size(0), -1)


class InteractionArch(nn.Module):
    r"""The dot products of all pairs of vectors: the interaction of DLRM.

    With :math:`x_0` the dense vector of a sample and :math:`x_1 \dots x_F` its sparse ones,

    .. math:: y = (x_0,\; x_0 \cdot x_1,\; x_0 \cdot x_2,\; \dots,\; x_{F-1} \cdot x_F)

    all pairs ``i < j``, ordered by ``i``, then by ``j``. Paper: https://arxiv.org/abs/1906.00091

    Args:
        num_sparse_features: F. With 0 the output is the dense vector.

    Raises:
        TypeError: ``num_sparse_features`` is no integer.
        ValueError: ``num_sparse_features`` is negative.

    Example:
        >>> import torch
        >>> from torchrec.models.dlrm import InteractionArch
        >>> dense = torch.tensor([[1.0, 2.0]])
        >>> sparse = torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
        >>> InteractionArch(num_sparse_features=2)(dense, sparse)  # 1*3+2*4, 1*5+2*6, 3*5+4*6
        tensor([[ 1.,  2., 11., 17., 39.]])
    """

    def __init__(self, num_sparse_features: int) -> None:
        super().__init__()
        self.F = checked_size("num_sparse_features", num_sparse_features, at_least=0)

    def extra_repr(self) -> str:
        """Return the number of sparse features, for ``print``."""
        return f"num_sparse_features={self.F}"

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Take the dot products.

        Args:
            dense_features: ``(B, D)``, floating.
            sparse_features: ``(B, F, D)``, floating.

        Returns:
            ``(B, D + F + F choose 2)``.

        Raises:
            ValueError: the shapes are not these.
        """
        if self.F == 0:
            return dense_features
        check_vectors(dense_features, sparse_features, self.F)
        return dot_interaction(dense_features, sparse_features)


class WithVectors(nn.Module):
    """An interaction whose output has the sparse vectors themselves in front.

    Args:
        interaction: of a dense vector ``(B, D)`` and sparse ones ``(B, F, D)``.
    """

    def __init__(self, interaction: nn.Module) -> None:
        super().__init__()
        self.interaction = interaction

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Return ``(B, F D)`` numbers, and those of the interaction."""
        products = self.interaction(dense_features, sparse_features)
        return torch.cat([sparse_features.flatten(1), products], dim=1)


class FMVectors(nn.Module):
    r"""All vectors, and the sum of their elementwise products in pairs.

    It is the term of a factorization machine before its numbers are added up.

    .. math:: y = \Big(x_0, \dots, x_F,\; \sum_{i<j} x_i \odot x_j\Big),\quad
        \sum_{i<j} x_i \odot x_j = \tfrac{1}{2} \Big(\big(\sum_i x_i\big)^2 - \sum_i x_i^2\Big)

    Papers: https://ieeexplore.ieee.org/document/5694074 (FM), https://arxiv.org/abs/1708.05027 (the
    pooling, equations 3 and 4).
    """

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Return ``(B, F D + 2 D)`` numbers of ``(B, D)`` and ``(B, F, D)``."""
        vectors = torch.cat([dense_features.unsqueeze(1), sparse_features], dim=1)
        products = (vectors.sum(1).square() - vectors.square().sum(1)) / 2
        return torch.cat([vectors.flatten(1), products], dim=1)


class InteractionProjectionArch(nn.Module):
    r"""The dot products of two learned sets of vectors: a DLRM whose interaction is narrower.

    With :math:`x` all vectors of a sample one after another, the dense one :math:`x_0` first,

    .. math:: y = (x_0,\; \mathrm{flatten}(Y Z)),\quad Y = \mathrm{branch}_1(x) \in
        \mathbb{R}^{F_1 \times D},\quad Z = \mathrm{branch}_2(x) \in \mathbb{R}^{D \times F_2}

    Args:
        num_sparse_features: F. With 0 the output is the dense vector.
        interaction_branch1: network from ``(B, F D + D)`` to ``(B, F1 D)``.
        interaction_branch2: network from ``(B, F D + D)`` to ``(B, D F2)``.

    Raises:
        TypeError: ``num_sparse_features`` is no integer, or a branch is no module.
        ValueError: ``num_sparse_features`` is negative.

    Example:
        >>> import torch
        >>> from torchrec.models.dlrm import DenseArch, InteractionProjectionArch
        >>> F, D = 2, 3
        >>> interaction = InteractionProjectionArch(
        ...     num_sparse_features=F,
        ...     interaction_branch1=DenseArch(F * D + D, [4 * D]),  # F1 = 4
        ...     interaction_branch2=DenseArch(F * D + D, [5 * D]),  # F2 = 5
        ... )
        >>> interaction(torch.rand(10, D), torch.rand(10, F, D)).shape  # D + F1 * F2
        torch.Size([10, 23])
    """

    def __init__(
        self,
        num_sparse_features: int,
        interaction_branch1: nn.Module,
        interaction_branch2: nn.Module,
    ) -> None:
        super().__init__()
        self.F = checked_size("num_sparse_features", num_sparse_features, at_least=0)
        check_module("interaction_branch1", interaction_branch1)
        check_module("interaction_branch2", interaction_branch2)
        self.interaction_branch1 = interaction_branch1
        self.interaction_branch2 = interaction_branch2

    def extra_repr(self) -> str:
        """Return the number of sparse features, for ``print``."""
        return f"num_sparse_features={self.F}"

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Project all vectors to two sets of vectors, and take the dot products between these.

        Args:
            dense_features: ``(B, D)``, floating.
            sparse_features: ``(B, F, D)``, floating.

        Returns:
            ``(B, D + F1 F2)``.

        Raises:
            ValueError: the shapes are not these, or the output of a branch is not a multiple of D.
        """
        if self.F == 0:
            return dense_features
        check_vectors(dense_features, sparse_features, self.F)
        vectors = side_by_side(dense_features, sparse_features)
        dim = dense_features.size(1)
        left, right = self.interaction_branch1(vectors), self.interaction_branch2(vectors)
        for number, output in ((1, left), (2, right)):
            if not is_proxy(output) and output.size(1) % dim:
                raise ValueError(
                    f"`interaction_branch{number}` should give a multiple of D={dim} numbers a "
                    f"sample. Received {output.size(1)}."
                )
        products = torch.bmm(
            left.unflatten(1, (left.size(1) // dim, dim)),
            right.unflatten(1, (dim, right.size(1) // dim)),
        )
        return torch.cat([dense_features, products.flatten(1)], dim=1)


class InteractionDCNArch(nn.Module):
    r"""A cross network over all vectors of a sample, the dense one first: the interaction of DCN.

    .. math:: y = \mathrm{crossnet}((x_0, x_1, \dots, x_F))

    Papers: https://arxiv.org/abs/1906.00091 (DLRM), https://arxiv.org/abs/2008.13535 (DCN V2).

    Args:
        num_sparse_features: F. With 0 the output is the dense vector.
        crossnet: network from ``(B, F D + D)`` to the same shape, such as
            :class:`~torchrec.modules.crossnet.LowRankCrossNet`.

    Raises:
        TypeError: ``num_sparse_features`` is no integer, or ``crossnet`` no module.
        ValueError: ``num_sparse_features`` is negative.

    Example:
        >>> import torch
        >>> from torchrec.models.dlrm import InteractionDCNArch
        >>> from torchrec.modules.crossnet import LowRankCrossNet
        >>> F, D = 2, 3
        >>> crossnet = LowRankCrossNet(in_features=F * D + D, num_layers=2, low_rank=4)
        >>> interaction = InteractionDCNArch(num_sparse_features=F, crossnet=crossnet)
        >>> interaction(torch.rand(10, D), torch.rand(10, F, D)).shape
        torch.Size([10, 9])
    """

    def __init__(self, num_sparse_features: int, crossnet: nn.Module) -> None:
        super().__init__()
        self.F = checked_size("num_sparse_features", num_sparse_features, at_least=0)
        check_module("crossnet", crossnet)
        self.crossnet = crossnet

    def extra_repr(self) -> str:
        """Return the number of sparse features, for ``print``."""
        return f"num_sparse_features={self.F}"

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Cross all vectors.

        Args:
            dense_features: ``(B, D)``, floating.
            sparse_features: ``(B, F, D)``, floating.

        Returns:
            ``(B, F D + D)``.

        Raises:
            ValueError: the shapes are not these.
        """
        if self.F == 0:
            return dense_features
        check_vectors(dense_features, sparse_features, self.F)
        output: Tensor = self.crossnet(side_by_side(dense_features, sparse_features))
        return output


for _class in (InteractionArch, InteractionProjectionArch, InteractionDCNArch):
    _class.__module__ = "torchrec.models.dlrm"
