"""Parts of the OpenAPI document, derived from the declared options."""

from __future__ import annotations

from typing import Any

from longtake.configs.request import VideoRequest
from longtake.serve.http.request.openai_request import SERVER_FIELDS
from longtake.serve.service.submission import PICTURE_FIELDS

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL: dict[str, Any] = {
    "model": {"type": "string", "description": "Name of the served model; optional"},
}
_REFERENCE = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["image_url"],
            "properties": {"image_url": {"type": "string"}},
        },
    ],
    "description": "A picture as a data URL",
}
_VIDEO = {
    "type": "object",
    "required": ["id", "object", "model", "status", "progress", "created_at", "size", "seconds"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "video"},
        "model": {"type": "string"},
        "status": {"enum": ["queued", "in_progress", "completed", "failed"]},
        "progress": {"type": "integer", "minimum": 0, "maximum": 100},
        "created_at": {"type": "integer"},
        "size": {"type": "string"},
        "seconds": {"type": "string"},
        "estimated_seconds": {
            "type": ["number", "null"],
            "description": "Seconds until the video is done, including all videos before it; "
            "null if not known yet",
        },
    },
}
_LORAS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "object", "bytes", "uses", "problem"],
                "properties": {
                    "id": {"type": "string"},
                    "object": {"const": "lora"},
                    "bytes": {"type": "integer"},
                    "uses": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "What a request may write in its field lora, to which it "
                        "may add a scale, as in NAME:0.8; several if it must name a transformer",
                    },
                    "problem": {
                        "type": ["string", "null"],
                        "description": "Why no request may name it",
                    },
                },
            },
        },
    },
}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with its definitions in place of references to them."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(each, definitions) for name, each in schema.items()}


def _body(picture: dict[str, Any]) -> dict[str, Any]:
    declared = VideoRequest.model_json_schema()
    fields = {
        name: _inlined(schema, declared.get("$defs", {}))
        for name, schema in declared["properties"].items()
        if name not in SERVER_FIELDS
    }
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {**fields, **_MODEL, **dict.fromkeys(PICTURE_FIELDS.values(), picture)},
    }


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


CREATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _body(_REFERENCE)},
            "multipart/form-data": {"schema": _body({"type": "string", "format": "binary"})},
        },
    },
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            "description": "Repeated requests with the same key create one video",
        }
    ],
}


def _file_response(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": description, "content": dict.fromkeys(media_types, schema)}}


CONTENT = _file_response("The file", "video/mp4", "application/octet-stream", "image/jpeg")
EVENTS = _file_response("Server-sent events", "text/event-stream")
METRICS = _file_response("Prometheus' text format", "text/plain")
LORAS: dict[int | str, dict[str, Any]] = {200: _response("The LoRAs", _LORAS)}
VIDEO: dict[int | str, dict[str, Any]] = {200: _response("The video", _VIDEO)}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": _response("An error of the request, in OpenAI's format", _ERROR),
    "5XX": _response("An error of the server", _ERROR),
}
