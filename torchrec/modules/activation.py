"""Activations with parameters of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec.fx.proxies import is_proxy
from torchrec.modules.sizes import checked_size


class SwishLayerNorm(nn.Module):
    r"""The Swish activation, gated by the layer-normalised input.

    .. math:: Y = X * \sigma(\mathrm{LayerNorm}(X))

    The normalisation makes the gate independent of the scale of ``X``, which the sums of unbounded
    feature crosses need. Swish is from https://arxiv.org/abs/1710.05941, layer normalisation from
    https://arxiv.org/abs/1607.06450.

    Args:
        input_dims: the trailing dimensions to normalise over: for an input of shape ``(B, d1, d2,
            d3)``, ``[d2, d3]`` normalises over the last two. An int stands for the last dimension
            alone.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default: PyTorch's default dtype.

    Raises:
        TypeError: a dimension is no integer.
        ValueError: a dimension is smaller than 1, or there is none.

    Example:
        >>> import torch
        >>> from torchrec.modules.activation import SwishLayerNorm
        >>> SwishLayerNorm(3)(torch.tensor([[0.0, 3.0, 6.0]])).detach()
        tensor([[0.0000, 1.5000, 4.6374]])
    """

    def __init__(
        self,
        input_dims: int | Sequence[int] | torch.Size,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dims = tuple(input_dims) if isinstance(input_dims, Sequence) else (input_dims,)
        if not dims:
            raise ValueError("`input_dims` should name at least one dimension. Received none.")
        self._input_dims = tuple(checked_size("input_dims", dim) for dim in dims)
        self.norm = nn.Sequential(
            nn.LayerNorm(self._input_dims, device=device, dtype=dtype), nn.Sigmoid()
        )

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation.

        Args:
            input: floating tensor of shape ``(*, *input_dims)``.

        Returns:
            A tensor of the same shape.

        Raises:
            ValueError: the trailing dimensions are not ``input_dims``.
        """
        if not is_proxy(input) and input.shape[-len(self._input_dims) :] != self._input_dims:
            expected = ", ".join(map(str, self._input_dims))
            raise ValueError(
                f"`input` should have shape (*, {expected}), as `input_dims`. "
                f"Received {tuple(input.shape)}."
            )
        gate: Tensor = self.norm(input)
        return input * gate
