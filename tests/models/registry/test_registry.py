"""The registry: models found by the names of their files, each with a section of its own."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from torchrec.models import registry
from torchrec.models.registry import ModelSection, add_folder, find, names

LATER = ["esmm", "fm", "lr", "mmoe", "ple", "shared_bottom"]  # in order, behind dlrm_dcn
TOY = """
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from torchrec.models.registry import ModelSection, RegisteredModel


class {class_name}(ModelSection):
    \"\"\"A sum.\"\"\"

    name: Literal["{name}"] = Field(default="{name}", description="the model")
    power: int = Field(default=2, description="of everything")


def build(section, inputs):
    return nn.Identity()


MODEL = RegisteredModel({class_name}, build)
"""


@pytest.fixture
def folder(tmp_path: Path, forgotten: None) -> Path:
    """A folder of models that is forgotten after the test."""
    return tmp_path


def write(folder: Path, name: str, declared: str | None = None) -> None:
    text = TOY.replace("{class_name}", "ToySection").replace("{name}", declared or name)
    (folder / f"{name}.py").write_text(text)


def test_each_model_is_a_file_of_its_name() -> None:
    files = Path(registry.__file__).parent.glob("[a-z]*.py")
    assert names() == sorted(path.stem for path in files)
    for name in names():
        assert find(name).section().name == name


def test_the_section_is_that_of_the_model() -> None:
    section = ModelSection(name="deepfm", dim=4, layers=[8])
    assert type(section) is find("deepfm").section
    assert section == find("deepfm").section(dim=4, layers=[8])
    assert type(ModelSection()) is find(registry.DEFAULT).section
    assert type(ModelSection.model_validate({"name": "dlrm"})) is find("dlrm").section
    assert ModelSection.model_validate(section) is section


def test_sections_are_copied_whole() -> None:
    section = ModelSection(name="dlrm_dcn", cross_layers=7)
    for other in (copy.deepcopy(section), pickle.loads(pickle.dumps(section))):
        assert other == section
        assert type(other) is type(section)
    assert section.model_copy(update={"dim": 3}).model_dump()["cross_layers"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "deepfm", "cross_layers": 9},
            "`cross_layers` is not an option of model 'deepfm'",
        ),
        ({"name": "dlrm", "cross_rank": 9}, "not an option of model 'dlrm', but of 'dlrm_dcn'"),
        ({"cross_layer": 9}, "of model 'dlrm_dcn'; did you mean `cross_layers`"),
        ({"name": "deepfm", "dim": 0}, "greater than 0"),
        ({"name": "deepfm", "dropout": 1.0}, "less than 1"),
        ({"name": "deepfm", "dropout": float("nan")}, "finite number"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSection(**options)
    with pytest.raises(ValidationError, match=message):
        ModelSection.model_validate(options)


def test_an_unknown_model_gives_the_nearest() -> None:
    message = (
        r"one of deepfm, dlrm, dlrm_dcn, esmm, fm, lr, mmoe, ple, shared_bottom\. Received "
        r"'dlmr'; did you mean 'dlrm'\?"
    )
    with pytest.raises(ValueError, match=message):
        ModelSection(name="dlmr")


@pytest.mark.parametrize("name", [None, 3, ["dlrm"], {"a": 1}, ""], ids=repr)
def test_a_name_that_is_none(name: object) -> None:
    with pytest.raises(
        ValueError, match=r"^The name of a model should be one of .* Received "
    ) as one:
        ModelSection(name=name)
    assert f"Received {name!r}." in str(one.value)
    with pytest.raises(ValidationError, match=r"The name of a model should be one of .* Received "):
        ModelSection.model_validate({"name": name})


@pytest.mark.parametrize(
    ("option", "value"), [("dim", -3), ("dropout", 1.0), ("name", "dlrm"), ("cross_layers", 3)]
)
def test_options_are_checked_when_they_are_assigned(option: str, value: object) -> None:
    section = ModelSection(name="deepfm")
    section.dim = 8
    before = section.model_dump()
    with pytest.raises(ValidationError):
        setattr(section, option, value)
    assert section.model_dump() == before == ModelSection(name="deepfm", dim=8).model_dump()


def test_a_file_adds_a_model(folder: Path) -> None:
    write(folder, "toy")
    write(folder, "_private")
    with pytest.raises(ValueError, match="Received 'toy'"):
        ModelSection(name="toy")
    add_folder(folder)
    add_folder(folder)
    assert names() == ["deepfm", "dlrm", "dlrm_dcn", *LATER, "toy"]
    shared = {"name": "toy", "dim": 16, "table_init": None, "layer_init": None}
    assert ModelSection(name="toy", power=3).model_dump() == {**shared, "power": 3}
    with pytest.raises(
        ValidationError, match="`power` is not an option of model 'dlrm', but of 'toy'"
    ):
        ModelSection(name="dlrm", power=3)


def test_names_are_not_taken_twice(folder: Path) -> None:
    write(folder, "deepfm")
    with pytest.raises(ValueError, match=r"names of their own\. Received 'deepfm', which is taken"):
        add_folder(folder)
    assert names() == ["deepfm", "dlrm", "dlrm_dcn", *LATER]


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"The folder of models should exist\. Received '.*nowhere'"
    ):
        add_folder(folder / "nowhere")


@pytest.mark.parametrize("text", ["MODEL = 3", "x = 1", None], ids=["other", "none", "misnamed"])
def test_a_file_that_declares_no_model_of_its_name(folder: Path, text: str | None) -> None:
    if text is None:
        write(folder, "toy", declared="joy")
    else:
        (folder / "toy.py").write_text(text)
    add_folder(folder)
    with pytest.raises(TypeError, match=r"toy\.py' should declare `MODEL`.*the name 'toy'"):
        find("toy")


@pytest.mark.parametrize(
    "text", ["raise RuntimeError('boom')", "import nowhere", "def", "raise ValueError('boom')"]
)
def test_a_broken_file_hinders_nobody_else(folder: Path, text: str) -> None:
    (folder / "broken.py").write_text(text)
    write(folder, "toy")
    add_folder(folder)
    assert names() == ["broken", "deepfm", "dlrm", "dlrm_dcn", *LATER, "toy"]
    assert ModelSection(name="toy", power=3) == ModelSection.model_validate(
        {"name": "toy", "power": 3}
    )
    with pytest.raises(
        ValidationError, match="`power` is not an option of model 'dlrm', but of 'toy'"
    ):
        ModelSection(name="dlrm", power=3)
    assert "ToySection" in ModelSection.model_json_schema()["$defs"]
    for make in (ModelSection, lambda **options: ModelSection.model_validate(options)):
        with pytest.raises(
            ImportError, match=r"The file of model 'broken' should be one that Python imports"
        ):
            make(name="broken")


def test_a_file_is_imported_when_it_is_named(folder: Path) -> None:
    for name in ("first", "second"):
        write(folder, name)
    add_folder(folder)
    package = registry.__name__
    assert "first" in names()
    assert ModelSection.model_validate({"name": "first"}).name == "first"
    assert f"{package}.first" in sys.modules
    assert f"{package}.second" not in sys.modules


def test_folders_in_a_folder_are_no_models(folder: Path) -> None:
    write(folder, "toy")
    for name in ("parts", "dlrm"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    add_folder(folder)
    assert names() == ["deepfm", "dlrm", "dlrm_dcn", *LATER, "toy"]
    with pytest.raises(ValueError, match="Received 'parts'"):
        ModelSection(name="parts")
    assert ModelSection(name="dlrm").name == "dlrm"
