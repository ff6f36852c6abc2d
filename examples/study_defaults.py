"""What `torchrec init` proposes, option by option: on tables of different kinds, by validation data alone.

    python examples/study_defaults.py --work study [--tables apps,tiny] [--variants proposed,before] [--seed 0]

Five tables are generated, so that the best possible AUC is known, and two more are a click log of
`torchrec data synthetic` and, where `--data` has them, MovieLens and a sample of Criteo. A variant is
the proposed experiment with some options changed. Each run appends a line to `results.jsonl`, and
what is there is not run again; in the end a table of all is printed. Nothing reads a test split.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from sklearn.metrics import log_loss, roc_auc_score

from torchrec.datasets.prepare.criteo import prepare_criteo
from torchrec.datasets.synthetic import PROBABILITY, ClickLog, write_click_log
from torchrec.experiment.files import load_experiment
from torchrec.experiment.propose import infer_features, write_experiment
from torchrec.experiment.rows import SplitSection
from torchrec.experiment.schema import DataSection
from torchrec.training.run import run_experiment

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[np.int64] | Floats]

BEFORE = [
    "model.table_init={rule: uniform}",
    "model.batch_norm=false",
    "model.dropout=0",
    "training.embedding_updates=lazy",
    "training.embedding_weight_decay=0",
    "training.schedule={}",
    "training.early_stopping={metric: auc, patience: 2}",
    "training.average=null",
]
VARIANTS: dict[str, list[str]] = {
    "proposed": [],
    "none of it": BEFORE,
    "tables start at uniform ± 1/sqrt(rows)": BEFORE[:1],
    "tables start at N(0, .01)": ["model.table_init={rule: normal, std: 0.01}"],
    "tables start at N(0, .0001)": ["model.table_init={rule: normal, std: 0.0001}"],
    "the other way with batch_norm": ["model.batch_norm={other_norm}"],
    "dropout 0": BEFORE[2:3],
    "updates lazy": BEFORE[3:4],
    "decay 0": BEFORE[4:5],
    "decay / 5": ["training.embedding_weight_decay={fifth}"],
    "decay x 3": ["training.embedding_weight_decay={threefold}"],
    "constant rates": BEFORE[5:6],
    "stops by AUC, patience 2": BEFORE[6:7],
    "no average": BEFORE[7:8],
    "dlrm_dcn": ["model.name=dlrm_dcn"],
    "deepfm": ["model.name=deepfm"],
    "deepfm, linear": ["model.name=deepfm", "model.linear=true"],
    "dlrm": ["model.name=dlrm"],
    "dlrm without vectors": ["model.name=dlrm", "model.vectors=false"],
    "layers 400 x 3": ["model.layers=[400, 400, 400]"],
    "lr": ["model={name: lr}"],
}


def zipf(size: int, exponent: float) -> Floats:
    """Return the shares of the ``size`` values of Zipf's law."""
    shares: Floats = np.arange(1, size + 1) ** -exponent
    return shares / shares.sum()


def logistic(
    seed: int, rows: int, tables: dict[int, float], pairs: float, rate: float, numbers: int = 0
) -> tuple[Columns, Floats]:
    """Draw ids, and clicks by what each id does and by what pairs of them do together.

    Args:
        seed: of all that is random.
        rows: samples.
        tables: distinct ids of a column, and the exponent of their law; a key may stand for several.
        pairs: the weight of products of hidden vectors beside that of single ids, which is .5.
        rate: the logit around which clicks lie.
        numbers: columns of numbers, whose effect is no straight line.

    Returns:
        The columns, and the true probability of each row.
    """
    rng = np.random.default_rng(seed)
    columns: Columns = {}
    logits = np.zeros(rows)
    vectors, squares = np.zeros((rows, 4)), np.zeros((rows, 4))
    for number, (size, exponent) in enumerate(tables.items()):
        ids = rng.permutation(size)[rng.choice(size, rows, p=zipf(size, exponent))]
        columns[f"c{number}"] = ids
        logits += 0.5 * rng.normal(size=size)[ids]
        mine = rng.normal(size=(size, 4))[ids]
        vectors, squares = vectors + mine, squares + mine**2
    scale = np.sqrt(2.0 * len(tables) * (len(tables) - 1))
    logits += pairs * (0.5 * (vectors**2 - squares)).sum(axis=1) / scale
    for number in range(numbers):
        value = rng.lognormal(size=rows) * 10
        columns[f"n{number}"] = value
        logits += 0.4 * np.sin(2 * np.log(value) + number)
    return columns, 1 / (1 + np.exp(rate - logits + logits.mean()))


