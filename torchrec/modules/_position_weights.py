"""One learned weight a feature and position: what all modules that weight ids by position share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchrec.checks import checked_device, require_integer, require_type
from torchrec.modules._jagged_index import shifted
from torchrec.modules._private import assert_later
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor


class PositionWeights(nn.Module, MutableMapping[str, Tensor]):
    """Feature -> its weights by position, all 1 at first.

    A `torch.nn.ParameterDict` that takes every name: that one refuses features called ``type`` or
    ``values``, which are attributes of its own. It has all of its methods.

    Args:
        max_lengths: feature -> number of weights.
        device: of the weights. Default: PyTorch's default device.

    Raises:
        ValueError: for a length below 1, or a name with a dot: names are those of parameters.
        TypeError: for a length that is no integer, or a name that is no string.
    """

    def __init__(
        self, max_lengths: Mapping[str, int], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        require_type(max_lengths, "`max_feature_lengths`", Mapping)
        for feature, length in max_lengths.items():
            _check_name(feature, "max_feature_lengths")
            weight = new_weight(length, device, f"`max_feature_lengths` of feature '{feature}'")
            self._parameters[feature] = weight

    def __getitem__(self, feature: str) -> Tensor:
        weight = self._parameters[feature]
        assert weight is not None
        return weight

    def __setitem__(self, feature: str, weight: Tensor) -> None:
        _check_name(feature, "position_weights")
        require_type(weight, f"`position_weights` of feature '{feature}'", Tensor)
        own = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self._parameters[feature] = own

    def __delitem__(self, feature: str) -> None:
        del self._parameters[feature]

    def __contains__(self, feature: object) -> bool:
        return feature in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._parameters)

    # Modules are told apart by identity, unlike mappings.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __or__(self, other: Mapping[str, Tensor]) -> PositionWeights:
        return _joined(self, other)

    def __ror__(self, other: Mapping[str, Tensor]) -> PositionWeights:
        return _joined(other, self)

    def __ior__(self, other: Mapping[str, Tensor]) -> PositionWeights:
        self.update(other)
        return self

    def copy(self) -> PositionWeights:
        """Return another one of the same parameters."""
        return _joined(self)

    def fromkeys(self, keys: Iterable[str], default: Tensor) -> PositionWeights:
        """Return one in which each of some features has the weights ``default``."""
        return _joined(dict.fromkeys(keys, default))

    def __len__(self) -> int:
        return len(self._parameters)

    def of(self, features: Sequence[str]) -> list[Tensor | None]:
        """Return the weights of each feature; None where there are none."""
        return [self._parameters.get(feature) for feature in features]

    def reset_parameters(self) -> None:
        """Set every weight to 1."""
        for weight in self.parameters():
            nn.init.ones_(weight)


def _joined(*parts: Mapping[str, Tensor]) -> PositionWeights:
    joined = PositionWeights({})
    for part in parts:
        joined.update(part)
    return joined


def _check_name(feature: object, argument: str) -> None:
    if not isinstance(feature, str):
        raise TypeError(f"`{argument}` should have names of features. Received {feature!r}.")
    if not feature or "." in feature:
        raise ValueError(
            f"`{argument}` should have names without dots, as they name parameters. "
            f"Received '{feature}'."
        )


def new_weight(length: int, device: torch.device | str | None, argument: str) -> nn.Parameter:
    """Return the weights of one feature, ``(length,)``.

    Args:
        length: their number.
        device: where.
        argument: what to call the length in an error.
    """
    require_integer(length, argument, least=1)
    if device is not None:
        device = checked_device(device)
    return nn.Parameter(torch.ones(length, device=device))


def weights_of_keyed(features: KeyedJaggedTensor, weights: Sequence[Tensor | None]) -> Tensor:
    """Return the weight of every value of a batch, in one gather.

    Args:
        features: the batch; each key may have a batch of its own.
        weights: for each key its weights by position; None: every value weighs 1.

    Returns:
        ``(N,)``.

    Raises:
        ValueError: for a bag longer than its feature has weights.
    """
    return _weights_of(
        features.keys(),
        weights,
        features.lengths(),
        features.offsets(),
        features.stride_per_key() if features.variable_stride_per_key() else features.stride(),
        features.values().size(0),
    )


def weights_of_jagged(features: JaggedTensor, weight: Tensor, name: str = "") -> Tensor:
    """Return the weight of every value of one feature, ``(N,)``; see `weights_of_keyed`.

    Args:
        features: the feature.
        weight: its weights by position.
        name: of the feature, for the error.
    """
    require_type(features, f"`features` of '{name}'" if name else "`features`", JaggedTensor)
    lengths, offsets = features.lengths(), features.offsets()
    return _weights_of(
        [name], [weight], lengths, offsets, lengths.size(0), features.values().size(0)
    )


def _weights_of(
    keys: Sequence[str],
    weights: Sequence[Tensor | None],
    lengths: Tensor,
    offsets: Tensor,
    strides: int | list[int],
    total: int,
) -> Tensor:
    known = [weight for weight in weights if weight is not None]
    if not known:
        return torch.ones(total, device=lengths.device)
    # All weights side by side, a 1 in front for keys that have none.
    table = torch.cat([known[0].new_ones(1), *known])
    starts, limits, end = [], [], 1
    for weight in weights:
        size = 0 if weight is None else weight.size(0)
        starts.append(end if size else 0)
        limits.append(size or torch.iinfo(lengths.dtype).max)
        end += size
    _check_lengths(keys, limits, lengths, _per_bag(limits, strides, lengths), strides)
    start = _per_bag(starts, strides, lengths)
    index = shifted(start - offsets[:-1], lengths, total)
    if len(known) < len(weights):
        index = index.masked_fill(
            torch.repeat_interleave(start == 0, lengths, output_size=total), 0
        )
    # The gradient of a position is a sum over the batch: in float32 also where weights are narrower.
    wide = torch.promote_types(table.dtype, torch.float32)
    return table.to(wide).index_select(0, index).to(table.dtype)


def _per_bag(numbers: list[int], strides: int | list[int], like: Tensor) -> Tensor:
    """Repeat one number a key for each bag of the key."""
    each = torch.tensor(numbers, dtype=like.dtype, device=like.device)
    if not isinstance(strides, list):
        return each[:, None].expand(len(numbers), strides).reshape(-1)
    repeats = torch.tensor(strides, device=like.device)
    return torch.repeat_interleave(each, repeats, output_size=like.size(0))


def _check_lengths(
    keys: Sequence[str],
    limits: list[int],
    lengths: Tensor,
    limit: Tensor,
    strides: int | list[int],
) -> None:
    """Raise for a bag longer than its limit; an accelerator is not waited for, it fails itself."""
    too_long = lengths > limit
    if is_compiling() or not lengths.is_cpu:
        most = ", ".join(f"'{key}' {n}" for key, n in zip(keys, limits, strict=True))
        assert_later(
            ~too_long.any(),
            f"Bags should be no longer than there are weights by position: {most}.",
        )
        return
    if not too_long.any():
        return
    bag = sample = int(too_long.nonzero()[0])
    counts = strides if isinstance(strides, list) else [strides] * len(keys)
    key = 0
    while sample >= counts[key]:
        sample -= counts[key]
        key += 1
    of = f" of feature '{keys[key]}'" if keys[key] else ""
    raise ValueError(
        f"Bags{of} should hold at most {limits[key]} ids, as many as there are weights by position. "
        f"Received {int(lengths[bag])} in sample {sample}."
    )
