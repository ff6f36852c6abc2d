"""Make a log with outcomes that go together, as of videos that are clicked and, rarely, liked.

python recipes/several_tasks.py recipes/data/several_tasks.parquet

What somebody likes is close to what they click, and seen far less often: 60 % of the rows are clicks, 6 % are
likes. So a model of likes alone has little to learn users and videos from, and one of both has more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, VIDEOS, TASTES, ROWS = 300, 200, 4, 30_000


def log(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Return rows with the columns user, video, duration, tab, click and like."""
    random = np.random.default_rng(seed)
    user_tastes = random.normal(size=(USERS, TASTES))
    video_tastes = random.normal(size=(VIDEOS, TASTES)) / np.sqrt(TASTES)
    own = random.normal(size=(USERS, TASTES))  # of likes alone
    length = random.lognormal(3.5, 0.8, VIDEOS)

    users = random.integers(USERS, size=rows)
    videos = (VIDEOS * random.random(rows) ** 2).astype(np.int64)  # some are shown more than others
    tab = random.integers(4, size=rows)
    shown = video_tastes[videos]
    matches = (user_tastes[users] * shown).sum(1)
    liked = ((0.85 * user_tastes + 0.5 * own)[users] * shown).sum(1)
    context = 0.4 * (tab == 1) - 0.3 * np.log(length[videos] / 33)
    click = random.random(rows) < _logistic(0.5 + 2.5 * matches + context)
    like = random.random(rows) < _logistic(-4.5 + 2.5 * liked + context)
    return pa.table(
        {
            "user": users,
            "video": videos,
            "duration": length[videos],
            "tab": tab,
            "click": click.astype(np.int8),
            "like": like.astype(np.int8),
        }
    )


def _logistic(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(log(), path)
