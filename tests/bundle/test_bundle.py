"""Bundles: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from torch import nn

import torchrec
import torchrec.inference
from torchrec import bundle
from torchrec.bundle import FORMAT, _weights, load_bundle, save_bundle
from torchrec.datasets.features import DenseFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.files import digest_of, json_with_checksum, parse_json
from torchrec.models.registry import ModelSection, TableOptimizer, build_model
from torchrec.types import OptimizerType

TABLE = pa.table({"user": ["ann", "ben", None], "price": [1.0, 2.5, 4.0], "click": [0, 1, 1]})
FEATURES = {"user": SparseFeature(ids="vocabulary"), "price": DenseFeature()}
WEIGHTS = "weights.safetensors"
SECTION = ModelSection(name="dlrm", dim=4, layers=[8], dense_layers=[8])
ADAM = TableOptimizer(optimizer="adam", lr=0.01)
TEXTS = {"experiment.yaml": "data: {train: clicks.parquet, label: click}\n"}


@pytest.fixture
def transform() -> FeatureTransform:
    return FeatureTransform(FEATURES, "click").fit([TABLE])


@pytest.fixture
def model(transform: FeatureTransform) -> nn.Module:
    return build_model(SECTION, transform, ADAM)


@pytest.fixture
def folder(tmp_path: Path, transform: FeatureTransform, model: nn.Module) -> Path:
    save_bundle(tmp_path / "model", model, transform, SECTION, ADAM, TEXTS)
    return tmp_path / "model"


def refused(folder: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_index(folder: Path, **values: object) -> None:
    """Change what the index says, as another version would have written it."""
    path = folder / "bundle.json"
    path.write_text(json_with_checksum(parse_json(path.read_text()) | values))


def edit_weights(folder: Path, weights: dict[str, torch.Tensor], name: str = WEIGHTS) -> None:
    """Write weights as if they had been the bundle's own."""
    safetensors.torch.save_file(weights, folder / name)
    files = parse_json((folder / "bundle.json").read_text())["files"]
    edit_index(folder, files=files | {name: vars(digest_of(folder / name))})


def test_there_and_back(folder: Path, transform: FeatureTransform, model: nn.Module) -> None:
    loaded = load_bundle(folder)
    assert loaded.section == SECTION
    assert loaded.documents == TEXTS
    assert loaded.transform.features == transform.features
    weights = loaded.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value)
    batch, again = transform(TABLE), loaded.transform(TABLE)
    torch.testing.assert_close(again.dense_features, batch.dense_features, rtol=0, atol=0)
    assert again.sparse_features.to_dict()["user"].values().tolist() == [
        *batch.sparse_features.to_dict()["user"].values().tolist()
    ]


def test_for_predicting_or_for_training(folder: Path) -> None:
    predicting = load_bundle(folder).model
    assert not predicting.training
    assert not any(parameter.requires_grad for parameter in predicting.parameters())
    training = load_bundle(folder, trainable=True).model
    assert training.training
    assert any(parameter.requires_grad for parameter in training.parameters())


