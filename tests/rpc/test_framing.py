"""Bytes to requests: grammar, limits, and indifference to chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubi_rpc.rpc.framing import INCOMPLETE, MAX_REQUEST_BYTES, MAX_REQUEST_VALUES, JsonSyntaxError, request_parser
from ubi_rpc.rpc.json_parser import MAX_DEPTH, parse_document
from ubi_rpc.rpc.json_values import JsonNumber, JsonObject, to_plain


def read_all(chunks: Iterable[bytes]) -> list[object]:
    parser = request_parser()
    values = []
    for chunk in chunks:
        parser.feed(chunk)
        while (value := parser.next_value()) is not INCOMPLETE:
            values.append(value)
    return values


def read_plain(*chunks: bytes) -> list[object]:
    return [to_plain(value) for value in read_all(chunks)]


def bytewise(data: bytes) -> Iterable[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '""',
        "null",
        "true",
        "false",
        '{"a":{"b":[1,2,{"c":null}]},"d":"e"}',
        ' [ 1 , -2.5 , 3e2 , "x" , true , false , null ] ',
        r'"\"\\\/\b\f\n\r\t\u00e9\u20AC\ud83d\ude00"',
        '"é€😀"',
        "[[[[]]]]",
        '{"":""}',
        r'{"\u0061\"":1}',
    ],
)
def test_value_accepted_as_json(text: str) -> None:
    data = text.encode()
    expected = [json.loads(text)]
    assert read_plain(data + b"\n") == expected
    assert read_plain(*bytewise(data + b"\n")) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"{,}",
        b'{"a":1,}',
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b'{"a" 1}',
        b'{"a":1 "b":2}',
        b'{"a":}',
        b"{1:2}",
        b"{'a':1}",
        b'{"a":1]',
        b"[1}",
        b"]",
        b"}",
        b":",
        b",",
        b"nul ",
        b"True",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[undefined]",
        b"[+1]",
        b"[.5]",
        b"[1.]",
        b"[01]",
        b"[1e]",
        b"[1e+]",
        b"[--1]",
        b"[1.2.3]",
        b"[0x10]",
        b"// c\n{}",
        b"[/* c */]",
        b"[1]\0",
        b"\0",
        b'"\0"',
        b'"\n"',
        b'"\x1f"',
        rb'"\x41"',
        rb'"\u12g4"',
        b'"\\\n"',
        rb'"\ud800"',
        rb'"\ud800x"',
        rb'"\ud800\u0041"',
        rb'"\udc00"',
        b'"\xff"',
        b'"\xc3"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xc3\\n"',
        b"\xef\xbb\xbf{}",
        b"{}x",
    ],
)
def test_fault_is_syntax_error_in_any_chunking(data: bytes) -> None:
    with pytest.raises(JsonSyntaxError):
        read_all([data])
    with pytest.raises(JsonSyntaxError):
        read_all(bytewise(data))


@pytest.mark.parametrize(
    "begun", [b"{bad", b'{"a"x', b'{"a":tru_', b'["\\q', b'["\xff', b"[1,,", b'["\x01', b"[-x", b"{]"]
)
def test_fault_is_seen_before_the_request_ends(begun: bytes) -> None:
    with pytest.raises(JsonSyntaxError):
        read_all(bytewise(begun))


@pytest.mark.parametrize("text", ["1.50", "1e2", "1E+2", "-0", "123456789012345678901234567890", "1e400", "9" * 5000])
def test_number_keeps_its_text(text: str) -> None:
    for chunks in ([f"[{text}]".encode()], bytewise(f"[{text}]".encode())):
        assert read_all(chunks) == [[JsonNumber(text)]]


@pytest.mark.parametrize("data", [b"5", b"-5", b"1.5", b"5\n", b"12 "])
def test_top_level_number_is_complete_at_once(data: bytes) -> None:
    assert read_all([data]) == [JsonNumber(data.decode().strip())]


def test_top_level_number_in_pieces_is_one_value() -> None:
    assert len(read_all(bytewise(b"123.5e1 "))) == 1
    assert len(read_all(bytewise(b"12{}"))) == 2


def test_repeated_keys_are_known_and_the_first_is_kept() -> None:
    (value,) = read_all([b'{"a":1,"b":2,"a":3}'])
    assert isinstance(value, JsonObject)
    assert value.duplicates == ["a"]
    assert value == {"a": JsonNumber("1"), "b": JsonNumber("2")}


def test_requests_need_nothing_between_them() -> None:
    assert read_plain(b'{}[]{}"a"nulltrue{}') == [{}, [], {}, "a", None, True, {}]
    assert read_plain(b" \t\r\n{} \n\n {}\n") == [{}, {}]


def test_size_at_limit_passes_in_any_chunking() -> None:
    data = b'["' + b"x" * (MAX_REQUEST_BYTES - 4) + b'"]'
    assert len(data) == MAX_REQUEST_BYTES
    assert len(read_all([data])) == 1
    assert len(read_all([b" " * 5000, data[:1000], data[1000:], b"\n"])) == 1


def test_size_over_limit_is_refused() -> None:
    data = b'["' + b"x" * (MAX_REQUEST_BYTES - 3) + b'"]'
    with pytest.raises(JsonSyntaxError, match="262144"):
        read_all([data])
    with pytest.raises(JsonSyntaxError, match="262144"):
        read_all([data[:-1]])


def test_size_at_limit_without_an_end_is_refused() -> None:
    with pytest.raises(JsonSyntaxError, match="262144"):
        read_all([b"[" + b" " * (MAX_REQUEST_BYTES - 1)])
    assert read_all([b"[" + b" " * (MAX_REQUEST_BYTES - 2)]) == []


def test_white_space_between_requests_has_no_limit() -> None:
    assert read_plain(*[b" " * MAX_REQUEST_BYTES] * 4, b"{}") == [{}]


def test_depth_at_limit_passes_and_one_more_is_refused() -> None:
    assert len(read_all([b"[" * MAX_DEPTH + b"]" * MAX_DEPTH])) == 1
    with pytest.raises(JsonSyntaxError, match="nesting"):
        read_all([b"[" * (MAX_DEPTH + 1)])


def test_values_at_limit_pass_and_one_more_is_refused() -> None:
    # An array counts two for its ends, as SPDK counts.
    assert len(read_all([b"[" + b"1," * (MAX_REQUEST_VALUES - 3) + b"1]"])) == 1
    with pytest.raises(JsonSyntaxError, match="values"):
        read_all([b"[" + b"1," * (MAX_REQUEST_VALUES - 2) + b"1]"])


def test_values_of_an_object_count_keys() -> None:
    # {"a":N} with N in an array: 2 + 1 key + array.
    fitting = MAX_REQUEST_VALUES - 5
    assert len(read_all([b'{"a":[' + b"1," * (fitting - 1) + b"1]}"])) == 1
    with pytest.raises(JsonSyntaxError, match="values"):
        read_all([b'{"a":[' + b"1," * fitting + b"1]}"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


# A bare number is complete as soon as it is received, so its value (not its being one) depends on the cuts.
requests = json_values.map(lambda value: [value] if isinstance(value, int) else value)


@given(st.lists(requests, max_size=4), st.data(), st.booleans(), st.sampled_from(["", " ", "\n", "\r\n\t "]))
def test_any_chunking_gives_the_same_values(
    values: list[object], data: st.DataObject, ascii_only: bool, between: str
) -> None:
    stream = "".join(json.dumps(v, ensure_ascii=ascii_only) + (between or " ") for v in values).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read_plain(*chunks) == values
    assert read_plain(stream) == values


@given(st.binary(max_size=64), st.integers(0, 64))
def test_any_bytes_are_judged_alike_in_one_piece_or_two(data: bytes, cut: int) -> None:
    def judge(chunks: list[bytes]) -> tuple[list[object], bool]:
        parser = request_parser()
        values: list[object] = []
        try:
            for chunk in chunks:
                parser.feed(chunk)
                while (value := parser.next_value()) is not INCOMPLETE:
                    values.append(value)
        except JsonSyntaxError:
            return values, False
        return values, True

    whole, whole_ok = judge([b"[" + data])
    parts, parts_ok = judge([b"[" + data[:cut], data[cut:]])
    assert (whole, whole_ok) == (parts, parts_ok)


@pytest.mark.parametrize(
    "body",
    [b'"' + b"x" * 200_000, b'"' + b"\\n" * 100_000, b"1" * 200_000, b" " * 200_000, b'"' + "é".encode() * 99_000],
)
def test_time_of_a_request_byte_by_byte_is_linear(body: bytes) -> None:
    def seconds(data: bytes) -> float:
        begin = time.process_time()
        read_all(bytewise(b"[" + data))
        return time.process_time() - begin

    quarter = min(seconds(body[: len(body) // 4]) for _ in range(3))
    assert seconds(body) < 16 * quarter + 0.1


def test_document_with_comments_is_read_where_they_are_allowed() -> None:
    data = b'// first\n{ /* a */ "a": [1, // one\n 2] /* b\n */ } // last'
    assert to_plain(parse_document(data, comments=True)) == {"a": [1, 2]}
    with pytest.raises(JsonSyntaxError):
        parse_document(data)


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"", 1, 1),
        (b'{\n  "a": tru\n}', 2, 8),
        (b'{"a":1}\n x', 2, 2),
        (b"[1,\n2", 2, 2),
        (b"/* never", 1, 1),
        (b'{"a":\n"\xff"}', 2, 1),
        (b"[1]]", 1, 4),
    ],
)
def test_document_fault_names_line_and_column(data: bytes, line: int, column: int) -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        parse_document(data, comments=True)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_document_objects_know_where_they_begin() -> None:
    value = parse_document(b'[\n {"a": {}}]')
    assert isinstance(value, list)
    assert value[0].offset == 3
    assert value[0]["a"].offset == 9


def test_document_has_no_size_limit() -> None:
    data = b"[" + b"1," * 300_000 + b"1]"
    value = parse_document(data)
    assert isinstance(value, list)
    assert len(value) == 300_001
