"""SPDK's JSON configuration: its shape, its order, its errors."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ubi_rpc.config_source import ConfigSource
from ubi_rpc.rpc.json_values import to_plain
from ubi_rpc.storage.config_file import CREATIONS_AT_ONCE, CallFailedError, ConfigError, ConfigReader, Step, apply

METHODS = {"early": True, "bdev_a": False, "bdev_b": False}


def _read(tmp_path: Path, text: str, *, ignore_errors: bool = False) -> list[Step]:
    path = tmp_path / "conf.json"
    path.write_text(text)
    return ConfigReader(ConfigSource(path), METHODS, ignore_errors=ignore_errors).steps()


def _subsystem(config: str, name: str = "bdev") -> str:
    return f'{{"subsystems": [{{"subsystem": "{name}", "config": {config}}}]}}'


class Caller:
    """Records calls and refuses some methods."""

    def __init__(self, *refused: str) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._refused = refused

    async def __call__(self, method: str, params: object) -> object:
        self.calls.append((method, to_plain(params)))
        if method in self._refused:
            raise CallFailedError("-22 Invalid argument: parameter 'x' is required")
        return True


def test_calls_come_in_file_order_with_their_params(tmp_path: Path) -> None:
    steps = _read(
        tmp_path,
        """
        // C++ comment
        {"other": 1, /* C comment */ "subsystems": [
          {"subsystem": "nbd", "config": [{"method": "bdev_b", "params": {"n": 512.0}}]},
          {"subsystem": "scsi", "config": null},
          {"config": [{"method": "early"}, [], [{"method": "bdev_a"}, {"method": "bdev_b"}]], "subsystem": "bdev"}
        ]}
        """,
    )
    assert [[entry.method for entry in step.entries] for step in steps] == [["bdev_b"], ["early"], ["bdev_a", "bdev_b"]]
    assert [step.startup for step in steps] == [False, True, False]
    assert to_plain(steps[0].entries[0].params) == {"n": 512}
    assert steps[1].entries[0].params is None


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "1:1", "ends too early"),
        ("[]", "", "not a JSON object"),
        ('{"subsystems": [],}', "1:19", "expected key"),
        ('{"subsystems": null}', "1:1", "not one array"),
        ('{"subsystems": {}}', "1:1", "not one array"),
        ('{"subsystems": [], "subsystems": []}', "1:1", "not one array"),
        ('{"subsystems": [1]}', "1:1", "subsystem 0 is not an object"),
        ('{"subsystems": [{"subsystem": "bdev"}]}', "1:17", "does not have exactly"),
        ('{"subsystems": [{"config": []}]}', "1:17", "does not have exactly"),
        ('{"subsystems": [{"subsystem": 1, "config": []}]}', "1:17", "does not have exactly"),
        ('{"subsystems": [{"subsystem": "bdev", "config": [], "x": 1}]}', "1:17", "does not have exactly"),
        ('{"subsystems": [{"subsystem": "b", "subsystem": "b", "config": []}]}', "1:17", "more than once"),
        (_subsystem("{}"), "1:17", "neither an array nor null"),
        (_subsystem("[1]"), "1:17", "entry 0 is not an object"),
        (_subsystem("[[1]]"), "1:17", "entry 0 is not an object"),
        (_subsystem('[\n\n  {"params": {}}]'), "3:3", "entry 0 does not have 'method'"),
        (_subsystem('[{"method": 1}]'), "1:50", "entry 0 does not have 'method'"),
        (_subsystem('[{"method": "bdev_a", "x": 1}]'), "1:50", "entry 0 does not have 'method'"),
        (_subsystem('[{"method": "bdev_a"}, {"method": "bdev_a", "params": null}]'), "1:72", "params is null"),
        (_subsystem('[[{"method": "early"}, {"method": "bdev_a"}]]'), "1:51", "mixes start-up and runtime"),
    ],
)
@pytest.mark.parametrize("ignore_errors", [False, True])
def test_a_file_of_another_shape_is_refused_with_its_place(
    tmp_path: Path, text: str, where: str, message: str, ignore_errors: bool
) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, text, ignore_errors=ignore_errors)
    assert str(caught.value).startswith(f"{tmp_path}/conf.json:{where}")
    assert message in str(caught.value)
    assert caught.value.exit_code == 234


def test_a_file_without_subsystems_configures_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _read(tmp_path, "{}") == []
    assert "no 'subsystems'" in caplog.text
    assert _read(tmp_path, '{"subsystems": []}') == []


def test_an_unknown_method_of_a_known_subsystem_is_fatal(tmp_path: Path) -> None:
    text = _subsystem('[{"method": "bdev_a"},\n {"method": "bdev_c"}, {"method": "bdev_b"}]')
    with pytest.raises(
        ConfigError, match=r"conf.json:2:2: subsystem 'bdev', entry 1 \(bdev_c\): .* not exist"
    ) as caught:
        _read(tmp_path, text)
    assert caught.value.exit_code == 254
    steps = _read(tmp_path, text, ignore_errors=True)
    assert [entry.method for step in steps for entry in step.entries] == ["bdev_a", "bdev_b"]


def test_an_unknown_subsystem_is_skipped_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = """{"subsystems": [
        {"subsystem": "scheduler", "config": [{"method": "framework_set_scheduler", "params": {"name": "static"}}]},
        {"subsystem": "bdev", "config": [{"method": "bdev_a"}]}]}"""
    assert [entry.method for step in _read(tmp_path, text) for entry in step.entries] == ["bdev_a"]
    assert "subsystem=scheduler is not part of this program" in caplog.text


def test_a_missing_file_is_another_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory") as caught:
        ConfigSource(tmp_path / "absent.json")
    assert caught.value.exit_code == 1


async def test_each_pass_makes_its_own_calls(tmp_path: Path) -> None:
    steps = _read(tmp_path, _subsystem('[{"method": "bdev_a"}, {"method": "early"}, {"method": "bdev_b"}]'))
    caller = Caller()
    await apply(steps, caller, startup=True, ignore_errors=False)
    assert caller.calls == [("early", None)]
    await apply(steps, caller, startup=False, ignore_errors=False)
    assert caller.calls[1:] == [("bdev_a", None), ("bdev_b", None)]


async def test_the_first_failure_ends_the_pass_and_names_its_entry(tmp_path: Path) -> None:
    steps = _read(tmp_path, _subsystem('[{"method": "bdev_a"},\n{"method": "bdev_b"}, {"method": "bdev_a"}]'))
    caller = Caller("bdev_b")
    with pytest.raises(ConfigError) as caught:
        await apply(steps, caller, startup=False, ignore_errors=False)
    assert str(caught.value) == (
        f"{tmp_path}/conf.json:2:1: subsystem 'bdev', entry 1 (bdev_b): -22 Invalid argument: parameter 'x' is required"
    )
    assert caught.value.exit_code == 234
    assert len(caller.calls) == 2


async def test_failures_that_are_ignored_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = _read(tmp_path, _subsystem('[[{"method": "bdev_b"}, {"method": "bdev_a"}], {"method": "bdev_a"}]'))
    caller = Caller("bdev_b")
    await apply(steps, caller, startup=False, ignore_errors=True)
    assert [method for method, _ in caller.calls] == ["bdev_b", "bdev_a", "bdev_a"]
    assert "entry 0 (bdev_b)" in caplog.text


async def test_creations_overlap_and_everything_else_waits_for_them(tmp_path: Path) -> None:
    methods = {"bdev_x_create": False, "nbd_create_export": False, "bdev_b": False}
    path = tmp_path / "conf.json"
    entries = [{"method": "bdev_x_create"}] * 20 + [{"method": "bdev_b"}, {"method": "nbd_create_export"}]
    path.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": entries}]}))
    steps = ConfigReader(ConfigSource(path), methods, ignore_errors=False).steps()
    running, most, calls = 0, 0, []

    async def call(method: str, _params: object) -> object:
        nonlocal running, most
        calls.append(method)
        running += 1
        most = max(most, running)
        assert method.startswith(("bdev_x", "nbd")) or running == 1
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return True

    await apply(steps, call, startup=False, ignore_errors=False)
    assert calls == [entry["method"] for entry in entries]
    assert most == CREATIONS_AT_ONCE


async def test_after_a_failure_what_had_started_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "conf.json"
    path.write_text(_subsystem(str([{"method": "bdev_x_create"}] * 40).replace("'", '"')))
    steps = ConfigReader(ConfigSource(path), {"bdev_x_create": False}, ignore_errors=False).steps()
    started, ended = 0, 0

    async def call(_method: str, _params: object) -> object:
        nonlocal started, ended
        started += 1
        if started == 3:
            raise CallFailedError("-22 Invalid argument")
        await asyncio.sleep(0.01)
        ended += 1
        return True

    with pytest.raises(ConfigError, match="entry 2 "):
        await apply(steps, call, startup=False, ignore_errors=False)
    assert started - 1 == ended < 2 * CREATIONS_AT_ONCE + 3