def test_whoever_may_read_one_file_may_read_all(folder: Path) -> None:
    """A service runs as somebody else than who trained."""
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_a_stranger_can_tell_what_it_is(folder: Path) -> None:
    names = {"README.txt", "bundle.json", "experiment.yaml", "transform", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    text = (folder / "README.txt").read_text()
    assert "probability that `click` is 1" in text
    assert "    user: an id\n    price: a number\n" in text
    index = json.loads((folder / "bundle.json").read_text())
    assert index["format"] == FORMAT == 2
    assert set(index["files"]) == {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    } - {"bundle.json", "README.txt"}


def test_it_can_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "m"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    assert load_bundle(moved).section == SECTION


def test_a_bundle_is_replaced(
    folder: Path, tmp_path: Path, transform: FeatureTransform, model: nn.Module
) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    save_bundle(folder, model, transform, SECTION, ADAM)
    weights = load_bundle(folder).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_anything_else_is_not(
    tmp_path: Path, transform: FeatureTransform, model: nn.Module
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"should be new, or hold one\..*something else"):
        save_bundle(tmp_path, model, transform, SECTION, ADAM)
    with pytest.raises(FileExistsError, match="should be new, or hold one"):
        save_bundle(tmp_path / "thesis.txt", model, transform, SECTION, ADAM)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_taken(
    tmp_path: Path, transform: FeatureTransform, model: nn.Module
) -> None:
    save_bundle(tmp_path, model, transform, SECTION, ADAM)
    assert load_bundle(tmp_path).section == SECTION


@pytest.mark.parametrize("fails", ["save_file", "fsync"])
def test_a_full_disk_leaves_what_was_there(
    folder: Path,
    tmp_path: Path,
    transform: FeatureTransform,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = load_bundle(folder).model.state_dict()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    monkeypatch.setattr(safetensors.torch if fails == "save_file" else os, fails, full)
    with pytest.raises(OSError, match="Received: No space left on device") as caught:
        save_bundle(folder, model, transform, SECTION, ADAM)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    for name, value in load_bundle(folder).model.state_dict().items():
        assert torch.equal(before[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_rename_puts_the_former_back(
    folder: Path,
    tmp_path: Path,
    transform: FeatureTransform,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".writing" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save_bundle(folder, model, transform, SECTION, ADAM)
    monkeypatch.undo()
    assert load_bundle(folder).section == SECTION
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_goes(
    folder: Path, tmp_path: Path, transform: FeatureTransform, model: nn.Module
) -> None:
    """It was killed while it wrote, and another between two renames."""
    shutil.copytree(folder, tmp_path / ".model.writing")
    folder.rename(tmp_path / ".model.former")
    save_bundle(folder, model, transform, SECTION, ADAM)
    assert load_bundle(folder).section == SECTION
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_bundle(tmp_path: Path) -> None:
    assert refused(tmp_path / "no") == (
        f"A bundle should be a folder with bundle.json. Received '{tmp_path}/no', which does not exist."
    )


def test_newer_format(folder: Path) -> None:
    edit_index(folder, format=3, library_version="9.1.0", novelty={"x": 1})
    assert refused(folder) == (
        f"Bundle '{folder}' should be of format 1 to 2, as rowwise 0.1.0 reads. Received format 3, "
        "written by rowwise 9.1.0: pip install --upgrade 'rowwise>=9.1.0'."
    )


@pytest.mark.parametrize("version", [torchrec.__version__, None])
def test_no_upgrade_to_what_is_there(folder: Path, version: str | None) -> None:
    edit_index(folder, format=3, library_version=version)
    message = refused(folder)
    assert message.endswith(": use the build that wrote it.")
    assert "pip" not in message


def test_weights_in_a_layout_of_a_later_version(folder: Path) -> None:
    weights = [{"file": WEIGHTS, "layout": "int8 rows with scales"}]
    edit_index(folder, weights=weights, library_version="9.1.0")
    message = refused(folder)
    assert "Received weights of layout 'int8 rows with scales', written by rowwise 9.1.0" in message


def test_a_model_that_is_not_there(folder: Path) -> None:
    edit_index(folder, section={"name": "xdeepfm"}, library_version="9.1.0")
    assert refused(folder) == (
        f"The model of bundle '{folder}' should be one of deepfm, dlrm, dlrm_dcn, "
        f"esmm, fm, lr, mmoe, ple, shared_bottom. Received 'xdeepfm', "
        "written by rowwise 9.1.0: add the folder of its file, with "
        "torchrec.models.registry.add_folder, or use the version that has it."
    )


def test_an_option_of_a_later_version(folder: Path) -> None:
    edit_index(folder, section={"name": "dlrm", "gates": 3}, library_version="9.1.0")
    message = refused(folder)
    assert "should describe a model that rowwise 0.1.0 builds. It was written by rowwise 9.1.0" in (
        message
    )
    assert "`gates` is not an option of model 'dlrm'" in message


def test_an_option_that_came_later_is_as_it_was_before(
    tmp_path: Path, transform: FeatureTransform
) -> None:
    section = SECTION.model_copy(update={"vectors": False})
    model = build_model(section, transform, ADAM)
    folder = tmp_path / "before"
    save_bundle(folder, model, transform, section, ADAM, TEXTS)
    saved = parse_json((folder / "bundle.json").read_text())["section"]
    edit_index(folder, section={key: value for key, value in saved.items() if key != "vectors"})
    assert SECTION.vectors  # as a new model has it
    batch = transform(TABLE)
    loaded = load_bundle(folder).model
    with torch.no_grad():
        expected = model.eval()(batch.dense_features, batch.sparse_features)
        assert torch.equal(loaded.eval()(batch.dense_features, batch.sparse_features), expected)


def test_what_later_versions_add_is_ignored(folder: Path) -> None:
    edit_index(folder, novelty={"x": 1})
    assert load_bundle(folder).section == SECTION


@pytest.mark.parametrize(
    "name",
    ["experiment.yaml", "weights.safetensors", "transform/transform.json"],
)
class TestDamage:
    def test_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        assert refused(folder) == (
            f"Bundle '{folder}' should be whole. Received a damaged {name}: it is missing."
        )

    def test_cut(self, folder: Path, name: str) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        assert f"damaged {name}: it has {len(data) - 1:,} bytes instead of {len(data):,}" in (
            refused(folder)
        )

    def test_one_bit(self, folder: Path, name: str) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        assert f"damaged {name}: it has other contents than when it was written" in refused(folder)


@pytest.mark.parametrize("seed", range(8))
def test_one_flipped_bit_anywhere_is_noticed_or_harmless(folder: Path, seed: int) -> None:
    """In any file, the index itself included."""
    random = Random(seed)
    expected = load_bundle(folder).model.state_dict()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for _ in range(12 if path.name == "bundle.json" else 2):
            changed = bytearray(data)
            changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
            path.write_bytes(changed)
            try:
                found = load_bundle(folder)
            except (ValueError, FileNotFoundError):
                continue
            assert path.name == "README.txt" or found.section == SECTION
            assert found.documents == TEXTS
            for name, value in found.model.state_dict().items():
                assert torch.equal(value, expected[name]), f"{path.name} is not checked"
        path.write_bytes(data)


@pytest.mark.parametrize("text", [None, "", "Served in Oslo since May.", "\x00\xff"], ids=repr)
def test_the_readme_is_for_people(folder: Path, text: str | None) -> None:
    (folder / "README.txt").unlink()
    if text is not None:
        (folder / "README.txt").write_text(text, encoding="latin-1")
    assert load_bundle(folder).section == SECTION


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "one"}', '{"format": 2}', '{"format": 1}']
)
def test_damaged_index(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_text(text)
    assert f"Bundle '{folder}' should be whole. Received a damaged bundle.json: " in refused(folder)


@pytest.mark.parametrize(
    "lacking", [WEIGHTS, "transform/transform.json", "transform/transform.arrow", "experiment.yaml"]
)
def test_an_index_that_lacks_a_file(folder: Path, lacking: str) -> None:
    files = parse_json((folder / "bundle.json").read_text())["files"]
    edit_index(folder, files={name: files[name] for name in files if name != lacking})
    assert f"damaged bundle.json: it does not list {lacking}" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"over_arch.logit.weight": torch.zeros(1, 9)},
            r"of shape \(1, 8\)\. Received shape \(1, 9\)",
        ),
        ({"over_arch.logit.weight": None}, r"of shape \(1, 8\)\. Received shape None"),
        ({"more": torch.zeros(2)}, r"'more' of shape None\. Received shape \(2,\)"),
    ],
)
def test_weights_of_another_model(
    folder: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS) | change
    edit_weights(folder, {name: value for name, value in weights.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize("text", [b"", b"x" * 100, None], ids=["empty", "other", "cut"])
def test_a_file_that_holds_no_weights(folder: Path, text: bytes | None) -> None:
    """As it was listed, so that its digest is right."""
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-7] if text is None else text)
    files = parse_json((folder / "bundle.json").read_text())["files"]
    edit_index(folder, files=files | {WEIGHTS: vars(digest_of(path))})
    assert refused(folder).startswith(
        f"Bundle '{folder}' should be whole. Received a damaged {WEIGHTS}: it holds no safetensors ("
    )


