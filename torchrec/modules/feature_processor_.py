"""Feature processors that take one feature each, and collections of them for whole batches."""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.modules._position_weights import (
    PositionWeights,
    new_weight,
    weights_of_jagged,
    weights_of_keyed,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.types import CopyMixIn

__all__ = [
    "FeatureProcessor",
    "FeatureProcessorsCollection",
    "PositionWeightedModule",
    "PositionWeightedModuleCollection",
    "get_stride_per_key_per_rank",
    "get_weights_list",
]


class FeatureProcessor(nn.Module, abc.ABC):
    """Changes one feature before it is looked up: gives its ids weights, say."""

    @abc.abstractmethod
    def forward(self, features: JaggedTensor) -> JaggedTensor:
        """Process the feature.

        Args:
            features: its ids.
        """


class FeatureProcessorsCollection(nn.Module, abc.ABC):
    """Changes the features of a batch before they are looked up, all of them at once."""

    @abc.abstractmethod
    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Process the batch.

        Args:
            features: ids by feature.
        """


class PositionWeightedModule(FeatureProcessor, LeafModule):
    """Gives each id of a feature the learned weight of its position in its bag.

    Id number p of a bag gets weight ``w[p]``; a weighted look-up then computes
    ``sum over p of w[p] * embedding(id[p])``.

    Args:
        max_feature_length: number of weights: the length of the longest bag that may come.
        device: of the weights. Default: PyTorch's default device.

    Example:
        >>> module = PositionWeightedModule(max_feature_length=3)
        >>> _ = module.load_state_dict({"position_weight": torch.tensor([1.0, 0.5, 0.25])})
        >>> features = JaggedTensor(torch.tensor([7, 8, 9]), lengths=torch.tensor([1, 2]))
        >>> module(features).weights().tolist()
        [1.0, 1.0, 0.5]
    """

    def __init__(self, max_feature_length: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.position_weight = new_weight(max_feature_length, device, "`max_feature_length`")

    def reset_parameters(self) -> None:
        """Set every weight to 1."""
        nn.init.ones_(self.position_weight)

    def pre_process_input(self, features: JaggedTensor) -> None:
        """Compute ahead what ``forward`` needs of a feature beside its values, and keep it there.

        Args:
            features: the feature; its offsets are known afterwards.
        """
        features.offsets()

    def forward(self, features: JaggedTensor) -> JaggedTensor:
        """Return the feature with weights by position, in place of any that it has.

        Args:
            features: values ``(N,)``, lengths ``(B,)``.

        Raises:
            ValueError: for a bag longer than ``max_feature_length``. A graph that was compiled, and
                an accelerator, raise a RuntimeError.
        """
        if is_proxy(features):
            traced: JaggedTensor = self.recorded(features)
            return traced
        weights = weights_of_jagged(features, self.position_weight)
        return JaggedTensor(features.values(), weights, features.lengths(), features.offsets())


class PositionWeightedModuleCollection(FeatureProcessorsCollection, CopyMixIn, LeafModule):
    """Gives each id of a batch the learned weight of its feature and position, in one gather.

    Id number p of a bag of feature f gets ``w[f][p]``, a parameter named ``position_weights.<f>``.
    Features without weights by position get weight 1.

    Args:
        max_feature_lengths: feature -> number of weights, the length of its longest bag.
        device: of the weights. Default: PyTorch's default device.

    Example:
        >>> collection = PositionWeightedModuleCollection({"a": 2, "b": 1})
        >>> _ = collection.load_state_dict({
        ...     "position_weights.a": torch.tensor([1.0, 0.5]),
        ...     "position_weights.b": torch.tensor([3.0]),
        ... })
        >>> features = KeyedJaggedTensor.from_lists({"a": [[7, 8], [9]], "b": [[], [1]]})
        >>> print(collection(features))
        KeyedJaggedTensor({
            "a": {
                "values": [[7, 8], [9]],
                "weights": [[1.0, 0.5], [1.0]]
            },
            "b": {
                "values": [[], [1]],
                "weights": [[], [3.0]]
            }
        })
        <BLANKLINE>
    """

    def __init__(
        self, max_feature_lengths: dict[str, int], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.max_feature_lengths = max_feature_lengths
        self.position_weights = PositionWeights(max_feature_lengths, device)

    def reset_parameters(self) -> None:
        """Set every weight to 1."""
        self.position_weights.reset_parameters()

    def pre_process_input(self, features: KeyedJaggedTensor) -> None:
        """Compute ahead what ``forward`` needs of a batch beside its values, and keep it there.

        Args:
            features: the batch; its offsets are known afterwards.
        """
        features.offsets()

    def copy(self, device: torch.device) -> nn.Module:
        """Return a copy of this module, with its weights, on ``device``."""
        return copy.deepcopy(self).to(device)

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the batch with weights by position, in place of any that it has.

        Args:
            features: ids by feature; a feature may have a batch of its own.

        Raises:
            ValueError: for a bag longer than its ``max_feature_lengths``, named with its feature.
                A graph that was compiled, and an accelerator, raise a RuntimeError.
        """
        if is_proxy(features):
            traced: KeyedJaggedTensor = self.recorded(features)
            return traced
        require_type(features, "`features`", KeyedJaggedTensor)
        weights = self.position_weights.of(features.keys())
        return features.with_weights(weights_of_keyed(features, weights))


def get_stride_per_key_per_rank(kjt: KeyedJaggedTensor) -> list[list[int]] | None:
    """Return the size of each key's batch on each rank, or None where all keys share one batch.

    Args:
        kjt: a batch.

    Example:
        >>> get_stride_per_key_per_rank(KeyedJaggedTensor.from_lists({"a": [[1], [2]]})) is None
        True
    """
    return kjt.stride_per_key_per_rank() if kjt.variable_stride_per_key() else None


def get_weights_list(
    cat_seq: Tensor, features: KeyedJaggedTensor, position_weights: Mapping[str, Tensor]
) -> Tensor | None:
    """Return the weight of every value of a batch, given its position.

    Args:
        cat_seq: the position of each value in its bag, ``(N,)``, as of
            `torchrec.modules.feature_processor.offsets_to_range_traceble`.
        features: the batch.
        position_weights: feature -> its weights by position. Others get weight 1.

    Returns:
        ``(N,)``; None for a batch without features.

    Raises:
        IndexError: for a position that its feature has no weight for.

    Example:
        >>> features = KeyedJaggedTensor.from_lists({"a": [[7, 8]], "b": [[9]]})
        >>> weights = {"a": nn.Parameter(torch.tensor([1.0, 0.5]))}
        >>> get_weights_list(torch.tensor([0, 1, 0]), features, weights).tolist()
        [1.0, 0.5, 1.0]
    """
    require_type(features, "`features`", KeyedJaggedTensor)
    require_type(position_weights, "`position_weights`", Mapping)
    parts = []
    sizes = features.length_per_key()
    require_type(cat_seq, "`cat_seq`", Tensor)
    if cat_seq.shape != (sum(sizes),) or cat_seq.is_floating_point():
        raise ValueError(
            f"`cat_seq` should be one integer for each of the {sum(sizes)} values of `features`. "
            f"Received {cat_seq.dtype} of shape {list(cat_seq.shape)}."
        )
    for key, seq in zip(features.keys(), cat_seq.split(sizes), strict=True):
        weight = position_weights.get(key)
        if weight is None:
            parts.append(torch.ones(seq.size(0), device=seq.device))
            continue
        if seq.is_cpu and seq.numel() and not 0 <= int(seq.min()) <= int(seq.max()) < len(weight):
            raise IndexError(
                f"`cat_seq` of feature '{key}' should be in [0, {len(weight)}). "
                f"Received positions from {int(seq.min())} to {int(seq.max())}."
            )
        parts.append(weight.index_select(0, seq))
    return torch.cat(parts) if parts else None
