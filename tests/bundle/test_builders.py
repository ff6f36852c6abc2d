"""What is saved and what it is loaded into go together, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import nn

from torchrec.bundle import load_bundle, save_bundle
from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.models.registry import ModelSection, build_model

pytestmark = pytest.mark.once

TABLE = pa.table({"user": ["ann", "ben", None], "price": [1.0, 2.5, 4.0], "click": [0, 1, 1]})
FEATURES = {"user": SparseFeature(ids="vocabulary"), "price": DenseFeature()}
SECTION = ModelSection(name="dlrm", dim=4, layers=[8], dense_layers=[8])


@pytest.fixture
def transform() -> FeatureTransform:
    return FeatureTransform(FEATURES, "click").fit([TABLE])


class Sum(nn.Module):
    """The sum of two layers, which may be one, and a buffer."""

    def __init__(self, tied: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, dtype=dtype), nn.Linear(1, 1, dtype=dtype)
        self.register_buffer("steps", torch.zeros(2))
        self.register_buffer("again", self.steps if tied else torch.zeros(2))
        if tied:
            self.second.weight = self.first.weight


def on(device: str, made: Callable[[], nn.Module]) -> Callable[[FeatureTransform], nn.Module]:
    def builder(transform: FeatureTransform) -> nn.Module:
        with torch.device(device):
            return made()

    return builder


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("part", ["weight", "buffer", "neither"])
def test_two_values_for_one_tensor_are_refused(
    tmp_path: Path, transform: FeatureTransform, device: str, part: str
) -> None:
    saved = Sum()
    with torch.no_grad():
        saved.first.weight.fill_(float("nan") if part == "neither" else 1.0)
        saved.second.weight.fill_(2.0 if part == "weight" else saved.first.weight.item())
        saved.again.fill_(3.0 if part == "buffer" else 0.0)
    save_bundle(tmp_path / "sum", saved, transform)
    builder = on(device, lambda: Sum(tied=True))
    if part == "neither":
        loaded = load_bundle(tmp_path / "sum", builder=builder).model
        assert isinstance(loaded, Sum)
        assert loaded.first.weight is loaded.second.weight
        assert loaded.first.weight.isnan().all()
        assert torch.equal(loaded.second.bias, saved.second.bias)
        return
    names = {"weight": "'first.weight' and 'second.weight'", "buffer": "'steps' and 'again'"}
    with pytest.raises(ValueError, match=f"where {names[part]} are one tensor. Received two value"):
        load_bundle(tmp_path / "sum", builder=builder)


def counting() -> nn.Module:
    model = Sum()
    model.steps = torch.zeros(2, dtype=torch.int64)
    return model


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Sum(dtype=torch.float16), r"'first\.weight' of torch\.float16"),
        (lambda: Sum(dtype=torch.float64), r"'first\.weight' of torch\.float64"),
        (counting, r"'steps' of torch\.int64"),
    ],
    ids=["narrower", "wider", "buffer"],
)
def test_values_of_another_type_are_refused(
    tmp_path: Path,
    transform: FeatureTransform,
    device: str,
    made: Callable[[], nn.Module],
    message: str,
) -> None:
    save_bundle(tmp_path / "sum", Sum(), transform)
    with pytest.raises(ValueError, match=message + r"\. Received torch\.float32"):
        load_bundle(tmp_path / "sum", builder=on(device, made))


@pytest.mark.parametrize("made", [None, "model", Sum], ids=repr)
def test_a_builder_that_returns_no_module(
    tmp_path: Path, transform: FeatureTransform, made: object
) -> None:
    save_bundle(tmp_path / "sum", Sum(), transform)
    with pytest.raises(TypeError, match=r"`builder` should return an nn\.Module\. Received"):
        load_bundle(tmp_path / "sum", builder=lambda transform: made)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("section", [None, SECTION], ids=["own", "registry"])
def test_a_transform_that_is_not_fitted_is_not_saved(
    tmp_path: Path, section: ModelSection | None
) -> None:
    with pytest.raises(ValueError, match="`transform` should be fitted to the training data first"):
        save_bundle(tmp_path / "sum", Sum(), FeatureTransform(FEATURES, "click"), section)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "section",
    [ModelSection(name="deepfm", dim=4, layers=[8]), SECTION.model_copy(update={"dim": 8})],
    ids=["of another model", "of another size"],
)
def test_a_section_of_another_model_is_not_saved(
    tmp_path: Path, transform: FeatureTransform, section: ModelSection
) -> None:
    with pytest.raises(
        ValueError, match=r"`section` should be of the model that is saved\. Receiv"
    ):
        save_bundle(tmp_path / "model", build_model(SECTION, transform), transform, section)
    assert list(tmp_path.iterdir()) == []