def usage(
    seed: int, users: int = 950, items: int = 4_000, uses: int = 96_000
) -> tuple[Columns, Floats]:
    """Draw what people use when, each some few things again and again, and two things beside it.

    A third of the rows is real use, in a context of day, weather and place; the others have its context
    and an item by chance. Who remembers the pairs of users and items is nearly always right.
    """
    rng = np.random.default_rng(seed)
    popular = np.log(rng.permutation(zipf(items, 1.0)))
    tastes = rng.normal(size=(users, 6)), rng.normal(size=(items, 6))
    by_time = np.exp(0.7 * rng.normal(size=(7, items)))
    user = rng.choice(users, uses, p=zipf(users, 0.8))
    time_of_day = rng.integers(0, 7, uses)
    item, shares = np.empty(uses, dtype=np.int64), {}
    for one in np.unique(user):
        mine = user == one
        few = int(4 + mine.sum() ** 0.6)
        wishes = popular + 0.6 * tastes[1] @ tastes[0][one]
        share = 0.07 * np.exp(wishes) / np.exp(wishes).sum()
        share[np.argsort(-wishes - rng.gumbel(size=items))[:few]] += 0.93 * zipf(few, 0.9)
        for hour in range(7):
            now = share * by_time[hour]
            shares[one, hour] = now / now.sum()
            rows = mine & (time_of_day == hour)
            item[rows] = rng.choice(items, int(rows.sum()), p=shares[one, hour])
    city = np.where(
        rng.random(uses) < 0.08, rng.integers(0, 230, uses), rng.integers(0, 230, users)[user]
    )
    context = {
        "user": user,
        "time_of_day": time_of_day,
        "weekday": rng.integers(0, 7, uses),
        "weather": rng.choice(9, uses, p=zipf(9, 0.7)),
        "city": city,
        "country": rng.integers(0, 80, 230)[city],
    }
    columns: Columns = {name: np.tile(values, 3) for name, values in context.items()}
    columns["item"] = np.concatenate([item, rng.integers(0, items, 2 * uses)])
    pairs = zip(columns["user"], columns["time_of_day"], columns["item"], strict=True)
    used = np.array([shares[one, hour][thing] for one, hour, thing in pairs])
    return columns, used / (used + 2 / items)


def generated(columns: Columns, probability: Floats, seed: int) -> tuple[pa.Table, Floats]:
    """Draw the clicks; the order of rows is by chance already."""
    clicks = np.random.default_rng([seed, 1]).random(len(probability)) < probability
    return pa.table({**columns, "label": clicks.astype(np.int8)}), probability


MANY_SMALL = dict.fromkeys(range(2, 32), 0.5)
GENERATED: dict[str, Callable[[], tuple[Columns, Floats]]] = {
    "app usage": lambda: usage(0),
    "few large": lambda: logistic(1, 150_000, {20_000: 0.8, 8_000: 0.9, 3_000: 0.7}, 1.0, 1.0),
    "many small": lambda: logistic(2, 75_000, MANY_SMALL, 1.0, 1.5, numbers=5),
    "long tails": lambda: logistic(
        3, 150_000, {200_000: 1.05, 100_000: 1.1, 50: 0.6, 20: 0.6, 500: 0.9}, 0.8, 2.0
    ),
    "tiny": lambda: logistic(
        4, 4_000, {100: 0.7, 40: 0.7, 10: 0.7, 5: 0.7, 3: 0.7}, 0.7, 1.0, numbers=3
    ),
}


