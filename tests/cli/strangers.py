"""Files as people have them, small: generated after what public logs look like, with something to learn."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_START = datetime.datetime(2019, 10, 1)
_DAY = datetime.datetime(2022, 4, 8, tzinfo=datetime.timezone.utc)


def criteo(folder: Path, rows: int = 1200) -> None:
    """Write ``train.txt``, and ``test.txt`` without the label: tabs, no header, values that are missing."""
    made = np.random.default_rng(1)
    lines = []
    for _ in range(rows):
        group = int(made.integers(4))
        numbers = [int(made.exponential(20)) if made.random() > 0.2 else "" for _ in range(13)]
        ids = [f"{0x68FD1E64 + 7919 * int(made.zipf(1.5) % 40):08x}" for _ in range(26)]
        ids[2] = f"{0x1000 + group:08x}"
        ids[21] = "" if made.random() < 0.7 else ids[21]
        logit = 2 * (group - 2) + (1 if numbers[0] and int(numbers[0]) > 15 else -1)
        lines.append([_chance(made, logit), *numbers, *ids])
    half = rows * 4 // 5
    _write(folder / "train.txt", lines[:half], delimiter="\t")
    _write(folder / "test.txt", [line[1:] for line in lines[half:]], delimiter="\t")
    cut = {"users.csv": slice(None, 13), "ads.csv": slice(13, None)}
    names = [f"int_{i}" for i in range(1, 14)] + [f"cat_{i}" for i in range(1, 27)]
    for name, part in cut.items():
        some = [[f"k{at}", *line[1:][part]] for at, line in enumerate(lines[:5])]
        _write(folder / name, [[name[:-5], *names[part]], *some])


def avazu(folder: Path, rows: int = 1200) -> None:
    """Write ``train.csv`` and ``test.csv``: ids beyond 63 bits, and ``hour`` as YYMMDDHH."""
    made = np.random.default_rng(2)
    names = "id click hour C1 banner_pos site_id site_category app_id device_id device_type C14 C21"
    head, lines = names.split(), []
    for at in range(rows):
        hour = _START + datetime.timedelta(hours=240 * at // rows)
        site, position = int(made.zipf(1.6) % 30), int(made.integers(3))
        logit = 2 * position - 2 + (1 if site % 3 == 0 else -1)
        line = [10_000_000_000_000_000_000 + 7_205_759_403_792 * at, _chance(made, logit)]
        line += [hour.strftime("%y%m%d%H"), 1005, position, f"{0x85F751FD + site:08x}"]
        line += [f"{0x50E219E0 + site % 5:08x}", "ecad2386", f"{int(made.integers(1 << 30)):08x}"]
        lines.append([*line, int(made.integers(2)), 15_700 + 6 * int(made.integers(60)), 79])
    half = rows * 4 // 5
    _write(folder / "train.csv", [head, *lines[:half]])
    _write(folder / "test.csv", [[*head[:1], *head[2:]], *(li[:1] + li[2:] for li in lines[half:])])
    users = [[f"u{at}", *line[2:4], *line[7:10]] for at, line in enumerate(lines[half:][:4])]
    _write(folder / "users.csv", [["user", *head[2:4], *head[7:10]], *users])
    spots = [[f"s{at}", *line[4:7], *line[10:]] for at, line in enumerate(lines[:6])]
    _write(folder / "spots.csv", [["spot", *head[4:7], *head[10:]], *spots])


def movielens(folder: Path, rows: int = 1500) -> None:
    """Write ``ratings.csv``, ``movies.csv`` and ``users.csv``."""
    made = np.random.default_rng(3)
    genres = ["Action", "Comedy", "Drama", "Film-Noir", "Sci-Fi"]
    of_movie = [sorted(made.choice(genres, int(made.integers(1, 4)), False)) for _ in range(80)]
    of_user = [(("M", "F")[int(made.integers(2))], int(made.integers(1, 57))) for _ in range(60)]
    taste = made.normal(size=(60, 2)) @ made.normal(size=(2, 5))
    lines = []
    for pair in made.permutation(60 * 80)[:rows]:
        user, movie = divmod(int(pair), 80)
        liked = np.mean([taste[user, genres.index(one)] for one in of_movie[movie]])
        stars = float(np.clip(np.round(2 * (3.3 + liked + 0.4 * made.normal())) / 2, 0.5, 5))
        lines.append([user + 1, movie + 1, stars, 964_982_703 + 3600 * len(lines)])
    _write(folder / "ratings.csv", [["userId", "movieId", "rating", "timestamp"], *lines])
    movies = [
        [at + 1, f"{'The ' * (at % 2)}Movie, {at} ({1950 + at % 60})", "|".join(found)]
        for at, found in enumerate(of_movie)
    ]
    _write(folder / "movies.csv", [["movieId", "title", "genres"], *movies])
    users = [[at + 1, *one] for at, one in enumerate(of_user)]
    _write(folder / "users.csv", [["userId", "gender", "age"], *users])


def events(folder: Path, rows: int = 1500) -> None:
    """Write ``events.csv``, ``next.csv``, ``visitors.csv`` and ``products.csv`` of a shop."""
    made = np.random.default_rng(4)
    brands = ["samsung", "apple", "xiaomi", "", "lg"]
    products = []
    for at in range(40):
        kind = ["electronics.smartphone", "appliances.kitchen.washer", ""][at % 3]
        price = round(float(made.lognormal(4, 1)), 2)
        products.append([1_004_767 + 13 * at, 2_053_013_555_631_882_655 + at % 3, kind])
        products[-1] += [brands[at % 5], f"{price:.2f}"]
    lines, at = [], 0
    for row in range(rows):
        at += int(made.integers(1, 90))
        time = (_START + datetime.timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S UTC")
        product, user = products[int(made.integers(40))], int(made.zipf(1.4) % 70)
        logit = (1.5 if product[3] in ("apple", "lg") else -1.5) + (user % 3 - 1)
        event = "purchase" if _chance(made, logit) else ("view", "cart")[int(made.integers(2))]
        session = f"{0x72D76FDE + user * 31 + row // 200:08x}-8182-4d2b-ad45-61e8faf8a4d1"
        lines.append([time, event, *product, 512_000_000 + 101 * user, session])
    names = "event_time event_type product_id category_id category_code brand price user_id"
    head = [*names.split(), "user_session"]
    half = rows * 4 // 5
    _write(folder / "events.csv", [head, *lines[:half]])
    _write(folder / "next.csv", [head, *lines[half:]])
    seen = {line[7]: line[7:] for line in lines}
    _write(folder / "visitors.csv", [head[7:], *list(seen.values())[:6]])
    _write(folder / "products.csv", [head[2:7], *products])


def purchases(folder: Path) -> None:
    """Write ``purchases.csv`` and ``next.csv``: nothing but what was bought; and users and products."""
    made = np.random.default_rng(6)
    products = [[f"p{at:02}", ("toys", "tools", "books")[at % 3], 5 + at] for at in range(45)]
    lines = []
    for _ in range(1200):
        user = int(made.integers(80))
        liked = (
            3 * int(made.zipf(1.4) % 15) + user % 3
            if made.random() < 0.8
            else int(made.integers(45))
        )
        lines.append([f"u{user:02}", *products[liked]])
    head = ["user_id", "product_id", "category", "price"]
    _write(folder / "purchases.csv", [head, *lines[:900]])
    _write(folder / "next.csv", [head, *lines[900:]])
    _write(folder / "users.csv", [head[:1], *([f"u{user:02}"] for user in range(5))])
    _write(folder / "products.csv", [head[1:], *products])


def kuairand(folder: Path, rows: int = 1500) -> None:
    """Write ``log.csv``, ``users.csv`` and ``videos.csv``: six outcomes, and for how long was watched."""
    made = np.random.default_rng(5)
    names = "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward"
    head = [*names.split(), "long_view", "play_time_ms", "duration_ms", "tab"]
    lines = []
    for at in range(rows):
        moment = _DAY + datetime.timedelta(minutes=11 * at)
        user, video, tab = int(made.integers(60)), int(made.zipf(1.4) % 80), int(made.integers(4))
        length = 3_000 + 977 * video
        liking = math.sin(user) + math.cos(3 * video) + 0.5 * (tab == 1)
        click = _chance(made, 2 * liking)
        played = (
            int(length * min(1.5, made.exponential(0.3 + 0.5 * max(0, liking)))) if click else 0
        )
        others = [click and _chance(made, 2 * liking - shift) for shift in (1, 3, 4, 3)]
        day, clock = moment.strftime("%Y%m%d"), moment.hour * 100
        line = [user, video, day, clock, int(moment.timestamp() * 1000), click, *others]
        lines.append([*line, int(played > 0.7 * length), played, length, tab])
    _write(folder / "log.csv", [head, *lines[: rows * 4 // 5]])
    _write(folder / "new.csv", [head, *lines[rows * 4 // 5 :]])
    _write(
        folder / "users.csv",
        [["user_id", "hourmin", "tab"], *([user, 1900, 1] for user in range(9))],
    )
    videos = [[video, 3_000 + 977 * video] for video in range(80)]
    _write(folder / "videos.csv", [["video_id", "duration_ms"], *videos])


def _chance(made: np.random.Generator, logit: float) -> int:
    return int(made.random() < 1 / (1 + math.exp(-logit)))


def _write(path: Path, lines: Iterable[Sequence[object]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(lines)
