"""When ids of a hash map lose their rows: lifetimes and scores, in hours since 1970."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from torchrec.checks import require_integer
from torchrec.fx.proxies import LeafModule, is_proxy
from torchrec.sparse.jagged_tensor import JaggedTensor

__all__ = [
    "HashZchEvictionConfig",
    "HashZchEvictionModule",
    "HashZchEvictionPolicyName",
    "HashZchEvictionScorer",
    "HashZchOptEvictionModule",
    "HashZchPerFeatureTtlScorer",
    "HashZchSingleTtlScorer",
    "HashZchThresholdEvictionModule",
    "get_eviction_module",
    "get_eviction_scorer",
    "get_kernel_from_policy",
]

NEVER = -1  # a threshold below every score


@unique
class HashZchEvictionPolicyName(Enum):
    """Which of the ids that lie where a new one may lie loses its row to it.

    With both lifetimes it is the one whose lifetime ended first, if it has ended; with ``LRU_EVICTION`` the one that
    has not come for the longest, if that was in an earlier hour.
    """

    SINGLE_TTL_EVICTION = "SINGLE_TTL_EVICTION"
    PER_FEATURE_TTL_EVICTION = "PER_FEATURE_TTL_EVICTION"
    LRU_EVICTION = "LRU_EVICTION"


@dataclass
class HashZchEvictionConfig:
    """How long ids keep their rows.

    Args:
        features: names of the features that a map has. Others are refused. An empty list, where there is one lifetime,
            stands for all.
        single_ttl: hours that an id keeps its row after it came last. With ``LRU_EVICTION``, where it may be left out,
            it is only added to the hours that are saved.
        per_feature_ttl: the same for each of ``features``. An id of several features has the longest one.

    Example:
        >>> HashZchEvictionConfig(features=["user"], single_ttl=24)
        HashZchEvictionConfig(features=['user'], single_ttl=24, per_feature_ttl=None)
    """

    features: list[str]
    single_ttl: int | None = None
    per_feature_ttl: list[int] | None = None


def _now() -> int:
    if is_exporting():
        raise NotImplementedError(
            "Hours of ids should be asked for outside of torch.export: a graph would keep the one of "
            "when it was made."
        )
    return int(time.time()) // 3600


def _required(config: HashZchEvictionConfig | None, policy: object) -> HashZchEvictionConfig:
    if not isinstance(config, HashZchEvictionConfig):
        raise TypeError(
            f"`config` of {policy} should be a HashZchEvictionConfig. Received {config!r}."
        )
    return config


class HashZchEvictionScorer:
    """Says which hour is kept for each id; this one none, so that no id loses its row.

    Args:
        config: lifetimes.
    """

    def __init__(self, config: HashZchEvictionConfig) -> None:
        self._config: HashZchEvictionConfig = config

    def gen_score(self, feature: JaggedTensor, device: torch.device) -> Tensor:
        """Return the hour to keep for each id of a batch, int32 ``(N,)``; here none, ``(0,)``.

        Args:
            feature: ids.
            device: of the result.
        """
        return torch.empty(0, dtype=torch.int32, device=device)

    def gen_threshold(self) -> int:
        """Return the hour below which an id may lose its row; here -1, which none is below."""
        return NEVER


class HashZchSingleTtlScorer(HashZchEvictionScorer):
    """Keeps the hour in which an id's lifetime ends, the same lifetime for all.

    Args:
        config: with ``single_ttl``. Without, it is 0.

    Raises:
        ValueError: for a lifetime below 0.
    """

    def __init__(self, config: HashZchEvictionConfig) -> None:
        super().__init__(config)
        ttl = config.single_ttl
        self._ttl = 0 if ttl is None else require_integer(ttl, "`single_ttl`", 0, 2**30)

    def gen_score(self, feature: JaggedTensor, device: torch.device) -> Tensor:
        """Return now and the lifetime, for each id; see `HashZchEvictionScorer`."""
        hour = _now() + self._ttl
        return torch.full((feature.values().numel(),), hour, dtype=torch.int32, device=device)

    def gen_threshold(self) -> int:
        """Return the hour that it is."""
        return _now()


class HashZchPerFeatureTtlScorer(HashZchEvictionScorer):
    """Keeps the hour in which an id's lifetime ends, which depends on its feature.

    Args:
        config: with ``per_feature_ttl``, a lifetime for each of ``features``.

    Raises:
        ValueError: for another number of lifetimes than of features, or one below 0.

    Example:
        >>> config = HashZchEvictionConfig(["user", "item"], per_feature_ttl=[24, 2])
        >>> ids = JaggedTensor(
        ...     torch.tensor([7, 8, 9]), lengths=torch.tensor([3]), weights=torch.tensor([0, 1, 0])
        ... )
        >>> scorer = HashZchPerFeatureTtlScorer(config)
        >>> (scorer.gen_score(ids, torch.device("cpu")) - scorer.gen_threshold()).tolist()
        [24, 2, 24]
    """

    def __init__(self, config: HashZchEvictionConfig) -> None:
        super().__init__(config)
        ttls = [] if config.per_feature_ttl is None else list(config.per_feature_ttl)
        if len(ttls) != len(config.features):
            raise ValueError(
                f"`per_feature_ttl` should have a lifetime for each of `features` {config.features}. "
                f"Received {config.per_feature_ttl}."
            )
        for name, ttl in zip(config.features, ttls, strict=True):
            require_integer(ttl, f"`per_feature_ttl` of feature '{name}'", 0, 2**30)
        self._ttls = torch.tensor(ttls, dtype=torch.int32, device="cpu")

    def gen_score(self, feature: JaggedTensor, device: torch.device) -> Tensor:
        """Return now and the lifetime of each id's feature; see `HashZchEvictionScorer`.

        Args:
            feature: ids, whose weights are the numbers of their features among ``features``.
            device: of the result.

        Raises:
            ValueError: for ids without weights.
            IndexError: for a number that no feature has.
        """
        numbers = feature.weights_or_none()
        if numbers is None:
            raise ValueError(
                "`feature` should have weights: for each id the number of its feature among "
                f"{self._config.features}. Received none."
            )
        numbers, most = numbers.to(device).long(), len(self._config.features)
        outside = (numbers < 0) | (numbers >= most)
        if bool(outside.any()):
            raise IndexError(
                f"`feature` should have weights in [0, {most}), numbers of {self._config.features}. "
                f"Received {int(numbers[outside][0])}."
            )
        return (self._ttls.to(device)[numbers] + _now()).int()

    def gen_threshold(self) -> int:
        """Return the hour that it is."""
        return _now()


def get_kernel_from_policy(policy_name: HashZchEvictionPolicyName | None) -> int:
    """Return the number of a policy: 1 for the longest unseen id, 0 for an id whose lifetime has ended.

    Args:
        policy_name: the policy; None, which evicts nothing, has 0 as well.

    Example:
        >>> get_kernel_from_policy(HashZchEvictionPolicyName.LRU_EVICTION)
        1
    """
    return int(policy_name is HashZchEvictionPolicyName.LRU_EVICTION)


def get_eviction_scorer(
    policy_name: HashZchEvictionPolicyName, config: HashZchEvictionConfig
) -> HashZchEvictionScorer:
    """Return what gives ids the hours that a policy goes by.

    Args:
        policy_name: the policy.
        config: its lifetimes.

    Raises:
        TypeError: for something else than a policy.
        ValueError: for a policy without its lifetimes.
    """
    if policy_name is HashZchEvictionPolicyName.PER_FEATURE_TTL_EVICTION:
        return HashZchPerFeatureTtlScorer(config)
    if policy_name is HashZchEvictionPolicyName.SINGLE_TTL_EVICTION:
        if config.single_ttl is None:
            raise ValueError(
                f"`single_ttl` of {policy_name.value} should be a number of hours. Received None."
            )
        return HashZchSingleTtlScorer(config)
    if policy_name is HashZchEvictionPolicyName.LRU_EVICTION:
        return HashZchSingleTtlScorer(config)
    raise TypeError(
        f"`policy_name` should be a HashZchEvictionPolicyName. Received {policy_name!r}."
    )


class HashZchOptEvictionModule(nn.Module):
    """What a policy without hours gives a map: no scores.

    Args:
        policy_name: the policy.
    """

    def __init__(self, policy_name: HashZchEvictionPolicyName) -> None:
        super().__init__()
        self._policy_name: HashZchEvictionPolicyName = policy_name

    def forward(self, feature: JaggedTensor, device: torch.device) -> tuple[None, int]:
        """Return no scores, and -1.

        Args:
            feature: ids.
            device: without effect: there is no result to put on it.
        """
        return None, NEVER


class HashZchThresholdEvictionModule(nn.Module, LeafModule):
    """What a policy gives a map for each batch: an hour for each id, and the hour that it is.

    Args:
        policy_name: the policy.
        config: its lifetimes.
    """

    def __init__(
        self, policy_name: HashZchEvictionPolicyName, config: HashZchEvictionConfig
    ) -> None:
        super().__init__()
        self._policy_name: HashZchEvictionPolicyName = policy_name
        self._scorer: HashZchEvictionScorer = get_eviction_scorer(
            policy_name, _required(config, policy_name)
        )

    def forward(self, feature: JaggedTensor, device: torch.device) -> tuple[Tensor, int]:
        """Return the scores, int32 ``(N,)``, and the threshold.

        Args:
            feature: ids; see `HashZchPerFeatureTtlScorer` for its weights.
            device: of the scores.
        """
        if is_proxy(feature):
            traced: tuple[Tensor, int] = self.recorded(feature, device)
            return traced
        threshold = self._scorer.gen_threshold()  # first: no score may be of an earlier hour
        return self._scorer.gen_score(feature, device), threshold


def get_eviction_module(
    policy_name: HashZchEvictionPolicyName, config: HashZchEvictionConfig | None
) -> nn.Module:
    """Return the module of a policy.

    Args:
        policy_name: the policy.
        config: its lifetimes. None: for ``LRU_EVICTION`` only, which needs none.
    """
    if config is None and policy_name is HashZchEvictionPolicyName.LRU_EVICTION:
        config = HashZchEvictionConfig(features=[])
    return HashZchThresholdEvictionModule(policy_name, _required(config, policy_name))


class HashZchEvictionModule(nn.Module, LeafModule):
    """A policy on a device.

    Args:
        policy_name: the policy.
        device: of the scores.
        config: lifetimes; see `get_eviction_module`.

    Example:
        >>> policy = HashZchEvictionPolicyName.SINGLE_TTL_EVICTION
        >>> config = HashZchEvictionConfig(features=["user"], single_ttl=24)
        >>> module = HashZchEvictionModule(policy, torch.device("cpu"), config)
        >>> hours, now = module(JaggedTensor(torch.tensor([7, 8]), lengths=torch.tensor([2])))
        >>> (hours - now).tolist()
        [24, 24]
    """

    def __init__(
        self,
        policy_name: HashZchEvictionPolicyName,
        device: torch.device,
        config: HashZchEvictionConfig | None,
    ) -> None:
        super().__init__()
        self._policy_name: HashZchEvictionPolicyName = policy_name
        self._device: torch.device = device
        self._config: HashZchEvictionConfig | None = config
        self._eviction_module: nn.Module = get_eviction_module(policy_name, config)

    def forward(self, feature: JaggedTensor) -> tuple[Tensor | None, int]:
        """Return the scores of ids, int32 ``(N,)``, or None, and the threshold.

        Args:
            feature: ids.
        """
        if is_proxy(feature):
            traced: tuple[Tensor | None, int] = self.recorded(feature)
            return traced
        found: tuple[Tensor | None, int] = self._eviction_module(feature, self._device)
        return found

    def score(
        self, parts: Mapping[str, Tensor], joined: Tensor, map_name: str
    ) -> tuple[Tensor, int]:
        """Return the scores of the ids of several features, one behind the other, and the threshold.

        Args:
            parts: ids by feature.
            joined: the same, one behind the other.
            map_name: for messages.

        Raises:
            ValueError: for a feature that the configuration does not have.
        """
        known = [] if self._config is None else self._config.features
        for name in parts if known else ():
            if name not in known:
                raise ValueError(
                    f"`features` of the `eviction_config` of map '{map_name}' should have all of its "
                    f"features. Received {known}, without '{name}'."
                )
        device, numbers = joined.device, None
        if self._policy_name is HashZchEvictionPolicyName.PER_FEATURE_TTL_EVICTION:
            counts = torch.tensor([part.numel() for part in parts.values()], device=device)
            of_feature = torch.tensor([known.index(name) for name in parts], device=device)
            numbers = of_feature.repeat_interleave(counts)
        lengths = torch.tensor([joined.numel()], device=device)
        found: tuple[Tensor, int] = self._eviction_module(
            JaggedTensor(joined, numbers, lengths), device
        )
        return found

    @property
    def takes_oldest(self) -> bool:
        """Whether the id that has not come for the longest loses its row, however long that is."""
        return self._policy_name is HashZchEvictionPolicyName.LRU_EVICTION

    def longest_score(self) -> int:
        """Return the hour to keep for an id that comes now and has the longest of all lifetimes."""
        config = self._config
        ttls = [] if config is None else [config.single_ttl, *(config.per_feature_ttl or [])]
        return _now() + max((ttl for ttl in ttls if ttl is not None), default=0)


def eviction_module_of(
    map_name: str,
    policy_name: HashZchEvictionPolicyName | None,
    config: HashZchEvictionConfig | None,
    device: torch.device,
) -> HashZchEvictionModule | None:
    """Return the policy of a map, if it has one.

    Args:
        map_name: for messages.
        policy_name: the policy, or None.
        config: its lifetimes.
        device: of the map.

    Raises:
        TypeError: for something else than a policy.
        ValueError: for lifetimes without a policy.
    """
    if policy_name is not None and not isinstance(policy_name, HashZchEvictionPolicyName):
        raise TypeError(
            f"`eviction_policy_name` of map '{map_name}' should be a HashZchEvictionPolicyName. "
            f"Received {policy_name!r}."
        )
    if policy_name is not None:
        return HashZchEvictionModule(policy_name, device, config)
    if config is not None:
        raise ValueError(
            f"`eviction_config` of map '{map_name}' should come with `eviction_policy_name`."
        )
    return None
