"""What params models are made of: the strict base model and SPDK's value types.

Importable by every folder, as `errors` is: a bdev kind declares its parameters next to what it does with them.
Owns no method and no default.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Params(BaseModel):
    """Base of every params model: frozen, strict, no unknown keys, no nulls.

    Numbers arrive from `rpc.framing` as exact `int` (512.0 and 1e3 included), `float` or `str`, so strict
    pydantic integers accept what SPDK accepts and refuse what it refuses. A parameter that may be left out
    defaults to None and still refuses an explicit null, as SPDK's decoders do.

    Source: SPDK lib/json/json_util.c, spdk_json_decode_object.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_null(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key, value in data.items():
                if value is None:
                    raise ValueError(f"{key}: null is not a value; leave the parameter out")
        return data


class NoParams(Params):
    """A method without parameters. `{}` is accepted as well, a safe superset of SPDK."""


class IgnoredParams(Params):
    """A method that does not look at its parameters."""

    model_config = ConfigDict(extra="ignore")


def _plain_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is not allowed")
    if not text.isascii():
        text.encode()  # a lone surrogate has no bytes: UnicodeEncodeError is a ValueError
    return text


def _lower_uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError("not a uuid of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
    return text.lower()


Text = Annotated[str, AfterValidator(_plain_text)]
"""A string as a C program takes it: UTF-8 without NUL."""

Uuid = Annotated[str, AfterValidator(_lower_uuid), Field(json_schema_extra={"format": "uuid"})]
"""A uuid in its dashed form; any case comes in, lower case comes out."""

UInt8 = Annotated[int, Field(ge=0, le=2**8 - 1)]
UInt16 = Annotated[int, Field(ge=0, le=2**16 - 1)]
UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
