"""Requests made at random from the methods' own schemas: right, nearly right, and not JSON at all."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from ubi_rpc.rpc.contract import params_schema
from ubi_rpc.rpc.method import Method

TEXTS = ("", "a", "b", "c", "é", "\U0001f600", "a" * 300, "\x7f", "none", "static", "127.0.0.1:0", "\\", '"')
NUMBERS = ("0", "1", "8", "512", "-1", "512.0", "1e3", "1e400", "0.5", "18446744073709551616", "9" * 40, "-0", "2048")
OTHERS = ("true", "false", "null", "[]", "{}", '["a"]', '{"a":1,"a":2}', '"\\ud800"', '"\\u0000"')
BROKEN = (b"{", b"}", b"[1,]", b"nul", b"\xff\xfe", b'{"a":}', b"/* c */", b"\x00", b'"\\x"', b"1.e", b"[" * 70)


class Grammar:
    """Frames for a set of methods.

    Args:
        methods: whose names and parameters are used.
        seed: the same one makes the same frames.
    """

    def __init__(self, methods: Sequence[Method], seed: int) -> None:
        self._random = random.Random(seed)
        self._schemas = {method.name: params_schema(method) for method in methods}
        self._names = sorted(self._schemas)

    def frame(self) -> bytes:
        """Make a request, a batch, or something that is neither."""
        kind = self._random.random()
        if kind < 0.04:
            return self._random.choice(BROKEN)
        if kind < 0.10:
            return self._mangled(self._request())
        if kind < 0.16:
            return b"[" + b",".join(self._request() for _ in range(self._random.randrange(5))) + b"]"
        return self._request()

    def _request(self) -> bytes:
        pick = self._random.random
        name = self._random.choice(self._names)
        members = ['"jsonrpc":"2.0"'] if pick() < 0.9 else []
        members.append(f'"method":{json.dumps(name if pick() < 0.97 else name[:-1])}')
        if pick() < 0.95:
            members.append(f'"id":{self._value() if pick() < 0.1 else self._random.choice(NUMBERS)}')
        if pick() < 0.95:
            members.append(f'"params":{self._params(self._schemas[name]) if pick() < 0.95 else self._value()}')
        if pick() < 0.03:
            members.append(self._random.choice(members))
        self._random.shuffle(members)
        return ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")

    def _params(self, schema: dict[str, Any]) -> str:
        members = []
        for name, member in schema["properties"].items():
            if (name in schema["required"] and self._random.random() < 0.95) or self._random.random() < 0.2:
                members.append(f"{json.dumps(name)}:{self._typed(member)}")
        if self._random.random() < 0.04:
            members.append('"unknown":1')
        return "{" + ",".join(members) + "}"

    def _typed(self, member: dict[str, Any]) -> str:
        if self._random.random() < 0.06:
            return self._value()
        if "enum" in member:
            return json.dumps(self._random.choice(member["enum"]))
        if member.get("type") == "integer":
            return self._random.choice(("8", "512", "2048", "0", *NUMBERS))
        if member.get("type") == "boolean":
            return self._random.choice(("true", "false"))
        if member.get("type") == "string":
            return json.dumps(self._random.choice(("a", "b", "c", *TEXTS)), ensure_ascii=self._random.random() < 0.5)
        return self._random.choice(OTHERS)

    def _value(self) -> str:
        return self._random.choice((*OTHERS, *NUMBERS, *(json.dumps(text) for text in TEXTS)))

    def _mangled(self, frame: bytes) -> bytes:
        at = self._random.randrange(len(frame))
        piece = bytes([self._random.randrange(256)])
        return self._random.choice((frame[:at], frame[:at] + piece + frame[at:], frame[:at] + piece + frame[at + 1 :]))

    def pieces(self, frame: bytes) -> list[bytes]:
        """Cut a frame as a network may."""
        cuts = sorted(self._random.randrange(len(frame) + 1) for _ in range(self._random.randrange(3)))
        return [frame[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(frame)], strict=True)]


def check(answer: bytes) -> None:
    """Check the form of one answer, or of a batch's."""
    assert answer.isascii()
    assert answer.endswith(b"\n")
    value = json.loads(answer)
    for one in value if isinstance(value, list) else [value]:
        assert list(one)[:2] == ["jsonrpc", "id"]
        assert set(one) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
        if "error" in one:
            assert set(one["error"]) <= {"code", "message", "data"}
            assert isinstance(one["error"]["code"], int)
            assert one["error"]["message"] != "Internal error"
