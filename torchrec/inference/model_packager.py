"""Factories of models as packages: their code, configurations and further files in one archive.

A package is what `torch.package` writes: Python code and pickles, but not this library, which should be of the same
version where it is loaded. Load only packages that you have made: loading runs their code. For a model that runs
without this library and executes nothing, see `torchrec.inference.export`.
"""

from __future__ import annotations

import abc
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

from torch.package.importer import Importer, sys_importer
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

from torchrec.checks import require_type
from torchrec.inference.modules import (
    PredictFactory,
    trim_torch_package_prefix_from_typename,
)

__all__ = ["PredictFactoryPackager", "load_config_text", "load_pickle_config"]

T = TypeVar("T")

_CONFIGS, _EXTRA_FILES, _LOADER = "__configs", "extra_files", "__module_loader"
_LOADER_CODE = """
import %PACKAGE%

MODULE_FACTORY=%PACKAGE%.%CLASS%
"""


class PredictFactoryPackager(abc.ABC):
    """Writes factories of models as packages. Derived classes say which code goes in.

    Code of the factory's module and of all that it imports is put into the package, but for PyTorch, this library and
    Python's own, which are taken from where it is loaded, and what the two methods below name. Modules with
    dataclasses cannot have ``from __future__ import annotations`` there: dataclasses look for their module where those
    of packages are not.
    """

    @classmethod
    @abc.abstractmethod
    def set_extern_modules(cls, pe: PackageExporter) -> None:
        """Name further modules that are taken from where the package is loaded: ``pe.extern([...])``.

        Args:
            pe: writes the package.
        """

    @classmethod
    @abc.abstractmethod
    def set_mocked_modules(cls, pe: PackageExporter) -> None:
        """Name modules that the code imports but does not need: ``pe.mock([...])``.

        Args:
            pe: writes the package.
        """

    @classmethod
    def save_predict_factory(
        cls,
        predict_factory: type[PredictFactory],
        configs: Mapping[str, Any],
        output: str | os.PathLike[str] | BinaryIO,
        extra_files: Mapping[str, str | bytes],
        loader_code: str = _LOADER_CODE,
        package_importer: Importer | Sequence[Importer] = sys_importer,
    ) -> None:
        """Write a factory as a package.

        In it are ``__configs``, ``extra_files`` and ``__module_loader``, whose ``MODULE_FACTORY`` is the factory:
        ``PackageImporter(output).import_module("__module_loader").MODULE_FACTORY().create_predict_module()`` makes the
        model.

        Args:
            predict_factory: a class that can be imported by its name.
            configs: by name: texts, which the factory reads by `load_config_text`, and other objects, which are pickled
                and which it reads by `load_pickle_config`.
            output: a file to be written.
            extra_files: by name: texts and bytes.
            loader_code: the code of ``__module_loader``; ``%PACKAGE%`` and ``%CLASS%`` are module and name of the
                factory.
            package_importer: where code and classes of objects are found. Default: in this process.

        Raises:
            TypeError: the factory is no class that is derived from `PredictFactory`.
            ValueError: it cannot be imported, as what is defined in a function or in ``__main__``.
        """
        if not (isinstance(predict_factory, type) and issubclass(predict_factory, PredictFactory)):
            raise TypeError(
                "`predict_factory` should be a class that is derived from PredictFactory. "
                f"Received {predict_factory!r}."
            )
        # A class that was loaded from another package has the name of that before its own.
        module = trim_torch_package_prefix_from_typename(predict_factory.__module__)
        name = predict_factory.__qualname__
        if "." in name or module == "__main__":
            raise ValueError(
                "`predict_factory` should be at the top of a module that can be imported. "
                f"Received '{name}' of '{module}'."
            )
        with PackageExporter(output, importer=package_importer) as exporter:
            cls.set_extern_modules(exporter)
            cls.set_mocked_modules(exporter)
            exporter.extern(["torch.**", "torchrec.**"])
            exporter.intern("**")
            for key, config in configs.items():
                if isinstance(config, str):
                    exporter.save_text(_CONFIGS, key, config)
                else:
                    exporter.save_pickle(_CONFIGS, key, config)
            for key, data in extra_files.items():
                if isinstance(data, str):
                    exporter.save_text(_EXTRA_FILES, key, data)
                else:
                    exporter.save_binary(_EXTRA_FILES, key, data)
            code = loader_code.replace("%PACKAGE%", module).replace("%CLASS%", name)
            exporter.save_source_string(_LOADER, code)


def load_config_text(name: str) -> str:
    """Return a text that the package of the calling code has among its configurations.

    Args:
        name: of the text.

    Raises:
        RuntimeError: the calling code was not loaded from a package.
    """
    text: str = _package_of(inspect.currentframe()).load_text(_CONFIGS, name)
    return text


def load_pickle_config(name: str, clazz: type[T]) -> T:
    """Return an object that the package of the calling code has among its configurations.

    Args:
        name: of the object.
        clazz: its class.

    Raises:
        RuntimeError: the calling code was not loaded from a package.
        TypeError: it is of another class.
    """
    found = _package_of(inspect.currentframe()).load_pickle(_CONFIGS, name)
    require_type(found, f"Configuration '{name}'", clazz)
    config: T = found
    return config


def _package_of(frame: Any) -> PackageImporter:
    """Return the package from which the caller of a function was loaded; modules name what has loaded them."""
    found = frame.f_back.f_globals.get("__loader__")
    if not isinstance(found, PackageImporter):
        raise RuntimeError(
            "Configurations should be read by code of a package, as `PredictFactoryPackager.save_predict_factory` "
            f"writes them. Received a call from '{frame.f_back.f_globals.get('__name__')}', which is none."
        )
    return found
