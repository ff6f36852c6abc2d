"""Logistic regression: a weight an id, a weight a dense feature, and a bias."""

import torch
from torch import Tensor, nn

from torchrec.models._pooled import (
    PooledCollection,
    check_columns,
    check_pooled,
    embedding_dim,
    embedding_names,
    joined,
    pool,
)
from torchrec.modules.sizes import checked_size
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["LogisticRegression"]


class LogisticRegression(nn.Module):
    r"""Logistic regression over ids and numbers: what every other model should beat.

    With :math:`w_{id}` the weight of an id, and :math:`x` the dense features of a sample,

    .. math:: y = b + \sum_{id} w_{id} + u \cdot x

    A feature of several ids adds up, or averages, their weights, as its table pools. The bias and
    the weights of dense features start at zero.

    Args:
        embedding_bag_collection: the tables, all of dimension 1. None: there are dense features only.
        num_dense_features: number of dense features. Default 0.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small, there is neither a table nor a dense feature, or a table has
            another dimension.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.lr import LogisticRegression
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(
        ...         10, 1, "t1", feature_names=["f1"], init_fn=torch.nn.init.ones_
        ...     )
        ... ])
        >>> model = LogisticRegression(ebc, num_dense_features=2)
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], []]})
        >>> model(torch.rand(2, 2), ids).detach()
        tensor([[2.],
                [0.]])
    """

    def __init__(
        self, embedding_bag_collection: PooledCollection | None, num_dense_features: int = 0
    ) -> None:
        super().__init__()
        self._num_dense_features = checked_size(
            "num_dense_features", num_dense_features, at_least=0
        )
        self._names: list[str] = []
        self.embedding_bag_collection = None
        if embedding_bag_collection is not None:
            dim = embedding_dim(embedding_bag_collection)
            if dim != 1:
                raise ValueError(
                    "`embedding_bag_collection` should have tables of dimension 1. "
                    f"Received dimension {dim}."
                )
            self._names = embedding_names(embedding_bag_collection)
            self.embedding_bag_collection = check_pooled(embedding_bag_collection)
        elif not num_dense_features:
            raise ValueError("There should be tables or dense features. Received neither.")
        self.linear = None
        if num_dense_features:
            self.linear = nn.Linear(num_dense_features, 1, bias=False)
            nn.init.zeros_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict.

        Args:
            dense_features: ``(B, num_dense_features)``, floating.
            sparse_features: ids of all features of the tables.

        Returns:
            Logits, ``(B, 1)``.

        Raises:
            ValueError: a shape is another, or a feature is missing.
        """
        check_columns("dense_features", dense_features, self._num_dense_features)
        if self.embedding_bag_collection is None:
            assert self.linear is not None
            of_numbers: Tensor = self.linear(dense_features)
            return of_numbers + self.bias
        weights = joined(pool(self.embedding_bag_collection, sparse_features), self._names)
        logits = weights.sum(1, keepdim=True) + self.bias
        return logits if self.linear is None else logits + self.linear(dense_features)
