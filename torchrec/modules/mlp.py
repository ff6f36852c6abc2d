"""Multi-layer perceptrons."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec.checks import did_you_mean
from torchrec.modules._callables import (
    ModuleOrTensorFunction,
    TensorFunction,
    extract_module_or_tensor_callable,
)
from torchrec.modules._private import has_hooks
from torchrec.modules.activation import SwishLayerNorm
from torchrec.modules.sizes import check_features, checked_size
from torchrec.ops.linear import linear as linear_map

Activation: TypeAlias = str | ModuleOrTensorFunction

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "gelu": functional.gelu,
    "leaky_relu": functional.leaky_relu,
    "mish": functional.mish,
    "relu": torch.relu,
    "selu": torch.selu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}
_MODULES: dict[str, Callable[[int, torch.device | None, torch.dtype], nn.Module]] = {
    "prelu": lambda size, device, dtype: nn.PReLU(device=device, dtype=dtype),
    "swish_layernorm": lambda size, device, dtype: SwishLayerNorm(size, device, dtype),
}


_AS_MODULES: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation_names() -> list[str]:
    """Return the names of all activations, in order."""
    return sorted([*_FUNCTIONS, *_MODULES])


def activation_module(name: str, size: int) -> nn.Module:
    """Return an activation by its name, as a module of its own.

    Args:
        name: one of `activation_names`.
        size: number of elements of a sample.

    Raises:
        ValueError: there is none of this name; the message gives the nearest.

    Example:
        >>> activation_module("leaky_relu", 8)
        LeakyReLU(negative_slope=0.01)
    """
    if name in _AS_MODULES:
        return _AS_MODULES[name]()
    if name in _MODULES:
        return _MODULES[name](size, None, torch.get_default_dtype())
    raise _unknown(name)


class Perceptron(nn.Module):
    """One layer: a linear map and an activation.

    .. math:: y = g(W x + b)

    Args:
        in_size: number of elements of a sample; None to learn it from the first input.
        out_size: number of elements of an output.
        bias: whether to add a learned ``b``. Default True.
        activation: ``g``: a function of a tensor, a module, a callable without arguments that makes
            a module, or a name (see :class:`MLP`). Default ``torch.relu``.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default ``torch.float32``.

    Raises:
        TypeError: a size is no integer or ``activation`` is neither a name nor callable.
        ValueError: a size is smaller than 1 or ``activation`` names none that is known.

    Example:
        >>> import torch
        >>> from torchrec.modules.mlp import Perceptron
        >>> perceptron = Perceptron(2, 1)
        >>> _ = perceptron.load_state_dict(
        ...     {"_linear.weight": torch.tensor([[1.0, 2.0]]), "_linear.bias": torch.tensor([-4.0])}
        ... )
        >>> perceptron(torch.tensor([[1.0, 1.0], [1.0, 2.0]])).detach()
        tensor([[0.],
                [1.]])
    """

    def __init__(
        self,
        in_size: int | None,
        out_size: int,
        bias: bool = True,
        activation: Activation = torch.relu,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        out_size = checked_size("out_size", out_size)
        self._linear: nn.Linear = (
            nn.LazyLinear(out_size, bias, device=device, dtype=dtype)
            if in_size is None
            else nn.Linear(
                checked_size("in_size", in_size), out_size, bias, device=device, dtype=dtype
            )
        )
        self._activation_fn = _activation(activation, out_size, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: floating tensor of shape ``(*, in_size)``.

        Returns:
            A tensor of shape ``(*, out_size)``.

        Raises:
            ValueError: the last dimension of ``input`` is not ``in_size``.
        """
        linear = self._linear
        if in_size := getattr(
            linear, "in_features", 0
        ):  # 0: not known yet, or another module put there
            check_features(input, in_size, "in_size")
        if type(linear) is not nn.Linear or has_hooks(linear):
            output: Tensor = linear(input)
            return self._activation_fn(output)
        # Nobody else sees the output of a plain linear layer and its gradient does not need it, so
        # the commonest activation can save a tensor.
        relu = self._activation_fn is torch.relu
        output = linear_map(input, linear.weight, linear.bias, relu)
        if relu:
            return output
        return self._activation_fn(output)


