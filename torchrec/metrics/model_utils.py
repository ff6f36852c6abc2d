"""Labels, predictions and weights of tasks, out of what a model puts out."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrec.metrics.metrics_config import RecTaskInfo


def is_empty_signals(labels: Tensor, predictions: Tensor, weights: Tensor) -> bool:
    """Return whether there are no samples."""
    return labels.numel() == 0 and predictions.numel() == 0 and weights.numel() == 0


def session_ids_to_tensor(session_ids: list[str], device: torch.device | None = None) -> Tensor:
    """Number sessions of samples that stand together, from 1.

    Example:
        >>> session_ids_to_tensor(["a", "a", "b", "c"])
        tensor([1, 1, 2, 3])
    """
    numbers: list[int] = []
    for i, session in enumerate(session_ids):
        same = i > 0 and session == session_ids[i - 1]
        numbers.append(numbers[-1] if same else (numbers[-1] + 1 if numbers else 1))
    return torch.tensor(numbers, device=device)


def parse_model_outputs(
    label_name: str, prediction_name: str, weight_name: str, model_out: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return labels, predictions and weights of a task, without dimensions of one.

    Args:
        label_name: the output with the labels.
        prediction_name: that with the predictions; empty for a task without, which has no weights either.
        weight_name: that with the weights.
        model_out: the outputs by name.

    Raises:
        ValueError: if an output is missing, or they differ in size.

    Example:
        >>> out = {"y": torch.tensor([[0.0], [1.0]]), "p": torch.tensor([0.2, 0.7]), "w": torch.ones(2)}
        >>> parse_model_outputs("y", "p", "w", out)
        (tensor([0., 1.]), tensor([0.2000, 0.7000]), tensor([1., 1.]))
    """
    labels = _flat(_output("label", label_name, model_out))
    if not prediction_name:
        if weight_name:
            raise ValueError(
                f"`weight_name` of a task without predictions should be empty. Received '{weight_name}'."
            )
        return labels, None, None
    predictions = _output("prediction", prediction_name, model_out)
    weights = _flat(_output("weight", weight_name, model_out))
    if predictions.ndim == 2 and predictions.shape[1] != 1 and predictions.numel() != len(labels):
        samples = predictions.shape[0]
    else:
        predictions = _flat(predictions)
        samples = len(predictions)
    if not len(labels) == samples == len(weights):
        raise ValueError(
            f"`{label_name}`, `{prediction_name}` and `{weight_name}` should have one number for each "
            f"sample. Received {len(labels)}, {samples} and {len(weights)}."
        )
    return labels, predictions, weights


def parse_required_inputs(
    model_out: dict[str, Tensor],
    required_inputs_list: list[str],
    ndcg_transform_input: bool = False,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Return further outputs that metrics ask for, without dimensions of one.

    Args:
        model_out: the outputs by name.
        required_inputs_list: the names.
        ndcg_transform_input: number sessions given as strings, see `session_ids_to_tensor`.
        device: where these numbers go.

    Raises:
        ValueError: if one is missing.
    """
    found: dict[str, Tensor] = {}
    for name in required_inputs_list:
        value = _output("required input", name, model_out)
        if isinstance(value, list):
            if not ndcg_transform_input:
                raise ValueError(f"`{name}` should be a tensor. Received a list.")
            value = session_ids_to_tensor(value, device)
        found[name] = value.squeeze() if value.numel() != 1 else value.reshape(1)
    return found


def parse_task_model_outputs(
    tasks: list[RecTaskInfo],
    model_out: dict[str, Tensor],
    required_inputs_list: list[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return labels, predictions and weights by task, and further outputs that metrics ask for.

    A task without samples in the batch is left out.

    Args:
        tasks: the tasks.
        model_out: the outputs of the model by name.
        required_inputs_list: names of further outputs. Default: none.

    Raises:
        ValueError: if an output is missing, or those of a task differ in size.
    """
    all_labels: dict[str, Tensor] = {}
    all_predictions: dict[str, Tensor] = {}
    all_weights: dict[str, Tensor] = {}
    for task in tasks:
        labels, predictions, weights = parse_model_outputs(
            task.label_name, task.prediction_name, task.weight_name, model_out
        )
        if predictions is not None and weights is not None:
            if is_empty_signals(labels, predictions, weights):
                continue
            all_predictions[task.name] = predictions
            all_weights[task.name] = weights
        all_labels[task.name] = labels
    required = parse_required_inputs(model_out, required_inputs_list or [])
    return all_labels, all_predictions, all_weights, required


def _output(kind: str, name: str, model_out: dict[str, Tensor]) -> Tensor:
    if name not in model_out:
        raise ValueError(
            f"`model_out` should have the {kind} '{name}'. Received {sorted(model_out)}."
        )
    return model_out[name]


def _flat(values: Tensor) -> Tensor:
    return values if values.ndim == 1 else values.reshape(-1)
