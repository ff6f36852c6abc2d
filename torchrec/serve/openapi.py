"""The description of a server in the words of OpenAPI 3.1, with the columns of its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrec.serve.bodies import ARROW, JSON, PROBLEM

_TYPES = {
    "integers": "integer",
    "strings": "string",
    "numbers": "number",
    "zoned times": "string",
    "local times": "string",
    "durations": "string",
    "times of day": "string",
    "times": "string",
    "nulls": "null",
}


def openapi(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the description.

    Args:
        models: what `torchrec.serve.models.describe` says of each.
    """
    paths: dict[str, Any] = {}
    for model in models:
        prefix = f"/v1/models/{model['name']}"
        paths[prefix] = {"get": _operation("Describe the model and list its versions", {})}
        paths[f"{prefix}:predict"] = {"post": _predict(model)}
        paths[f"{prefix}:recommend"] = {"post": _recommend(model)}
    paths["/v1/models"] = {"get": _operation("List the models", {})}
    paths["/healthz"] = {"get": _operation("Whether the process answers", None)}
    paths["/readyz"] = {"get": _operation("Whether models are loaded", None)}
    paths["/metrics"] = {"get": _operation("Counters for Prometheus", None)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "torchrec serve",
            "version": "1",
            "description": "A version of a model is asked at /v1/models/{model}/versions/{version}, likewise.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Problem": _object(
                    {
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "request_id": {"type": "string"},
                    }
                )
            }
        },
    }


def _predict(model: dict[str, Any]) -> dict[str, Any]:
    rows = {"type": "array", "items": _row(model)}
    body = {
        JSON: {"schema": _object({"rows": rows})},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
    }
    tasks = {
        task["name"]: {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}}
            if "classes" in task
            else {"type": "number"},
        }
        for task in model["tasks"]
    }
    answer = {"predictions": _object(tasks)}
    operation = _operation("Predict for rows; with Accept, as Arrow", answer)
    return {**operation, "requestBody": {"required": True, "content": body}}


def _recommend(model: dict[str, Any]) -> dict[str, Any]:
    rows = {"type": "array", "items": {"type": "object"}}
    wish = {
        "users": rows,
        "k": {"type": "integer", "minimum": 1, "default": 10},
        "candidates": rows,
        "seen": {"type": "array", "items": {"type": "array"}},
        "task": {"enum": [task["name"] for task in model["tasks"]]},
    }
    needed = ["users"] if model["recommends"] else ["users", "candidates"]
    answer = {"recommendations": {"type": "array", "items": rows}}
    operation = _operation("The best candidates for each user", answer)
    content = {JSON: {"schema": _object(wish, needed)}}
    return {**operation, "requestBody": {"required": True, "content": content}}


def _row(model: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a row: every column, null where it is missing."""
    columns: dict[str, Any] = {}
    for feature in model["features"]:
        value: dict[str, Any] = {"type": [_TYPES[feature["values"]], "null"]}
        weights: dict[str, Any] = {"type": ["number", "null"]}
        if feature["type"] in ("multi_hot", "sequence", "vector"):
            if "separator" in feature:
                about = f"Parts between '{feature['separator']}'"
                value = weights = {"type": ["string", "null"], "description": about}
            else:
                value, weights = (
                    {"type": ["array", "null"], "items": each} for each in (value, weights)
                )
        elif feature["values"] in ("zoned times", "times"):
            value["format"] = "date-time"
        columns.setdefault(feature["column"], value)
        if "weights" in feature:
            columns.setdefault(feature["weights"], weights)
    return {**_object(columns), "additionalProperties": True}


def _object(properties: dict[str, Any], required: Sequence[str] | None = None) -> dict[str, Any]:
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": needed}


def _operation(summary: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {}}
    if answer is not None:
        content = {JSON: {"schema": _object(answer) if answer else {"type": "object"}}}
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer", "content": content},
            "default": {"description": "Why there is none", "content": {PROBLEM: problem}},
        },
    }
