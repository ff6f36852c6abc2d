"""Experiment files: their keys, and what each may hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from torchrec.datasets.transform import FeatureTransform
from torchrec.experiment._keys import expected, keys_of, node_at, root
from torchrec.experiment._reference import page
from torchrec.experiment.files import load_experiment
from torchrec.experiment.schema import Experiment, TrainingSection
from torchrec.models.registry import find, names

pytestmark = pytest.mark.once

DOCUMENT = Path(__file__).parents[2] / "docs" / "experiment.md"


def every_key(node: dict, prefix: str = "") -> list[str]:
    """List the keys below a node, as in `training.schedule.decay`; features apart."""
    found = []
    for name in keys_of(node):
        key = f"{prefix}{name}"
        child, _ = node_at(key.split("."))
        found += [key, *(every_key(child, f"{key}.") if name != "features" else [])]
    return found


def test_keys_that_others_rely_on() -> None:
    frozen = {
        "data.train": "a list, each text",
        "data.valid": "a list, each text",
        "data.test": "a list, each text",
        "data.label": "text",
        "model.name": "'deepfm', 'dlrm', 'dlrm_dcn', 'esmm', 'fm', 'lr', 'mmoe', 'ple' or 'shared_bottom'",
        "training.epochs": "a whole number above 0",
        "training.batch_size": "a whole number above 0",
        "training.learning_rate": "a number above 0",
        "training.seed": "a whole number at least 0",
        "output": "text",
    }
    for key, words in frozen.items():
        node, name = node_at(key.split("."))
        assert node is not None, f"`{key}` is gone"
        assert name == key
        assert words in expected(node)


@pytest.mark.parametrize("key", every_key(root()))
def test_every_key_is_described(key: str) -> None:
    node, _ = node_at(key.split("."))
    assert node is not None
    described = node.get("description")
    assert described, f"`{key}` has no description"
    assert not str(described).endswith(".")


@pytest.mark.parametrize("model", names())
def test_every_option_of_a_model_is_described(model: str) -> None:
    options = find(model).section.model_fields
    assert list(options)[:2] == ["name", "dim"]
    for option, field in options.items():
        assert field.description, f"`{option}` of {model} has no description"
        node, name = node_at(["model", model, option])
        assert name == f"model.{option}"
        assert node is not None
        assert node.get("description") == field.description


def test_two_lines_are_enough() -> None:
    experiment = Experiment.model_validate({"data": {"train": "clicks.parquet", "label": "click"}})
    assert experiment.data.train == ["clicks.parquet"]
    assert experiment.features is None


def test_optimizers_are_named_as_kernels_elsewhere_are() -> None:
    section = TrainingSection.model_validate(
        {"optimizer": "EXACT_SGD", "embedding_optimizer": "EXACT_ROWWISE_ADAGRAD"}
    )
    assert (section.optimizer, section.embedding_optimizer) == ("sgd", "rowwise_adagrad")
    for key, wrong in (("optimizer", "lamb"), ("embedding_optimizer", "exact_adam")):
        with pytest.raises(ValidationError, match=f"{key}\n  Input should be 'adam'"):
            TrainingSection.model_validate({key: wrong})


def test_defaults_are_not_shared() -> None:
    data = {"train": "clicks.parquet", "label": "click"}
    one, two = (Experiment.model_validate({"data": data}) for _ in range(2))
    one.training.schedule.warmup_steps = 5
    one.model.layers.append(7)
    assert (two.training.schedule.warmup_steps, two.model.layers) == (0, [256, 128])


def test_the_page_is_up_to_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == page(text), "run: python -m torchrec.experiment._reference docs/experiment.md"


def test_examples_of_the_page(tmp_path: Path) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    for example in examples:
        path = tmp_path / "experiment.yaml"
        path.write_text(example)
        experiment = load_experiment(path)
        if experiment.features is not None:
            FeatureTransform(experiment.features, experiment.data.label)
