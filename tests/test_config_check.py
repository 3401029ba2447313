"""--check-config: what is wrong with a file, without applying it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ubi_rpc.__main__ import main
from ubi_rpc.config_check import report
from ubi_rpc.config_source import ConfigSource
from ubi_rpc.methods import METHODS

NULL = '{"method": "bdev_null_create", "params": {"name": "n", "num_blocks": 8, "block_size": 512}}'
EXPORT = '{"method": "nbd_create_export", "params": {"bdev_name": "n"}}'


def _check(tmp_path: Path, bdev: str, nbd: str = "") -> tuple[list[str], int]:
    path = tmp_path / "c.json"
    head = '{"subsystems": [{"subsystem": "bdev", "config": ['
    path.write_text(f'{head}\n{bdev}]}},\n {{"subsystem": "nbd", "config": [{nbd}]}}]}}')
    lines, code = report(ConfigSource(path), METHODS)
    return [line.removeprefix(str(path)) for line in lines], code


def test_a_good_file_is_ok(tmp_path: Path) -> None:
    options = '{"method": "bdev_set_options", "params": {"bdev_io_pool_size": 65536}}'
    assert _check(tmp_path, f"{NULL}, {options}", EXPORT) == ([": ok"], 0)


def test_every_fault_is_told_with_its_place_and_parameter(tmp_path: Path) -> None:
    bad = '{"method": "bdev_null_create",\n "params": {"nam": "n", "num_blocks": -1, "block_size": "512"}}'
    lines, code = _check(tmp_path, f"{NULL},\n {bad}", EXPORT.replace("bdev_name", "bdev"))
    assert code == 234
    head = " subsystem 'bdev', entry 1 (bdev_null_create): -32603 spdk_json_decode_object failed: "
    assert {line.split(head)[0]: line.split(head)[-1] for line in lines[:4]} == {
        ":3:2:": "parameter 'name' is required",
        ":4:13:": "unknown parameter 'nam', did you mean 'name'?",
        ":4:25:": "parameter 'num_blocks' should be greater than or equal to 0",
        ":4:43:": "parameter 'block_size' should be a valid integer",
    }
    assert [line.split(" subsystem 'nbd', entry 0 (nbd_create_export)")[0] for line in lines[4:]] == [
        ":5:34:",
        ":5:77:",
    ]


def test_members_of_members_values_and_repeats_have_their_place_too(tmp_path: Path) -> None:
    nested = (
        '{"method": "bdev_nvme_set_options",\n "params": {"multipath_opts":\n {"policy": "x", "select": 1}}},\n'
        '{"method": "bdev_nvme_set_options",\n "params": {"action_on_timeout": "resett"}},\n'
        '{"method": "bdev_get_iostat",\n "params": {"names": ["a",\n 7]}},\n'
        '{"method": "bdev_null_delete",\n "params": {"name": "a",\n "name": "b"}}'
    )
    lines, code = _check(tmp_path, nested)
    assert code == 234
    assert [line.split(" ")[0] for line in lines] == [":4:18:", ":6:13:", ":8:13:", ":12:2:"]
    assert "unknown parameter 'multipath_opts.select'" in lines[0]
    assert "should be 'none', 'reset' or 'abort', did you mean 'reset'?" in lines[1]
    assert "parameter 'names.1' should be a valid string" in lines[2]
    assert "parameter 'name' is repeated" in lines[3]


def test_a_subsystem_that_is_misspelled_is_doubted_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for name, doubts in (("bdevs", ["skipped, did you mean 'bdev'?"]), ("nvmf", [])):
        subsystem = {"subsystem": name, "config": [{"method": "nvmf_set_config"}]}
        path.write_text(json.dumps({"subsystems": [subsystem]}))
        lines, code = report(ConfigSource(path), METHODS)
        assert (code, lines[-1]) == (0, f"{path}: ok")
        assert [line.partition("program and is ")[2] for line in lines[:-1]] == doubts


def test_an_unknown_method_is_told_with_a_suggestion(tmp_path: Path) -> None:
    lines, code = _check(tmp_path, NULL.replace("null", "nul"))
    assert code == 254
    assert lines == [
        ":2:1: subsystem 'bdev', entry 0 (bdev_nul_create): method does not exist, did you mean 'bdev_null_create'?"
    ]


@pytest.mark.parametrize(
    ("bdev", "nbd", "fault"),
    [
        ("", EXPORT, "bdev_name: no entry before this one makes a bdev called 'n'"),
        (f"{NULL}, {NULL}", "", "an entry before this one makes a bdev called 'n' as well"),
        (
            '{"method": "bdev_ubi_create", "params": {"name": "u", "base_bdev": "n", "image_path": "i"}}',
            "",
            "base_bdev",
        ),
    ],
)
def test_names_that_cannot_be_are_told(tmp_path: Path, bdev: str, nbd: str, fault: str) -> None:
    (line,), code = _check(tmp_path, bdev, nbd)
    assert code == 234
    assert fault in line


def test_the_command_prints_and_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    for text, code, line in (("{}", 0, f"{path}: ok"), ("{", 234, f"{path}:1:2: "), (None, 1, "No such file")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr("sys.argv", ["ubi_tgt", "--check-config", str(path)])
        assert main() == code
        assert line in capsys.readouterr().out
