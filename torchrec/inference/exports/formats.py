"""A trained model as a file that runs without this package."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from torchrec.datasets.features import IdFeature, SparseFeature
from torchrec.datasets.transform import FeatureTransform
from torchrec.files import write_folder
from torchrec.inference.exports._inputs import RawModel
from torchrec.inference.exports._private import compile_for_this_processor
from torchrec.inference.exports.portable import portable
from torchrec.inference.predictor import Predictor, load

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["torch-export", "aoti", "onnx"]

FORMAT = 1
"""Of the folder, raised when what is in it changes."""

DESCRIPTION = "model.json"
OPSET = 20
FILES: Mapping[Format, str] = {
    "torch-export": "model.pt2",
    "aoti": "model.pt2",
    "onnx": "model.onnx",
}
OUTPUTS = ("probabilities", "logits")
"""Of a model with one label of yes and no; others have one a task, see `outputs_of`."""


def export(
    run: str | os.PathLike[str] | Predictor, folder: str | os.PathLike[str], format: Format
) -> Path:
    """Write a trained model as a file that runs without this package, and how to call it.

    The file holds the transform as well: numbers go in as they are in the data, ids as integers. Only strings have to
    be hashed before, and lists to be cut: ``model.json`` beside it says how, feature by feature. Any number of rows
    and ids may be asked for at once. Computed are the probabilities of `Predictor`, to the rounding of sums.

    Args:
        run: a run folder, a bundle, or what `torchrec.inference.load` makes of them.
        folder: to be written, whole or not at all.
        format: ``"torch-export"``, for ``torch.export.load``, of PyTorch's own operators; ``"aoti"``, the same
            compiled for this machine's kind of processor, for ``torch._inductor.aoti_load_package``, which takes a
            C++ compiler here; ``"onnx"``, of standard operators, for ONNX Runtime and others.

    Returns:
        The model's file.

    Raises:
        ValueError: the format is none of these; or the model has a part that does not work without this package.
        ImportError: ONNX is asked for and its packages are not there.
    """
    if format not in get_args(Format):
        raise ValueError(
            f"`format` should be one of {', '.join(get_args(Format))}. Received '{format}'."
        )
    if format == "onnx":
        _require_onnx()
    predictor = run if isinstance(run, Predictor) else load(run)
    model = RawModel(predictor.transform, predictor.model).eval()
    is_weighted = predictor.transform.is_weighted
    program = portable_program(model, is_weighted)
    with write_folder(folder, format=FORMAT, what="The export") as beside:
        _write(program, format, beside / FILES[format], list(outputs_of(model)))
        text = json.dumps(description(predictor.transform, model, format), indent=1)
        (beside / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return Path(folder) / FILES[format]


def portable_program(model: RawModel, is_weighted: bool) -> ExportedProgram:
    """Return a graph of PyTorch's own operators, for any number of rows and ids."""
    from torch.export import Dim

    example = _example(model, is_weighted)
    rows, ids = Dim("rows", min=1), Dim("ids", min=0)
    of_ids = {0: ids} if model.id_names else {}  # without a table there is never one
    shapes: tuple[Any, ...] = ({0: rows}, of_ids, {1: rows}, of_ids)[: len(example)]
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=shapes)
        graph = portable(program.module(check_guards=False))
        whole = torch.export.export(_Named(graph), example, dynamic_shapes=shapes)
        found: ExportedProgram = whole.run_decompositions()
    return found


