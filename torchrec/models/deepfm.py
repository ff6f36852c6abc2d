r"""DeepFM over embeddings.

Dense features become one more vector of the embeddings' dimension; a factorization machine takes
the products of pairs, a network the rest. Paper: https://arxiv.org/abs/1703.04247

- :class:`SimpleDeepFMNN`: one layer over the halves and the dense vector makes a probability;
- :class:`DeepFactorizationMachine`: the model of the paper, whose halves add up to a logit.

Letters: B samples, F sparse features, D embedding dimension, DI output of the deep interaction.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import is_proxy
from torchrec.models._model_input import ModelInput, loss_and_predictions
from torchrec.models._pooled import (
    PooledCollection,
    check_columns,
    check_dropout,
    check_pooled,
    embedding_dim,
    embedding_names,
    joined,
    pool,
    terms_of,
    vectors_and_weights,
)
from torchrec.models.tower import Tower
from torchrec.modules.deepfm import DeepFM, FactorizationMachine
from torchrec.modules.mlp import MLP
from torchrec.modules.sizes import checked_size
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = [
    "DeepFactorizationMachine",
    "DenseArch",
    "FMInteractionArch",
    "OverArch",
    "SimpleDeepFMNN",
    "SimpleDeepFMNNWrapper",
    "SparseArch",
]


class SparseArch(nn.Module):
    """Looks up the sparse features.

    Args:
        embedding_bag_collection: the tables, of any dimensions.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.deepfm import SparseArch
        >>> sparse_arch = SparseArch(EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(10, 3, "t1", feature_names=["f1"]),
        ...     EmbeddingBagConfig(10, 4, "t2", feature_names=["f2"]),
        ... ]))
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[0, 1], []], "f2": [[2], [3]]})
        >>> sparse_arch(ids).values().shape
        torch.Size([2, 7])
    """

    def __init__(self, embedding_bag_collection: PooledCollection) -> None:
        super().__init__()
        self.embedding_bag_collection = check_pooled(embedding_bag_collection)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool.

        Args:
            features: ids of all features of the tables.

        Returns:
            The pooled embedding of each feature, values ``(B, sum of D)``.

        Raises:
            ValueError: a feature is missing.
        """
        return pool(self.embedding_bag_collection, features)


