"""Factorization machines: linear terms and products of pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.models._pooled import (
    PooledCollection,
    check_columns,
    check_pooled,
    pool,
    terms_of,
    vectors_and_weights,
)
from torchrec.modules.sizes import checked_size
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = ["FactorizationMachineModel"]


class FactorizationMachineModel(nn.Module):
    r"""A factorization machine over ids and numbers.

    With :math:`v_f` the vector of a sparse feature, :math:`w_f` its weight, and for the dense
    features :math:`x` a vector :math:`v_i` and a weight :math:`u_i` each, the sum goes over all pairs
    of sparse features, of a sparse and a dense feature, and of dense features:

    .. math:: y = b + \sum_f w_f + u \cdot x
        + \sum_{f<g} v_f \cdot v_g + \sum_{f,i} v_f \cdot x_i v_i + \sum_{i<j} x_i v_i \cdot x_j v_j

    A feature of several ids has their vectors pooled, so that its ids make no pairs with each other.
    Products are taken in ``O(F D)`` by equation 5 of https://ieeexplore.ieee.org/document/5694074
    (Rendle, Factorization Machines, 2010). The vectors of dense features start at N(0, 0.01²), bias
    and weights of dense features at zero.

    Args:
        embedding_bag_collection: tables of one dimension D, and tables of dimension 1 of the same
            features.
        linear_tables: names of the latter.
        num_dense_features: number of dense features. Default 0.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small, there is no table of vectors, or dimensions differ.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.fm import FactorizationMachineModel
        >>> ones = torch.nn.init.ones_
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(10, 4, "t1", feature_names=["f1", "f2"], init_fn=ones),
        ...     EmbeddingBagConfig(10, 1, "t1_linear", feature_names=["f1", "f2"], init_fn=ones),
        ... ])
        >>> model = FactorizationMachineModel(ebc, ["t1_linear"])
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1], [2]], "f2": [[1], []]})
        >>> model(torch.empty(2, 0), ids).detach()  # 1 + 1 + (1, 1, 1, 1) . (1, 1, 1, 1); 1
        tensor([[6.],
                [1.]])
    """

    def __init__(
        self,
        embedding_bag_collection: PooledCollection,
        linear_tables: Sequence[str],
        num_dense_features: int = 0,
    ) -> None:
        super().__init__()
        self._num_dense_features = checked_size(
            "num_dense_features", num_dense_features, at_least=0
        )
        self._terms = terms_of(embedding_bag_collection, linear_tables)
        if not self._terms.vectors or not self._terms.weights:
            raise ValueError(
                "`embedding_bag_collection` should have `linear_tables` and tables of vectors. "
                f"Received {list(linear_tables)} and outputs {self._terms.vectors}."
            )
        self.embedding_bag_collection = check_pooled(embedding_bag_collection)
        self.linear = self.dense_vectors = None
        if num_dense_features:
            self.linear = nn.Linear(num_dense_features, 1, bias=False)
            nn.init.zeros_(self.linear.weight)
            self.dense_vectors = nn.Linear(num_dense_features, self._terms.dim, bias=False)
            nn.init.normal_(self.dense_vectors.weight, std=0.01)
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
        pooled = pool(self.embedding_bag_collection, sparse_features)
        vectors, weights = vectors_and_weights(pooled, self._terms)
        total = vectors.unflatten(1, (-1, self._terms.dim)).sum(1)
        squares = vectors.square().sum(1)
        assert weights is not None
        linear = weights.sum(1) + self.bias
        if self.linear is not None and self.dense_vectors is not None:
            total = total + self.dense_vectors(dense_features)
            norms = self.dense_vectors.weight.square().sum(0)
            squares = squares + dense_features.square() @ norms
            linear = linear + self.linear(dense_features).squeeze(1)
        pairs = 0.5 * (total.square().sum(1) - squares)
        logits: Tensor = (linear + pairs).unsqueeze(1)
        return logits
