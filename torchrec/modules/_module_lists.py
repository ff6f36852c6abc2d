"""Lists of copies of a module, and the sizes of what modules return."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from torchrec.modules.sizes import checked_size


def init_mlp_weights_xavier_uniform(m: nn.Module) -> None:
    r"""Draw the weight of a linear layer from Xavier's uniform distribution, and zero its bias.

    Other modules are left as they are, so ``model.apply(init_mlp_weights_xavier_uniform)`` does all
    the linear layers of a model.

    .. math:: W \sim U(-a, a), \qquad a = \sqrt{6 / (\mathrm{in} + \mathrm{out})}

    Paper: https://proceedings.mlr.press/v9/glorot10a.html

    Args:
        m: any module.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import init_mlp_weights_xavier_uniform
        >>> linear = torch.nn.Linear(2, 1)
        >>> init_mlp_weights_xavier_uniform(linear)
        >>> linear.bias.detach()
        tensor([0.])
    """
    if isinstance(m, nn.Linear):
        nn.init.xavier_uniform_(m.weight)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


def construct_modulelist_from_single_module(
    module: nn.Module, sizes: tuple[int, ...]
) -> nn.ModuleList:
    """Return a (nested) ``ModuleList`` of copies of a module, their linear layers drawn anew.

    Args:
        module: the module to copy; stays as it is.
        sizes: lengths of the lists, outermost first.

    Returns:
        Lists nested ``len(sizes)`` deep, of separate copies. Their linear layers have new values
        (see ``init_mlp_weights_xavier_uniform``); other parameters are those of ``module``.

    Raises:
        TypeError: a size is no integer.
        ValueError: ``sizes`` is empty or a size is negative.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import construct_modulelist_from_single_module
        >>> towers = construct_modulelist_from_single_module(torch.nn.Linear(4, 2), (2, 3))
        >>> len(towers), len(towers[0]), towers[1][2]
        (2, 3, Linear(in_features=4, out_features=2, bias=True))
    """
    length, inner = _first_size(sizes)
    if inner:
        return nn.ModuleList(
            construct_modulelist_from_single_module(module, inner) for _ in range(length)
        )
    return nn.ModuleList(
        copy.deepcopy(module).apply(init_mlp_weights_xavier_uniform) for _ in range(length)
    )


def convert_list_of_modules_to_modulelist(
    modules: Iterable[nn.Module] | Iterable[Iterable[nn.Module]], sizes: tuple[int, ...]
) -> nn.ModuleList:
    """Return modules in (nested) lists as nested ``ModuleList``, checked to be as many as expected.

    Args:
        modules: an iterable of modules, or of such iterables, ``len(sizes)`` deep.
        sizes: expected lengths, outermost first.

    Returns:
        The same modules, in the same order, in ``ModuleList`` objects.

    Raises:
        TypeError: a size is no integer, or there is no module or no list where there should be one.
        ValueError: ``sizes`` is empty or a length is not the expected one.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import convert_list_of_modules_to_modulelist
        >>> convert_list_of_modules_to_modulelist([torch.nn.ReLU(), torch.nn.ReLU()], (2,))
        ModuleList(
          (0-1): 2 x ReLU()
        )
    """
    length, inner = _first_size(sizes)
    if not isinstance(modules, Iterable):
        raise TypeError(
            f"`modules` should be nested {len(sizes)} deep, as `sizes`={tuple(sizes)}. "
            f"Received {type(modules).__name__}."
        )
    items = list(modules)
    if len(items) != length:
        raise ValueError(
            f"`modules` should have {length} items, as `sizes`={tuple(sizes)}. "
            f"Received {len(items)}."
        )
    if inner:
        return nn.ModuleList(convert_list_of_modules_to_modulelist(item, inner) for item in items)  # type: ignore[arg-type]
    return nn.ModuleList(items)  # type: ignore[arg-type]


def get_module_output_dimension(
    module: Callable[[Tensor], Tensor] | nn.Module, in_features: int
) -> int:
    """Return how many features a module makes of ``in_features``, by running it once.

    The run takes one sample of zeros, in evaluation mode and without gradients, so neither
    statistics nor random state change. A lazy module is initialised by it.

    Args:
        module: module or function from ``(B, in_features)`` to ``(B, *, features)``.
        in_features: number of input features.

    Returns:
        The size of the last dimension of the output.

    Raises:
        TypeError: ``module`` returns no tensor.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import get_module_output_dimension
        >>> get_module_output_dimension(torch.nn.Linear(4, 2), in_features=4)
        2
    """
    input = torch.zeros(1, checked_size("in_features", in_features))
    modes: dict[nn.Module, bool] = {}
    if isinstance(module, nn.Module):
        modes = {m: m.training for m in module.modules()}
        parameter = next(module.parameters(), None)
        if parameter is not None:
            input = input.to(parameter.device, parameter.dtype)
        module.eval()
    try:
        with torch.no_grad():
            output = module(input)
    finally:
        for m, training in modes.items():
            m.training = training
    if not isinstance(output, Tensor):
        raise TypeError(f"`module` should return a tensor. Received {type(output).__name__}.")
    return output.shape[-1]


def check_module_output_dimension(
    module: Iterable[nn.Module] | nn.Module, in_features: int, out_features: int
) -> bool:
    """Tell whether a module, or every module of a (nested) list, makes ``out_features`` features.

    Args:
        module: a module, or a list or ``ModuleList`` of modules or of such lists.
        in_features: number of input features.
        out_features: number of output features to check for.

    Returns:
        Whether all of them do; True for an empty list.

    Example:
        >>> import torch
        >>> from torchrec.modules.utils import check_module_output_dimension
        >>> heads = torch.nn.ModuleList([torch.nn.Linear(4, 2), torch.nn.Linear(4, 3)])
        >>> check_module_output_dimension(heads, in_features=4, out_features=2)
        False
    """
    if isinstance(module, nn.ModuleList) or (
        isinstance(module, Iterable) and not isinstance(module, nn.Module)
    ):
        return all(check_module_output_dimension(m, in_features, out_features) for m in module)
    return get_module_output_dimension(module, in_features) == out_features


def _first_size(sizes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Split checked ``sizes`` into the first one and the rest."""
    if not len(sizes):
        raise ValueError("`sizes` should have one length or more. Received none.")
    first, *inner = (checked_size(f"sizes[{i}]", s, at_least=0) for i, s in enumerate(sizes))
    return first, tuple(inner)
