"""Params as parsed -> the method's frozen model, or a refusal that says what to change.

Owns the words of a refusal. Its code and text are the method's (`Method.decode_error`). No value that a
client sent is ever repeated in them, since it may be a secret; names of parameters are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from ubi_rpc.errors import ErrorKind
from ubi_rpc.params import Params
from ubi_rpc.rpc.envelope import clip
from ubi_rpc.rpc.json_values import DuplicateKeyError, to_plain
from ubi_rpc.rpc.method import Method
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.suggest import did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_FAULTS_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one parameter, in one clause; `parameter` is its path, "" for all of them."""

    parameter: str
    detail: str


def decode_params(method: Method, params: object) -> Params:
    """Validate `params` (None: absent, which is the same as empty) against the method's model.

    Raises:
        WireError: with the method's decode error; its detail names each parameter at fault.
    """
    found = read_params(method, params)
    if isinstance(found, Params):
        return found
    detail = "; ".join(fault.detail for fault in found[:_FAULTS_SHOWN])
    context = {"method": method.name}
    if parameter := found[0].parameter:
        context["parameter"] = parameter[:64]
    raise WireError(method.decode_error, ErrorKind.INVALID_PARAMS, f"{method.name}: {detail}", context)


def read_params(method: Method, params: object) -> Params | list[Fault]:
    """Validate `params` and return the model, or everything that is wrong."""
    if params is None:
        params = {}
    if not isinstance(params, dict):
        return [Fault("", "params must be an object with named parameters")]
    try:
        return method.params.model_validate(to_plain(params))
    except DuplicateKeyError as error:
        return [Fault(error.key, f"parameter {clip(error.key)} is repeated")]
    except ValidationError as error:
        faults = error.errors(include_url=False)
        return [Fault(_path(fault), _describe(method.params, fault)) for fault in faults]


def _path(fault: ErrorDetails) -> str:
    return ".".join(str(part) for part in fault["loc"])


def _describe(model: type[Params], fault: ErrorDetails) -> str:
    """Say in one clause what is wrong with one parameter."""
    path = _path(fault)
    if fault["type"] == "missing":
        return f"parameter {clip(path)} is required"
    if fault["type"] == "extra_forbidden":
        return f"unknown parameter {clip(path)}{_suggest(model, path)}"
    reason = fault["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        reason += did_you_mean(fault["input"], re.findall(r"'([^']*)'", reason))
    return f"parameter {clip(path)} {reason}" if path else reason


def _suggest(model: type[Params], name: str) -> str:
    known = [field.alias or key for key, field in model.model_fields.items()]
    if not known:
        return "; the method has no parameters"
    return did_you_mean(name, known) or f"; known are {', '.join(known)}"