def prepare(name: str, folder: Path, data: Path) -> Path | None:
    """Write the files of a table and the proposed experiment; return it, or None without the data."""
    path = folder / "experiment.yaml"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    best = None
    label, left_out = "label", []
    if name in GENERATED:
        table, probability = generated(*GENERATED[name](), seed=0)
        rows = table.num_rows
        held = slice(int(0.8 * rows), rows)
        order = np.random.default_rng(0).permutation(rows)
        best = metrics_of(probability[order[held]], table["label"].to_numpy()[order[held]])
        pq.write_table(table.take(order[: held.start]), folder / "train.parquet")
        pq.write_table(table.take(order[held]), folder / "valid.parquet")
    elif name == "click log":
        limits = write_click_log(ClickLog(rows=60_000), folder)[folder / "valid.parquet"]
        best = {"auc": limits.auc, "logloss": limits.logloss}
        label, left_out = "click", [PROBABILITY]
    elif name == "criteo sample" and (data / "criteo").is_dir():
        prepare_criteo([data / "criteo" / "train_first_10000.txt"], folder / "all.parquet")
        divide(pq.read_table(folder / "all.parquet"), folder, 0.3)
    elif name == "ml-100k" and (data / "ml-100k").is_dir():
        divide(movielens_100k(data / "ml-100k"), folder, 0.1)
    elif name in ("ml-1m", "ml-1m without ids") and (data / "ml-1m").is_dir():
        left_out = ["title"] + (["user_id", "movie_id"] if "without" in name else [])
        for part in ("train", "valid"):
            table = pq.read_table(data / "ml-1m" / "split" / f"{part}.parquet")
            pq.write_table(table.drop_columns(left_out), folder / f"{part}.parquet")
    else:
        return None
    (folder / "best.json").write_text(json.dumps(best))
    section = DataSection(
        train=[str(folder / "train.parquet")],
        valid=[str(folder / "valid.parquet")],
        label=label,
        split=SplitSection(valid=0, test=0),
    )
    found = infer_features(section.train, label)
    found.columns[:] = [column for column in found.columns if column.name not in left_out]
    write_experiment(path, found, section)
    return path


def metrics_of(probability: Floats, labels: npt.NDArray[np.int8]) -> dict[str, float]:
    """Return what the true probabilities reach."""
    return {
        "auc": float(roc_auc_score(labels, probability)),
        "logloss": float(log_loss(labels, probability)),
    }


def divide(table: pa.Table, folder: Path, share: float) -> None:
    """Write a table as training and validation data, by chance."""
    order = np.random.default_rng(0).permutation(table.num_rows)
    held = int(share * table.num_rows)
    pq.write_table(table.take(order[held:]), folder / "train.parquet")
    pq.write_table(table.take(order[:held]), folder / "valid.parquet")


def movielens_100k(folder: Path) -> pa.Table:
    """Join ratings, users and films: a rating above 3 is a click."""

    def read(name: str, columns: list[str], separator: str) -> pa.Table:
        text = (folder / name).read_bytes().decode("latin-1").encode()
        return pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(column_names=columns),
            pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False),
            pyarrow.csv.ConvertOptions(column_types={"zip": pa.string()}),
        )

    ratings = read("u.data", ["user", "item", "rating", "time"], "\t")
    users = read("u.user", ["user", "age", "gender", "occupation", "zip"], "|")
    genres = [line.split("|")[0] for line in (folder / "u.genre").read_text().split()]
    films = read("u.item", ["item", "title", "release", "video", "link", *genres], "|")
    flags = np.stack([films[genre].to_numpy() for genre in genres], axis=1)
    named = [[g for g, has in zip(genres, row, strict=True) if has] for row in flags]
    films = films.select(["item", "release"]).append_column("genres", pa.array(named))
    joined = ratings
    for key, others in (("user", users), ("item", films)):
        of_rating = others.take(pc.index_in(ratings[key], others[key]))
        for name in others.column_names[1:]:
            joined = joined.append_column(name, of_rating[name])
    clicks = pa.array((joined["rating"].to_numpy() > 3).astype(np.int8))
    return joined.drop_columns(["rating"]).append_column("label", clicks)


