"""DLRM: deep learning recommendation models, with three kinds of interaction.

A network makes one vector of the dense features, tables one of each sparse feature; an interaction
joins them, and a network over it gives the logits.

- :class:`DLRM`: dot products of all pairs of vectors;
- :class:`DLRM_Projection`: dot products of two sets of vectors, which networks make of all vectors;
- :class:`DLRM_DCN`: a cross network over all vectors.

Papers: https://arxiv.org/abs/1906.00091 (DLRM), https://arxiv.org/abs/2008.13535 (DCN V2).

Letters: B samples, F sparse features, D embedding dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.datasets.utils import Batch
from torchrec.fx.proxies import is_proxy
from torchrec.models._interactions import (
    InteractionArch,
    InteractionDCNArch,
    InteractionProjectionArch,
    LearnedVector,
    choose,
)
from torchrec.models._model_input import ModelInput, loss_and_predictions, weighted_loss
from torchrec.models._pooled import (
    PooledCollection,
    check_columns,
    check_dropout,
    check_module,
    check_pooled,
    embedding_dim,
    embedding_names,
    joined,
    pool,
)
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.mlp import MLP, Activation
from torchrec.modules.sizes import checked_size
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

__all__ = [
    "DLRM",
    "DLRM_DCN",
    "DLRMTrain",
    "DLRMWrapper",
    "DLRM_Projection",
    "DenseArch",
    "InteractionArch",
    "InteractionDCNArch",
    "InteractionProjectionArch",
    "OverArch",
    "SparseArch",
    "choose",
]


class SparseArch(nn.Module):
    """Looks up the sparse features: one vector each.

    Args:
        embedding_bag_collection: the tables, all of one dimension D.
        dropout: probability of dropping a number of a vector while training. Default 0.

    Raises:
        ValueError: there is no table, the dimensions of the tables differ, or ``dropout`` is not in
            ``[0, 1)``.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.dlrm import SparseArch
        >>> sparse_arch = SparseArch(EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(10, 3, "t1", feature_names=["f1"]),
        ...     EmbeddingBagConfig(10, 3, "t2", feature_names=["f2"]),
        ... ]))
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[0, 1], []], "f2": [[2], [3]]})
        >>> sparse_arch(ids).shape  # B, F, D
        torch.Size([2, 2, 3])
    """

    def __init__(self, embedding_bag_collection: PooledCollection, dropout: float = 0.0) -> None:
        super().__init__()
        check_dropout("dropout", dropout)
        self.D = embedding_dim(embedding_bag_collection)
        self._sparse_feature_names = embedding_names(embedding_bag_collection)
        self.F = len(self._sparse_feature_names)
        self.embedding_bag_collection = check_pooled(embedding_bag_collection)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Look up and pool.

        Args:
            features: ids of all features of the tables.

        Returns:
            ``(B, F, D)``, in the order of ``sparse_feature_names``.

        Raises:
            ValueError: a feature is missing.
        """
        values = joined(pool(self.embedding_bag_collection, features), self._sparse_feature_names)
        if self.dropout is not None:
            values = self.dropout(values)
        return values.view(values.size(0), self.F, self.D)

    @property
    def sparse_feature_names(self) -> list[str]:
        """The F features, table after table; ``feature@table`` where several tables have it."""
        return self._sparse_feature_names


