"""Log lines that nobody reads hold nothing up."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from ubi_rpc import log_output
from ubi_rpc.log_output import LINES_WAITING, LogOutput


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return a pipe's two ends."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, __file__, 1, message, None, None)


def test_lines_come_out_in_order_and_whole(pipe: tuple[int, int]) -> None:
    output = LogOutput(pipe[1])
    for number in range(100):
        output.emit(_record(f"line {number} \udc80"))
    output.flush()
    lines = os.read(pipe[0], 1 << 20).decode().splitlines()
    assert [line.split("INFO name ")[1] for line in lines] == [f"line {number} \\udc80" for number in range(100)]


def test_a_message_is_one_line_of_bounded_length(pipe: tuple[int, int]) -> None:
    output = LogOutput(pipe[1])
    output.emit(_record("name='a\nERROR forged \x1b[2J\x9b'"))
    output.emit(_record("x" * 100_000))
    try:
        raise OSError("the reason")
    except OSError as error:
        failed = _record("failed")
        failed.exc_info = (OSError, error, error.__traceback__)
        output.emit(failed)
    output.flush()
    forged, long, *traceback = os.read(pipe[0], 1 << 20).decode().splitlines()
    assert forged.endswith("name='a\\x0aERROR forged \\x1b[2J\\x9b'")
    assert len(long) < 2100
    assert traceback[-1] == "OSError: the reason"


def test_without_a_reader_lines_are_dropped_and_counted(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "FLUSH_S", 0.01)
    output = LogOutput(pipe[1])
    for _ in range(2 * LINES_WAITING):
        output.emit(_record("x" * 100))
    output.flush()  # gives up
    text = ""
    while "were dropped here" not in text:
        text += os.read(pipe[0], 1 << 20).decode()
    dropped = int(text.split("(log) ")[1].split()[0])
    assert 0 < dropped <= LINES_WAITING


def test_a_descriptor_that_is_closed_stops_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    output = LogOutput(writer)
    os.close(reader)
    output.emit(_record("lost"))
    output.flush()
    os.close(writer)