class _Named(nn.Module):
    """Gives the inputs of a graph their names."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.served = graph

    def forward(
        self, numbers: Tensor, ids: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        given = (numbers, ids, lengths) if weights is None else (numbers, ids, lengths, weights)
        found: tuple[Tensor, ...] = self.served(*given)
        return found


def _example(model: RawModel, is_weighted: bool) -> tuple[Tensor, ...]:
    """Return inputs whose sizes are none that the model has, which would be taken for them."""
    rows = 37
    lengths = torch.ones(len(model.id_names), rows, dtype=torch.int64)
    lengths[:1, 0] = 5  # of one feature, there would be as many ids as rows
    ids = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    example = (torch.zeros(rows, len(model.number_names), dtype=torch.float64), ids, lengths)
    return (*example, torch.ones(len(ids))) if is_weighted else example


def _write(program: ExportedProgram, format: Format, path: Path, outputs: list[str]) -> None:
    if format == "torch-export":
        torch.export.save(program, path)
    elif format == "aoti":
        compile_for_this_processor(program, path)
    else:
        found = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, verbose=False, output_names=outputs
        )
        assert found is not None
        # What a file may have is 2 GiB; the weights stand beside it from some way below that.
        found.save(path, external_data=_bytes_of(program) > 1 << 30)


def _bytes_of(program: ExportedProgram) -> int:
    return sum(tensor.nbytes for tensor in program.state_dict.values())


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"To write ONNX, `pip install 'rowwise[export]'`. Received no {' and no '.join(missing)}."
        )


def outputs_of(model: RawModel) -> dict[str, dict[str, object]]:
    """Return what comes out of an export by name, in order, as its description has it."""
    if model.is_click:
        return {name: {"dtype": "float32", "shape": ["rows"]} for name in OUTPUTS}
    found: dict[str, dict[str, object]] = {}
    for task, target in model.targets.items():
        shape = ["rows"] if target.classes is None else ["rows", target.classes]
        name = f"prediction_{task}" if len(model.targets) > 1 else "prediction"
        found[name] = {"dtype": "float32", "shape": shape, "task": task, "kind": target.kind}
    return found


def description(transform: FeatureTransform, model: RawModel, format: Format) -> dict[str, object]:
    """Return what somebody needs to know who calls the file, as JSON has it."""
    numbers = [_number_input(transform, name) for name in model.number_names]
    inputs: dict[str, object] = {
        "numbers": {
            "dtype": "float64",
            "shape": ["rows", len(numbers)],
            "missing": "NaN",
            "columns": numbers,
        },
        "ids": {"dtype": "int64", "shape": ["ids"], "order": "by feature, then by row"},
        "lengths": {
            "dtype": "int64",
            "shape": [len(model.id_names), "rows"],
            "features": [_id_input(transform, name) for name in model.id_names],
        },
    }
    if transform.is_weighted:
        inputs["weights"] = {"dtype": "float32", "shape": ["ids"], "missing": 1}
    return {
        "format": format,
        "file": FILES[format],
        **({"opset": OPSET} if format == "onnx" else {}),
        "inputs": inputs,
        "outputs": outputs_of(model),
        "strings": "XXH64 of the UTF-8 bytes, seed 0, as a signed integer of 64 bits",
        "times": "seconds since 1970-01-01",
    }


def _number_input(transform: FeatureTransform, name: str) -> dict[str, object]:
    """Say which feature and column a number is of, and of a vector its place."""
    if name in transform.features:
        return {"feature": name, "column": transform.features[name].column or name}
    name, _, place = name.rpartition("[")
    feature = transform.features[name]
    found = {
        "feature": name,
        "column": feature.column or name,
        "place": int(place.removesuffix("]")),
    }
    separator = getattr(feature, "separator", None)
    return found if separator is None else {**found, "separator": separator}


def _id_input(transform: FeatureTransform, name: str) -> dict[str, object]:
    feature = transform.features[name]
    assert isinstance(feature, IdFeature)
    found: dict[str, object] = {
        "feature": name,
        "column": feature.column or name,
        "values": transform.kinds.get(name, "integers"),
        "ids": feature.ids,
    }
    if isinstance(feature, SparseFeature):
        return {**found, "at_most": 1}
    if feature.separator is not None:
        found["separator"] = feature.separator
    if feature.max_length is not None:
        found["at_most"] = feature.max_length
        found["keep"] = "last" if feature.type == "sequence" else "first"
    if feature.weights is not None:
        found["weights"] = feature.weights
    if feature.weight_separator is not None:
        found["weight_separator"] = feature.weight_separator
    return found