class DenseArch(nn.Module):
    r"""Makes one vector of the dense features.

    .. math:: x_{l+1} = g(W_l x_l + b_l)

    Args:
        in_features: number of dense features.
        layer_sizes: outputs of each layer. The last is D in a DLRM.
        device: of the parameters. Default: PyTorch's default device.
        activation: ``g``, see :class:`~torchrec.modules.mlp.MLP`. Default ``torch.relu``.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1, or there is no such activation.

    Example:
        >>> import torch
        >>> from torchrec.models.dlrm import DenseArch
        >>> dense_arch = DenseArch(10, layer_sizes=[15, 3])
        >>> dense_arch(torch.rand(20, 10)).shape
        torch.Size([20, 3])
    """

    def __init__(
        self,
        in_features: int,
        layer_sizes: Sequence[int],
        device: torch.device | None = None,
        activation: Activation = torch.relu,
    ) -> None:
        super().__init__()
        self.in_features = checked_size("in_features", in_features)
        self.model = MLP(self.in_features, layer_sizes, activation=activation, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """Apply all layers.

        Args:
            features: ``(B, in_features)``, floating.

        Returns:
            ``(B, layer_sizes[-1])``.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        output: Tensor = self.model(features)
        return output


class OverArch(nn.Module):
    r"""Makes the logits: a network whose last layer has no activation.

    .. math:: x_{l+1} = \mathrm{relu}(W_l x_l + b_l),\quad y = W_L x_L + b_L

    Args:
        in_features: numbers a sample.
        layer_sizes: outputs of each layer, one or more.
        device: of the parameters. Default: PyTorch's default device.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1, or there is no layer.

    Example:
        >>> import torch
        >>> from torchrec.models.dlrm import OverArch
        >>> over_arch = OverArch(10, [5, 1])
        >>> over_arch(torch.rand(20, 10)).shape
        torch.Size([20, 1])
    """

    def __init__(
        self, in_features: int, layer_sizes: Sequence[int], device: torch.device | None = None
    ) -> None:
        super().__init__()
        if not layer_sizes:
            raise ValueError(
                f"`layer_sizes` should have one or more sizes. Received {list(layer_sizes)}."
            )
        self.in_features = checked_size("in_features", in_features)
        *hidden, last = layer_sizes
        last = checked_size(f"layer_sizes[{len(hidden)}]", last)
        self.model = nn.Sequential(
            MLP(self.in_features, hidden, device=device),
            nn.Linear(hidden[-1] if hidden else self.in_features, last, device=device),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Apply all layers.

        Args:
            features: ``(B, in_features)``, floating.

        Returns:
            ``(B, layer_sizes[-1])``.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        output: Tensor = self.model(features)
        return output


class DLRM(nn.Module):
    r"""From dense features and ids to logits, by the dot products of all pairs of vectors.

    .. math:: y = \mathrm{over}(\mathrm{interaction}(\mathrm{dense}(x), \mathrm{sparse}(ids)))

    with :class:`DenseArch`, :class:`SparseArch`, :class:`InteractionArch` and :class:`OverArch`.
    Paper: https://arxiv.org/abs/1906.00091

    Args:
        embedding_bag_collection: the tables, all of one dimension D.
        dense_in_features: number of dense features. With 0, all samples share one learned vector
            in place of that of their dense features.
        dense_arch_layer_sizes: sizes of the network over the dense features, D the last.
        over_arch_layer_sizes: sizes of the network over the interaction. Its input is not among
            them.
        dense_device: of all parameters but the tables. Default: PyTorch's default device.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small, there is no table, or the dimensions of the tables and
            the last of ``dense_arch_layer_sizes`` differ.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.dlrm import DLRM
        >>> D = 8
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(100, D, "t1", feature_names=["f1"]),
        ...     EmbeddingBagConfig(100, D, "t2", feature_names=["f2"]),
        ... ])
        >>> model = DLRM(
        ...     embedding_bag_collection=ebc,
        ...     dense_in_features=13,
        ...     dense_arch_layer_sizes=[20, D],
        ...     over_arch_layer_sizes=[5, 1],
        ... )
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [4, 5]], "f2": [[4, 3], []]})
        >>> model(dense_features=torch.rand(2, 13), sparse_features=ids).shape
        torch.Size([2, 1])
        >>> model.over_arch.in_features  # D + F + F choose 2
        11
    """

    def __init__(
        self,
        embedding_bag_collection: PooledCollection,
        dense_in_features: int,
        dense_arch_layer_sizes: Sequence[int],
        over_arch_layer_sizes: Sequence[int],
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        sparse_arch = SparseArch(embedding_bag_collection)
        dim, features = sparse_arch.D, sparse_arch.F
        if not dense_arch_layer_sizes or dense_arch_layer_sizes[-1] != dim:
            raise ValueError(
                f"`dense_arch_layer_sizes` should end with {dim}, the `embedding_dim` of the "
                f"tables. Received {list(dense_arch_layer_sizes)}."
            )
        self._dense_in_features = checked_size("dense_in_features", dense_in_features, at_least=0)
        self.sparse_arch = sparse_arch
        self.dense_arch: nn.Module = (
            DenseArch(dense_in_features, dense_arch_layer_sizes, dense_device)
            if self._dense_in_features
            else LearnedVector(dim, dense_device)
        )
        self.inter_arch: nn.Module = InteractionArch(features)
        width = dim + choose(features + 1, 2)
        self.over_arch: nn.Module = OverArch(width, over_arch_layer_sizes, dense_device)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Predict.

        Args:
            dense_features: ``(B, dense_in_features)``, floating.
            sparse_features: ids of all features of the tables.

        Returns:
            Logits, ``(B, over_arch_layer_sizes[-1])``.

        Raises:
            ValueError: a shape is another, or a feature is missing.
        """
        check_columns("dense_features", dense_features, self._dense_in_features)
        dense = self.dense_arch(dense_features)
        sparse = self.sparse_arch(sparse_features)
        logits: Tensor = self.over_arch(self.inter_arch(dense, sparse))
        return logits

    def compile_dense_path(self, compile_mode: str = "reduce-overhead") -> None:
        """Have ``torch.compile`` compile all but the look-up, at the next call.

        The names in the state dict stay.

        Args:
            compile_mode: ``mode`` of ``torch.compile``. Default "reduce-overhead".
        """
        for part in (self.dense_arch, self.inter_arch, self.over_arch):
            part.compile(mode=compile_mode)


