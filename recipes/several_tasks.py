"""Make a log with outcomes that go together, as of videos that are clicked and, rarely, liked.

python recipes/several_tasks.py recipes/data/several_tasks.parquet

58 % of the rows are clicks and 7 % likes; of a user, or a video, the training data have one or two likes. What is liked
is close to what is clicked, so a model of both learns of users and videos from clicks what likes alone do not tell.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, VIDEOS, TASTES, ROWS = 1_000, 600, 3, 30_000


def log(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Return rows with the columns user, video, duration, tab, click and like."""
    random = np.random.default_rng(seed)
    user_tastes = random.normal(size=(USERS, TASTES))
    video_tastes = random.normal(size=(VIDEOS, TASTES)) / np.sqrt(TASTES)
    user_level, video_level = random.normal(size=USERS), 1.2 * random.normal(size=VIDEOS)
    video_likes, user_likes = random.normal(size=VIDEOS) / 2, random.normal(size=USERS) / 2
    length = random.lognormal(3.5, 0.8, VIDEOS)

    users = random.integers(USERS, size=rows)
    videos = (VIDEOS * random.random(rows) ** 1.5).astype(
        np.int64
    )  # some are shown more than others
    tab = random.integers(4, size=rows)
    matches = (user_tastes[users] * video_tastes[videos]).sum(1)
    context = 0.4 * (tab == 1) - 0.3 * np.log(length[videos] / 33)
    both = user_level[users] + video_level[videos] + 0.8 * matches
    alone = video_likes[videos] + user_likes[users]
    click = random.random(rows) < _logistic(0.3 + both + context)
    like = random.random(rows) < _logistic(-3.8 + 0.9 * both + alone + context)
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
