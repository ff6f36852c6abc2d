"""What a training batch does to a hash map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec.modules.collision.hash_buckets import Buckets
from torchrec.modules.collision.hash_search import HashSearch
from torchrec.modules.hash_mc_evictions import HashZchEvictionModule
from torchrec.ops.hash_collision import FREE, Eviction, new_slots
from torchrec.ops.hashing import hash_ids


class HashState(NamedTuple):
    """The tensors of a map.

    Attributes:
        identities: the id of each row, int64 ``(E,)``, -1 where free.
        hours: int32 ``(E,)``, by which a policy evicts; None: nothing is ever evicted.
        numbers: int64 ``(E, D)``, kept for each row; None: nothing is.
    """

    identities: Tensor
    hours: Tensor | None
    numbers: Tensor | None

    def clear(self) -> None:
        """Free all rows."""
        self.identities.fill_(FREE)
        if self.hours is not None:
            self.hours.fill_(-1)
        if self.numbers is not None:
            self.numbers.zero_()


def new_state(size: int, timed: bool, width: int, device: torch.device) -> HashState:
    """Return the tensors of an empty map as they are saved, in the shapes that TorchRec has.

    Args:
        size: rows.
        timed: whether there is an hour for each.
        width: how many numbers there are for each.
        device: of the tensors.
    """

    def new(width: int, content: int, dtype: torch.dtype) -> Tensor:
        return new_slots(size * width, content, dtype, device).view(size, width)

    return HashState(
        new(1, FREE, torch.int64),
        new(1, -1, torch.int32) if timed else None,
        new(width, 0, torch.int64) if width else None,
    )


def check_saved(
    state_dict: dict[str, Tensor],
    prefix: str,
    buckets: Buckets,
    timed: bool,
    persists: bool,
    errors: list[str],
) -> None:
    """Take out of a saved map what is not of it, and say what does not fit.

    Args:
        state_dict: changed in place.
        prefix: of the map.
        buckets: of the map that it is to be loaded into.
        timed: whether hours are wanted; a map for inference keeps none, whatever the trained one had.
        persists: whether that saves their number.
        errors: messages are added to.
    """
    state_dict.pop(f"{prefix}_scalar_logger._scalar_logger_steps", None)  # TorchRec counts batches
    if not timed:
        state_dict.pop(f"{prefix}_hash_zch_metadata", None)
    key = f"{prefix}_hash_zch_bucket"
    saved = state_dict.get(key) if persists else state_dict.pop(key, None)
    if not isinstance(saved, Tensor) or saved.numel() != 1 or saved.is_meta:
        return  # PyTorch says what else does not fit
    if int(saved) != buckets.total:
        errors.append(
            f"{key} should be {buckets.total}, `total_num_buckets` of map '{buckets.name}'. "
            f"Received {int(saved)}."
        )


class HashLearning:
    """Gives rows to the ids of a batch, and takes them from others.

    Args:
        search: how ids find their rows.
        eviction: which ids lose them. None: none does.
        opt_in_prob: per cent of a batch's ids without a row that may be given one; -1: all.
        read_only_suffix: what the names of features end with whose ids are not learnt.
        counts_ids: whether the numbers of the map are how often each id came.
    """

    def __init__(
        self,
        search: HashSearch,
        eviction: HashZchEvictionModule | None,
        opt_in_prob: int,
        read_only_suffix: str,
        counts_ids: bool,
    ) -> None:
        if not read_only_suffix:
            raise ValueError(
                f"`read_only_suffix` of map '{search.buckets.name}' should have a character: names of all "
                f"features end with {read_only_suffix!r}, and nothing would be learnt."
            )
        self._search = search
        self._eviction = eviction
        self._opt_in_prob = opt_in_prob
        self._read_only_suffix = read_only_suffix
        self._counts_ids = counts_ids

    def learn(
        self, state: HashState, parts: Mapping[str, Tensor], joined: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the slots of ids, and those that were taken from another id.

        Features that are only read come last, wherever they stand: what they find is the map behind
        this batch, and no row that they have found changes hands in it.

        Args:
            state: of the map; changed.
            parts: ids by feature, int64.
            joined: the same, one behind the other.
        """
        writing = {n: part for n, part in parts.items() if not n.endswith(self._read_only_suffix)}
        if len(writing) == len(parts):
            return self._assign(state, parts, joined)
        found, evicted = dict(parts), joined.new_empty(0)
        if writing:
            slots, evicted = self._assign(state, writing, torch.cat([*writing.values()]))
            sizes = [part.numel() for part in writing.values()]
            found.update(zip(writing, slots.split(sizes), strict=True))
        for name in parts.keys() - writing.keys():
            found[name] = self._search.find(state.identities, parts[name])
        return torch.cat([*found.values()]), evicted

    def _assign(
        self, state: HashState, parts: Mapping[str, Tensor], ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        admitted, eviction = None, None
        if self._opt_in_prob >= 0:
            # One draw for all occurrences of an id: it has one row in a batch.
            seed = torch.randint(2**62, (1,), device=ids.device)
            admitted = hash_ids(ids ^ seed, 100) < self._opt_in_prob
        if self._eviction is not None and state.hours is not None:
            scores, threshold = self._eviction.score(parts, ids, self._search.buckets.name)
            eviction = Eviction(state.hours, scores, threshold, self._eviction.takes_oldest)
        slots, evicted = self._search.assign(state.identities, ids, eviction, admitted)
        if state.numbers is not None:
            if evicted.numel():
                state.numbers[evicted] = 0
            if self._counts_ids:
                own = slots[self._search.is_own(state.identities, ids, slots)]
                state.numbers.index_add_(0, own, torch.ones_like(own).unsqueeze(1))
        return slots, evicted

    def give(self, state: HashState, ids: Tensor) -> Tensor:
        """Return free slots for ids that have none, as if they came now.

        Args:
            state: of the map; changed.
            ids: int64 ``(N,)``, distinct.

        Raises:
            ValueError: if there is none for one of them; the map is then as it was.
        """
        identities = state.identities.clone()
        slots = self._search.give(identities, ids)
        if bool((slots < 0).any()):
            raise ValueError(
                f"`ids` of table '{self._search.buckets.name}' without a row should each find a free "
                f"one among the {self._search.probing.max_probe} that it may have. "
                f"Received {int(ids[slots < 0][0])}, which does not."
            )
        state.identities.copy_(identities)
        if self._eviction is not None and state.hours is not None:
            state.hours[slots] = self._eviction.longest_score()
        return slots
