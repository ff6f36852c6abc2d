"""DLRM with a transformer encoder as the interaction.

Papers: https://arxiv.org/abs/1906.00091 (DLRM), https://arxiv.org/abs/1706.03762 (attention).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.models._interactions import check_vectors
from torchrec.models._pooled import PooledCollection
from torchrec.models.dlrm import DLRM, OverArch
from torchrec.modules.sizes import checked_size

__all__ = ["DLRM_Transformer", "InteractionTransformerArch"]


class InteractionTransformerArch(nn.Module):
    r"""A transformer encoder over the vectors of a sample, the dense one first.

    The vectors attend to one another; in every layer and head

    .. math:: \mathrm{softmax}\Big(\frac{Q K^T}{\sqrt{D / nhead}}\Big) V

    followed by a network on each vector; dropout (0.1) is active in training.

    TorchRec 1.8 attends along the other axis: each vector to the same feature's vectors in the
    other samples of the batch, so that features do not meet and a prediction depends on the batch
    that it is made in. The parameters are the same; ``across_batch=True`` computes that.

    Args:
        num_sparse_features: F. With 0 the output is the dense vector.
        embedding_dim: D.
        nhead: number of heads, a divisor of D. Default 8.
        ntransformer_layers: number of layers. Default 4.
        across_batch: attend to other samples in place of other features. Default False.
        device: of the parameters. Default: PyTorch's default device.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small, or ``nhead`` does not divide ``embedding_dim``.

    Example:
        >>> import torch
        >>> from torchrec.models.experimental.transformerdlrm import InteractionTransformerArch
        >>> F, D = 2, 8
        >>> interaction = InteractionTransformerArch(F, D, nhead=2, ntransformer_layers=1)
        >>> interaction(torch.rand(10, D), torch.rand(10, F, D)).shape  # (F + 1) * D
        torch.Size([10, 24])
    """

    def __init__(
        self,
        num_sparse_features: int,
        embedding_dim: int,
        nhead: int = 8,
        ntransformer_layers: int = 4,
        across_batch: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.F = checked_size("num_sparse_features", num_sparse_features, at_least=0)
        self.D = checked_size("embedding_dim", embedding_dim)
        heads = checked_size("nhead", nhead)
        if self.D % heads:
            raise ValueError(f"`nhead` should divide `embedding_dim`={self.D}. Received {heads}.")
        layer = nn.TransformerEncoderLayer(
            self.D, heads, batch_first=not across_batch, device=device
        )
        self.interarch_TE = nn.TransformerEncoder(
            layer,
            checked_size("ntransformer_layers", ntransformer_layers),
            enable_nested_tensor=False,
        )

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Apply the encoder.

        Args:
            dense_features: ``(B, D)``, floating.
            sparse_features: ``(B, F, D)``, floating.

        Returns:
            ``(B, (F + 1) D)``.

        Raises:
            ValueError: the shapes are not these.
        """
        if self.F == 0:
            return dense_features
        check_vectors(dense_features, sparse_features, self.F)
        vectors = torch.cat([dense_features.unsqueeze(1), sparse_features], dim=1)
        encoded: Tensor = self.interarch_TE(vectors)
        return encoded.flatten(1)


class DLRM_Transformer(DLRM):  # noqa: N801 - the API's name
    r"""A DLRM with a transformer encoder as the interaction.

    .. math:: y = \mathrm{over}(\mathrm{encoder}((x_0, x_1, \dots, x_F)))

    Args:
        embedding_bag_collection: the tables, all of one dimension D.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: sizes of the network over the dense features, D the last.
        over_arch_layer_sizes: sizes of the network over the interaction. Its input is not among
            them.
        nhead: number of heads, a divisor of D. Default 8.
        ntransformer_layers: number of layers. Default 4.
        dense_device: of all parameters but the tables. Default: PyTorch's default device.
        across_batch: see :class:`InteractionTransformerArch`. Default False.

    Raises:
        TypeError: a size is no integer.
        ValueError: as in :class:`~torchrec.models.dlrm.DLRM`, or ``nhead`` does not divide D.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.experimental.transformerdlrm import DLRM_Transformer
        >>> table = EmbeddingBagConfig(100, 8, "t1", feature_names=["f1", "f2"])
        >>> model = DLRM_Transformer(
        ...     EmbeddingBagCollection(tables=[table]), 13, [20, 8], [5, 1], nhead=2
        ... )
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [4, 5]], "f2": [[4, 3], []]})
        >>> model(dense_features=torch.rand(2, 13), sparse_features=ids).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        embedding_bag_collection: PooledCollection,
        dense_in_features: int,
        dense_arch_layer_sizes: Sequence[int],
        over_arch_layer_sizes: Sequence[int],
        nhead: int = 8,
        ntransformer_layers: int = 4,
        dense_device: torch.device | None = None,
        across_batch: bool = False,
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            dense_in_features,
            dense_arch_layer_sizes,
            over_arch_layer_sizes,
            dense_device,
        )
        dim, features = self.sparse_arch.D, self.sparse_arch.F
        self.inter_arch = InteractionTransformerArch(
            features, dim, nhead, ntransformer_layers, across_batch, dense_device
        )
        self.over_arch = OverArch((features + 1) * dim, over_arch_layer_sizes, dense_device)
