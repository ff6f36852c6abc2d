"""Experiment files: read, overridden, refused with one line, written back."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec.experiment._yaml import parse_yaml, write_inline, write_key, write_yaml
from torchrec.experiment.files import dump_experiment, load_experiment
from torchrec.experiment.schema import Experiment
from torchrec.experiment.sources import check_columns

pytestmark = pytest.mark.once

MINIMAL = "data: {train: clicks.parquet, label: click}\n"

BOMB = ["a: &a [x,x,x,x,x,x,x,x,x]"]
BOMB += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghij")]
MERGES = ["a: &a {x: 1}"]
MERGES += [
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}" for a, b in itertools.pairwise("abcdefghij")
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "experiment.yaml"


def load(file: Path, text: str, *overrides: str) -> Experiment:
    file.write_text(text, encoding="utf-8")
    return load_experiment(file, overrides)


def failure(file: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(file, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_six_lines(file: Path) -> None:
    experiment = load(
        file,
        "data:\n  train: part-*.parquet\n  label: rating > 3\n"
        "model:\n  name: deepfm\noutput: runs/six\n",
    )
    assert experiment.data.train == [str(file.parent / "part-*.parquet")]
    assert experiment.data.label == "rating > 3"
    assert (experiment.model.name, experiment.output) == ("deepfm", "runs/six")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e6", 1_000_000),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("131_072", 131_072),
        ("010", 10),
        ("0x1f", 31),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("-.inf", -math.inf),
    ],
)
def test_scalars(text: str, value: object) -> None:
    got = parse_yaml(f"key: {text}")
    assert got == {"key": value}
    assert type(got["key"]) is type(value)


def test_keys_are_text() -> None:
    assert parse_yaml("{1: a, no: b, 1e3: c}") == {"1": "a", "no": "b", "1e3": "c"}


def test_aliases_are_read_but_do_not_multiply_without_end(file: Path) -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 3}, e: *a}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": 3, "e": [1, 2]},
    }
    message = failure(file, MINIMAL + "\n".join(BOMB))
    assert "line 8: `&` and `*` should not make more than 1,000,000 values" in message


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(VALUES)
def test_yaml_there_and_back(value: object) -> None:
    assert parse_yaml(write_yaml(value)) == value


WORDS = ["no", "1e-3", "null", "~", "0x1f", "=", "<<", "12:30", "*a", "010", "é\u2028", "\x85"]


@pytest.mark.parametrize("word", [*WORDS, "", "a: b"])
def test_words_there_and_back(word: str) -> None:
    assert parse_yaml(write_yaml({word: [word]})) == {word: [word]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "data: {train: b, label: y}", "line 2: `data` stands there twice"),
        ("data:\n\ttrain: a", "line 2: indent with spaces. Received a tab"),
        ("data:\n  train: *.parquet", "line 2: text that begins with `*` should stand in quotes"),
        ("a: !!python/object/apply:os.system [x]", "line 1: plain data is all that is read"),
        ("data: {train: a\nmodel: b", "line 2: "),
        ("a: !!set {x, y}", "line 1: plain data is all that is read. Received a tag that begins"),
        ("a: !!binary aGk=", "line 1: plain data is all that is read. Received a tag that begins"),
        ("a: !!timestamp 2001-01-01", "line 1: plain data is all that is read. Received a tag"),
        ("a: !!int x", "line 1: `!!int` should stand before one. Received 'x'"),
        ("a: !!bool [true]", "line 1: plain data is all that is read. Received a tag"),
        ("!!map [a]: b", "line 1: plain data is all that is read. Received a tag"),
        ("a: !mine b", "line 1: plain data is all that is read. Received a tag"),
        ("a: 1\nb: !!omap [x: 1]", "line 2: plain data is all that is read. Received a tag"),
        ("!!binary aGk=: 3", "line 1: plain data is all that is read. Received a tag"),
        ("a: &x 1\nb: &x 2", "line 2: `&x` stands there twice"),
        ("a: &x {<<: *x}", "line 1: `&` and `*` should not make a value that holds itself"),
        ("a: {<<: 3}", "line 1: `<<` should be followed by sections"),
        ("a: 1\n---\nb: 2", "line 2: one document is all that is read. Received a second one"),
        ("a: " + "9" * 5000, "line 1: an integer should have at most 400 digits. Received 5,000"),
        ("a: 1e999", "line 1: a number should be at most 1.8e308, or .inf"),
        ('a: "\\ud800"', "line 1: an escape of half a character should stand before the other"),
        ('a: 1\nb: "\\U00110000"', "line 2: an escape should be one of a character"),
        ("a: %b", "line 1: text that begins with `%` should stand in quotes"),
        ("a: [1,,2]", "line 1: a value should stand before `,`"),
        ("a: [1", "line 1: expected ',' or ']', but nothing follows"),
        ("a: 'b", "line 1: a quote should be closed"),
        ("a: 1\n b: 2", "line 2: a line should have one key"),
        ("a:\n  b: 1\n c: 2", "line 3: lines of one section should begin in the same column"),
        ("a: - b", "line 1: `- ` should begin a line"),
        ("&a &b c", "line 1: what stands here does not belong to what stands before it"),
        ("a: 1\nb: &b [*b]", "line 2: `&` and `*` should not make a value that holds itself"),
        ("a: b: c", "line 1: a line should have one key and `: `; text with `: ` stands in quotes"),
        ("? [1]\n: 2", "line 1: a key should be a word"),
        ("a: \x07", "line 1: control characters should be escapes in double quotes"),
    ],
)
def test_no_yaml(file: Path, text: str, message: str) -> None:
    assert failure(file, text).startswith(f"experiment.yaml, {message}")


CHAIN = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 300))]
LONG = f"a: &a '{'x' * 20_000}'\nb: [{','.join(['*a'] * 80)}]"
LONGER = f"{LONG}\nc: &c [{','.join(['*a'] * 40)}]\nd: [{','.join(['*c'] * 40)}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(BOMB), "line 7: `&` and `*` should not make more than 1,000,000 values"),
        ("\n".join(MERGES), "line 7: `&` and `*` should not make more than 1,000,000 values"),
        ("\n".join(CHAIN), "line 100: values should be nested at most 100 deep"),
        (LONGER, "line 4: `&` and `*` should not make more than 1,000,000 values"),
        ("a: " + "[" * 400_000, "line 1: values should be nested at most 100 deep"),
        ("a: " + "{a: " * 20_000, "line 1: values should be nested at most 100 deep"),
        ("a: " + "[" * 300 + "]" * 300, "line 1: values should be nested at most 100 deep"),
        ("- " * 20_000 + "a", "line 1: values should be nested at most 100 deep"),
        ("? " * 20_000 + "a", "line 1: values should be nested at most 100 deep"),
        ("".join(" " * n + "a:\n" for n in range(500)), "line 100: values should be nested at"),
        ("[" + ",".join("x" * 500_000) + "]", "line 1: a line should have at most 500,000"),
        ("a: 1\nb: " + "x" * 1_000_000, "line 2: a line should have at most 500,000 characters"),
        ("a: 0x" + "f" * 400_000, "line 1: an integer should have at most 400 digits"),
    ],
    ids=["aliases", "merges", "chain", "texts", "lists", "mappings", "closed", "block", "keys",
         "indented", "list on a line", "text on a line", "digits"],
)  # fmt: skip
def test_files_that_are_made_to_hurt(text: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_yaml(text)
    assert time.process_time() - began < 3  # a tenth, on a machine that does nothing else


def test_what_is_large_but_honest() -> None:
    assert len(parse_yaml(LONG)["b"]) == 80
    assert parse_yaml("[" * 90 + "]" * 90) is not None
    assert parse_yaml("a: " + "x" * 100_000) == {"a": "x" * 100_000}
    assert parse_yaml("a: " + "9" * 300) == {"a": int("9" * 300)}
    assert parse_yaml("!!map {a: !!str 3, b: !!int 4, c: !!float 5, d: ! x, e: !!seq [<<]}") == {
        "a": "3", "b": 4, "c": 5.0, "d": "x", "e": ["<<"]
    }  # fmt: skip


def test_characters_beyond_16_bits_may_be_written_as_json_does() -> None:
    assert parse_yaml(json.dumps({"user 🙂": ["🙃"]})) == {"user 🙂": ["🙃"]}
    name = "line\nbreak 🙂"
    assert parse_yaml(f"{write_key(name)}: 1") == {name: 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            " should hold sections (data, tasks, features, model, training, "
            "distributed, continue_from, metrics, output, tune). Received nothing.",
        ),
        (
            "- a",
            " should hold sections (data, tasks, features, model, training, "
            "distributed, continue_from, metrics, output, tune). Received a list.",
        ),
        ("data: 3", ": `data` should be a section with keys such as `train`. Received 3."),
        (
            "data: {train: a}",
            ": `data.label` should be given, the column of 0 and 1 to predict, or an expression such "
            "as `rating > 3`; or `tasks` in its place. Received neither.",
        ),
        (
            MINIMAL + "trainig: {}",
            ": `trainig` is not a key of the file; did you mean `training`? Its keys: data, tasks, "
            "features, model, training, distributed, continue_from, metrics, output, tune.",
        ),
        (
            "data: {train: [], label: y}",
            ": `data.train` should not be empty: files or patterns such as `clicks/*.parquet`, one or "
            "a list; relative to the experiment file.",
        ),
        (
            "data: {train: a, label: y, split: {by: time}}",
            ": `data.split.column` should name the column of time when `data.split.by` is 'time'. "
            "Received none.",
        ),
        (
            "data: {train: a, label: y, split: {valid: 0.5, test: 0.5}}",
            ": `data.split.valid` and `data.split.test` should leave samples to train on, and sum to "
            "less than 1. Received 0.5 and 0.5.",
        ),
        (
            MINIMAL + "training: {early_stopping: {patiense: 3}}",
            ": `training.early_stopping.patiense` is not a key of `training.early_stopping`; did you "
            "mean `patience`? Its keys: metric, patience, min_delta.",
        ),
        (
            MINIMAL + "features: {user: {type: sparse, min_count: 2}}",
            ": `features.user`: `min_count` should be left out unless `ids` is vocabulary. Received 2 "
            "with ids hash.",
        ),
        (
            MINIMAL + "features: {train: {type: sparse}}",
            ": `features.train.table` should be another name than 'train', which PyTorch's "
            "nn.ModuleDict needs for itself: give it one, as `table: t_train`.",
        ),
        (
            MINIMAL + "features: {type: {type: dense, buckets: 4}}",
            ": `features.type` should be another name than 'type', which PyTorch's nn.ModuleDict "
            "needs for itself: give it one, with `column: type`.",
        ),
        (
            MINIMAL + "features: {}",
            ": `features` should name at least one feature, or be left out to be inferred. "
            "Received none.",
        ),
    ],
)
def test_mistakes(file: Path, text: str, message: str) -> None:
    assert failure(file, text) == f"experiment.yaml{message}"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "training: {batch_size: many}",
            "batch_size` should be a whole number above 0. Received 'many'.",
        ),
        (
            "training: {batch_size: true}",
            "batch_size` should be a whole number above 0. Received true.",
        ),
        ("training: {epochs: 1.5}", "epochs` should be a whole number above 0. Received 1.5."),
        (
            "training: {learning_rate: '1'}",
            "learning_rate` should be a number above 0. Received '1'.",
        ),
        ("training: {compile: 1}", "compile` should be true or false. Received 1."),
        ("training: {clip_norm: x}", "clip_norm` should be a number above 0. Received 'x'."),
        (
            "training: {schedule: {decay: cosin}}",
            "schedule.decay` should be 'constant', 'linear', 'cosine', 'exponential' or 'plateau'. "
            "Received 'cosin'; did you mean `cosine`?",
        ),
        (
            "training: {schedule: {decay: linear, factor: 0.5}}",
            "schedule.factor` should be given for `training.schedule.decay` plateau. Received 0.5 "
            "for linear.",
        ),
        (
            "training: {schedule: {patience: 1}}",
            "schedule.patience` should be given for `training.schedule.decay` plateau. Received 1 "
            "for constant.",
        ),
        (
            "training: {early_stopping: {metric: [auc, loglos]}}",
            "early_stopping.metric` should be one of auc, ne, logloss, or a list of them. Received "
            "'loglos'; did you mean `logloss`?",
        ),
        (
            "training: {early_stopping: {metric: acu}}",
            "early_stopping.metric` should be one of auc, ne, logloss, or a list of them. Received "
            "'acu'; did you mean `auc`?",
        ),
        (
            "training: {average: {decay: 0.9}}",
            "average.kind` should be given: forgetting older steps "
            "exponentially, or the mean of the last ones.",
        ),
        (
            "training: {average: {kind: swa, decay: 0.9}}",
            "average.decay` should be given for `training.average.kind` ema. Received 0.9 for swa.",
        ),
        (
            "training: {label_smoothing: 1}",
            "label_smoothing` should be a number at least 0 and below 1. Received 1.",
        ),
        (
            "training: {early_stopping: {metric: [auc, auc]}}",
            "early_stopping.metric` should name metrics that differ. Received ['auc', 'auc'].",
        ),
        (
            "training: {early_stopping: {metric: []}}",
            "early_stopping.metric` should be text or a list, each text. Received [].",
        ),
        (
            "training: {schedule: {final: 0.1}}",
            "schedule.final` should be given for learning rates that fall. Received 0.1 "
            "for `training.schedule.decay` constant.",
        ),
        (
            "training: {schedule: {decay: exponential}}",
            "schedule.final` should be above 0 for exponential decay. Received 0.",
        ),
        (
            "model: {layers: 3}",
            "layers` should be a list, each a whole number above 0. Received 3.",
        ),
        ("model: {layers: [3, x]}", "layers.1` should be a whole number above 0. Received 'x'."),
        ("model: {dropout: 1}", "dropout` should be a number at least 0 and below 1. Received 1."),
        (
            "features: {a: {}}",
            "a.type` should be given: 'dense', 'vector', 'sparse', 'multi_hot' or 'sequence'.",
        ),
        (
            "features: {a: {type: spars}}",
            "a.type` should be 'dense', 'vector', 'sparse', 'multi_hot' or 'sequence'. Received 'spars'; did "
            "you mean `sparse`?",
        ),
        (
            "features: {a: {type: sparse, rows: x}}",
            "a.rows` should be a whole number above 0. Received 'x'.",
        ),
        (
            "features: {a: {type: sparse, out_of_range: eror}}",
            "a.out_of_range` should be 'error', 'hash', 'unknown', 'clamp' or 'ignore'. Received "
            "'eror'; did you mean `error`?",
        ),
        (
            "features: {a: {type: dense, fill: men}}",
            "a.fill` should be a number or 'mean'. Received 'men'; did you mean `mean`?",
        ),
    ],
)
def test_wrong_values(file: Path, section: str, message: str) -> None:
    name = section.split(":")[0]
    assert failure(file, MINIMAL + section) == f"experiment.yaml: `{name}.{message}"


def test_misspelled_key_is_reported_before_the_one_it_stands_for(file: Path) -> None:
    message = failure(file, "data: {trian: a.parquet, lable: y}")
    assert message.startswith(
        "experiment.yaml: `data.trian` is not a key of `data`; did you mean `train`?"
    )


def test_feature_of_another_type(file: Path) -> None:
    message = failure(file, MINIMAL + "features: {a: {type: sparse, separtor: x}}")
    assert message.startswith("experiment.yaml: `features.a.separtor` is not a key of `features.a`")


def test_missing_file_names_a_near_one(file: Path) -> None:
    file.write_text(MINIMAL)
    with pytest.raises(
        FileNotFoundError, match=r"should exist\. .*did you mean `experiment.yaml`\?"
    ):
        load_experiment(file.with_name("experimnt.yaml"))


def test_folder_and_bad_bytes(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"should be a file\. Received the folder"):
        load_experiment(tmp_path)
    file.write_bytes(b"data: \xff")
    with pytest.raises(
        ValueError, match=r"should be UTF-8 text\. Received byte 0xff at position 6"
    ):
        load_experiment(file)


def test_sections_of_comments_only(file: Path) -> None:
    experiment = load(file, MINIMAL + "model:\n  # name: dlrm\ntraining:\n  schedule:\nfeatures:\n")
    assert (experiment.model.name, experiment.features) == ("dlrm_dcn", None)


def test_overrides(file: Path) -> None:
    experiment = load(
        file,
        MINIMAL + "training: {epochs: 2, seed: 7}",
        "training.epochs=5",
        "training.learning_rate=1e-2",
        "training.schedule.decay=cosine",
        "model.layers=[3, 4]",
        "features.user.type=sparse",
        "data.drop=rating == 3",
        "training.early_stopping={patience: 4}",
        "training.embedding_learning_rate=",
    )
    training = experiment.training
    assert (training.epochs, training.seed, training.learning_rate) == (5, 7, 0.01)
    assert training.schedule.decay == "cosine"
    assert training.early_stopping is not None
    assert training.early_stopping.patience == 4
    assert training.embedding_learning_rate is None
    assert experiment.model.layers == [3, 4]
    assert list(experiment.features or {}) == ["user"]
    assert experiment.data.drop == "rating == 3"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training",
            "An override should be section.key=value, as training.epochs=3. Received 'training'.",
        ),
        (
            "training.epochs=[3",
            "override 'training.epochs=[3': the value is not YAML: line 1: expected ',' or ']', but "
            "nothing follows.",
        ),
        (
            "training.epochs=x",
            "override 'training.epochs=x': `training.epochs` should be a whole number above 0. "
            "Received 'x'.",
        ),
        (
            "output.name=x",
            "override 'output.name=x': `output` should be a section. Received 'runs/experiment'.",
        ),
        (
            "modl.name=dlrm",
            "override 'modl.name=dlrm': `modl` is not a key of the file; did you mean `model`? Its "
            "keys: data, tasks, features, model, training, distributed, continue_from, metrics, output, tune.",
        ),
    ],
)
def test_mistaken_overrides(file: Path, override: str, message: str) -> None:
    assert failure(file, MINIMAL, override) == message


FEATURES = (
    MINIMAL + "features: {hour: {type: dense, log: true, fill: 3}, price: {type: dense},"
    " user: {type: sparse, ids: vocabulary, min_count: 2}}\n"
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "features.prise.log=true",
            "`features.prise` is not a feature of experiment.yaml; did you mean `price`? Its features: "
            "hour, price, user. A new one needs `features.prise.type`.",
        ),
        (
            "features.huor=null",
            "`features.huor` is not a feature of experiment.yaml; did you mean `hour`? Its features: "
            "hour, price, user.",
        ),
        (
            "features.user.ids=managed",
            "`features.user`: `min_count` should be left out unless `ids` is vocabulary. Received 2 "
            "with ids managed. Leave it out with features.user.min_count=null.",
        ),
        ("features.hour.type=sparse", "Leave it out with features.hour.log=null."),
        ("features.hour.lgo=null", "is not a key of `features.hour`; did you mean `log`?"),
        ("training.epoch=null", "`training.epoch` is not a key of `training`; did you"),
    ],
)
def test_mistaken_overrides_of_features(file: Path, override: str, message: str) -> None:
    found = failure(file, FEATURES, override)
    assert found.startswith(f"override {override!r}: ")
    assert message in found


def test_overrides_of_inferred_features(file: Path) -> None:
    message = (
        "`features.hour` is not a feature of experiment.yaml, which leaves them to be inferred"
    )
    for override in ("features.hour=null", "features.hour.log=true"):
        assert message in failure(file, MINIMAL, override)


def test_null_stands_for_the_default_or_removes_a_feature(file: Path) -> None:
    experiment = load(
        file,
        FEATURES
        + "training: {epochs: 7, early_stopping: {patience: 1}, schedule: {decay: linear}}",
        "features.hour=null",
        "features.user.ids=managed",
        "features.user.min_count=null",
        "training.epochs=null",
        "training.early_stopping=null",
        "training.schedule=null",
        "output=null",
        "features.seen={type: sequence, max_length: null}",
        "features.seen.rows=null",
    )
    features = experiment.features or {}
    assert list(features) == ["price", "user", "seen"]
    assert getattr(features["user"], "ids", None) == "managed"
    assert getattr(features["seen"], "max_length", 0) is None
    training = experiment.training
    assert (training.epochs, training.early_stopping) == (1, None)
    assert (training.schedule.decay, experiment.output) == ("constant", "runs/experiment")
    turned = load(file, FEATURES, "features.hour=null", "features.hour.type=sparse").features or {}
    assert turned["hour"].type == "sparse"


def test_an_override_changes_one_of_the_sections_that_share_an_alias(file: Path) -> None:
    text = "features: {item: &d {type: sparse, rows: 100}, user: *d}"
    features = load(file, MINIMAL + text, "features.item.rows=7").features or {}
    assert [getattr(feature, "rows", 0) for feature in features.values()] == [7, 100]


def test_an_override_repairs_the_file(file: Path) -> None:
    experiment = load(file, MINIMAL + "training: {epochs: many}", "training.epochs=2")
    assert experiment.training.epochs == 2


def test_paths(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the file are relative to its folder, those of overrides to the working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = "data: {train: [a.csv, /data/b.csv, ../c.csv], label: y}"
    data = load(file, text, "data.valid=v.csv", "data.test=*.csv").data
    assert data.train == [str(tmp_path / "a.csv"), "/data/b.csv", str(tmp_path.parent / "c.csv")]
    assert data.valid == [str(elsewhere / "v.csv")]
    assert data.test == [str(elsewhere / "*.csv")]


def test_output_is_named_after_the_file(tmp_path: Path) -> None:
    assert load(tmp_path / "movies.yaml", MINIMAL).output == "runs/movies"


def test_dumped_experiments_load_as_they_were(file: Path) -> None:
    experiment = load(
        file,
        MINIMAL
        + "features: {no: {type: dense, fill: 0.5}, '1e3': {type: sequence, max_length: null, "
        "ids: plain, out_of_range: unknown}}\ntraining: {learning_rate: 1e-5, early_stopping: {patience: 3}}",
    )
    assert load(file.with_name("again.yaml"), dump_experiment(experiment)) == experiment


class TestColumns:
    """`check_columns`, against the columns user, rating, time, history, weight."""

    schema = pa.schema(
        [(name, pa.int64()) for name in ("user", "rating", "time", "history", "weight")]
    )

    def check(
        self, file: Path, data: str = "label: rating > 3", features: str = "user: {type: sparse}"
    ) -> None:
        text = f"data: {{train: a.csv, {data}}}\nfeatures: {{{features}}}"
        check_columns(load(file, text), self.schema)

    def test_all_there(self, file: Path) -> None:
        self.check(
            file,
            "label: rating > 3, drop: rating == 3, split: {by: time, column: time}",
            "u: {type: sparse, column: user}, history: {type: sequence, weights: weight}",
        )

    @pytest.mark.parametrize(
        ("data", "features", "message"),
        [
            (
                "label: raitng > 3",
                "user: {type: sparse}",
                "`data.label` .*'raitng'; did you mean `rating`",
            ),
            (
                "label: clicked",
                "user: {type: sparse}",
                r"`data.label` .*'clicked'\. Columns: user, rating",
            ),
            (
                "label: rating > 3, drop: usr == 1",
                "user: {type: sparse}",
                "`data.drop` .*'usr'; did you mean `user`",
            ),
            (
                "label: rating > 3, split: {by: time, column: tme}",
                "user: {type: sparse}",
                "`data.split.column` .*'tme'; did you mean `time`",
            ),
            (
                "label: rating > 3",
                "usr: {type: sparse}",
                "`features.usr` .*'usr'; did you mean `user`",
            ),
            (
                "label: rating > 3",
                "u: {type: sparse, column: usre}",
                "`features.u.column` .*'usre'; did you mean `user`",
            ),
            (
                "label: rating > 3",
                "history: {type: sequence, weights: wieght}",
                "`features.history.weights` .*'wieght'; did you mean `weight`",
            ),
        ],
    )
    def test_not_there(self, file: Path, data: str, features: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.check(file, data, features)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "{name: deepfm, cross_layers: 3}",
            "`model.cross_layers` is not an option of model 'deepfm', but of "
            "'dlrm_dcn' and 'esmm' and 'mmoe' and 'ple' and 'shared_bottom'. Its options: name, "
            "dim, table_init, layer_init, dense_layers, layers, dropout, embedding_dropout, batch_norm, "
            "activation, linear.",
        ),
        (
            "{name: dlrm, cross_rank: 8}",
            "`model.cross_rank` is not an option of model 'dlrm', but of 'dlrm_dcn' and 'esmm' and",
        ),
        (
            "{cros_layers: 3}",
            "of model 'dlrm_dcn'; did you mean `cross_layers`? Its options: name,",
        ),
        (
            "{name: dlrm, colour: 3}",
            "`model.colour` is not an option of model 'dlrm'. Its options: name,",
        ),
        (
            "{name: deepmf}",
            "`model.name` should be 'deepfm', 'dlrm', 'dlrm_dcn', 'esmm', 'fm', 'lr', "
            "'mmoe', 'ple' or 'shared_bottom'. Received 'deepmf'; did you mean `deepfm`?",
        ),
        (
            "{name: 5}",
            "'lr', 'mmoe', 'ple' or 'shared_bottom'. Received 5.",
        ),
        ("{cross_rank: '8'}", "`model.cross_rank` should be a whole number above 0. Received '8'."),
        ("{dropout: true}", "`model.dropout` should be a number at least 0 and below 1. Received "),
        ("5", "`model` should be a section with keys such as `name`. Received 5."),
        (
            "{table_init: {rule: normal, bound: 0.1}}",
            "`model.table_init.bound` is not a key of `model.table_init`. Its keys: rule, std.",
        ),
        (
            "{table_init: {rule: normal}}",
            "`model.table_init.std` should be given: a number above 0.",
        ),
        (
            "{table_init: {rule: normal, std: -1}}",
            "`model.table_init.std` should be a number above 0. Received -1.",
        ),
        (
            "{table_init: {std: 0.1}}",
            "`model.table_init.rule` should be given: 'normal', 'uniform', 'xavier_normal', "
            "'xavier_uniform', 'kaiming' or 'zeros'.",
        ),
        (
            "{layer_init: {rule: xavier}}",
            "`model.layer_init.rule` should be 'normal', 'uniform', 'xavier_normal', "
            "'xavier_uniform' or 'kaiming'. Received 'xavier'; did you mean",
        ),
        ("{layer_init: zeros}", "`model.layer_init` should be a section"),
    ],
)
def test_options_that_a_model_does_not_have(file: Path, model: str, message: str) -> None:
    assert message in failure(file, f"{MINIMAL}model: {model}\n")


def test_a_model_that_becomes_another_one_names_what_it_does_not_know(file: Path) -> None:
    text = MINIMAL + "model: {name: dlrm_dcn, cross_layers: 2}\n"
    message = failure(file, text, "model.name=deepfm")
    assert message.startswith("override 'model.name=deepfm': `model.cross_layers` is not an")
    assert message.endswith(" Leave it out with model.cross_layers=null.")
    experiment = load(file, text, "model.name=deepfm", "model.cross_layers=null")
    assert experiment.model.model_dump()["name"] == "deepfm"
    assert "cross_layers" not in experiment.model.model_dump()


@pytest.mark.parametrize(
    ("model", "overrides", "expected"),
    [
        ("{name: dlrm_dcn, layers: [8]}", ["model.name=deepfm"], "deepfm"),
        ("{}", ["model.name=dlrm"], "dlrm"),
        ("{name: deepfm, layers: [8]}", ["model.name=dlrm_dcn"], "dlrm_dcn"),
        ("{name: deepfm, layers: [8]}", ["model.name=null"], "dlrm_dcn"),
        ("{name: dlrm_dcn, cross_rank: 8}", ["model.cross_rank=64", "model.name=dlrm"], None),
        ("{name: dlrm_dcn, cross_rank: 8}", ["model.name=dlrm"], None),
        ("{name: dlrm_dcn}", ["model.name=dlrm", "model.cross_rank=64"], None),
        ("{name: dlrm_dcn}", ["model={name: dlrm, cross_rank: 64}"], None),
    ],
)
def test_a_file_that_was_written_out_becomes_that_of_another_model(
    file: Path, model: str, overrides: list[str], expected: str | None
) -> None:
    """Options at their defaults go, as they would have been left out; chosen ones are refused."""
    text = dump_experiment(load(file, f"{MINIMAL}model: {model}\n"))
    if expected is None:
        assert "`model.cross_rank` is not an option of model 'dlrm'" in failure(
            file, text, *overrides
        )
        return
    assert load(file, text, *overrides) == load(file, f"{MINIMAL}model: {model}\n", *overrides)
    assert load(file, text, *overrides).model.name == expected
    assert ("layers: [8]" in text) == (
        load(file, text, *overrides).model.model_dump()["layers"] == [8]
    )


@pytest.mark.parametrize("name", ["nowhere", "[1]", "3", "{a: 1}"])
def test_a_model_that_becomes_none(file: Path, name: str) -> None:
    text = dump_experiment(load(file, MINIMAL))
    message = failure(file, text, f"model.name={name}")
    assert "'lr', 'mmoe', 'ple' or 'shared_bottom'. Received" in message


def test_null_is_the_default_of_an_option_of_one_model(file: Path) -> None:
    experiment = load(file, MINIMAL + "model: {cross_layers: 5}\n", "model.cross_layers=null")
    assert experiment.model.model_dump()["cross_layers"] == 3


def format_1(name: str, **changes: object) -> str:
    """Return a file as format 1 wrote it: every key of every model, whatever the model."""
    model = {
        "name": name, "dim": 8, "dense_layers": [64], "layers": [256, 128], "dropout": 0.0,
        "batch_norm": False, "cross_layers": 3, "cross_rank": 64,
    }  # fmt: skip
    values = Experiment.model_validate({"data": {"train": "/a.csv", "label": "y"}}).model_dump()
    return write_yaml(values | {"model": model} | changes)


@pytest.mark.parametrize("name", ["dlrm", "deepfm", "dlrm_dcn"])
def test_files_that_format_1_wrote_still_load(file: Path, name: str) -> None:
    model = load(file, format_1(name)).model
    assert (model.name, model.dim) == (name, 8)
    assert ("cross_layers" in model.model_dump()) == (name == "dlrm_dcn")
    assert load(file, format_1(name), "model.dim=4").model.dim == 4


def test_only_what_format_1_wrote_loses_keys(file: Path) -> None:
    section = load(file, format_1("dlrm_dcn")).model.model_dump()
    alone = MINIMAL + f"model: {write_inline(section | {'name': 'deepfm'})}\n"
    assert "not an option of model 'deepfm'" in failure(file, alone)
    turned = dict(reversed((section | {"name": "deepfm"}).items()))
    assert "not an option of model 'deepfm'" in failure(file, format_1("deepfm", model=turned))
    more = section | {"name": "deepfm", "cross_widths": 3}
    assert "not an option of model 'deepfm'" in failure(file, format_1("deepfm", model=more))


def test_a_list_at_two_places_is_written_out_at_both() -> None:
    assert write_inline([layers := [64], layers]) == "[[64], [64]]"
