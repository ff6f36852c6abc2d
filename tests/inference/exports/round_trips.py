"""Models of the registry with tables of each precision, written in each format and asked again.

``python -m tests.inference.exports.round_trips [FORMAT ...]`` does so for the whole product, which takes half an hour
of processor time, and prints the greatest difference of each.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from torchrec.bundle import save_bundle
from torchrec.datasets.features import DenseFeature, MultiHotFeature, SequenceFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform, Target
from torchrec.inference import Predictor, export, load
from torchrec.inference.exports.formats import Format
from torchrec.inference.modules import quantize_embeddings
from torchrec.inference.parity import Parity, compare
from torchrec.models.registry import build_model, find, names

PRECISIONS = {
    "FP32": torch.float32,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.qint8,
    "INT4": torch.quint4x2,
    "INT2": torch.quint2x4,
}
FORMATS: list[Format] = ["torch-export", "onnx", "aoti"]

# The fewest that have a number, a table of two features, one of an odd policy, weights, and missing values.
FEATURES = {
    "price": DenseFeature(log=True),
    "item": SparseFeature(rows=17),
    "seen": SequenceFeature(rows=17, table="item", max_length=2),
    "shop": SparseFeature(ids="plain", rows=9, out_of_range="clamp"),
    "tags": MultiHotFeature(ids="vocabulary", weights="factors", pooling="mean"),
}


def rows(count: int, seed: int) -> pa.Table:
    """Rows of which a fifth of all values is missing, with empty lists, and ids that no training had."""
    random = np.random.default_rng(seed)

    def column(values) -> list[object]:
        return [None if random.random() < 0.2 else value for value in values]

    bags = [random.integers(0, 20 + seed, random.integers(0, 4)).tolist() for _ in range(count)]
    return pa.table(
        {
            "price": column((random.normal(size=count) * 100).tolist()),
            "item": column(random.integers(0, 40, count).tolist()),
            "seen": pa.array(bags, pa.list_(pa.int64())),
            "shop": column(random.integers(-3, 14, count).tolist()),
            "tags": pa.array(bags[::-1], pa.list_(pa.int64())),
            "factors": pa.array(
                [random.random(len(bag)).tolist() for bag in bags[::-1]], pa.list_(pa.float64())
            ),
            "click": random.integers(0, 2, count),
            "buy": random.integers(0, 2, count),
        }
    )


def bundled(name: str, precision: str, folder: Path) -> Predictor:
    """Write a bundle of a model whose weights are drawn; return what was written."""
    model_class = find(name)
    several = {"click": Target("click"), "buy": Target("buy")}
    targets = {"targets": several} if _needs_tasks(name) else {}
    transform = FeatureTransform(FEATURES, **targets).fit([rows(200, 0)])
    options = {"dense_layers": [8, 4]} if name in ("dlrm", "dlrm_dcn") else {}
    section = model_class.section.model_validate({"name": name, "dim": 4, **options})
    torch.manual_seed(0)
    model = build_model(section, transform)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)  # linear models begin with zeros
    small: nn.Module = quantize_embeddings(model, PRECISIONS[precision], inplace=False).eval()
    save_bundle(folder, small, transform, section)
    return Predictor(None, transform, small)


def compared(bundle: Path, format: Format, folder: Path) -> Parity:
    """Export a bundle, and compare it with its export: on many rows, and on one."""
    export(bundle, folder, format)
    predictor = load(bundle)
    found = compare(predictor, folder, [rows(200, 3)])
    alone = compare(predictor, folder, [rows(1, 4)])
    return found if found.greatest >= alone.greatest or not found.holds else alone


def _needs_tasks(name: str) -> bool:
    return name in ("esmm", "mmoe", "ple", "shared_bottom")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", default=FORMATS)
    parser.add_argument("--models", nargs="*", default=names())
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    failed = 0
    for name, precision in itertools.product(options.models, PRECISIONS):
        with tempfile.TemporaryDirectory() as parent:
            bundled(name, precision, Path(parent) / "bundle")
            for format in options.formats:
                found = compared(Path(parent) / "bundle", format, Path(parent) / format)
                failed += not found.holds
                verdict = "" if found.holds else " FAILED"
                print(f"{name} {precision} {format} {found.greatest:.1e}{verdict}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