class DenseArch(nn.Module):
    r"""Brings the dense features to the dimension of the embeddings.

    .. math:: y = \mathrm{relu}(W_2\, \mathrm{relu}(W_1 x + b_1) + b_2)

    Args:
        in_features: number of dense features.
        hidden_layer_size: outputs of the first layer.
        embedding_dim: D, outputs of the second.
        device: of the parameters. Default: PyTorch's default device.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1.

    Example:
        >>> import torch
        >>> from torchrec.models.deepfm import DenseArch
        >>> dense_arch = DenseArch(in_features=10, hidden_layer_size=10, embedding_dim=3)
        >>> dense_arch(torch.rand(20, 10)).shape
        torch.Size([20, 3])
    """

    def __init__(
        self,
        in_features: int,
        hidden_layer_size: int,
        embedding_dim: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._in_features = checked_size("in_features", in_features)
        hidden = checked_size("hidden_layer_size", hidden_layer_size)
        dim = checked_size("embedding_dim", embedding_dim)
        self.model = nn.Sequential(
            nn.Linear(self._in_features, hidden, device=device),
            nn.ReLU(),
            nn.Linear(hidden, dim, device=device),
            nn.ReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Apply both layers.

        Args:
            features: ``(B, in_features)``, floating.

        Returns:
            ``(B, D)``.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self._in_features)
        output: Tensor = self.model(features)
        return output


class FMInteractionArch(nn.Module):
    r"""The two halves of DeepFM beside the dense vector.

    With :math:`x` all ``M`` numbers of a sample, the dense vector :math:`x_0` first,

    .. math:: y = \Big(x_0,\; \mathrm{relu}(W x + b),\; \sum_{i<j} x_i x_j\Big)

    Args:
        fm_in_features: ``M``: D and the dimensions of all sparse features. None: taken from the
            first input, or from a loaded state.
        sparse_feature_names: keys of the sparse features, F of them, in the order that the deep
            half sees them in.
        deep_fm_dimension: DI, outputs of the deep half.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1, or a name comes twice.

    Example:
        >>> import torch
        >>> from torchrec import KeyedTensor
        >>> from torchrec.models.deepfm import FMInteractionArch
        >>> B, D, DI, keys = 10, 3, 4, ["f1", "f2"]
        >>> interaction = FMInteractionArch(
        ...     fm_in_features=D + D * 2, sparse_feature_names=keys, deep_fm_dimension=DI
        ... )
        >>> sparse = KeyedTensor(keys=keys, length_per_key=[D, D], values=torch.rand(B, D * 2))
        >>> interaction(torch.rand(B, D), sparse).shape  # D + DI + 1
        torch.Size([10, 8])
    """

    def __init__(
        self,
        fm_in_features: int | None,
        sparse_feature_names: Sequence[str],
        deep_fm_dimension: int,
    ) -> None:
        super().__init__()
        self.sparse_feature_names = list(sparse_feature_names)
        if len(set(self.sparse_feature_names)) != len(self.sparse_feature_names):
            raise ValueError(
                f"`sparse_feature_names` should be distinct. Received {self.sparse_feature_names}."
            )
        self._width = None
        if fm_in_features is not None:
            self._width = checked_size("fm_in_features", fm_in_features)
        dimension = checked_size("deep_fm_dimension", deep_fm_dimension)
        self.deep_fm = DeepFM(nn.Sequential(_linear(self._width, dimension), nn.ReLU()))
        self.fm = FactorizationMachine()

    def forward(self, dense_features: Tensor, sparse_features: KeyedTensor) -> Tensor:
        """Apply both halves.

        Args:
            dense_features: ``(B, D)``, floating.
            sparse_features: values ``(B, sum of D)`` with the keys of the constructor, and
                possibly others.

        Returns:
            ``(B, D + DI + 1)``.

        Raises:
            ValueError: a key is missing, the batch sizes differ, or there are not
                ``fm_in_features`` numbers a sample.
        """
        if not self.sparse_feature_names:
            return dense_features
        sparse = joined(sparse_features, self.sparse_feature_names)
        self._check(dense_features, sparse)
        embeddings = [dense_features, sparse]
        return torch.cat([dense_features, self.deep_fm(embeddings), self.fm(embeddings)], dim=1)

    def _check(self, dense_features: Tensor, sparse: Tensor) -> None:
        if is_proxy(dense_features) or is_proxy(sparse):
            return
        if dense_features.dim() != 2 or dense_features.size(0) != sparse.size(0):
            raise ValueError(
                f"`dense_features` should have shape (B, D) with B={sparse.size(0)}, as "
                f"`sparse_features`. Received {tuple(dense_features.shape)}."
            )
        width = dense_features.size(1) + sparse.size(1)
        if self._width is not None and width != self._width:
            raise ValueError(
                f"`dense_features` and `sparse_features` should have `fm_in_features`="
                f"{self._width} numbers a sample. Received {dense_features.size(1)} and "
                f"{sparse.size(1)}."
            )


class OverArch(nn.Module):
    r"""One layer to one probability.

    .. math:: y = \sigma(w \cdot x + b)

    The output is a probability in (0, 1), which wants ``nn.BCELoss``. TorchRec's documentation
    calls it a logit; its models have the sigmoid.

    Args:
        in_features: numbers a sample. Default None: taken from the first input, or from a loaded
            state.

    Raises:
        TypeError: ``in_features`` is no integer.
        ValueError: ``in_features`` is smaller than 1.

    Example:
        >>> import torch
        >>> from torchrec.models.deepfm import OverArch
        >>> over_arch = OverArch(in_features=2)
        >>> _ = over_arch.load_state_dict(
        ...     {"model.0.weight": torch.tensor([[1.0, -1.0]]), "model.0.bias": torch.zeros(1)}
        ... )
        >>> over_arch(torch.tensor([[3.0, 3.0], [1.0, 0.0]])).detach()
        tensor([[0.5000],
                [0.7311]])
    """

    def __init__(self, in_features: int | None = None) -> None:
        super().__init__()
        self._in_features = in_features
        if in_features is not None:
            self._in_features = checked_size("in_features", in_features)
        self.model = nn.Sequential(_linear(self._in_features, 1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            features: ``(B, in_features)``, floating.

        Returns:
            Probabilities, ``(B, 1)``.

        Raises:
            ValueError: the shape is another.
        """
        if self._in_features is not None:
            check_columns("features", features, self._in_features)
        output: Tensor = self.model(features)
        return output


class SimpleDeepFMNN(nn.Module):
    r"""DeepFM: from dense features and ids to a probability.

    .. math:: y = \mathrm{over}(\mathrm{interaction}(\mathrm{dense}(x), \mathrm{sparse}(ids)))

    with :class:`DenseArch`, :class:`SparseArch`, :class:`FMInteractionArch` and :class:`OverArch`.

    Args:
        num_dense_features: number of dense features.
        embedding_bag_collection: the tables, all of one dimension D.
        hidden_layer_size: outputs of the hidden layer over the dense features.
        deep_fm_dimension: DI, outputs of the deep half of the interaction.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1, there is no table, or the dimensions of the tables
            differ.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.deepfm import SimpleDeepFMNN
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(100, 8, "t1", feature_names=["f1", "f3"]),
        ...     EmbeddingBagConfig(100, 8, "t2", feature_names=["f2"]),
        ... ])
        >>> model = SimpleDeepFMNN(
        ...     num_dense_features=13,
        ...     embedding_bag_collection=ebc,
        ...     hidden_layer_size=20,
        ...     deep_fm_dimension=5,
        ... )
        >>> ids = KeyedJaggedTensor.from_lists(
        ...     {"f1": [[1, 2], [4, 5]], "f2": [[7], []], "f3": [[4, 3], [2, 9]]}
        ... )
        >>> model(dense_features=torch.rand(2, 13), sparse_features=ids).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        num_dense_features: int,
        embedding_bag_collection: PooledCollection,
        hidden_layer_size: int,
        deep_fm_dimension: int,
    ) -> None:
        super().__init__()
        dim = embedding_dim(embedding_bag_collection)
        names = embedding_names(embedding_bag_collection)
        self._num_dense_features = checked_size("num_dense_features", num_dense_features)
        self.sparse_arch = SparseArch(embedding_bag_collection)
        self.dense_arch = DenseArch(self._num_dense_features, hidden_layer_size, dim)
        self.inter_arch = FMInteractionArch(dim * (len(names) + 1), names, deep_fm_dimension)
        self.over_arch = OverArch(dim + deep_fm_dimension + 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict.

        Args:
            dense_features: ``(B, num_dense_features)``, floating.
            sparse_features: ids of all features of the tables.

        Returns:
            Probabilities, ``(B, 1)``.

        Raises:
            ValueError: a shape is another, or a feature is missing.
        """
        check_columns("dense_features", dense_features, self._num_dense_features)
        dense = self.dense_arch(dense_features)
        sparse = self.sparse_arch(sparse_features)
        output: Tensor = self.over_arch(self.inter_arch(dense, sparse))
        return output


class SimpleDeepFMNNWrapper(SimpleDeepFMNN):
    """A :class:`SimpleDeepFMNN` that takes a batch as one object, and gives its loss while it is trained.

    The loss takes the probabilities for logits, as in the API; to train well, apply
    `torch.nn.functional.binary_cross_entropy` to those of a :class:`SimpleDeepFMNN`.

    Args and errors are those of :class:`SimpleDeepFMNN`.
    """

    def forward(  # type: ignore[override]
        self, model_input: ModelInput
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict from all of a batch in one object; with the loss while training.

        Args:
            model_input: with ``float_features``, ``idlist_features`` and, for training, ``label``.

        Returns:
            Probabilities, ``(B, 1)``; in training mode the loss and, detached, these.

        Raises:
            ValueError: as in :class:`SimpleDeepFMNN`, or there is not one label a sample.
        """
        predictions = super().forward(model_input.float_features, model_input.idlist_features)
        if not self.training:
            return predictions
        return loss_and_predictions(predictions, model_input.label)


class DeepFactorizationMachine(nn.Module):
    r"""DeepFM as in the paper: linear terms, products of pairs and a network, added up to a logit.

    With :math:`v_1 \dots v_F` the vectors of a sample, one a feature, and :math:`v_0` that of its
    dense features, if it has any: a linear map of them, or of what layers make of them,

    .. math:: y = \sum_i w_i \cdot v_i + \sum_{i<j} v_i \cdot v_j + \mathrm{tower}(v_0, \dots, v_F)

    The linear term of an id is read off its vector, by one :math:`w_i` a feature, and needs no table
    of its own: see the linear terms of https://arxiv.org/abs/1806.03514, section 3.3. With
    ``linear_tables`` it is a weight of the id's own, and that of the dense features a linear map of
    their own, as in the paper. DeepFM: https://arxiv.org/abs/1703.04247, equations 1 to 4.

    Args:
        embedding_bag_collection: the tables, all of one dimension D but for ``linear_tables``.
        num_dense_features: number of dense features. Default 0.
        layer_sizes: outputs of each layer of the tower. Default ``(256, 128)``.
        dropout: of the tower, see :class:`~torchrec.models.tower.Tower`. Default 0.
        batch_norm: of the tower. Default False.
        dense_layer_sizes: outputs of each layer over the dense features, before the linear map.
            Default none: a dense feature is a number times a vector, as in the paper.
        activation: of all layers, by its name: see :class:`~torchrec.modules.mlp.MLP`. Default
            "relu".
        embedding_dropout: probability of dropping a number of :math:`v_1 \dots v_F` while training.
            Default 0.
        linear_tables: names of the tables that hold a weight an id: of dimension 1, of the same
            features as the others. Default none: linear terms are read off the vectors.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small, there is no table, the dimensions of the tables differ, or a
            probability is not in ``[0, 1)``.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.deepfm import DeepFactorizationMachine
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(100, 8, "t1", feature_names=["f1", "f3"]),
        ...     EmbeddingBagConfig(100, 8, "t2", feature_names=["f2"]),
        ... ])
        >>> model = DeepFactorizationMachine(ebc, num_dense_features=13, layer_sizes=[20])
        >>> ids = KeyedJaggedTensor.from_lists(
        ...     {"f1": [[1, 2], [4, 5]], "f2": [[7], []], "f3": [[4, 3], [2, 9]]}
        ... )
        >>> model(torch.rand(2, 13), ids).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        embedding_bag_collection: PooledCollection,
        num_dense_features: int = 0,
        layer_sizes: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        batch_norm: bool = False,
        dense_layer_sizes: Sequence[int] = (),
        activation: str = "relu",
        embedding_dropout: float = 0.0,
        linear_tables: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._num_dense_features = checked_size(
            "num_dense_features", num_dense_features, at_least=0
        )
        self._terms = terms_of(embedding_bag_collection, linear_tables)
        self._dim = self._terms.dim or embedding_dim(embedding_bag_collection)
        check_dropout("embedding_dropout", embedding_dropout)
        self.sparse_arch = SparseArch(embedding_bag_collection)
        self.dropout = nn.Dropout(embedding_dropout) if embedding_dropout else None
        self.dense_arch = None
        if num_dense_features:
            sizes = [num_dense_features, *dense_layer_sizes]
            self.dense_arch = nn.Sequential(
                MLP(num_dense_features, dense_layer_sizes, activation=activation),
                nn.Linear(sizes[-1], self._dim),
            )
        width = (len(self._terms.vectors) + (self.dense_arch is not None)) * self._dim
        self.linear: nn.Module = (
            nn.Linear(num_dense_features if linear_tables else width, 1, bias=False)
            if num_dense_features or not linear_tables
            else nn.Identity()
        )
        self.fm = FactorizationMachine()
        self.deep_fm = DeepFM(Tower(width, layer_sizes, dropout, batch_norm, activation))

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
        pooled = self.sparse_arch(sparse_features)
        vectors, weights = vectors_and_weights(pooled, self._terms)
        if self.dropout is not None:
            vectors = self.dropout(vectors)
        if self.dense_arch is not None:
            vectors = torch.cat([self.dense_arch(dense_features), vectors], dim=1)
        # The products of pairs of elements, for each of the D elements of a vector on its own.
        elements = vectors.unflatten(1, (-1, self._dim)).transpose(1, 2).flatten(0, 1)
        products = self.fm([elements]).view(-1, self._dim).sum(1, keepdim=True)
        if weights is None:
            linear = self.linear(vectors)
        else:
            linear = weights.sum(1, keepdim=True)
            if self._num_dense_features:
                linear = linear + self.linear(dense_features)
        logits: Tensor = linear + products + self.deep_fm([vectors])
        return logits


def _linear(in_features: int | None, out_features: int) -> nn.Linear:
    if in_features is None:
        return nn.LazyLinear(out_features)
    return nn.Linear(in_features, out_features)
