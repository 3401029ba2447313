"""The methods as documents: a JSON Schema for each, an OpenRPC document, tables of parameters.

Everything is read from the models and the handlers that serve the requests: types from the annotations, meanings from
the docstrings. Owns the form of the documents, no fact in them.

Source: JSON Schema 2020-12; OpenRPC 1.3.2, https://spec.open-rpc.org.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from ubi_rpc.params import Params
from ubi_rpc.rpc.method import Method, State

JSON_SCHEMA: Final = "https://json-schema.org/draft/2020-12/schema"
OPENRPC: Final = "1.3.2"

_ARGUMENT: Final = re.compile(r"^    (\w+): (.*(?:\n     +\S.*)*)", re.MULTILINE)

Schema = dict[str, Any]


def summary(method: Method) -> str:
    """Return the first paragraph of the handler's docstring, on one line."""
    text = inspect.getdoc(method.handler) or inspect.getdoc(method.params) or ""
    return " ".join(text.partition("\n\n")[0].split())


def states(method: Method) -> list[str]:
    """Return when the method may be called: "startup", "runtime"."""
    return [(state.name or "").lower() for state in State if state in method.states]


def meanings(model: type[Params]) -> dict[str, str]:
    """Return what the docstrings of a model and its bases say of each parameter."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls.__doc__:
            arguments = inspect.getdoc(cls) or ""
            for name, text in _ARGUMENT.findall(arguments.partition("Args:")[2]):
                found[name] = " ".join(text.split())
    return {name: found[name] for name in model.model_fields if name in found}


def params_schema(method: Method) -> Schema:
    """Return the JSON Schema of a method's params: an object, closed unless the method ignores the rest."""
    generated = _without_null(method.params.model_json_schema())
    described = meanings(method.params)
    properties = generated.get("properties", {})
    for name, member in properties.items():
        member.pop("title", None)
        if name in described:
            member["description"] = described[name]
    schema: Schema = {"$schema": JSON_SCHEMA, "title": method.name, "description": summary(method), "type": "object"}
    schema["properties"] = properties
    schema["required"] = generated.get("required", [])
    schema["additionalProperties"] = generated.get("additionalProperties", True)
    if "$defs" in generated:
        schema["$defs"] = generated["$defs"]
    schema["x-states"] = states(method)
    return schema


def result_schema(method: Method) -> Schema:
    """Return the JSON Schema of what a method answers, as far as its handler's annotation says."""
    annotation = typing.get_type_hints(method.handler).get("return", object)
    try:
        schema: Schema = _without_null(TypeAdapter(annotation).json_schema(), keep_alternatives=True)
    except PydanticSchemaGenerationError:
        return {}
    return schema


def openrpc(methods: Iterable[Method], version: str) -> Schema:
    """Return the OpenRPC document of these methods."""
    return {
        "openrpc": OPENRPC,
        "info": {
            "title": "ubi_rpc",
            "version": version,
            "description": "SPDK's JSON-RPC on a Unix socket; see docs/rpc.md.",
        },
        "methods": [_openrpc_method(method) for method in methods],
    }


def _openrpc_method(method: Method) -> Schema:
    schema = params_schema(method)
    required = set(schema["required"])
    params = [
        {"name": name, "required": name in required, "schema": _inlined(member, schema.get("$defs", {}))}
        for name, member in schema["properties"].items()
    ]
    code, message = method.decode_error
    return {
        "name": method.name,
        "summary": schema["description"],
        "paramStructure": "by-name",
        "params": params,
        "result": {"name": "result", "schema": result_schema(method)},
        "errors": [{"code": code, "message": message}],
        "x-states": schema["x-states"],
    }


def _inlined(member: Any, definitions: Schema) -> Any:
    """Return a schema with references replaced by what they refer to."""
    if isinstance(member, dict):
        if "$ref" in member:
            name = str(member["$ref"]).rpartition("/")[2]
            rest = {key: value for key, value in member.items() if key != "$ref"}
            return {**_inlined(definitions[name], definitions), **rest}
        return {key: _inlined(value, definitions) for key, value in member.items()}
    if isinstance(member, list):
        return [_inlined(value, definitions) for value in member]
    return member


def _without_null(schema: Any, *, keep_alternatives: bool = False) -> Any:
    """Return a schema without the nulls of parameters that may be left out: an explicit null is refused."""
    if isinstance(schema, list):
        return [_without_null(value, keep_alternatives=keep_alternatives) for value in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: _without_null(value, keep_alternatives=keep_alternatives)
        for key, value in schema.items()
        if not (key == "default" and value is None)
    }
    alternatives = found.get("anyOf")
    if alternatives is not None and not keep_alternatives:
        left = [alternative for alternative in alternatives if alternative != {"type": "null"}]
        if len(left) == 1:
            del found["anyOf"]
            found = {**left[0], **found}
    return found


def parameter_rows(method: Method) -> list[tuple[str, str, str]]:
    """Return name, type with default, and meaning of each parameter; a required one's name ends in `*`."""
    schema = params_schema(method)
    rows = []
    for name, member in schema["properties"].items():
        mark = "*" if name in schema["required"] else ""
        rows.append((f"`{name}`{mark}", _type_text(member), member.get("description", "")))
    return rows


def _type_text(member: Schema) -> str:
    if "enum" in member:
        text = ", ".join(f"`{value}`" for value in member["enum"])
    elif member.get("type") == "array":
        text = f"list of {member['items'].get('type', 'object')}s"
    else:
        text = {"boolean": "bool"}.get(kind := str(member.get("type", "object")), kind)
    if "default" in member:
        default = member["default"]
        text += f", {str(default).lower() if isinstance(default, bool) else default!r}".replace("'", "`")
    return text
