"""Packages make in another process, without the factory's code, what the factory makes here."""

from __future__ import annotations

import io

import pytest
import torch
from torch.package import PackageExporter, PackageImporter, sys_importer

from tests.inference.packaged import Factory, Sizes
from torchrec.inference import inference_legacy
from torchrec.inference.inference_legacy import model_packager as legacy
from torchrec.inference.model_packager import (
    PredictFactoryPackager,
    load_config_text,
    load_pickle_config,
)

# `torch.package` and pickles of `torch.package` warn of their own insides.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore:.*TypedStorage:UserWarning")]

CONFIGS = {"sizes": Sizes(rows=7, dim=4), "name": "shop"}
EXTRA = {"note.txt": "trained on Monday", "blob": b"\x00\xff"}


class Packager(PredictFactoryPackager):
    @classmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        pe.extern(["numpy.**"])

    @classmethod
    def set_mocked_modules(cls, pe: PackageExporter) -> None:
        pe.mock(["matplotlib.**"])


def packed(**options: str) -> PackageImporter:
    written = io.BytesIO()
    Packager.save_predict_factory(Factory, CONFIGS, written, EXTRA, **options)
    written.seek(0)
    return PackageImporter(written)


def test_a_package_makes_the_model() -> None:
    package = packed()
    assert not any(name.startswith("tests") for name in package.extern_modules)
    factory = package.import_module("__module_loader").MODULE_FACTORY()
    assert type(factory).__module__.startswith("<torch_package_")  # of the code in the package
    module = factory.create_predict_module()
    values, lengths = torch.tensor([0, 6, 3]), torch.tensor([2, 0, 1])
    found = module({"values": values, "lengths": lengths})
    assert found.tolist() == [[1.0] * 4, [0.0] * 4, [0.5] * 4]
    assert list(module.state_dict()) == ["embedding_bags.shop.weight"]
    assert package.load_text("extra_files", "note.txt") == EXTRA["note.txt"]
    assert package.load_binary("extra_files", "blob") == EXTRA["blob"]


def test_code_is_found_where_asked() -> None:
    """A factory out of a package goes into another one."""
    first = packed()
    factory = first.import_module("tests.inference.packaged").Factory
    written = io.BytesIO()
    sizes = first.load_pickle("__configs", "sizes")
    Packager.save_predict_factory(
        factory,
        {"sizes": sizes, "name": "shop"},
        written,
        {},
        package_importer=[first, sys_importer],
    )
    written.seek(0)
    module = PackageImporter(written).import_module("__module_loader").MODULE_FACTORY()
    assert list(module.create_predict_module().state_dict()) == ["embedding_bags.shop.weight"]


def test_the_code_of_the_loader_can_be_another() -> None:
    loader = packed(loader_code="from %PACKAGE% import %CLASS% as made\n").import_module(
        "__module_loader"
    )
    assert loader.made.__name__ == "Factory"


def test_mistakes_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Received a call from 'tests\.inference\.test_model"):
        load_config_text("name")
    with pytest.raises(RuntimeError, match="should be read by code of a package"):
        load_pickle_config("sizes", Sizes)
    with pytest.raises(TypeError, match=r"derived from PredictFactory\. Received <class 'int'>"):
        Packager.save_predict_factory(int, {}, io.BytesIO(), {})  # type: ignore[arg-type]

    class Local(Factory):
        pass

    with pytest.raises(ValueError, match="at the top of a module that can be imported"):
        Packager.save_predict_factory(Local, {}, io.BytesIO(), {})
    module = packed().import_module("tests.inference.packaged")
    with pytest.raises(TypeError, match="Configuration 'sizes' should be a dict"):
        exec("load_pickle_config('sizes', dict)", vars(module))


def test_the_older_path_has_the_same() -> None:
    assert inference_legacy is not None
    assert legacy.PredictFactoryPackager is PredictFactoryPackager
    assert legacy.load_pickle_config is load_pickle_config
    assert legacy.load_config_text is load_config_text