def run(name: str, path: Path, variant: str, seed: int) -> dict[str, object]:
    """Train one variant, and return what it reached on the validation data."""
    proposed = load_experiment(path)
    decay = proposed.training.embedding_weight_decay
    values = {
        "{other_norm}": str(not proposed.model.model_dump()["batch_norm"]).lower(),
        "{fifth}": str(decay / 5),
        "{threefold}": str(decay * 3),
    }
    changes = [f"training.seed={seed}", "training.threads=1", "training.baselines=false"]
    for change in VARIANTS[variant]:
        for key, value in values.items():
            change = change.replace(key, value)
        changes.append(change)
    folder = path.parent / "runs" / f"{variant.replace('/', 'by')}, seed {seed}"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    result = run_experiment(load_experiment(path, changes), folder, observers=[])
    assert result.valid is not None
    return {
        "table": name,
        "variant": variant,
        "seed": seed,
        "auc": result.valid["auc"],
        "logloss": result.valid["logloss"],
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "processor_seconds": round(time.process_time() - began, 1),
    }


def show(lines: list[dict[str, object]], work: Path) -> None:
    """Print all results, a row a variant: the change from what is proposed, in units of .0001."""
    tables = list(dict.fromkeys(str(line["table"]) for line in lines))
    mean: dict[tuple[str, str], tuple[float, float]] = {}
    for table, variant in itertools.product(tables, VARIANTS):
        mine = [line for line in lines if (line["table"], line["variant"]) == (table, variant)]
        if mine:
            values = np.array([[line["auc"], line["logloss"]] for line in mine], dtype=float)
            mean[table, variant] = (float(values[:, 0].mean()), float(values[:, 1].mean()))
    print("| | " + " | ".join(tables) + " |")
    print("|---|" + "---|" * len(tables))
    best = {t: json.loads((work / t / "best.json").read_text()) for t in tables}
    known = [f"{b['auc']:.4f} / {b['logloss']:.4f}" if b else "" for b in best.values()]
    print("| best possible | " + " | ".join(known) + " |")
    for variant in VARIANTS:
        cells = []
        for table in tables:
            found, proposed = mean.get((table, variant)), mean.get((table, "proposed"))
            if found is None or proposed is None:
                cells.append("")
            elif variant == "proposed":
                cells.append(f"{found[0]:.4f} / {found[1]:.4f}")
            elif found == proposed:
                cells.append("=")
            else:
                change = [1e4 * (a - b) for a, b in zip(found, proposed, strict=True)]
                cells.append(f"{change[0]:+.0f} / {change[1]:+.0f}")
        if any(cells):
            print(f"| {variant} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what is asked for and not done yet, and print all there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("study"), help="folder of data and results"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of real data"
    )
    parser.add_argument("--tables", help="names, with commas between; all if left out")
    parser.add_argument("--variants", help="names, with semicolons between; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = [*GENERATED, "click log", "criteo sample", "ml-100k", "ml-1m without ids", "ml-1m"]
    names = given.tables.split(",") if given.tables else names
    variants = given.variants.split(";") if given.variants else list(VARIANTS)
    results = given.work / "results.jsonl"

    def lines() -> list[dict[str, object]]:
        return (
            [json.loads(line) for line in results.read_text().splitlines()]
            if results.exists()
            else []
        )

    for name in names:
        path = prepare(name, given.work / name, given.data)
        if path is None:
            print(f"'{name}' is left out: its data are not in '{given.data}'.")
            continue
        for variant in variants:
            key = (name, variant, given.seed)
            if any((line["table"], line["variant"], line["seed"]) == key for line in lines()):
                continue
            found = run(name, path, variant, given.seed)
            print(json.dumps(found), flush=True)
            with results.open("a") as file:
                file.write(json.dumps(found) + "\n")
    show(lines(), given.work)


if __name__ == "__main__":
    main()
