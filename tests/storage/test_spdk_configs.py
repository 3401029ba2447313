"""Configurations in the shape in which SPDK saves its own: they start this daemon, and come back as it has them.

The files in spdk_configs/ have what a target of that release writes with three bdevs, its defaults and its other
subsystems, which are not here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MIB, Domain
from tests.storage.test_save_load import load, save
from ubi_rpc.config_check import report
from ubi_rpc.config_source import ConfigSource
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.json_values import to_plain

CONFIGS = sorted((Path(__file__).parent / "spdk_configs").glob("*.json"))
FOREIGN = {"fsdev", "nvmf", "iscsi"}
"""Subsystems that are not here and have entries in some file."""


def _config(path: Path, folder: Path) -> dict[str, Any]:
    """Return a configuration with its files in a folder."""
    text = path.read_text().replace('"a.raw"', json.dumps(str(folder / "a.raw")))
    config = json.loads(text)
    assert isinstance(config, dict)
    return config


def _entries(config: dict[str, Any], subsystem: str) -> dict[str, Any]:
    """Return params by method, and by name where there is one."""
    (found,) = [one["config"] for one in config["subsystems"] if one["subsystem"] == subsystem]
    named = [(entry["method"], entry.get("params", {})) for entry in found]
    return {f"{method} {params.get('name', params.get('impl_name', ''))}": params for method, params in named}


def test_the_files_are_there() -> None:
    assert [path.stem for path in CONFIGS] == ["23.09", "26.09"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
async def test_a_configuration_of_spdk_is_loaded_and_saved(
    domain: Domain, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    domain.file("a.raw", 4 * MIB)
    config = _config(path, domain.dir)
    await load(domain, config)
    assert await domain.names() == ["Malloc0", "Null0", "aio0"]
    skipped = {name for name in FOREIGN if f"subsystem={name} is not part of this program" in caplog.text}
    assert skipped == {
        one["subsystem"] for one in config["subsystems"] if one["subsystem"] in FOREIGN and one["config"]
    }
    saved = await save(domain)
    for subsystem in ("scheduler", "sock", "iobuf", "bdev", "vhost_blk"):
        ours, theirs = _entries(saved, subsystem), _entries(config, subsystem)
        assert theirs.keys() <= ours.keys()
        for call, params in theirs.items():
            assert ours[call] | params == ours[call], call


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
async def test_what_was_saved_of_it_is_a_fixed_point(domain: Domain, path: Path) -> None:
    domain.file("a.raw", 4 * MIB)
    await load(domain, _config(path, domain.dir))
    saved = await save(domain)
    for name, kind in (("aio0", "aio"), ("Null0", "null"), ("Malloc0", "malloc")):
        await domain.call(f"bdev_{kind}_delete", name=name)
    again = domain.dir / "again.json"
    again.write_text(json.dumps(saved))
    lines, code = report(ConfigSource(again), METHODS)
    assert (lines, code) == ([f"{again}: ok"], 0)
    for entry in [entry for one in saved["subsystems"] for entry in one["config"]]:
        if "_create" in entry["method"]:
            await domain.call(entry["method"], **entry["params"])
    assert to_plain(await save(domain)) == saved
