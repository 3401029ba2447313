"""JSON tokens -> values, bounded and incremental; the one parser for requests and configuration files.

Owns the structural grammar and the limits. Values come out as they were written (`json_values`); what
they mean is their consumer's business.

Source: SPDK lib/json/json_parse.c, spdk_json_parse (states, nesting, how values are counted).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ubi_rpc.rpc.json_tokens import LITERAL, NEED_MORE, NUMBER, STRING, JsonSyntaxError, Tokenizer
from ubi_rpc.rpc.json_values import JsonObject

MAX_DEPTH: Final = 64
"""Containers open at once: the 65th is refused. Source: SPDK_JSON_MAX_NESTING_DEPTH."""

VALUE_BYTES: Final = 128
"""About what a parsed value takes beyond its text, its place in its container included."""

# What may come next.
_VALUE: Final = "value"
_VALUE_OR_END: Final = "value or ]"
_KEY: Final = "key"
_KEY_OR_END: Final = "key or }"
_COLON: Final = "colon"
_COMMA_OR_END: Final = "comma or end"

_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_ARRAY, _CLOSE_ARRAY, _COMMA, _COLON_SIGN = b"{}[],:"


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one document may be.

    Args:
        max_bytes: length from its first to its last byte; None: as long as it likes.
        max_values: scalars, keys, and the begin and end of each container, as SPDK counts them; None: any.
    """

    max_bytes: int | None = None
    max_values: int | None = None


class _Incomplete:
    """The type of INCOMPLETE."""


INCOMPLETE: Final = _Incomplete()
"""What `JsonParser.next_value` gives while the fed bytes end inside a value or before one."""


