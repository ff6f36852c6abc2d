"""What the cross networks share: parameters by layer, whose size may come with the first input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from torchrec.fx.proxies import is_proxy
from torchrec.modules.sizes import check_features, checked_size


def unsized(
    count: int, device: torch.device | None, dtype: torch.dtype | None
) -> list[UninitializedParameter]:
    """Return ``count`` parameters that have a device and a dtype, but no size yet."""
    return [
        UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]
        for _ in range(count)
    ]


class _Layers(nn.ParameterList):
    """One parameter a layer, printed also while their size is not known."""

    def extra_repr(self) -> str:
        return "\n".join(
            f"({i}): {'not sized yet' if is_lazy(p) else tuple(p.shape)}"
            for i, p in enumerate(self)
        )


class CrossLayers(nn.Module):
    """A stack of crossing layers over inputs of shape ``(*, N)``.

    A subclass says which parameters a layer has by their shapes, and how they start.

    Args:
        in_features: ``N``, or None to learn it from the first input or from a loaded state.
        num_layers: number of layers.
        shapes: shape of the parameters of a layer by name, with 0 for ``N``. ``"bias"`` is one of
            them, and has ``N`` first.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default: PyTorch's default dtype.
    """

    in_features: int | None

    def __init__(
        self,
        in_features: int | None,
        num_layers: int | None,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = None
        self.num_layers = checked_size("num_layers", num_layers, at_least=0)
        self._shapes = dict(shapes)
        for name in shapes:
            self.add_module(name, _Layers(unsized(self.num_layers, device, dtype)))
        if in_features is None:
            self.register_load_state_dict_pre_hook(_size_from_state)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the sizes, for ``print``."""
        return f"in_features={self.in_features}, num_layers={self.num_layers}"

    def _materialize(self, in_features: int) -> None:
        """Give the parameters their size and initial values."""
        self.in_features = checked_size("in_features", in_features)
        for name, parameter in self.named_parameters():
            if is_lazy(parameter):
                shape = self._shapes[name.partition(".")[0]]
                parameter.materialize(tuple(size or self.in_features for size in shape))
        self.reset_parameters()

    def _check(self, input: Tensor) -> None:
        """Learn ``in_features`` from ``input``, or raise unless it matches."""
        if is_proxy(input):
            if self.in_features is None:
                raise ValueError(
                    "`in_features` should be known before the module is traced: give it, run a forward pass or "
                    "load a state. Received None."
                )
            return
        if self.in_features is None and input.dim():
            self._materialize(input.shape[-1])
        check_features(input, self.in_features or 0, "in_features")


def _size_from_state(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *unused: object
) -> None:
    """Size the parameters of an unsized module before ``state_dict`` is loaded into it."""
    assert isinstance(module, CrossLayers)
    bias = state_dict.get(f"{prefix}bias.0")
    if module.in_features is None and bias is not None:
        module._materialize(bias.shape[0])