class DLRMWrapper(DLRM):
    """A :class:`DLRM` that takes a batch as one object, and gives its loss while it is trained.

    Args and errors are those of :class:`DLRM`.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.dlrm import DLRMWrapper
        >>> table = EmbeddingBagConfig(100, 8, "t1", feature_names=["f1"])
        >>> model = DLRMWrapper(EmbeddingBagCollection(tables=[table]), 13, [20, 8], [5, 1])
        >>> batch = SimpleNamespace(
        ...     float_features=torch.rand(2, 13),
        ...     idlist_features=KeyedJaggedTensor.from_lists({"f1": [[1, 2], [4, 5]]}),
        ...     label=torch.tensor([0.0, 1.0]),
        ... )
        >>> loss, logits = model(batch)
        >>> loss.shape, logits.shape, model.eval()(batch).shape
        (torch.Size([]), torch.Size([2, 1]), torch.Size([2, 1]))
    """

    def forward(  # type: ignore[override]
        self, model_input: ModelInput
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict from all of a batch in one object; with the loss while training.

        Args:
            model_input: with ``float_features``, ``idlist_features`` and, for training, ``label``.

        Returns:
            Logits, ``(B, 1)``; in training mode the loss and, detached, these.

        Raises:
            ValueError: as in :class:`DLRM`, or there is not one label a sample.
        """
        predictions = super().forward(model_input.float_features, model_input.idlist_features)
        if not self.training:
            return predictions
        return loss_and_predictions(predictions, model_input.label)


class DLRM_Projection(DLRM):  # noqa: N801 - the API's name
    r"""A DLRM with dot products between two learned sets of vectors.

    The interaction is :class:`InteractionProjectionArch` with a :class:`DenseArch` a branch: ``F1
    F2`` products in place of the ``F (F + 1) / 2`` of :class:`DLRM`.

    .. math:: y = \mathrm{over}(x_0, \mathrm{flatten}(\mathrm{branch}_1(x)\, \mathrm{branch}_2(x)))

    Args:
        embedding_bag_collection: the tables, all of one dimension D.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: sizes of the network over the dense features, D the last.
        over_arch_layer_sizes: sizes of the network over the interaction. Its input is not among
            them.
        interaction_branch1_layer_sizes: sizes of the first branch, the last ``F1 D``.
        interaction_branch2_layer_sizes: sizes of the second branch, the last ``F2 D``.
        dense_device: of all parameters but the tables. Default: PyTorch's default device.

    Raises:
        TypeError: a size is no integer.
        ValueError: as in :class:`DLRM`, or the last size of a branch is not a multiple of D.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.dlrm import DLRM_Projection
        >>> D = 8
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(100, D, "t1", feature_names=["f1"]),
        ...     EmbeddingBagConfig(100, D, "t2", feature_names=["f2"]),
        ... ])
        >>> model = DLRM_Projection(
        ...     embedding_bag_collection=ebc,
        ...     dense_in_features=13,
        ...     dense_arch_layer_sizes=[20, D],
        ...     over_arch_layer_sizes=[5, 1],
        ...     interaction_branch1_layer_sizes=[16, 4 * D],
        ...     interaction_branch2_layer_sizes=[16, 5 * D],
        ... )
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [4, 5]], "f2": [[4, 3], []]})
        >>> model(dense_features=torch.rand(2, 13), sparse_features=ids).shape
        torch.Size([2, 1])
        >>> model.over_arch.in_features  # D + F1 * F2
        28
    """

    def __init__(
        self,
        embedding_bag_collection: PooledCollection,
        dense_in_features: int,
        dense_arch_layer_sizes: Sequence[int],
        over_arch_layer_sizes: Sequence[int],
        interaction_branch1_layer_sizes: Sequence[int],
        interaction_branch2_layer_sizes: Sequence[int],
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            dense_in_features,
            dense_arch_layer_sizes,
            over_arch_layer_sizes,
            dense_device,
        )
        dim, features = self.sparse_arch.D, self.sparse_arch.F
        branches = {
            "interaction_branch1_layer_sizes": interaction_branch1_layer_sizes,
            "interaction_branch2_layer_sizes": interaction_branch2_layer_sizes,
        }
        for argument, sizes in branches.items():
            if not sizes or sizes[-1] % dim:
                raise ValueError(
                    f"`{argument}` should end with a multiple of {dim}, the `embedding_dim` of the "
                    f"tables. Received {list(sizes)}."
                )
        first, second = (
            DenseArch((features + 1) * dim, sizes, dense_device) for sizes in branches.values()
        )
        self.inter_arch = InteractionProjectionArch(features, first, second)
        products = (interaction_branch1_layer_sizes[-1] // dim) * (
            interaction_branch2_layer_sizes[-1] // dim
        )
        self.over_arch = OverArch(dim + products, over_arch_layer_sizes, dense_device)


class DLRM_DCN(DLRM):  # noqa: N801 - the API's name
    r"""A DLRM with a cross network of low rank as the interaction.

    The interaction is :class:`InteractionDCNArch` with a
    :class:`~torchrec.modules.crossnet.LowRankCrossNet` over all vectors of a sample:

    .. math:: x_{l+1} = x_0 * (W_l \cdot (V_l \cdot x_l) + b_l) + x_l

    Paper: https://arxiv.org/abs/2008.13535

    Args:
        embedding_bag_collection: the tables, all of one dimension D.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: sizes of the network over the dense features, D the last.
        over_arch_layer_sizes: sizes of the network over the interaction. Its input is not among
            them.
        dcn_num_layers: number of crossing layers.
        dcn_low_rank_dim: rank of their matrices.
        dense_device: of all parameters but the tables. Default: PyTorch's default device.

    Raises:
        TypeError: a size is no integer.
        ValueError: as in :class:`DLRM`, or a size of the cross network is too small.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.models.dlrm import DLRM_DCN
        >>> D = 8
        >>> ebc = EmbeddingBagCollection(tables=[
        ...     EmbeddingBagConfig(100, D, "t1", feature_names=["f1"]),
        ...     EmbeddingBagConfig(100, D, "t2", feature_names=["f2"]),
        ... ])
        >>> model = DLRM_DCN(
        ...     embedding_bag_collection=ebc,
        ...     dense_in_features=13,
        ...     dense_arch_layer_sizes=[20, D],
        ...     over_arch_layer_sizes=[5, 1],
        ...     dcn_num_layers=2,
        ...     dcn_low_rank_dim=8,
        ... )
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [4, 5]], "f2": [[4, 3], []]})
        >>> model(dense_features=torch.rand(2, 13), sparse_features=ids).shape
        torch.Size([2, 1])
        >>> model.over_arch.in_features  # D + F * D
        24
    """

    def __init__(
        self,
        embedding_bag_collection: PooledCollection,
        dense_in_features: int,
        dense_arch_layer_sizes: Sequence[int],
        over_arch_layer_sizes: Sequence[int],
        dcn_num_layers: int,
        dcn_low_rank_dim: int,
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            dense_in_features,
            dense_arch_layer_sizes,
            over_arch_layer_sizes,
            dense_device,
        )
        features = self.sparse_arch.F
        width = (features + 1) * self.sparse_arch.D
        crossnet = LowRankCrossNet(
            in_features=width,
            num_layers=checked_size("dcn_num_layers", dcn_num_layers, at_least=0),
            low_rank=checked_size("dcn_low_rank_dim", dcn_low_rank_dim),
            device=dense_device,
        )
        self.inter_arch = InteractionDCNArch(features, crossnet)
        self.over_arch = OverArch(width, over_arch_layer_sizes, dense_device)


class DLRMTrain(nn.Module):
    r"""A DLRM with its loss, as training pipelines take it.

    .. math:: loss = -\frac{1}{B} \sum_b t_b \log \sigma(y_b) + (1 - t_b) \log(1 - \sigma(y_b))

    with the labels :math:`t` and the logits :math:`y`.

    Args:
        dlrm_module: the model, with one logit a sample: a :class:`DLRM`, :class:`DLRM_Projection`,
            :class:`DLRM_DCN`, or another module of the same inputs.

    Raises:
        TypeError: ``dlrm_module`` is no module.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> from torchrec.datasets.utils import Batch
        >>> from torchrec.models.dlrm import DLRM, DLRMTrain
        >>> table = EmbeddingBagConfig(100, 8, "t1", feature_names=["f1"])
        >>> model = DLRMTrain(DLRM(EmbeddingBagCollection(tables=[table]), 13, [20, 8], [5, 1]))
        >>> ids = KeyedJaggedTensor.from_lists({"f1": [[1, 2], [4, 5]]})
        >>> loss, (_, logits, labels) = model(Batch(torch.rand(2, 13), ids, torch.tensor([0, 1])))
        >>> loss.shape, logits.shape, labels
        (torch.Size([]), torch.Size([2]), tensor([0, 1]))
    """

    def __init__(self, dlrm_module: nn.Module) -> None:
        super().__init__()
        check_module("dlrm_module", dlrm_module)
        self.model = dlrm_module
        self.loss_fn = nn.BCEWithLogitsLoss()

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Predict, and compare with the labels.

        Args:
            batch: dense features, sparse features, labels ``(B,)`` between 0 and 1, and any weights
                of the samples, by which the loss is their mean.

        Returns:
            The loss, a scalar, and, detached, the loss, the logits ``(B,)`` and the labels.

        Raises:
            ValueError: there is not one logit a sample, or not one label a sample.
        """
        logits: Tensor = self.model(batch.dense_features, batch.sparse_features)
        _check_logits(logits, batch.labels)
        logits, labels = logits.squeeze(1), batch.labels
        if batch.weights is None:
            loss: Tensor = self.loss_fn(logits, labels.float())
        else:
            loss = weighted_loss(logits, labels, batch.weights)
        return loss, (loss.detach(), logits.detach(), labels.detach())


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if is_proxy(logits) or is_proxy(labels):
        return
    if logits.dim() != 2 or logits.size(1) != 1:
        raise ValueError(
            f"`dlrm_module` should give logits of shape (B, 1). Received {tuple(logits.shape)}."
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`batch.labels` should have shape ({logits.size(0)},). Received {tuple(labels.shape)}."
        )


torch.fx.wrap("weighted_loss")
