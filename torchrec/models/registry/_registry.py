"""What a file of this folder declares, and how it is found."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    model_validator,
)
from pydantic_core import PydanticCustomError, SchemaValidator, core_schema, to_json
from torch import nn

from torchrec.checks import did_you_mean
from torchrec.datasets.initial_weights import LayerInit, TableInit, Uniform

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema
    from typing_extensions import Self

    from torchrec.modules.embedding_modules import (
        EmbeddingBagCollectionInterface,
        EmbeddingCollectionInterface,
    )

DEFAULT = "dlrm_dcn"
"""The model where none is named."""

UNKNOWN_OPTION = "unknown_option"
"""The type of the validator's error about an option that a model does not have."""

Lookups: TypeAlias = Literal["pooled", "sequences", "both"]
Dims: TypeAlias = Literal["one", "several"]
Terms: TypeAlias = Literal["vectors", "weights", "both"]
Tasks: TypeAlias = Literal["one", "numbers", "several"]


class ModelSection(BaseModel):
    """Which model, and its options.

    Each model has a section of its own with its options; this class stands for whichever has the
    name. So ``ModelSection(name="deepfm", layers=[64])`` makes the section of DeepFM, and an option
    that DeepFM does not have is an error.

    Raises:
        ValueError: there is no model of this name, it has no such option, or a value is not what it
            should be.

    Example:
        >>> type(ModelSection(name="deepfm", dim=8)).__name__
        'DeepFMSection'
        >>> ModelSection(name="deepfm", cross_layers=2)
        Traceback (most recent call last):
        pydantic_core._pydantic_core.ValidationError: 1 validation error for DeepFMSection
          `cross_layers` is not an option of model 'deepfm', but of 'dlrm_dcn' and 'esmm' and ...
    """

    model_config = ConfigDict(
        extra="forbid", validate_default=True, validate_assignment=True, allow_inf_nan=False
    )

    name: str = Field(default=DEFAULT, description="the model")
    dim: PositiveInt = Field(
        default=16, description="dimension of every table that has none of its own"
    )
    table_init: TableInit | None = Field(
        default=None,
        description="initial weights of every table that has none of its own; none: as suits the "
        "model",
    )
    layer_init: LayerInit | None = Field(
        default=None, description="initial weights of the layers; none: as suits the model"
    )

    def __new__(cls, **options: object) -> Self:
        """Choose the class by the name, as `pathlib.Path` chooses its own by the system."""
        if cls is not ModelSection:
            return super().__new__(cls)
        section: type[Self] = find(_checked_name(options.get("name", DEFAULT))).section  # type: ignore[assignment]
        return super().__new__(section)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate as the section of the model that is named.

        A function asks the registry anew each time, where a union would be of the models that were
        there when the class was made, and imports the one that is named alone: files of others may
        be broken.
        """
        if cls.__base__ is not BaseModel:  # the section of one model
            return handler(source)
        return core_schema.lax_or_strict_schema(
            core_schema.no_info_plain_validator_function(cls._validated),
            core_schema.no_info_plain_validator_function(cls._validated_strictly),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the union of all sections."""
        if cls is not ModelSection:
            return handler(schema)
        sections = {name: model.section for name, model in _importable().items()}
        return handler(_tagged(sections))

    @staticmethod
    def _validated(value: object) -> object:
        return _validator(_section_of(value)).validate_python(value)

    @staticmethod
    def _validated_strictly(value: object) -> object:
        validator = _validator(_section_of(value))
        if isinstance(value, ModelSection):
            return validator.validate_python(value, strict=True)
        # As JSON, where a word chooses from an enumeration in strict mode, too.
        return validator.validate_json(to_json(value), strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_options(cls, options: object) -> object:
        for option in options if isinstance(options, dict) else ():
            if option not in cls.model_fields:
                raise _unknown_option(cls, str(option))
        return options


S = TypeVar("S", bound=ModelSection)


_AS_BY_THEMSELVES = Uniform()


@dataclass(frozen=True)
class ModelInputs:
    """What a model is built on.

    Attributes:
        num_dense: number of dense features, 0 or more.
        pooled: the tables whose embeddings are pooled, None if there is none.
        sequences: the tables whose embeddings are given id by id, None if there is none.
        linear_tables: names of the tables in ``pooled`` that hold a weight an id, beside those that
            hold vectors. Default none.
        outputs: how many numbers each task takes, for models of several. Default one of one number.
    """

    num_dense: int
    pooled: EmbeddingBagCollectionInterface | None
    sequences: EmbeddingCollectionInterface | None
    linear_tables: Sequence[str] = ()
    outputs: Sequence[int] = (1,)


@dataclass(frozen=True)
class RegisteredModel(Generic[S]):
    """What a file of the registry declares, as ``MODEL``.

    Attributes:
        section: the options, with ``name`` a literal: that of the file.
        build: makes the model: a module from dense features ``(B, num_dense)`` and sparse features,
            a ``KeyedJaggedTensor``, to logits ``(B, 1)``; of several tasks ``(B, sum of outputs)``.
        lookups: how the model looks features up: all of them pooled, all as sequences, or those of
            type ``sequence`` as sequences and the others pooled. Default ``"pooled"``.
        dims: whether all tables have one dimension, or each may have its own. Default ``"one"``.
        terms: what pooled tables hold, by the options: a vector an id, a weight (dimension 1,
            whatever the experiment says), or both, in two tables. Default vectors.
        table_init: initial weights of a table of dimension D, where the experiment has no rule.
            Default: uniform in ± ``sqrt(1 / rows)``.
        layer_init: the same of the layers. Default: as PyTorch starts them.
        tasks: whether the model predicts one number a sample, a number for each of several tasks, or
            whatever each of several tasks takes, such as one a class. Default one.
    """

    section: type[S]
    build: Callable[[S, ModelInputs], nn.Module]
    lookups: Lookups = "pooled"
    dims: Dims = "one"
    terms: Callable[[S], Terms] = lambda section: "vectors"
    table_init: Callable[[int], TableInit] = lambda dim: _AS_BY_THEMSELVES
    layer_init: LayerInit = _AS_BY_THEMSELVES
    tasks: Tasks = "one"


def names() -> list[str]:
    """Return the names of all models, in order.

    Example:
        >>> names()
        ['deepfm', 'dlrm', 'dlrm_dcn', 'esmm', 'fm', 'lr', 'mmoe', 'ple', 'shared_bottom']
    """
    return sorted(_names_in(_package().__path__))


def find(name: str) -> RegisteredModel[ModelSection]:
    """Return what the file of a model declares.

    Args:
        name: of the model and its file.

    Raises:
        ImportError: its file cannot be imported.
        ValueError: there is no such model; the message gives the nearest.
        TypeError: the file declares no model, or one of another name.
    """
    path = f"{_package().__name__}.{_checked_name(name)}"
    try:
        module = importlib.import_module(path)
    except Exception as error:  # a file of somebody's own raises anything
        raise ImportError(
            f"The file of model '{name}' should be one that Python imports. Received "
            f"{type(error).__name__}: {error}."
        ) from error
    model = getattr(module, "MODEL", None)
    if not isinstance(model, RegisteredModel) or _name(model.section) != name:
        raise TypeError(
            f"'{module.__file__}' should declare `MODEL`, a RegisteredModel whose section has the "
            f"name '{name}'. Received {model!r}."
        )
    return model


def add_folder(folder: str | Path) -> None:
    """Add the models whose files lie in a folder to those of this one, until the process ends.

    The files are imported when their models are first asked for.

    Args:
        folder: each Python file in it whose name does not begin with ``_`` is a model.

    Raises:
        ValueError: there is no such folder, or it has a model of a name that is taken.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise ValueError(f"The folder of models should exist. Received '{folder}'.")
    searched = _package().__path__
    if str(path) in searched:
        return
    taken = _names_in([str(path)]) & set(names())
    if taken:
        raise ValueError(
            f"Models in '{folder}' should have names of their own. Received '{min(taken)}', which "
            "is taken."
        )
    searched.append(str(path))
    importlib.invalidate_caches()


def _names_in(folders: Iterable[str]) -> set[str]:
    found = pkgutil.iter_modules(folders)
    return {one.name for one in found if not one.ispkg and not one.name.startswith("_")}


def _checked_name(name: object) -> str:
    available = names()
    if isinstance(name, str) and name in available:
        return name
    near = did_you_mean(name, available) if isinstance(name, str) else ""
    raise ValueError(
        f"The name of a model should be one of {', '.join(available)}. Received {name!r}{near or '.'}"
    )


def _importable() -> dict[str, RegisteredModel[ModelSection]]:
    """Return all models but those whose files are broken, which say so when they are asked for."""
    found = {}
    for name in names():
        with contextlib.suppress(ImportError, TypeError):
            found[name] = find(name)
    return found


def _package() -> ModuleType:
    return sys.modules[__name__.rpartition(".")[0]]


def _name(section: type[ModelSection]) -> object:
    return section.model_fields["name"].default


def _unknown_option(section: type[ModelSection], option: str) -> PydanticCustomError:
    options = list(section.model_fields)
    others = [
        other for other, model in _importable().items() if option in model.section.model_fields
    ]
    near = f", but of {' and '.join(map(repr, others))}." if others else ""
    near = near or did_you_mean(option, options, quote="`") or "."
    reason = (
        f"is not an option of model '{_name(section)}'{near} Its options: {', '.join(options)}."
    )
    # The braces of the text are not those of a template: all of it is one value.
    return PydanticCustomError(
        UNKNOWN_OPTION,
        "{text}",
        {"text": f"`{option}` {reason}", "option": option, "reason": reason},
    )


def _section_of(value: object) -> type[ModelSection]:
    """Return the section that is named; no name that there is: the error of a union, in our words."""
    try:
        name = _checked_name(_name_in(value))
    except ValueError as error:
        raise PydanticCustomError("union_tag_invalid", "{text}", {"text": str(error)}) from None
    return find(name).section


@functools.cache
def _validator(section: type[ModelSection]) -> SchemaValidator:
    """Return the validator of a section, whose errors have its name in their places as a union's do."""
    return SchemaValidator(_tagged({str(_name(section)): section}))


def _tagged(sections: Mapping[str, type[ModelSection]]) -> CoreSchema:
    """Return the union of sections, which chooses by the name."""
    return core_schema.tagged_union_schema(
        {name: TypeAdapter(section).core_schema for name, section in sections.items()}, _name_in
    )


def _name_in(value: object) -> object:
    if isinstance(value, dict):
        return value.get("name", DEFAULT)
    return getattr(value, "name", DEFAULT)