def test_a_document_that_is_no_text(folder: Path) -> None:
    (folder / "experiment.yaml").write_bytes(b"\xff")
    files = parse_json((folder / "bundle.json").read_text())["files"]
    digest = vars(digest_of(folder / "experiment.yaml"))
    edit_index(folder, files=files | {"experiment.yaml": digest})
    assert "damaged experiment.yaml: it is no UTF-8 text" in refused(folder)


def test_a_folder_in_the_place_of_the_index(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").mkdir()
    assert "should be a folder with bundle.json" in refused(folder)


def test_weights_in_several_files(folder: Path, model: nn.Module) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    names = list(weights)
    for file, part in (("a.safetensors", names[::2]), (WEIGHTS, names[1::2])):
        edit_weights(folder, {name: weights[name] for name in part}, file)
    edit_index(folder, weights=[{"file": WEIGHTS}, {"file": "a.safetensors", "layout": "whole"}])
    loaded = load_bundle(folder).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value)
    edit_weights(folder, {names[1]: weights[names[1]]}, "a.safetensors")
    assert f"'{names[1]}' once. Received it in weights.safetensors and a.safetensors" in (
        refused(folder)
    )


class Odd(nn.Module):
    """A module whose state shares memory, is not contiguous, and is half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(12.0).reshape(3, 4))
        self.same = self.table
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("part", torch.arange(10)[2:5])
        self.register_buffer("narrow", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("flag", torch.tensor(True))


def test_state_of_any_layout(tmp_path: Path, transform: FeatureTransform) -> None:
    odd = Odd()
    save_bundle(tmp_path / "odd", odd, transform)
    weights = safetensors.torch.load_file(tmp_path / "odd" / "weights.safetensors")
    for name, value in odd.state_dict().items():
        assert torch.equal(weights[name], value)
        assert weights[name].dtype == value.dtype


def test_state_that_is_no_tensor(tmp_path: Path, transform: FeatureTransform) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    with pytest.raises(TypeError, match=r"should be tensors\. Received dict for '_extra_state'"):
        save_bundle(tmp_path / "extra", Extra(), transform)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_executed() -> None:
    for path in Path(bundle.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert "torch.load(" not in text
        assert "pickle" not in text
        assert "import_module" not in text


LOADING = """
import sys
from torchrec.bundle import load_bundle
from torchrec.training.memory import peak_rss_bytes
before = peak_rss_bytes()
model = load_bundle(sys.argv[1]).model
size = sum(parameter.nbytes for parameter in model.parameters())
print(size, peak_rss_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from there")
@pytest.mark.slow
def test_loading_needs_the_memory_of_the_model_once(tmp_path: Path) -> None:
    features = {"user": SparseFeature(rows=800_000), "item": SparseFeature(rows=800_000)}
    section = ModelSection(dim=16)
    table = pa.table({"user": [1], "item": [2], "click": [1]})
    transform = FeatureTransform(features, "click").fit([table])
    model = build_model(section, transform)
    save_bundle(tmp_path / "model", model, transform, section)
    command = [sys.executable, "-c", LOADING, str(tmp_path / "model")]
    size, grown = map(int, subprocess.check_output(command, text=True).split())
    assert size > 100e6
    assert grown < 1.5 * size  # 1.3; where the file is in memory as well, 2.0


@pytest.mark.parametrize("piece", [1, 24, 1 << 25])
def test_weights_are_read_in_pieces_of_any_size(
    folder: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(_weights, "_PIECE", piece)
    loaded = load_bundle(folder).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value)


def test_no_random_numbers_are_drawn(folder: Path) -> None:
    for trainable in (False, True):
        before = torch.get_rng_state()
        load_bundle(folder, trainable=trainable)
        assert torch.equal(torch.get_rng_state(), before)


def test_tables_for_predicting_have_no_optimizer(folder: Path) -> None:
    tables = load_bundle(folder).model.sparse_arch.embedding_bag_collection
    assert [table.optimizer for table in tables.embedding_bag_configs()] == [None]
    assert tables.device == torch.device("cpu")
    tables = load_bundle(folder, trainable=True).model.sparse_arch.embedding_bag_collection
    (table,) = tables.embedding_bag_configs()
    assert (table.optimizer, table.lr) == (OptimizerType.ADAM, 0.01)


def test_ids_are_counted_after_loading(tmp_path: Path) -> None:
    features = {"user": SparseFeature(rows=5)}
    transform = FeatureTransform(features, "click").fit([TABLE])
    save_bundle(tmp_path / "m", build_model(SECTION, transform), transform, SECTION)
    loaded = load_bundle(tmp_path / "m").model
    batch = transform(TABLE)
    loaded(batch.dense_features, batch.sparse_features)
    assert loaded.sparse_arch.embedding_bag_collection.out_of_range_counts() == {"user": 2}


@pytest.mark.parametrize("evict", ["lfu", "lru", "distance_lfu"])
def test_managed_ids_go_on_where_they_were(tmp_path: Path, evict: str) -> None:
    """Maps are built on the meta device as well; rows change hands in both models alike."""
    features = {
        "user": SparseFeature(ids="managed", rows=3, evict=evict, evict_every=2),
        "item": SparseFeature(rows=5),
    }
    random = Random(1)
    tables = [
        pa.table(
            {
                "user": [random.choice([2**60, -7, 12, 99, 5]) for _ in range(4)],
                "item": [random.randrange(50) for _ in range(4)],
                "click": [0, 1, 1, 0],
            }
        )
        for _ in range(12)
    ]
    transform = FeatureTransform(features, "click").fit(tables)
    model = build_model(SECTION, transform, ADAM)

    def step(one: nn.Module, table: pa.Table) -> torch.Tensor:
        batch = transform(table)
        logits = one(batch.dense_features, batch.sparse_features)
        logits.sum().backward()
        return logits.detach()

    for table in tables[:6]:
        step(model, table)
    tables_of = lambda one: one.sparse_arch.embedding_bag_collection  # noqa: E731
    save_bundle(tmp_path / "m", model, transform, SECTION, ADAM)
    loaded = load_bundle(tmp_path / "m", trainable=True).model
    store, other = (tables_of(one).tables.table_store() for one in (model, loaded))
    other.fused_optimizer.load_state_dict(store.fused_optimizer.state_dict())
    for table in tables[6:]:
        assert torch.equal(step(model, table), step(loaded, table))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


class Own(nn.Module):
    """A model that the registry does not have: tied weights, a buffer that is not saved."""

    def __init__(self, width: int, size: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(width, size)
        self.second = nn.Linear(size, width)
        self.second.weight = nn.Parameter(self.first.weight.detach().clone().t().contiguous())
        self.tied = nn.Linear(width, size)
        self.tied.weight = self.first.weight
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, dense_features: torch.Tensor, sparse_features: object) -> torch.Tensor:
        hidden = self.first(dense_features) + self.tied(dense_features)
        return self.scale * self.second(hidden).sum(1, keepdim=True)


@pytest.fixture
def own(tmp_path: Path, transform: FeatureTransform) -> tuple[Path, Own]:
    model = Own(1)
    save_bundle(tmp_path / "own", model, transform)
    return tmp_path / "own", model


def test_a_model_of_ones_own(own: tuple[Path, Own], transform: FeatureTransform) -> None:
    folder, model = own
    bundle = load_bundle(folder, builder=lambda transform: Own(len(transform.dense_names)))
    assert bundle.section is None
    batch = transform(TABLE)
    assert torch.equal(bundle.model(batch.dense_features, None), model(batch.dense_features, None))
    assert bundle.model.tied.weight is bundle.model.first.weight
    assert not bundle.model.training
    trained = load_bundle(folder, builder=lambda _: Own(1), trainable=True).model
    assert trained.first.weight.requires_grad
    assert trained.training


def test_a_model_of_ones_own_needs_a_builder(own: tuple[Path, Own]) -> None:
    folder, _ = own
    assert refused(folder) == (
        f"`builder` should be given for bundle '{folder}', as in load_bundle(folder, builder=...): a "
        "function from its transform to the model, which is none of the registry and of which a "
        "bundle holds only the weights. Received None."
    )
    assert "builder=...)" in (folder / "README.txt").read_text()


def test_a_builder_of_another_model(own: tuple[Path, Own]) -> None:
    folder, _ = own
    with pytest.raises(
        ValueError, match=r"'first.weight' of shape \(4, 1\)\. Received shape \(3, 1\)"
    ):
        load_bundle(folder, builder=lambda _: Own(1, size=4))


def test_a_builder_on_the_meta_device(own: tuple[Path, Own], tmp_path: Path) -> None:
    """It is given memory; what the bundle does not hold cannot be known."""
    folder, _ = own

    def on_meta(transform: FeatureTransform) -> nn.Module:
        with torch.device("meta"):
            return Own(1)

    with pytest.raises(
        ValueError, match=r"save all its buffers\. Received 'scale' of Own, which is"
    ):
        load_bundle(folder, builder=on_meta)

    class Saved(Own):
        def __init__(self) -> None:
            super().__init__(1)
            self.register_buffer("scale", torch.full((1,), 0.5), persistent=True)

    transform = FeatureTransform(FEATURES, "click").fit([TABLE])
    model = Saved()
    save_bundle(tmp_path / "saved", model, transform)
    with torch.device("meta"):
        other = Saved()
    loaded = load_bundle(tmp_path / "saved", builder=lambda _: other, trainable=True).model
    assert loaded.tied.weight is loaded.first.weight
    assert loaded.first.weight.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("name", ["bundle.json", "README.txt", "a/b.txt", "..", "transform"])
def test_documents_have_names_of_their_own(
    tmp_path: Path, transform: FeatureTransform, model: nn.Module, name: str
) -> None:
    with pytest.raises(ValueError, match="`documents` should have names of files that a bundle"):
        save_bundle(tmp_path / "m", model, transform, documents={name: ""})
    assert not (tmp_path / "m").exists()


FORMAT_1 = {  # what the model in memory gave when they were written
    "deepfm": [0.650749146938324, 0.49043163657188416, 0.08358068764209747],
    "dlrm_dcn": [-0.11215658485889435, -0.08129838109016418, -0.11350905150175095],
}
FORMAT_1_TABLE = pa.table(
    {
        "user": ["ann", "ben", None],
        "price": [1.0, 2.5, 4.0],
        "tags": ["a=b", "b", "c"],
        "item": [2**40, 7, -3],
    }
)


@pytest.mark.parametrize("name", FORMAT_1)
class TestFormat1:
    @pytest.fixture
    def old(self, name: str, tmp_path: Path) -> Path:
        shutil.copytree(Path(__file__).parent / "data" / f"format_1_{name}", tmp_path / "old")
        return tmp_path / "old"

    def test_it_loads(self, old: Path, name: str) -> None:
        bundle = load_bundle(old)
        batch = bundle.transform.transform(FORMAT_1_TABLE, labels=False)
        logits = bundle.model(batch.dense_features, batch.sparse_features).flatten()
        torch.testing.assert_close(logits.tolist(), FORMAT_1[name], rtol=1e-6, atol=1e-6)
        assert (bundle.section.name, bundle.section.dropout) == (name, 1e-5)
        assert ("cross_rank" in bundle.section.model_dump()) == (name == "dlrm_dcn")

    def test_it_can_be_trained_on(self, old: Path, name: str) -> None:
        model = load_bundle(old, trainable=True).model
        configs = model.sparse_arch.embedding_bag_collection.embedding_bag_configs()
        assert {config.optimizer for config in configs} == {OptimizerType.ROWWISE_ADAGRAD}
        assert {config.lr for config in configs} == {1e-5}

    def test_its_experiment_loads(self, old: Path, name: str) -> None:
        predictor = torchrec.inference.load(old)
        assert predictor.experiment.model.name == name
        probabilities = predictor.predict(FORMAT_1_TABLE)
        torch.testing.assert_close(
            probabilities, torch.tensor(FORMAT_1[name]).sigmoid(), rtol=1e-6, atol=1e-6
        )

    @pytest.mark.parametrize("file", ["experiment.yaml", "weights.safetensors"])
    def test_its_damage_is_noticed(self, old: Path, name: str, file: str) -> None:
        data = bytearray((old / file).read_bytes())
        data[len(data) // 3] ^= 4
        (old / file).write_bytes(data)
        assert f"damaged {file}: it has other contents than when it was written" in refused(old)
        (old / file).unlink()
        assert f"damaged {file}: it is missing" in refused(old)


@pytest.mark.parametrize("name", ["dlrm", "dlrm_dcn", "deepfm"])
def test_a_loaded_model_is_trained_on_as_the_one_in_memory(
    tmp_path: Path, transform: FeatureTransform, name: str
) -> None:
    """Its tables have the optimizer they were given, with a state of their own."""
    section = ModelSection(name=name, dim=4, layers=[8], dense_layers=[8])
    model = build_model(section, transform, ADAM)
    save_bundle(tmp_path / "m", model, transform, section, ADAM)
    loaded = load_bundle(tmp_path / "m", trainable=True).model
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    batch = transform(TABLE)
    for _ in range(3):
        for one in (model, loaded):
            one(batch.dense_features, batch.sparse_features).sum().backward()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    one, other = (m.sparse_arch.embedding_bag_collection.fused_optimizer for m in (model, loaded))
    expected, found = one.state_dict()["state"], other.state_dict()["state"]
    assert expected.keys() == found.keys()
    for key, states in expected.items():
        for state, value in states.items():
            assert torch.equal(torch.as_tensor(found[key][state]), torch.as_tensor(value))
