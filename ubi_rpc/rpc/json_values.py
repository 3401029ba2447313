"""JSON values as they were written: numbers keep their text, objects know their repeated keys.

Owns the value types that `json_parser` builds and their translation into plain Python values, which
is what models validate. Which numbers are integers is SPDK's rule, not Python's.

Source: SPDK lib/json/json_util.c, spdk_json_number_split.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")
_MAX_INTEGER_DIGITS: Final = 20  # 2**64 - 1 has 20 digits, and no parameter holds more
_MAX_FLOAT_TEXT: Final = 400  # characters; longer text is no parameter, and converting it costs
_MAX_EXPONENT_DIGITS: Final = 6


class JsonNumber:
    """A number by its text, such as `1.50`, `1e2` or thirty digits."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"JsonNumber({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonNumber) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def value(self) -> int | float | None:
        """Give the number's value; None when it has neither an exact 64-bit nor a finite float one.

        An integral value is an exact int however it is written: 512.0 is 512 and 1e3 is 1000.
        """
        if len(self.text) < _MAX_INTEGER_DIGITS and self.text.isdigit():
            return int(self.text)
        integer = self._integer()
        if integer is not None:
            return integer
        if len(self.text) > _MAX_FLOAT_TEXT:
            return None
        number = float(self.text)
        return number if abs(number) != float("inf") else None

    def _integer(self) -> int | None:
        """Give the value when it is integral and below 2**64 in magnitude."""
        match = _NUMBER.fullmatch(self.text)
        if match is None:
            raise ValueError(f"not a JSON number: {self.text[:40]!r}")
        sign, whole, fraction, exponent_text = match.groups(default="")
        digits = (whole + fraction).lstrip("0")
        significant = digits.rstrip("0")
        if not significant:
            return 0
        exponent_digits = exponent_text.lstrip("+-").lstrip("0")
        if len(exponent_digits) > _MAX_EXPONENT_DIGITS:
            return None
        exponent = int(exponent_digits or "0") * (-1 if exponent_text.startswith("-") else 1)
        exponent += len(digits) - len(significant) - len(fraction)
        if exponent < 0 or len(significant) + exponent > _MAX_INTEGER_DIGITS:
            return None
        magnitude = int(significant + "0" * exponent)
        if magnitude >= 2**64:
            return None
        return -magnitude if sign else magnitude


class JsonObject(dict[str, object]):
    """An object's members in their order.

    Attributes:
        duplicates: keys that were written more than once, each as often as it was repeated; the
            first value is the one kept.
        offset: where the object begins, in bytes from the start of its document.
        key_offsets: where its keys begin, of a repeated one the last; None where the parser was not asked to note it.
    """

    __slots__ = ("duplicates", "key_offsets", "offset")

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.duplicates: list[str] = []
        self.offset = offset
        self.key_offsets: dict[str, int] | None = None


class DuplicateKeyError(ValueError):
    """An object has a key twice. `key` is the path of the repeated member, such as `config.name`."""

    def __init__(self, key: str) -> None:
        super().__init__(f"repeated key {key!r}")
        self.key = key


def to_plain(value: object, path: str = "") -> object:
    """Translate a parsed value into None, bool, int, float, str, list and dict, as models take them.

    A number that fits neither a 64-bit integer nor a float stays a `JsonNumber`, which every strict
    model refuses.

    Raises:
        DuplicateKeyError: an object at any depth repeats a key.
    """
    if isinstance(value, JsonNumber):
        number = value.value()
        return value if number is None else number
    if isinstance(value, JsonObject):
        if value.duplicates:
            raise DuplicateKeyError(path + value.duplicates[0])
        return {key: to_plain(member, f"{path}{key}.") for key, member in value.items()}
    if isinstance(value, list):
        return [to_plain(member, f"{path}{index}.") for index, member in enumerate(value)]
    return value
