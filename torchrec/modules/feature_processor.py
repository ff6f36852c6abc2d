"""Feature processors that take whole batches and choose the features that they change."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from torchrec.checks import require_type
from torchrec.fx.proxies import LeafModule, holds_proxy, is_proxy
from torchrec.modules._jagged_index import positions
from torchrec.modules._position_weights import (
    PositionWeights,
    weights_of_jagged,
    weights_of_keyed,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

__all__ = [
    "BaseFeatureProcessor",
    "BaseGroupedFeatureProcessor",
    "PositionWeightedModule",
    "PositionWeightedProcessor",
    "offsets_to_range_traceble",
    "position_weighted_module_update_features",
]


class BaseFeatureProcessor(nn.Module, abc.ABC):
    """Changes some features of a batch, given as one JaggedTensor each."""

    @abc.abstractmethod
    def forward(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Process the batch.

        Args:
            features: feature -> its ids.
        """


class BaseGroupedFeatureProcessor(nn.Module, abc.ABC):
    """Changes some features of a batch, given as one KeyedJaggedTensor."""

    @abc.abstractmethod
    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Process the batch.

        Args:
            features: ids by feature.
        """


class PositionWeightedModule(BaseFeatureProcessor, LeafModule):
    """Gives each id of some features the learned weight of its position in its bag.

    Id number p of a bag of feature f gets ``w[f][p]``, a parameter named ``position_weights.<f>``.

    Args:
        max_feature_lengths: feature -> number of weights, the length of its longest bag.
        device: of the weights. Default: PyTorch's default device.

    Example:
        >>> module = PositionWeightedModule({"a": 2})
        >>> _ = module.load_state_dict({"position_weights.a": torch.tensor([1.0, 0.5])})
        >>> a = JaggedTensor(torch.tensor([7, 8, 9]), lengths=torch.tensor([2, 1]))
        >>> module({"a": a})["a"].weights().tolist()
        [1.0, 0.5, 1.0]
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

    def forward(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Return the batch with weights by position; features without them pass as they are.

        Args:
            features: feature -> its ids, values ``(N,)``, lengths ``(B,)``.

        Raises:
            ValueError: for a feature that is missing, or a bag longer than its
                ``max_feature_lengths``. A graph that was compiled, and an accelerator, raise a
                RuntimeError for the latter.
        """
        if holds_proxy(features):
            traced: dict[str, JaggedTensor] = self.recorded(features)
            return traced
        _check_present(self.position_weights, features)
        weighted = {}
        for name in self.position_weights:
            feature = features[name]
            weights = weights_of_jagged(feature, self.position_weights[name], name)
            weighted[name] = JaggedTensor(
                feature.values(), weights, feature.lengths(), feature.offsets()
            )
        return position_weighted_module_update_features(features, weighted)


class PositionWeightedProcessor(BaseGroupedFeatureProcessor, LeafModule):
    """Takes some features of a batch, and gives each id the learned weight of its position.

    Id number p of a bag of feature f gets ``w[f][p]``, a parameter named ``position_weights.<f>``.
    The whole batch takes one gather. To keep the other features, with weight 1, use
    `torchrec.modules.feature_processor_.PositionWeightedModuleCollection`.

    Published examples of this class show ``FeatureProcessorCollection(feature_processor_modules=...)``
    and ``PositionWeightedFeatureProcessor``, names that no library ever had. What they mean is either
    this class or, with one module a feature,
    `torchrec.modules.fp_embedding_modules.FeatureProcessorDictWrapper` of
    `torchrec.modules.feature_processor_.PositionWeightedModule`.

    Args:
        max_feature_lengths: feature -> number of weights, the length of its longest bag.
        device: of the weights. Default: PyTorch's default device.

    Example:
        >>> keys = ["Feature0", "Feature1", "Feature2"]
        >>> features = KeyedJaggedTensor.from_lengths_sync(
        ...     keys=keys,
        ...     values=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]),
        ...     lengths=torch.tensor([2, 0, 1, 1, 1, 3, 2, 3, 0]),
        ... )
        >>> processor = PositionWeightedProcessor({"Feature0": 100, "Feature2": 100})
        >>> print(processor(features))
        KeyedJaggedTensor({
            "Feature0": {
                "values": [[0, 1], [], [2]],
                "weights": [[1.0, 1.0], [], [1.0]]
            },
            "Feature2": {
                "values": [[3, 4], [5, 6, 7], []],
                "weights": [[1.0, 1.0], [1.0, 1.0, 1.0], []]
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

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the features that have weights by position, in the order of the batch.

        A batch with none of them passes as it is, as on a rank that looks none of them up.

        Args:
            features: ids by feature; a feature may have a batch of its own.

        Raises:
            ValueError: for a batch with some of the features only, or a bag longer than its
                ``max_feature_lengths``. A graph that was compiled, and an accelerator, raise a
                RuntimeError for the latter.
        """
        if is_proxy(features):
            traced: KeyedJaggedTensor = self.recorded(features)
            return traced
        require_type(features, "`features`", KeyedJaggedTensor)
        keys = features.keys()
        own = [k for k, key in enumerate(keys) if key in self.position_weights]
        if not own:
            return features
        _check_present(self.position_weights, keys)
        if len(own) < len(keys):
            features = features.permute(own)
        weights = self.position_weights.of(features.keys())
        return features.with_weights(weights_of_keyed(features, weights))


def _check_present(weights: PositionWeights, keys: Collection[str]) -> None:
    if not isinstance(keys, Mapping | list):
        raise TypeError(
            "`features` should be a dict of JaggedTensors by feature. "
            f"Received {type(keys).__name__}."
        )
    for name in weights:
        if name not in keys:
            raise ValueError(
                f"`features` should have '{name}', one of the `max_feature_lengths`. "
                f"Received {list(keys)}."
            )


def offsets_to_range_traceble(offsets: Tensor, values: Tensor) -> Tensor:
    """Return the position of each value in its bag.

    Args:
        offsets: where each bag starts, and the end of the last, ``(B + 1,)``.
        values: ``(N, ...)``; only their number counts.

    Returns:
        int64 ``(N,)``.

    Example:
        >>> offsets_to_range_traceble(torch.tensor([0, 2, 2, 5]), torch.tensor([7, 8, 7, 8, 9]))
        tensor([0, 1, 0, 1, 2])
    """
    if not holds_proxy(offsets, values):
        JaggedTensor(values, offsets=offsets)  # checks that they fit
    return positions(offsets, values.size(0))


torch.fx.wrap("positions")  # tracers record the call


def position_weighted_module_update_features(
    features: dict[str, JaggedTensor], weighted_features: dict[str, JaggedTensor]
) -> dict[str, JaggedTensor]:
    """Return ``features`` with those of ``weighted_features`` in their place.

    Args:
        features: feature -> its ids; left as they are.
        weighted_features: those to replace.

    Example:
        >>> old, new = JaggedTensor.empty(), JaggedTensor.empty(is_weighted=True)
        >>> updated = position_weighted_module_update_features({"a": old, "b": old}, {"b": new})
        >>> updated["a"] is old, updated["b"] is new
        (True, True)
    """
    for name, given in (("features", features), ("weighted_features", weighted_features)):
        if not is_proxy(given):
            require_type(given, f"`{name}`", dict)
    return {**features, **weighted_features}
