"""Exported models: they predict what the model does, where this package cannot be imported."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from torchrec import EmbeddingBagCollection
from torchrec.datasets.features import (
    AnyFeature,
    DenseFeature,
    MultiHotFeature,
    SequenceFeature,
    SparseFeature,
    VectorFeature,
)
from torchrec.datasets.transform import FeatureTransform, Target
from torchrec.inference import Predictor, export
from torchrec.inference.exports.formats import Format
from torchrec.inference.modules import quantize_embeddings
from torchrec.inference.parity import compare
from torchrec.models.registry import ModelSection, build_model, find

# torch's own tracing warns about its own insides.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]

FEATURES: dict[str, AnyFeature] = {
    "price": DenseFeature(log=True),
    "age": DenseFeature(fill=0.3, standardise=False),
    "image": VectorFeature(size=3, fill=0.5),
    "hour": DenseFeature(buckets=5, dim=4),
    "width": DenseFeature(buckets=3, log=True, dim=4),
    "user": SparseFeature(ids="vocabulary", min_count=2),
    "item": SparseFeature(rows=17),
    "country": SparseFeature(ids="vocabulary", rows=3),
    "shop": SparseFeature(ids="plain", rows=9, out_of_range="clamp"),
    "tags": MultiHotFeature(ids="vocabulary", weights="factors", max_length=3, pooling="mean"),
    "seen": SequenceFeature(rows=17, table="item", max_length=2),
    "scored": MultiHotFeature(ids="vocabulary", separator="|", weight_separator=":"),
}


def rows(count: int, seed: int) -> pa.Table:
    """Rows of which a fifth of all values is missing, with ids that no training had."""
    random = np.random.default_rng(seed)

    def column(draw) -> list[object]:
        return [None if random.random() < 0.2 else draw() for _ in range(count)]

    bags = [
        [int(one) for one in random.integers(0, 40, random.integers(0, 5))] for _ in range(count)
    ]
    wide = seed + 1
    return pa.table(
        {
            "price": column(lambda: float(random.normal() * 10 ** random.integers(0, 9))),
            "age": column(lambda: float(random.random())),
            "image": pa.array(
                column(lambda: [None, *random.normal(size=2)]), pa.list_(pa.float64())
            ),
            "hour": column(lambda: float(random.normal())),
            "width": column(lambda: float(random.exponential() * 9)),
            "user": column(
                lambda: int(
                    random.integers(-(2**62), 2**62)
                    if random.random() < 0.1
                    else random.integers(0, 9 * wide)
                )
            ),
            "item": column(lambda: f"item {random.integers(0, 50)}"),
            "country": column(lambda: ["de", "fr", "it", "äö", ""][random.integers(0, 5)]),
            "shop": column(lambda: int(random.integers(-3, 14))),
            "tags": pa.array(bags, pa.list_(pa.int64())),
            "factors": pa.array(
                [[float(len(bag) - i) for i in range(len(bag))] for bag in bags],
                pa.list_(pa.float64()),
            ),
            "scored": column(lambda: f"a:{random.random():.3f}|b|c:{wide}"),
            "seen": pa.array(
                [[f"item {one}" for one in bag] for bag in reversed(bags)], pa.list_(pa.string())
            ),
        }
    )


def trained(name: str, features: dict[str, AnyFeature]) -> Predictor:
    torch.manual_seed(0)
    transform = FeatureTransform(features).fit([rows(200, 0)])
    options = {"dlrm": {"dense_layers": [8, 4]}, "dlrm_dcn": {"dense_layers": [8, 4]}}.get(name, {})
    section = ModelSection.model_validate({"name": name, "dim": 4, **options})
    return Predictor(None, transform, build_model(section, transform))


def check(predictor: Predictor, found: tuple[np.ndarray, ...], table: pa.Table) -> None:
    probabilities, logits = map(torch.as_tensor, found)
    torch.testing.assert_close(probabilities, predictor.predict(table), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, predictor.logits(table), rtol=1e-6, atol=2e-6)


OUTSIDE = """
import sys
sys.modules["torchrec"] = None
import numpy as np, torch
kind, path, given, out = sys.argv[1:]
batches = np.load(given)
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    call = lambda inputs: session.run(["probabilities", "logits"], {k: v for k, v in inputs.items()})
else:
    if kind == "aoti":
        from torch._inductor import aoti_load_package
        module = aoti_load_package(path)
    else:
        module = torch.export.load(path).module()
    call = lambda inputs: [each.numpy() for each in module(*map(torch.from_numpy, inputs.values()))]
results = {}
for number in range(int(batches["count"])):
    names = [n for n in ("numbers", "ids", "lengths", "weights") if f"{n}{number}" in batches]
    found = call({n: batches[f"{n}{number}"] for n in names})
    results |= {f"probabilities{number}": found[0], f"logits{number}": found[1]}
