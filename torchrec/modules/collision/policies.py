"""Which ids hold the rows of a map: admission filters, and eviction policies that score ids."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

ThresholdFilter = Callable[[Tensor], tuple[Tensor, float | Tensor]]


def dynamic_threshold_filter(
    id_counts: Tensor, threshold_skew_multiplier: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Admit ids that came more often than a multiple of the mean.

    Args:
        id_counts: how often each id came since the last eviction, ``(N,)``.
        threshold_skew_multiplier: the multiple. Default 10.

    Returns:
        Which ids may have a row, bool ``(N,)``: those whose count is strictly greater than the
        threshold; and the threshold.

    Example:
        >>> dynamic_threshold_filter(torch.tensor([1, 5, 10, 100]), 2.0)
        (tensor([False, False, False,  True]), tensor(58.))
    """
    threshold = threshold_skew_multiplier * id_counts.sum() / max(id_counts.numel(), 1)
    return id_counts > threshold, threshold


def average_threshold_filter(id_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Admit ids that came more often than the mean.

    Args:
        id_counts: how often each id came since the last eviction, ``(N,)``.

    Returns:
        Which ids may have a row, bool ``(N,)``: those whose count is strictly greater than the
        mean; and the mean.

    Example:
        >>> average_threshold_filter(torch.tensor([1, 5, 10, 100]))
        (tensor([False, False, False,  True]), tensor(29.))
    """
    return dynamic_threshold_filter(id_counts, 1.0)


def probabilistic_threshold_filter(
    id_counts: Tensor, per_id_probability: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Admit each occurrence of an id with some probability.

    An id that came n times is admitted with probability ``1 - (1 - per_id_probability) ** n``: at
    0.01, one that came 100 times with 63 %. Draws from PyTorch's global generator.

    Args:
        id_counts: how often each id came since the last eviction, ``(N,)``.
        per_id_probability: of each occurrence. Default 0.01.

    Returns:
        Which ids may have a row, bool ``(N,)``; and the drawn thresholds, ``(N,)``.

    Example:
        >>> probabilistic_threshold_filter(torch.tensor([1, 7]), 1.0)[0]
        tensor([True, True])
    """
    chance = 1 - torch.pow(1 - per_id_probability, id_counts)
    threshold = torch.rand(id_counts.size(), device=id_counts.device)
    return chance > threshold, threshold


class MCHEvictionPolicyMetadataInfo(NamedTuple):
    """A number that a policy keeps.

    Attributes:
        metadata_name: its name.
        is_mch_metadata: whether it is kept for each row of the map.
        is_history_metadata: whether it is kept for each id that came since the last eviction.
    """

    metadata_name: str
    is_mch_metadata: bool
    is_history_metadata: bool


class MCHEvictionPolicy(ABC):
    """Decides at each eviction which ids lose their rows, and which ids get these.

    `LFU_EvictionPolicy`, `LRU_EvictionPolicy` and `DistanceLFU_EvictionPolicy` are built in and
    quick. A policy of your own derives from this class and is called like this:

    1. For every training batch, `record_history_metadata` with its ids.
    2. At an eviction, `coalesce_history_metadata` turns what was recorded for each occurrence into
       what is known of each distinct id.
    3. `update_metadata_and_generate_eviction_scores` updates the metadata of the rows and chooses.

    Metadata are int64 tensors that start at 0. Those of rows have one entry a row, and a last one
    that stands for all other ids: it cannot be evicted.

    Args:
        metadata_info: what the policy keeps.
        threshold_filtering_func: which ids may be given a row, by how often each id came since the
            last eviction: see `average_threshold_filter`. Those that hold one are not asked to pass
            it, but their counts are among those that it sees. Default: all.
    """

    def __init__(
        self,
        metadata_info: list[MCHEvictionPolicyMetadataInfo],
        threshold_filtering_func: ThresholdFilter | None = None,
    ) -> None:
        if threshold_filtering_func is not None and not callable(threshold_filtering_func):
            raise TypeError(
                "`threshold_filtering_func` should be a function of counts. "
                f"Received {threshold_filtering_func!r}."
            )
        self._metadata_info = metadata_info
        self._threshold_filtering_func = threshold_filtering_func

    @property
    @abstractmethod
    def metadata_info(self) -> list[MCHEvictionPolicyMetadataInfo]:
        """What the policy keeps."""

    @property
    def threshold_filtering_func(self) -> ThresholdFilter | None:
        """Which ids may be given a row, as it was given; None: all."""
        return self._threshold_filtering_func

    @abstractmethod
    def record_history_metadata(
        self, current_iter: int, incoming_ids: Tensor, history_metadata: dict[str, Tensor]
    ) -> None:
        """Write what is to be remembered of each occurrence in a batch.

        Args:
            current_iter: number of the batch, from 1.
            incoming_ids: ``(N,)``.
            history_metadata: name -> ``(N,)``, zeros, to be written to.
        """

    @abstractmethod
    def coalesce_history_metadata(
        self,
        current_iter: int,
        history_metadata: dict[str, Tensor],
        unique_ids_counts: Tensor,
        unique_inverse_mapping: Tensor,
        additional_ids: Tensor | None = None,
        threshold_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Turn what is known of each occurrence into what is known of each distinct id.

        Args:
            current_iter: number of the batch.
            history_metadata: name -> ``(N,)``, of the occurrences since the last eviction.
            unique_ids_counts: occurrences of each distinct id, ``(U,)``.
            unique_inverse_mapping: which distinct id each occurrence is, ``(N,)``.
            additional_ids: not used.
            threshold_mask: which distinct ids to return, bool ``(U,)``: those that hold a row or may
                have one. None: all.

        Returns:
            Name -> ``(U,)``, or as many as the mask has.
        """

    @abstractmethod
    def update_metadata_and_generate_eviction_scores(
        self,
        current_iter: int,
        mch_size: int,
        coalesced_history_argsort_mapping: Tensor,
        coalesced_history_sorted_unique_ids_counts: Tensor,
        coalesced_history_mch_matching_elements_mask: Tensor,
        coalesced_history_mch_matching_indices: Tensor,
        mch_metadata: dict[str, Tensor],
        coalesced_history_metadata: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Update the metadata of the rows, and choose rows and the ids that get them.

        Below, ids are the distinct ones since the last eviction, as far as they hold a row or may
        have one, sorted by count from high to low.

        Args:
            current_iter: number of the batch.
            mch_size: rows, with the last one, which cannot be evicted.
            coalesced_history_argsort_mapping: position of each id in ``coalesced_history_metadata``.
            coalesced_history_sorted_unique_ids_counts: count of each id, descending.
            coalesced_history_mch_matching_elements_mask: which ids hold a row, bool.
            coalesced_history_mch_matching_indices: the rows of these.
            mch_metadata: name -> ``(mch_size,)``, to be written to, for evicted rows too.
            coalesced_history_metadata: what `coalesce_history_metadata` returned.

        Returns:
            Rows to be evicted, and for each of them the id that gets it: its position among the ids
            that hold no row.
        """


class _Scored:
    """What the built-in policies have in common: the ids with the highest scores hold the rows."""

    _metadata_info: list[MCHEvictionPolicyMetadataInfo]

    def scores(self, now: int, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return the score of each id: int64 or float64."""
        raise NotImplementedError

    @property
    def metadata_info(self) -> list[MCHEvictionPolicyMetadataInfo]:
        """What the policy keeps: how often an id came, its last batch, or both."""
        return self._metadata_info

    def record_history_metadata(
        self, current_iter: int, incoming_ids: Tensor, history_metadata: dict[str, Tensor]
    ) -> None:
        """Write what is to be remembered of each occurrence; see `MCHEvictionPolicy`."""
        if "last_access_iter" in history_metadata:
            history_metadata["last_access_iter"].fill_(current_iter)

    def coalesce_history_metadata(
        self,
        current_iter: int,
        history_metadata: dict[str, Tensor],
        unique_ids_counts: Tensor,
        unique_inverse_mapping: Tensor,
        additional_ids: Tensor | None = None,
        threshold_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Find the last batch of each distinct id; see `MCHEvictionPolicy`."""
        if "last_access_iter" not in history_metadata:
            return {}
        last = torch.zeros_like(unique_ids_counts)
        recorded = history_metadata["last_access_iter"]
        last.scatter_reduce_(0, unique_inverse_mapping, recorded, "amax")
        return {"last_access_iter": last if threshold_mask is None else last[threshold_mask]}

    def update_metadata_and_generate_eviction_scores(
        self,
        current_iter: int,
        mch_size: int,
        coalesced_history_argsort_mapping: Tensor,
        coalesced_history_sorted_unique_ids_counts: Tensor,
        coalesced_history_mch_matching_elements_mask: Tensor,
        coalesced_history_mch_matching_indices: Tensor,
        mch_metadata: dict[str, Tensor],
        coalesced_history_metadata: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Let ids without rows compete with those that hold one; see `MCHEvictionPolicy`."""
        have_row = coalesced_history_mch_matching_elements_mask
        position = coalesced_history_argsort_mapping
        recent = {name: value[position] for name, value in coalesced_history_metadata.items()}
        recent["counts"] = coalesced_history_sorted_unique_ids_counts
        rows = coalesced_history_mch_matching_indices
        for name, kept in mch_metadata.items():
            kept[rows] = recent[name][have_row] + (kept[rows] if name == "counts" else 0)
        # In order of appearance, which decides between ids of equal scores.
        order = position[~have_row].argsort()
        new = {name: value[~have_row][order] for name, value in recent.items()}
        old = {name: kept[: mch_size - 1] for name, kept in mch_metadata.items()}
        held = next(iter(old.values())) > 0
        evicted, chosen = _compete(
            held, self.scores(current_iter, old), self.scores(current_iter, new)
        )
        for name, kept in mch_metadata.items():
            kept[evicted] = new[name][chosen]
        return evicted, order[chosen]


def _compete(held: Tensor, scores: Tensor, candidate_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and the candidates that get them, as `torchrec.ops.collision.replace_ids` does."""
    rows = held.nonzero().squeeze(1)
    scores = torch.cat([scores[rows], candidate_scores])
    order = scores.sort(
        descending=True, stable=True
    ).indices  # who holds a row stays on equal terms
    stays = torch.zeros_like(order, dtype=torch.bool)
    stays[order[: held.numel()]] = True
    lost = rows[~stays[: rows.numel()]]
    chosen = stays[rows.numel() :].nonzero().squeeze(1)
    free = (~held).nonzero().squeeze(1)[: chosen.numel() - lost.numel()]
    return torch.cat([free, lost]), chosen


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` should be a number. Received {value!r}.")
    if math.isnan(value):
        raise ValueError(f"`{name}` should be a number. Received {value!r}.")


_COUNTS = MCHEvictionPolicyMetadataInfo("counts", True, False)
_LAST = MCHEvictionPolicyMetadataInfo("last_access_iter", True, True)


class LFU_EvictionPolicy(_Scored, MCHEvictionPolicy):  # noqa: N801
    """The ids that came most often hold the rows: least frequently used ids are evicted.

    Args:
        threshold_filtering_func: which ids may have a row; see `MCHEvictionPolicy`.

    Example:
        >>> LFU_EvictionPolicy().scores(5, {"counts": torch.tensor([7, 2])})
        tensor([7, 2])
    """

    def __init__(self, threshold_filtering_func: ThresholdFilter | None = None) -> None:
        super().__init__([_COUNTS], threshold_filtering_func)

    def scores(self, now: int, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return how often each id came, while it held its row or since the last eviction."""
        return metadata["counts"]


class LRU_EvictionPolicy(_Scored, MCHEvictionPolicy):  # noqa: N801
    """The ids that came last hold the rows: least recently used ids are evicted.

    Args:
        decay_exponent: greater than 0, and then without effect: no power changes which id came last.
        threshold_filtering_func: which ids may have a row; see `MCHEvictionPolicy`.

    Example:
        >>> LRU_EvictionPolicy().scores(5, {"last_access_iter": torch.tensor([4, 5])})
        tensor([4, 5])
    """

    def __init__(
        self,
        decay_exponent: float = 1.0,
        threshold_filtering_func: ThresholdFilter | None = None,
    ) -> None:
        super().__init__([_LAST], threshold_filtering_func)
        _check_number("decay_exponent", decay_exponent)
        if decay_exponent <= 0:
            raise ValueError(
                "`decay_exponent` of LRU_EvictionPolicy should be greater than 0. "
                f"Received {decay_exponent!r}."
            )

    def scores(self, now: int, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return the number of the last batch that each id came in."""
        return metadata["last_access_iter"]


class DistanceLFU_EvictionPolicy(_Scored, MCHEvictionPolicy):  # noqa: N801
    """The ids that came often and lately hold the rows.

    The score of an id is ``count / (now - last + 1) ** decay_exponent``, where ``last`` is the batch
    that it last came in.

    Args:
        decay_exponent: how much being away counts. Default 1.
        threshold_filtering_func: which ids may have a row; see `MCHEvictionPolicy`.

    Example:
        >>> metadata = {"counts": torch.tensor([8, 3]), "last_access_iter": torch.tensor([2, 5])}
        >>> DistanceLFU_EvictionPolicy().scores(5, metadata)
        tensor([2., 3.], dtype=torch.float64)
    """

    def __init__(
        self,
        decay_exponent: float = 1.0,
        threshold_filtering_func: ThresholdFilter | None = None,
    ) -> None:
        super().__init__([_COUNTS, _LAST], threshold_filtering_func)
        _check_number("decay_exponent", decay_exponent)
        self._decay_exponent = decay_exponent

    def scores(self, now: int, metadata: Mapping[str, Tensor]) -> Tensor:
        """Return the count of each id, divided by a power of how long it has been away."""
        away = metadata["last_access_iter"].double().neg_().add_(now + 1)  # one copy, of many rows
        if self._decay_exponent != 1:
            away.pow_(self._decay_exponent)
        return torch.div(metadata["counts"], away, out=away)