class MLP(nn.Module):
    """A multi-layer perceptron: :class:`Perceptron` after perceptron.

    .. math:: x_{l+1} = g(W_l x_l + b_l)

    Args:
        in_size: number of elements of a sample; None to learn it from the first input (see
            :class:`LazyMLP`).
        layer_sizes: number of outputs of each layer. An empty list makes the identity.
        bias: whether the layers add a learned ``b``. Default True.
        activation: ``g``. Default ``torch.relu``. One of:

            - a name: "elu", "gelu", "leaky_relu", "mish", "prelu", "relu", "selu", "sigmoid",
              "silu", "softplus", "swish_layernorm" or "tanh";
            - a function of a tensor;
            - a callable without arguments, such as a module class, called once a layer: every layer
              has parameters of its own;
            - a module, shared by all layers.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default ``torch.float32``.
        activation_on_last: whether the last layer has an activation too. Default True.

    Raises:
        TypeError: a size is no integer or ``activation`` is neither a name nor callable.
        ValueError: a size is smaller than 1 or ``activation`` names none that is known.

    Example:
        >>> import torch
        >>> from torchrec.modules.mlp import MLP
        >>> mlp = MLP(40, [16, 8, 4], activation="sigmoid", activation_on_last=False)
        >>> mlp(torch.zeros(3, 40)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        in_size: int | None,
        layer_sizes: Sequence[int],
        bias: bool = True,
        activation: Activation = torch.relu,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        activation_on_last: bool = True,
    ) -> None:
        super().__init__()
        sizes = [checked_size(f"layer_sizes[{i}]", size) for i, size in enumerate(layer_sizes)]
        in_sizes = [in_size, *sizes]
        activations: list[Activation] = [activation] * len(sizes)
        if sizes and not activation_on_last:
            activations[-1] = nn.Identity()
        self._mlp = nn.Sequential(
            *(
                Perceptron(i, o, bias=bias, activation=g, device=device, dtype=dtype)
                for i, o, g in zip(in_sizes, sizes, activations, strict=False)
            )
        )

    def forward(self, input: Tensor) -> Tensor:
        """Apply all layers.

        Args:
            input: floating tensor of shape ``(*, in_size)``.

        Returns:
            A tensor of shape ``(*, layer_sizes[-1])``.

        Raises:
            ValueError: the last dimension of ``input`` is not ``in_size``.
        """
        output: Tensor = self._mlp(input)
        return output


class LazyMLP(MLP):
    """An :class:`MLP` that learns its input size from the first input.

    Its state dict has the names of an ``MLP``; loading one sets the size as well. Run a forward
    pass (or load a state) before compiling, sharding or copying parameters.

    Args:
        layer_sizes: number of outputs of each layer.
        bias: whether the layers add a learned ``b``. Default True.
        activation: as in :class:`MLP`. Default ``torch.relu``.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default ``torch.float32``.
        activation_on_last: whether the last layer has an activation too. Default True.

    Example:
        >>> import torch
        >>> from torchrec.modules.mlp import LazyMLP
        >>> mlp = LazyMLP([16, 4])
        >>> mlp(torch.zeros(3, 40)).shape
        torch.Size([3, 4])
        >>> mlp.state_dict()["_mlp.0._linear.weight"].shape
        torch.Size([16, 40])
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        bias: bool = True,
        activation: Activation = torch.relu,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        activation_on_last: bool = True,
    ) -> None:
        super().__init__(None, layer_sizes, bias, activation, device, dtype, activation_on_last)


def _activation(
    activation: Activation, size: int, device: torch.device | None, dtype: torch.dtype
) -> TensorFunction:
    """Return the activation of one layer of ``size`` outputs."""
    if not isinstance(activation, str):
        if not callable(activation):
            raise TypeError(
                "`activation` should be a name, a module, a callable that makes one, or a function "
                f"of a tensor. Received {activation!r}."
            )
        return extract_module_or_tensor_callable(activation)
    if activation in _FUNCTIONS:
        return _FUNCTIONS[activation]
    if activation in _MODULES:
        return _MODULES[activation](size, device, dtype)
    raise _unknown(activation)


def _unknown(activation: str) -> ValueError:
    names = activation_names()
    near = did_you_mean(activation, names) or "."
    return ValueError(
        f"`activation` should be one of {', '.join(names)}. Received '{activation}'{near}"
    )
