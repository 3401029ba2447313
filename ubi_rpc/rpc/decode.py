"""Params as parsed -> the method's frozen model, or a refusal that says what to change.

Owns the words of a refusal. Its code and text are the method's (`Method.decode_error`). No value that a
client sent is ever repeated in them, since it may be a secret; names of parameters are.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from ubi_rpc.errors import ErrorKind
from ubi_rpc.params import Params
from ubi_rpc.rpc.envelope import clip
from ubi_rpc.rpc.json_values import DuplicateKeyError, to_plain
from ubi_rpc.rpc.method import Method
from ubi_rpc.rpc.wire_errors import WireError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_FAULTS_SHOWN: Final = 4


def decode_params(method: Method, params: object) -> Params:
    """Validate `params` (None: absent, which is the same as empty) against the method's model.

    Raises:
        WireError: with the method's decode error; its detail names each parameter at fault.
    """
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise _refusal(method, "params must be an object with named parameters", None)
    try:
        return method.params.model_validate(to_plain(params))
    except DuplicateKeyError as error:
        raise _refusal(method, f"parameter {clip(error.key)} is repeated", error.key) from None
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        details = "; ".join(_describe(method.params, fault) for fault in faults[:_FAULTS_SHOWN])
        raise _refusal(method, details, _path(faults[0])) from None


def _refusal(method: Method, detail: str, parameter: str | None) -> WireError:
    context = {"method": method.name} | ({"parameter": parameter[:64]} if parameter else {})
    return WireError(method.decode_error, ErrorKind.INVALID_PARAMS, f"{method.name}: {detail}", context)


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
    return f"parameter {clip(path)} {reason}" if path else reason


def _suggest(model: type[Params], name: str) -> str:
    known = [field.alias or key for key, field in model.model_fields.items()]
    if not known:
        return "; the method has no parameters"
    close = get_close_matches(name[:64], known, n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
