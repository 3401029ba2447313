"""The daemon's log, changed while it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Domain
from ubi_rpc.log_control import FLAGS, Level, LogControl


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[_Lines]:
    handler = _Lines()
    root = logging.getLogger("ubi_rpc")
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    for flag in FLAGS:
        logging.getLogger(f"ubi_rpc.{flag}").setLevel(logging.NOTSET)


@pytest.mark.parametrize("level", list(Level))
async def test_levels_are_kept_and_given_back(domain: Domain, level: Level) -> None:
    for name in ("level", "print_level"):
        assert await domain.call(f"log_set_{name}", level=level.value) is True
        assert await domain.call(f"log_get_{name}") == level.value


async def test_levels_are_spdks_at_first(domain: Domain) -> None:
    assert await domain.call("log_get_level") == "NOTICE"
    assert await domain.call("log_get_print_level") == "INFO"


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("log_set_level", {"level": "info"}, (-32603, "spdk_json_decode_object failed")),
        ("log_set_print_level", {"level": "DISABLED"}, (-32603, "spdk_json_decode_object failed")),
        ("log_set_print_level", {}, (-32603, "spdk_json_decode_object failed")),
        ("log_set_flag", {"flag": "nvmf"}, (-32602, "invalid log flag")),
        ("log_clear_flag", {"flag": ""}, (-32602, "invalid log flag")),
        ("log_set_flag", {}, (-32603, "spdk_json_decode_object failed")),
        ("log_get_flags", {"x": 1}, (-32602, "log_get_flags requires no parameters")),
        ("log_enable_timestamps", {"enabled": 1}, (-32602, "spdk_json_decode_object failed")),
    ],
)
async def test_wrong_params_get_spdks_answer(
    domain: Domain, method: str, params: dict[str, Any], error: tuple[int, str]
) -> None:
    assert await domain.error(method, **params) == error


async def test_flags_are_shown_set_and_cleared(domain: Domain, lines: _Lines) -> None:
    assert await domain.call("log_get_flags") == dict.fromkeys(FLAGS, False)
    await domain.call("log_set_flag", flag="rpc")
    assert [name for name, on in (await domain.call("log_get_flags")).items() if on] == ["rpc"]
    await domain.call("log_set_flag", flag="all")
    assert await domain.call("log_get_flags") == dict.fromkeys(FLAGS, True)
    await domain.call("log_clear_flag", flag="all")
    assert await domain.call("log_get_flags") == dict.fromkeys(FLAGS, False)


def test_details_need_the_flag_and_the_print_level(lines: _Lines) -> None:
    control = LogControl([lines])
    logger = logging.getLogger("ubi_rpc.storage.registry")
    logger.debug("neither")
    control.set_print_level(Level.DEBUG)
    logger.debug("no flag")
    control.set_flag("storage", enabled=True)
    logger.debug("both")
    control.set_print_level(Level.INFO)
    logger.debug("no level")
    control.set_print_level(Level.ERROR)
    logger.warning("less than an error")
    logger.error("an error")
    assert [line.rpartition(": ")[2] for line in lines.lines] == ["both", "an error"]


def test_lines_begin_with_the_time_if_wanted(lines: _Lines) -> None:
    control = LogControl([lines])
    control.enable_timestamps(enabled=False)
    logging.getLogger("ubi_rpc.rpc").info("text")
    control.enable_timestamps(enabled=True)
    logging.getLogger("ubi_rpc.rpc").info("text")
    assert lines.lines[0] == "INFO ubi_rpc.rpc text"
    assert lines.lines[1].endswith(" INFO ubi_rpc.rpc text")
    assert lines.lines[1][:2] == "20"
