"""Cross networks: explicit feature crosses of bounded degree.

Let ``x_0`` be a sample of ``N`` features. Layer ``l`` multiplies ``x_0``, element by element, with
a learned function of ``x_l`` and adds ``x_l``, so that ``L`` layers hold all products of up to
``L + 1`` features. The four networks differ in that function: a full matrix (:class:`CrossNet`), a
product of two thin ones (:class:`LowRankCrossNet`), one vector (:class:`VectorCrossNet`), or a
gated mixture of non-linear low-rank maps (:class:`LowRankMixtureCrossNet`).

Papers: https://arxiv.org/abs/1708.05123 (DCN, the vector form) and
https://arxiv.org/abs/2008.13535 (DCN V2, the others).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter

from torchrec.modules._cross_layers import CrossLayers, unsized
from torchrec.modules.sizes import checked_size
from torchrec.ops.cross import cross, cross_layers


class CrossNet(CrossLayers):
    r"""The cross network with a full matrix a layer (DCN V2).

    .. math:: x_{l+1} = x_0 * (W_l \cdot x_l + b_l) + x_l

    with :math:`W_l` of shape ``(N, N)``. Parameters: ``kernels.l`` ``(N, N)``, Xavier normal at the
    start, and ``bias.l`` ``(N, 1)``, zero at the start.

    Args:
        in_features: ``N``. Default None: taken from the first input, or from a loaded state.
        num_layers: number of layers, 0 or more. Required: None raises.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default: PyTorch's default dtype.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from torchrec.modules.crossnet import CrossNet
        >>> net = CrossNet(in_features=2, num_layers=1)
        >>> _ = net.load_state_dict(
        ...     {"kernels.0": torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "bias.0": torch.ones(2, 1)}
        ... )
        >>> net(torch.tensor([[2.0, 3.0]])).detach()  # 2 * (3 + 1) + 2, 3 * (2 + 1) + 3
        tensor([[10., 12.]])
    """

    kernels: nn.ParameterList
    bias: nn.ParameterList

    def __init__(
        self,
        in_features: int | None = None,
        num_layers: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shapes = {"kernels": (0, 0), "bias": (0, 1)}
        super().__init__(in_features, num_layers, shapes, device, dtype)
        if in_features is not None:
            self._materialize(in_features)

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        for kernel in self.kernels:
            nn.init.xavier_normal_(kernel)
        for bias in self.bias:
            nn.init.zeros_(bias)

    def forward(self, input: Tensor) -> Tensor:
        """Cross the features of each sample.

        Args:
            input: floating tensor of shape ``(*, N)``.

        Returns:
            A tensor of shape ``(*, N)``.

        Raises:
            ValueError: the last dimension of ``input`` is not ``in_features``.
        """
        self._check(input)
        layers = zip(self.kernels, self.bias, strict=True)
        return cross_layers(input, [[(kernel, bias.squeeze(1))] for kernel, bias in layers])


class LowRankCrossNet(CrossLayers):
    r"""The cross network with a matrix of low rank a layer.

    .. math:: x_{l+1} = x_0 * (W_l \cdot (V_l \cdot x_l) + b_l) + x_l

    with :math:`W_l` of shape ``(N, r)`` and :math:`V_l` of shape ``(r, N)``. A rank below ``N / 2``
    saves computation; a rank of about ``N / 4`` keeps the accuracy of :class:`CrossNet`.
    Parameters: ``W_kernels.l`` and ``V_kernels.l``, Xavier normal at the start, and ``bias.l``
    ``(N,)``, zero at the start.

    Args:
        in_features: ``N``. Default None: taken from the first input, or from a loaded state.
        num_layers: number of layers, 0 or more. Required: None raises.
        low_rank: ``r``, at least 1. Default 1.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default: PyTorch's default dtype.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from torchrec.modules.crossnet import LowRankCrossNet
        >>> net = LowRankCrossNet(in_features=2, num_layers=1, low_rank=1)
        >>> _ = net.load_state_dict(
        ...     {
        ...         "W_kernels.0": torch.tensor([[1.0], [0.0]]),
        ...         "V_kernels.0": torch.tensor([[1.0, 1.0]]),
        ...         "bias.0": torch.ones(2),
        ...     }
        ... )
        >>> net(torch.tensor([[2.0, 3.0]])).detach()  # 2 * (5 + 1) + 2, 3 * (0 + 1) + 3
        tensor([[14.,  6.]])
    """

    W_kernels: nn.ParameterList
    V_kernels: nn.ParameterList
    bias: nn.ParameterList

    def __init__(
        self,
        in_features: int | None = None,
        num_layers: int | None = None,
        low_rank: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rank = checked_size("low_rank", low_rank)
        shapes = {"W_kernels": (0, rank), "V_kernels": (rank, 0), "bias": (0,)}
        super().__init__(in_features, num_layers, shapes, device, dtype)
        self.low_rank = rank
        if in_features is not None:
            self._materialize(in_features)

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        for kernel in (*self.W_kernels, *self.V_kernels):
            nn.init.xavier_normal_(kernel)
        for bias in self.bias:
            nn.init.zeros_(bias)

    def extra_repr(self) -> str:
        """Return the sizes, for ``print``."""
        return f"{super().extra_repr()}, low_rank={self.low_rank}"

    def forward(self, input: Tensor) -> Tensor:
        """Cross the features of each sample.

        Args:
            input: floating tensor of shape ``(*, N)``.

        Returns:
            A tensor of shape ``(*, N)``.

        Raises:
            ValueError: the last dimension of ``input`` is not ``in_features``.
        """
        self._check(input)
        layers = zip(self.V_kernels, self.W_kernels, self.bias, strict=True)
        return cross_layers(input, [[(v, None), (w, bias)] for v, w, bias in layers])


class VectorCrossNet(CrossLayers):
    r"""The cross network with one vector a layer (the first DCN).

    .. math:: x_{l+1} = x_0 (w_l \cdot x_l) + b_l + x_l

    where :math:`w_l \cdot x_l` is a dot product, one number a sample. This is the paper's equation,
    and the one that models were trained with; TorchRec's documentation prints the bias within the
    product, ``x_0 * (w_l . x_l + b_l) + x_l``.

    Every :math:`x_l` is :math:`\alpha_l x_0 + \beta_l` with a number :math:`\alpha_l` a sample and
    a vector :math:`\beta_l = \sum_{k<l} b_k` for all samples, and

    .. math:: \alpha_{l+1} = \alpha_l (1 + w_l \cdot x_0) + w_l \cdot \beta_l

    so the stack reads its input twice, however many layers it has. Parameters: ``kernels.l``
    ``(N, 1)``, Xavier normal at the start, and ``bias.l`` ``(N, 1)``, zero at the start.

    Args:
        in_features: ``N``. Default None: taken from the first input, or from a loaded state.
        num_layers: number of layers, 0 or more. Required: None raises.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default: PyTorch's default dtype.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from torchrec.modules.crossnet import VectorCrossNet
        >>> net = VectorCrossNet(in_features=2, num_layers=1)
        >>> _ = net.load_state_dict(
        ...     {"kernels.0": torch.ones(2, 1), "bias.0": torch.tensor([[0.0], [1.0]])}
        ... )
        >>> net(torch.tensor([[2.0, 3.0]])).detach()  # 2 * 5 + 0 + 2, 3 * 5 + 1 + 3
        tensor([[12., 19.]])
    """

    kernels: nn.ParameterList
    bias: nn.ParameterList

    def __init__(
        self,
        in_features: int | None = None,
        num_layers: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shapes = {"kernels": (0, 1), "bias": (0, 1)}
        super().__init__(in_features, num_layers, shapes, device, dtype)
        if in_features is not None:
            self._materialize(in_features)

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        for kernel in self.kernels:
            nn.init.xavier_normal_(kernel)
        for bias in self.bias:
            nn.init.zeros_(bias)

    def forward(self, input: Tensor) -> Tensor:
        """Cross the features of each sample.

        Args:
            input: floating tensor of shape ``(*, N)``.

        Returns:
            A tensor of shape ``(*, N)``.

        Raises:
            ValueError: the last dimension of ``input`` is not ``in_features``.
        """
        self._check(input)
        if not self.num_layers:
            return input
        w = torch.cat(list(self.kernels)).view(self.num_layers, -1)
        beta = torch.cat(list(self.bias)).view_as(w).cumsum(0)  # row l is beta_{l+1}
        w_beta = (w[1:] * beta[:-1]).sum(1).unbind()
        factors = (1 + functional.linear(input, w)).split(1, dim=-1)
        alpha = factors[0]
        for layer in range(1, self.num_layers):
            alpha = torch.addcmul(w_beta[layer - 1], alpha, factors[layer])
        return torch.addcmul(beta[-1], alpha, input)


class LowRankMixtureCrossNet(CrossLayers):
    r"""The cross network with a gated mixture of low-rank experts a layer (DCN V2).

    .. math::
        x_{l+1} &= \sum_{k=1}^{K} G_k(x_l) E_{lk}(x_l) + x_l, \qquad G(x) = \mathrm{softmax}(g_k
        \cdot x)_k \\ E_{lk}(x_l) &= x_0 * (U_{lk} \cdot g(C_{lk} \cdot g(V_{lk} \cdot x_l)) + b_l)

    with :math:`U_{lk}` of shape ``(N, r)``, :math:`C_{lk}` ``(r, r)`` and :math:`V_{lk}` ``(r,
    N)``. All experts share the bias of their layer, and all layers the gates. One expert needs no
    gate. As the gates sum to one, ``x_0`` and the bias come out of the sum, and the experts of a
    layer are two matrix products of width ``K r``: no tensor of ``K`` times the input's size is
    made.

    Parameters: ``U_kernels.l`` ``(K, N, r)``, ``V_kernels.l`` ``(K, r, N)``, ``C_kernels.l``
    ``(K, r, r)``, ``bias.l`` ``(N, 1)`` and, for two experts or more, ``gates.k.weight``
    ``(1, N)``. The kernels start Xavier normal with the stack of a layer taken for one filter, that
    is, with standard deviations of ``sqrt(2 / (N r + K r))`` for ``U``, ``sqrt(2 / (N r + K N))``
    for ``V`` and ``sqrt(2 / (r r + K r))`` for ``C``: small, so that every layer begins close to
    the identity. The bias starts at zero, the gates uniform in ``±1 / sqrt(N)``.

    Args:
        in_features: ``N``. Default None: taken from the first input, or from a loaded state.
        num_layers: number of layers, 0 or more. Required: None raises.
        num_experts: ``K``, at least 1. Default 1.
        low_rank: ``r``, at least 1. Default 1.
        activation: ``g``: a function of a tensor or a module, applied to tensors of shape ``(*,
            r)``. Default ``torch.relu``.
        device: device of the parameters. Default: PyTorch's default device.
        dtype: floating dtype of the parameters. Default: PyTorch's default dtype.

    Raises:
        TypeError: a size is no integer or ``activation`` cannot be called.
        ValueError: a size is too small.

    Example:
        >>> import torch
        >>> from torchrec.modules.crossnet import LowRankMixtureCrossNet
        >>> net = LowRankMixtureCrossNet(in_features=10, num_layers=2, num_experts=5, low_rank=3)
        >>> net(torch.zeros(3, 10)).shape
        torch.Size([3, 10])
        >>> net.U_kernels[0].shape
        torch.Size([5, 10, 3])
    """

    U_kernels: nn.ParameterList
    V_kernels: nn.ParameterList
    C_kernels: nn.ParameterList
    bias: nn.ParameterList

    def __init__(
        self,
        in_features: int | None = None,
        num_layers: int | None = None,
        num_experts: int = 1,
        low_rank: int = 1,
        activation: nn.Module | Callable[[Tensor], Tensor] = torch.relu,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        experts = checked_size("num_experts", num_experts)
        rank = checked_size("low_rank", low_rank)
        shapes = {
            "U_kernels": (experts, 0, rank),
            "V_kernels": (experts, rank, 0),
            "bias": (0, 1),
            "C_kernels": (experts, rank, rank),
        }
        super().__init__(in_features, num_layers, shapes, device, dtype)
        self.num_experts, self.low_rank = experts, rank
        if not callable(activation):
            raise TypeError(
                "`activation` should be a module or a function of a tensor. "
                f"Received {activation!r}."
            )
        self._activation = activation
        if experts > 1:
            self._shapes["gates"] = (1, 0)
            # In front of C_kernels: optimizers of PyTorch save state by the order of parameters, and this is the API's.
            kernels = self.C_kernels
            del self.C_kernels
            self.gates = nn.ModuleList(_Gate(weight) for weight in unsized(experts, device, dtype))
            self.C_kernels = kernels
        if in_features is not None:
            self._materialize(in_features)

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        for kernel in (*self.U_kernels, *self.V_kernels, *self.C_kernels):
            nn.init.xavier_normal_(kernel)
        for bias in self.bias:
            nn.init.zeros_(bias)
        if self.num_experts > 1 and self.in_features:
            bound = self.in_features**-0.5
            for gate in self._gates():
                nn.init.uniform_(gate, -bound, bound)

    def extra_repr(self) -> str:
        """Return the sizes, for ``print``."""
        sizes = f"num_experts={self.num_experts}, low_rank={self.low_rank}"
        return f"{super().extra_repr()}, {sizes}"

    def forward(self, input: Tensor) -> Tensor:
        """Cross the features of each sample.

        Args:
            input: floating tensor of shape ``(*, N)``.

        Returns:
            A tensor of shape ``(*, N)``.

        Raises:
            ValueError: the last dimension of ``input`` is not ``in_features``.
        """
        self._check(input)
        gates = torch.cat(self._gates()) if self.num_experts > 1 else None  # (K, N)
        x_0 = x = input.reshape(-1, self.in_features or 0)
        layers = zip(self.U_kernels, self.V_kernels, self.C_kernels, self.bias, strict=True)
        for u, v, c, bias in layers:
            hidden = self._hidden(x, v, c, gates)
            wide_u = u.transpose(0, 1).flatten(1)  # (N, K r)
            x = cross(x, x_0, functional.linear(hidden, wide_u, bias.squeeze(1)))
        return x.reshape(input.shape)

    def _hidden(self, x: Tensor, v: Tensor, c: Tensor, gates: Tensor | None) -> Tensor:
        """Return ``G_k(x) g(C_k g(V_k x))`` of all experts side by side, of shape ``(B, K r)``."""
        g = self._activation
        narrow = functional.linear(x, v.flatten(0, 1))  # (B, K r)
        if gates is None:
            return g(functional.linear(g(narrow), c[0]))
        narrow = g(narrow.unflatten(1, (self.num_experts, self.low_rank)))
        narrow = g(torch.bmm(narrow.transpose(0, 1), c.transpose(1, 2)))  # (K, B, r)
        gate = functional.linear(x, gates).softmax(dim=1)  # (B, K)
        return (narrow.transpose(0, 1) * gate.unsqueeze(2)).flatten(1)

    def _gates(self) -> list[Tensor]:
        """Return the gate vectors of the experts, each of shape ``(1, N)``."""
        return [gate.weight for gate in self.gates]  # type: ignore[misc]


class _Gate(nn.Module):
    """Holds the gate vector of one expert under its name in the state dict."""

    def __init__(self, weight: UninitializedParameter) -> None:
        super().__init__()
        self.weight = weight
