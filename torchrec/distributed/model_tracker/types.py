"""What is tracked of look-ups, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

__all__ = [
    "DeltaTrackerConfig",
    "IndexedLookup",
    "ModelTrackerConfigs",
    "Trackers",
    "TrackingMode",
    "UniqueRows",
    "UpdateMode",
]


class Trackers(Enum):
    """Kinds of trackers, of which there is the first: of rows, not of ids as they were before they had rows."""

    DELTA_TRACKER = "delta_tracker"
    RAW_ID_TRACKER = "raw_id_tracker"


class TrackingMode(Enum):
    """What is told of each row that was looked up, beside its number.

    ``ID_ONLY``: nothing. ``EMBEDDING``: its weights, as they were when it was first looked up. ``MOMENTUM_LAST``: the
    momentum that its optimizer has now (the ``exp_avg`` of Adam, say), and ``MOMENTUM_DIFF``: by how much that has
    changed since it was first looked up, ``(D,)``. ``ROWWISE_ADAGRAD``: by how much the ``sum`` of its optimizer has
    grown since then, the sum over its updates of the mean square of the gradient: one number.
    """

    ID_ONLY = "id_only"
    EMBEDDING = "embedding"
    MOMENTUM_LAST = "momentum_last"
    MOMENTUM_DIFF = "momentum_diff"
    ROWWISE_ADAGRAD = "rowwise_adagrad"


class UpdateMode(Enum):
    """Which state of a row is kept that was looked up more than once: none, the first, or the last."""

    NONE = "none"
    FIRST = "first"
    LAST = "last"


@dataclass
class IndexedLookup:
    """Rows of one table that were looked up.

    Attributes:
        batch_idx: number of the batch.
        ids: the rows, int64 ``(N,)``.
        states: of each, ``(N, D)``; None: they are not kept.
        compact: whether each row comes once.
        raw_ids: the ids that had the rows, int64 ``(N,)``; None: they were not given.
        runtime_meta: of each of these, ``(N, M)``; None: it was not given.
    """

    batch_idx: int
    ids: Tensor
    states: Tensor | None
    compact: bool = False
    raw_ids: Tensor | None = None
    runtime_meta: Tensor | None = None


@dataclass
class UniqueRows:
    """Rows of one table that were looked up, each once.

    Attributes:
        ids: the rows, int64 ``(N,)``, in their order.
        states: of each, ``(N, D)``, or ``(N,)`` of one number a row; None: none are told.
        raw_ids: the id that each row was last looked up by, before a map gave it the row, as `record_lookup` was told;
            else the one that holds the row in the map of a managed collision collection: int64 ``(N,)``; -1: none.
            None: for no row.
        runtime_meta: of that look-up, ``(N, M)``; 0: none was given. None: for no row.
    """

    ids: Tensor
    states: Tensor | None
    raw_ids: Tensor | None = None
    runtime_meta: Tensor | None = None

    def at(self, places: Tensor) -> UniqueRows:
        """Return some of them.

        Args:
            places: which, int64 ``(K,)``.

        Example:
            >>> import torch
            >>> UniqueRows(torch.tensor([2, 5, 7]), None).at(torch.tensor([2, 0])).ids
            tensor([7, 2])
        """
        kept = (self.states, self.raw_ids, self.runtime_meta)
        return UniqueRows(
            self.ids[places], *(each if each is None else each[places] for each in kept)
        )


@dataclass
class DeltaTrackerConfig:
    """How look-ups are tracked.

    Attributes:
        tracking_mode: what is told of each row. Default: its number alone.
        consumers: names of those who ask, each of whom is told what is new to them. Default: one, without a name.
        delete_on_read: forget what all consumers have been told. Default True.
        auto_compact: keep each row once, not once a batch: less memory, more work a step. Default False.
        fqns_to_skip: paths of tables, ``"path.embedding_bags.user"``, or of modules, that are left out.
    """

    tracking_mode: TrackingMode = TrackingMode.ID_ONLY
    consumers: list[str] | None = None
    delete_on_read: bool = True
    auto_compact: bool = False
    fqns_to_skip: list[str] = field(default_factory=list)


@dataclass
class ModelTrackerConfigs:
    """What `DistributedModelParallel` is to track from the start.

    Attributes:
        raw_id_tracker_config: of ids as they were before they had rows; not supported, must be None.

    Raises:
        ValueError: for anything else.
    """

    raw_id_tracker_config: object | None = None

    def __post_init__(self) -> None:
        if self.raw_id_tracker_config is not None:
            raise ValueError(
                "`raw_id_tracker_config` should be None: ids are tracked by their rows. "
                f"Received {self.raw_id_tracker_config!r}."
            )
