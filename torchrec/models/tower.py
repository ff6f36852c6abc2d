"""The network on top of a ranking model: layers with batch normalisation and dropout, and the logits."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.models._pooled import check_columns, check_dropout
from torchrec.modules.mlp import Perceptron, activation_module
from torchrec.modules.sizes import checked_size
from torchrec.ops.batch_norm import batch_norm

__all__ = ["Tower", "hidden_layers"]


def hidden_layers(
    in_features: int,
    layer_sizes: Sequence[int],
    dropout: float = 0.0,
    batch_norm: bool = False,
    activation: str = "relu",
) -> nn.Sequential:
    """Return the layers of a `Tower` without its last one.

    Args:
        in_features: numbers a sample.
        layer_sizes: outputs of each layer; with none nothing is done.
        dropout: as of `Tower`, like the others.
        batch_norm: likewise.
        activation: likewise.

    Raises:
        TypeError: as `Tower`.
        ValueError: as `Tower`.

    Example:
        >>> import torch
        >>> hidden_layers(40, [16, 8], batch_norm=True)(torch.rand(3, 40)).shape
        torch.Size([3, 8])
    """
    check_dropout("dropout", dropout)
    sizes = [checked_size("in_features", in_features)]
    sizes += [checked_size(f"layer_sizes[{i}]", size) for i, size in enumerate(layer_sizes)]
    return nn.Sequential(
        *(
            Perceptron(i, o, activation=_activation(o, dropout, batch_norm, activation))
            for i, o in itertools.pairwise(sizes)
        )
    )


class Tower(nn.Module):
    r"""Layers with batch normalisation and dropout, and one more for the logits.

    .. math:: x_{l+1} = \mathrm{dropout}(g(\mathrm{norm}(W_l x_l + b_l))),
        \quad y = W x_L + b

    Batch normalisation (https://arxiv.org/abs/1502.03167) and dropout
    (https://jmlr.org/papers/v15/srivastava14a.html) do most against the overfitting of towers of
    hundreds of outputs a layer.

    Args:
        in_features: numbers a sample.
        layer_sizes: outputs of each layer; with none this is a linear model.
        dropout: probability of dropping an output while training. Default 0.
        batch_norm: whether to normalise each layer before its activation. Default False. A batch
            of one sample has no variance and is normalised by the running statistics.
        activation: ``g``, by its name: see :class:`~torchrec.modules.mlp.MLP`. Default "relu".
        out_features: logits a sample. Default 1.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is smaller than 1, ``dropout`` is not in ``[0, 1)``, or there is no such
            activation.

    Example:
        >>> import torch
        >>> from torchrec.models.tower import Tower
        >>> Tower(40, [16, 8], dropout=0.2, batch_norm=True)(torch.rand(3, 40)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        in_features: int,
        layer_sizes: Sequence[int],
        dropout: float = 0.0,
        batch_norm: bool = False,
        activation: str = "relu",
        out_features: int = 1,
    ) -> None:
        super().__init__()
        self.in_features = checked_size("in_features", in_features)
        self.layers = hidden_layers(in_features, layer_sizes, dropout, batch_norm, activation)
        last = layer_sizes[-1] if layer_sizes else self.in_features
        self.logit = nn.Linear(last, checked_size("out_features", out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Apply all layers.

        Args:
            features: ``(B, in_features)``, floating.

        Returns:
            Logits, ``(B, out_features)``.

        Raises:
            ValueError: the shape is another.
        """
        check_columns("features", features, self.in_features)
        logits: Tensor = self.logit(self.layers(features))
        return logits


class _BatchNorm(nn.BatchNorm1d, LeafModule):
    """Batch normalisation that takes batches of one sample, such as the rest of an epoch.

    Its results do not depend on the number of threads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; by the running statistics where the batch has none."""
        if is_proxy(input):
            traced: Tensor = self.recorded(input)
            return traced
        training = self.training and input.size(0) != 1
        if training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.0 if self.momentum is None else self.momentum
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
        )


def _activation(size: int, dropout: float, batch_norm: bool, name: str) -> nn.Module:
    """Return what follows the linear map of a layer of ``size`` outputs."""
    steps = [nn.ReLU(inplace=batch_norm) if name == "relu" else activation_module(name, size)]
    if batch_norm:
        steps.insert(0, _BatchNorm(size))
    if dropout:
        steps.append(nn.Dropout(dropout))
    return nn.Sequential(*steps)
