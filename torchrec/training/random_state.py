"""The state of the random generators, so that a training that is taken up draws the same numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torchrec.datasets.loader import seed_of


def rank_seed(seed: int, rank: int, *moment: int) -> int:
    """Return what a rank seeds its generators with, so that ranks draw different numbers.

    Args:
        seed: of the training, which is that of the first rank.
        rank: which.
        moment: other numbers, where ranks seed anew. Default: they begin.

    Example:
        >>> rank_seed(7, 0), rank_seed(7, 1) == rank_seed(7, 1, 2)
        (7, False)
    """
    return seed_of(seed, rank, *moment) if rank or moment else seed


def random_state() -> dict[str, Any]:
    """Return the state of the generators of PyTorch (all devices), NumPy and Python."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` gave.

    Example:
        >>> saved = random_state()
        >>> first = torch.rand(1), random.random()
        >>> set_random_state(saved)
        >>> first == (torch.rand(1), random.random())
        True
    """
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