class JsonParser:
    """Builds the values of a stream, one after another.

    Args:
        limits: of one value.
        comments: C and C++ comments count as white space.
        places: objects know where their keys are.
    """

    def __init__(self, limits: Limits, *, comments: bool = False, places: bool = False) -> None:
        self._limits = limits
        self._places = places
        self._tokens = Tokenizer(comments=comments)
        self._stack: list[JsonObject | list[object]] = []
        self._keys: list[str] = []  # the key whose value is awaited, for each open object
        self._expect = _VALUE
        self._count = 0  # values of the current document, as SPDK counts them
        self._start = 0
        self._result: object = None
        self.last_size_bytes = 0

    @property
    def offset(self) -> int:
        """Bytes of the stream that are consumed."""
        return self._tokens.offset

    @property
    def held_bytes(self) -> int:
        """About the memory that a value takes whose end is missing, after INCOMPLETE; 0 where none has begun."""
        tokens = self._tokens
        if not self._stack and not tokens.unfinished:
            return 0
        start = self._start if self._stack else tokens.start
        return tokens.end - start + VALUE_BYTES * self._count

    def feed(self, data: bytes) -> None:
        """Add the stream's next bytes; `next_value` reads them."""
        self._tokens.feed(data)

    def require_end(self) -> None:
        """Raise JsonSyntaxError if anything but white space follows the value last given."""
        if self._tokens.next(top_level=True) != NEED_MORE or self._tokens.unfinished:
            raise JsonSyntaxError("something follows the document's end", self._tokens.start)

    def next_value(self) -> object:
        """Give the next whole value, or INCOMPLETE. `last_size_bytes` is then the value's length.

        Raises:
            JsonSyntaxError: the stream is not JSON or passes a limit; nothing more can be read from it.
        """
        tokens = self._tokens
        while kind := tokens.next(top_level=not self._stack):
            if not self._stack:
                self._start = tokens.start
                self._count = 0
            if self._accept(kind):
                self.last_size_bytes = tokens.offset - self._start
                self._check_limits(self.last_size_bytes)
                return self._result
        if self._stack or tokens.unfinished:
            # Bytes of an unfinished value: at the limit it cannot end in time any more.
            start = self._start if self._stack else tokens.start
            self._check_limits(tokens.end - start + 1)
        return INCOMPLETE

    def _check_limits(self, size_bytes: int) -> None:
        if self._limits.max_bytes is not None and size_bytes > self._limits.max_bytes:
            raise JsonSyntaxError(f"more than {self._limits.max_bytes} bytes", self.offset)
        if self._limits.max_values is not None and self._count > self._limits.max_values:
            raise JsonSyntaxError(f"more than {self._limits.max_values} values", self.offset)

    def _accept(self, kind: int) -> bool:
        """Take one token in; true when it ended a document, which is then `_result`."""
        if self._accept_inside(kind):
            return False
        self._count += 1
        if kind in (_CLOSE_OBJECT, _CLOSE_ARRAY):
            return self._close(kind)
        if self._expect not in (_VALUE, _VALUE_OR_END):
            raise self._unexpected()
        if kind in (STRING, NUMBER, LITERAL):
            return self._place(self._tokens.value)
        if kind == _OPEN_OBJECT:
            return self._open(JsonObject(self._tokens.start), _KEY_OR_END)
        if kind == _OPEN_ARRAY:
            return self._open([], _VALUE_OR_END)
        raise self._unexpected()

    def _accept_inside(self, kind: int) -> bool:
        """Take in what stands between values: a key, a colon, a comma; false when it is none of them."""
        expect = self._expect
        if kind == STRING and expect in (_KEY, _KEY_OR_END):
            self._keys.append(str(self._tokens.value))
            if self._places:
                self._note_key(self._keys[-1])
            self._expect = _COLON
            self._count += 1
        elif kind == _COMMA and expect == _COMMA_OR_END:
            self._expect = _KEY if isinstance(self._stack[-1], JsonObject) else _VALUE
        elif kind == _COLON_SIGN and expect == _COLON:
            self._expect = _VALUE
        else:
            return False
        return True

    def _note_key(self, key: str) -> None:
        parent = self._stack[-1]
        if isinstance(parent, JsonObject):
            parent.key_offsets = parent.key_offsets or {}
            parent.key_offsets[key] = self._tokens.start

    def _open(self, container: JsonObject | list[object], expect: str) -> bool:
        if len(self._stack) == MAX_DEPTH:
            raise JsonSyntaxError(f"nesting deeper than {MAX_DEPTH}", self._tokens.start)
        self._stack.append(container)
        self._expect = expect
        return False

    def _close(self, kind: int) -> bool:
        opened: type = JsonObject if kind == _CLOSE_OBJECT else list
        ends = (_COMMA_OR_END, _KEY_OR_END if kind == _CLOSE_OBJECT else _VALUE_OR_END)
        if not self._stack or type(self._stack[-1]) is not opened or self._expect not in ends:
            raise self._unexpected()
        return self._place(self._stack.pop())

    def _place(self, value: object) -> bool:
        """Put a finished value where it belongs."""
        if not self._stack:
            self._result = value
            self._expect = _VALUE
            return True
        self._expect = _COMMA_OR_END
        parent = self._stack[-1]
        if not isinstance(parent, JsonObject):
            parent.append(value)
            return False
        key = self._keys.pop()
        if key in parent:
            parent.duplicates.append(key)
        else:
            parent[key] = value
        return False

    def _unexpected(self) -> JsonSyntaxError:
        return JsonSyntaxError(f"expected {self._expect}", self._tokens.start)


def parse_document(data: bytes, *, comments: bool = False) -> object:
    """Parse one whole document, such as a configuration file; its objects know where their keys are.

    Args:
        data: its bytes, UTF-8.
        comments: C and C++ comments are allowed.

    Raises:
        JsonSyntaxError: with line and column; also when the document is empty, does not end, or something
            follows it.
    """
    parser = JsonParser(Limits(), comments=comments, places=True)
    try:
        parser.feed(data + b"\n")  # ends a comment on the last line
        value = parser.next_value()
        if value is INCOMPLETE:
            raise JsonSyntaxError("the document ends too early", len(data))
        parser.require_end()
    except JsonSyntaxError as error:
        line, column = position(data, error.offset)
        raise JsonSyntaxError(error.reason, error.offset, line, column) from None
    return value


def position(data: bytes, offset: int) -> tuple[int, int]:
    """Give the line and the column (in bytes) of an offset, both counted from 1."""
    before = data[:offset]
    return before.count(b"\n") + 1, offset - (before.rfind(b"\n") + 1) + 1
