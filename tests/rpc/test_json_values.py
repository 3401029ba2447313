"""Numbers by their text, and what of them is an integer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubi_rpc.rpc.json_values import DuplicateKeyError, JsonNumber, JsonObject, to_plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("0.0", 0),
        ("0e99999999999999999999", 0),
        ("512", 512),
        ("512.0", 512),
        ("512.000", 512),
        ("1e3", 1000),
        ("1E+3", 1000),
        ("1000e-3", 1),
        ("0.5e1", 5),
        ("12.5e1", 125),
        ("-7", -7),
        ("-7.0", -7),
        ("18446744073709551615", 2**64 - 1),
        ("18446744073709551615.0", 2**64 - 1),
        ("-18446744073709551615", -(2**64) + 1),
    ],
)
def test_value_integral_is_exact_int(text: str, value: int) -> None:
    number = JsonNumber(text).value()
    assert type(number) is int
    assert number == value


@pytest.mark.parametrize(("text", "value"), [("1.5", 1.5), ("-0.25", -0.25), ("1e-3", 0.001), ("1e300", 1e300)])
def test_value_not_integral_is_float(text: str, value: float) -> None:
    number = JsonNumber(text).value()
    assert type(number) is float
    assert number == value


def test_value_of_integer_beyond_64_bits_is_not_an_int() -> None:
    assert type(JsonNumber(str(2**64)).value()) is float


@pytest.mark.parametrize(
    "text", ["1e400", "-1e400", "1e999999999999999999999", "9" * 500, "1" * 200_000, "1e" + "9" * 200_000]
)
def test_value_beyond_every_type_is_none(text: str) -> None:
    assert JsonNumber(text).value() is None


@given(st.integers(-(2**64) + 1, 2**64 - 1), st.integers(0, 6))
def test_value_is_the_same_however_written(value: int, zeros: int) -> None:
    assert JsonNumber(str(value)).value() == value
    assert JsonNumber(f"{value}.{'0' * (zeros + 1)}").value() == value
    assert JsonNumber(f"{value}{'0' * zeros}e-{zeros}").value() == value


def test_to_plain_translates_nested_numbers() -> None:
    parsed = JsonObject()
    parsed["a"] = [JsonNumber("1e3"), {}, None, True, "x"]
    assert to_plain(parsed) == {"a": [1000, {}, None, True, "x"]}


def test_to_plain_repeated_key_names_its_path() -> None:
    inner = JsonObject()
    inner.duplicates.append("b")
    outer = JsonObject()
    outer["a"] = [inner]
    with pytest.raises(DuplicateKeyError) as caught:
        to_plain(outer)
    assert caught.value.key == "a.0.b"


def test_to_plain_number_beyond_every_type_stays_opaque() -> None:
    assert to_plain(JsonNumber("1e400")) == JsonNumber("1e400")