np.savez(out, **results)
"""


def outside(kind: str, path: Path, predictor: Predictor, tables: list[pa.Table]) -> None:
    """Predict in a process that cannot import this package, and compare."""
    given, out = path.with_name("given.npz"), path.with_name("out.npz")
    arrays: dict[str, object] = {"count": len(tables)}
    for number, table in enumerate(tables):
        for name, tensor in vars(predictor.transform.read_raw(table)).items():
            if tensor is not None:
                arrays[f"{name}{number}"] = tensor.numpy()
    np.savez(given, **arrays)
    command = [sys.executable, "-W", "ignore", "-c", OUTSIDE, kind, path, given, out]
    subprocess.run(list(map(str, command)), check=True, cwd=path.parent)
    found = np.load(out)
    for number, table in enumerate(tables):
        check(predictor, (found[f"probabilities{number}"], found[f"logits{number}"]), table)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-export", "onnx", "aoti"])
def test_predicts_the_same_where_there_is_only_the_file(kind: str, tmp_path: Path) -> None:
    predictor = trained("deepfm", FEATURES)
    path = export(predictor, tmp_path / "model", kind)
    outside(kind, path, predictor, [rows(size, size) for size in (1, 2, 300, 1000)])
    written = json.loads((tmp_path / "model" / "model.json").read_text())
    assert written["format"] == kind
    assert [each["feature"] for each in written["inputs"]["numbers"]["columns"]] == [
        "price",
        "age",
        *["image"] * 3,
        "hour",
        "width",
    ]
    assert [each["feature"] for each in written["inputs"]["lengths"]["features"]] == [
        "user",
        "item",
        "country",
        "shop",
        "tags",
        "seen",
        "scored",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-export", "onnx", "aoti"])
def test_tables_of_few_bits(kind: str, tmp_path: Path) -> None:
    """Tables of every number of bits, of one feature and of two, with weights and without."""
    few = {n: FEATURES[n] for n in ("price", "user", "item", "shop", "seen", "tags")}
    predictor = trained("deepfm", few)
    quantized = quantize_embeddings(
        predictor.model,
        torch.qint8,
        inplace=False,
        per_table_weight_dtype={
            "item": torch.quint4x2,
            "tags": torch.quint2x4,
            "user": torch.float16,
        },
    )
    small = Predictor(None, predictor.transform, quantized)
    path = export(small, tmp_path / "model", kind)
    outside(kind, path, small, [rows(size, size) for size in (1, 2, 300, 1000)])


@pytest.mark.slow
def test_pruned_tables(tmp_path: Path) -> None:
    predictor = trained("deepfm", {n: FEATURES[n] for n in ("price", "user", "item", "seen")})
    for module in predictor.model.modules():
        if isinstance(module, EmbeddingBagCollection):
            config = next(c for c in module.embedding_bag_configs() if c.name == "item")
            remapping = torch.full((config.num_rows,), -1)
            remapping[1::2] = torch.arange(len(remapping[1::2]))
            config.num_embeddings_post_pruning = len(remapping[1::2])
            config.pruning_indices_remapping = remapping
    small = Predictor(
        None,
        predictor.transform,
        quantize_embeddings(predictor.model, torch.qint8, inplace=False),
    )
    table = rows(300, 1)
    assert (small.predict(table) - predictor.predict(table)).abs().max() > 1e-5
    path = export(small, tmp_path / "model", "onnx")
    outside("onnx", path, small, [table, rows(1, 2)])


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`format` should be one of torch-export, aoti, onnx. Re"):
        export(tmp_path, tmp_path / "model", "tensorrt")  # type: ignore[arg-type]


def test_packages_for_onnx_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'rowwise\[export\]'"):
        export(tmp_path, tmp_path / "model", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("names", [("price",), ("item",)])
def test_few_features(names: tuple[str, ...], tmp_path: Path) -> None:
    """Sizes that are those of others then: as many ids as rows, and no ids at all."""
    predictor = trained("lr", {name: FEATURES[name] for name in names})
    with torch.no_grad():
        for one in predictor.model.parameters():
            one.normal_()
    module = torch.export.load(export(predictor, tmp_path / "out", "torch-export")).module()
    for count in (1, 2, 50):
        table = rows(count, 3)
        raw = predictor.transform.read_raw(table)
        inputs = [tensor for tensor in vars(raw).values() if tensor is not None]
        check(predictor, tuple(each.numpy() for each in module(*inputs)), table)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), [("shared_bottom", "onnx"), ("mmoe", "torch-export")])
def test_several_tasks(name: str, format: Format, tmp_path: Path) -> None:
    """Each is an output of its own: a number, or one a class."""
    kinds = {"click": ("click", None), "stars": ("multiclass", 3), "level": ("ordinal", 4)}
    targets = {task: Target(task, *kind) for task, kind in kinds.items()}
    targets["cost"] = Target("cost", "regression")
    table = rows(200, 0)
    for task, target in targets.items():
        labels = np.random.default_rng(0).integers(0, target.classes or 2, 200)
        table = table.append_column(task, pa.array(labels))
    features = {feature: FEATURES[feature] for feature in ("price", "user", "tags")}
    transform = FeatureTransform(features, targets=targets).fit([table])
    torch.manual_seed(0)
    model = build_model(find(name).section.model_validate({"dim": 4}), transform)
    predictor = Predictor(None, transform, model)
    folder = export(predictor, tmp_path / "out", format).parent
    outputs = json.loads((folder / "model.json").read_text())["outputs"]
    assert {one: found["shape"] for one, found in outputs.items()} == {
        "prediction_click": ["rows"],
        "prediction_stars": ["rows", 3],
        "prediction_level": ["rows", 4],
        "prediction_cost": ["rows"],
    }
    found = compare(predictor, folder, [rows(200, 3)])
    assert found.holds
    assert compare(predictor, folder, [rows(1, 4)]).holds
