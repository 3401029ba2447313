"""Bytes -> JSON tokens: incremental, in linear time however the bytes are cut.

Owns the lexical grammar. A fault is reported at the first byte that shows it, as far as one token can
tell; whether tokens follow one another properly is `json_parser`'s.

Source: RFC 8259; SPDK lib/json/json_parse.c for what is refused (control characters in strings, bad
UTF-8, lone surrogates, NaN, comments unless asked for).
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Final

from ubi_rpc.rpc.json_values import JsonNumber

# Possessive quantifiers stand on single characters only: on a group they match too much before Python 3.11.5
# (CPython issue 106052), and Debian 12 has 3.11.2. Nothing follows a group here that could make it backtrack far.
_SPACE: Final = rb"[ \t\r\n]*+"
_NUMBER: Final = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"

# The usual token, whole: group 1 a string without escapes, 2 punctuation, 3 a number that has ended, 4 a literal.
_TOKEN: Final = re.compile(
    _SPACE + rb'(?:"([^"\\\x00-\x1f]*+)"|([{}\[\],:])|(' + _NUMBER + rb")(?=[^0-9.eE+\-])|(true|false|null))",
)
_SPACES: Final = re.compile(_SPACE)
_COMMENT: Final = re.compile(rb"//[^\r\n]*+|/\*.*?\*/", re.DOTALL)
_NUMBER_WHOLE: Final = re.compile(_NUMBER)
_NUMBER_RUN: Final = re.compile(rb"[0-9.eE+\-]*+")
_STRING_RUN: Final = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_ESCAPE_BEGUN: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?")
_LITERALS: Final[dict[bytes, bool | None]] = {b"true": True, b"false": False, b"null": None}
_UTF8: Final = codecs.getincrementaldecoder("utf-8")

MAX_PIECES: Final = 64
"""Pieces of a token that are kept apart: a token may come byte by byte, and each piece takes many times its length."""

STRING: Final = ord('"')
NUMBER: Final = ord("0")
LITERAL: Final = ord("t")
NEED_MORE: Final = 0


class JsonSyntaxError(ValueError):
    """Not JSON, or beyond a limit.

    Attributes:
        reason: what is wrong, in words.
        offset: bytes from the start of the document or, on a stream, of the request.
        line, column: the same place counted from 1 (column in bytes); 0 where no document is at hand.
    """

    def __init__(self, reason: str, offset: int, line: int = 0, column: int = 0) -> None:
        where = f"line {line}, column {column}" if line else f"byte {offset}"
        super().__init__(f"{reason} at {where}")
        self.reason = reason
        self.offset = offset
        self.line = line
        self.column = column


class Tokenizer:
    """Cuts fed bytes into tokens; `kind` and `value` describe the token last read.

    Args:
        comments: C and C++ comments count as white space.
    """

    def __init__(self, *, comments: bool = False) -> None:
        self._comments = comments
        self._buffer = b""
        self._position = 0
        self._base = 0  # stream offset of the buffer's first byte
        self._string: list[str] | None = None  # decoded pieces of a string that has not ended
        self._number: list[bytes] | None = None  # pieces of a number that has not ended
        self._skip_number_tail = False
        self._decoder = _UTF8()
        self.value: object = None
        self.start = 0  # stream offset of the token last read

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self._position

    @property
    def end(self) -> int:
        """Bytes of the stream fed so far."""
        return self._base + len(self._buffer)

    @property
    def unfinished(self) -> bool:
        """True when a token has begun (at `start`) whose end is not yet fed."""
        return self._string is not None or self._number is not None or self._position < len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes behind those not yet consumed."""
        self._buffer = self._buffer[self._position :] + data
        self._base += self._position
        self._position = 0

    def next(self, *, top_level: bool) -> int:
        """Read one token and give its kind: STRING, NUMBER, LITERAL, a punctuation character, or NEED_MORE.

        Args:
            top_level: no container is open; a number is then complete at the end of the fed bytes, since
                nothing else would end it (its further digits, should they come, are dropped).

        Raises:
            JsonSyntaxError: no token begins like this.
        """
        if self._string is not None:
            return self._continue_string()
        if self._number is not None or self._skip_number_tail:
            return self._continue_number(top_level=top_level)
        match = _TOKEN.match(self._buffer, self._position)
        if match is None:
            return self._next_slowly(top_level=top_level)
        group = match.lastindex
        text = match[group or 0]
        end = match.end()
        self.start = self._base + end - len(text)
        self._position = end
        if group == 2:
            kind = text[0]
        elif group == 1:
            self.start -= 2
            self.value = self._decode(text)
            kind = STRING
        elif group == 3:
            self.value = JsonNumber(text.decode())
            kind = NUMBER
        else:
            self.value = _LITERALS[text]
            kind = LITERAL
        return kind

    def error(self, reason: str) -> JsonSyntaxError:
        """Make the error for the current position."""
        return JsonSyntaxError(reason, self.offset)

    def _next_slowly(self, *, top_level: bool) -> int:
        """Read a token that is incomplete, has escapes, follows a comment, or is none at all."""
        match = _SPACES.match(self._buffer, self._position)
        self._position = match.end() if match else self._position
        rest = self._buffer[self._position : self._position + 5]
        self.start = self.offset
        if not rest:
            return NEED_MORE
        if rest[0] == STRING:
            self._position += 1
            self._string = []
            return self._continue_string()
        if rest[:1] in b"-0123456789":
            self._number = []
            return self._continue_number(top_level=top_level)
        if rest[:1] == b"/" and self._comments:
            return self._skip_comment(top_level=top_level)
        if any(literal.startswith(rest) for literal in _LITERALS):
            return NEED_MORE
        raise self.error("unexpected character")

    def _skip_comment(self, *, top_level: bool) -> int:
        match = _COMMENT.match(self._buffer, self._position)
        if match is None:
            raise self.error("a comment that does not end")
        self._position = match.end()
        return self.next(top_level=top_level)

    def _continue_number(self, *, top_level: bool) -> int:
        """Collect a number's characters until one that cannot belong to it."""
        match = _NUMBER_RUN.match(self._buffer, self._position)
        run = match[0] if match else b""
        self._position += len(run)
        at_end = self._position == len(self._buffer)
        if self._number is None:
            self._skip_number_tail = at_end
            return NEED_MORE if at_end else self.next(top_level=top_level)
        self._number.append(run)
        if len(self._number) > MAX_PIECES:
            self._number = [b"".join(self._number)]
        if at_end and not top_level:
            return NEED_MORE
        text = b"".join(self._number)
        if _NUMBER_WHOLE.fullmatch(text) is None:
            if at_end and _NUMBER_WHOLE.fullmatch(text + b"0"):
                return NEED_MORE
            raise self.error("malformed number")
        self._number = None
        self._skip_number_tail = at_end
        self.value = JsonNumber(text.decode())
        return NUMBER

    def _continue_string(self) -> int:
        """Collect a string up to its closing quote."""
        if self._string is None:
            raise AssertionError("no string is open")
        match = _STRING_RUN.match(self._buffer, self._position)
        run = match[0] if match else b""
        try:
            self._string.append(self._decoder.decode(run))
            if len(self._string) > MAX_PIECES:
                self._string = ["".join(self._string)]
            self._position += len(run)
            rest = self._buffer[self._position : self._position + 6]
            if not rest or _ESCAPE_BEGUN.fullmatch(rest):
                return NEED_MORE
            self._decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise self.error("a string that is not UTF-8") from error
        if rest[0] != STRING:
            raise self.error("an invalid escape or control character in a string")
        self._position += 1
        self.value = self._unescape("".join(self._string))
        self._string = None
        return STRING

    def _unescape(self, text: str) -> str:
        if "\\" not in text:
            return text
        plain = str(json.loads(f'"{text}"'))
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise self.error("a lone surrogate in a string") from error
        return plain

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise JsonSyntaxError("a string that is not UTF-8", self.start) from error
