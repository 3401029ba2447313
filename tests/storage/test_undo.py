"""A create that fails half way leaves nothing: shown for each create method and each of its steps.

A step is a call that may fail: every one into the engine or the file system, and each of the persist file. Which there
are is counted from a create that succeeds, so that a step that is added later is tested as well.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MIB, Domain, running_domain
from tests.engine_double import World
from ubi_rpc.engine import Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.storage.config_keep import ConfigKeeper
from ubi_rpc.storage.kept_file import KeptFile

CREATES: dict[str, dict[str, Any]] = {
    "bdev_aio_create": {"name": "x", "filename": "x.raw", "block_size": 512},
    "bdev_malloc_create": {"num_blocks": 8, "block_size": 512},
    "bdev_null_create": {"name": "x", "num_blocks": 8, "block_size": 512},
    "bdev_ubi_create": {"name": "x", "base_bdev": "base", "image_path": "image"},
    "nbd_create_export": {"bdev_name": "other", "export_name": "x"},
    "vhost_create_blk_controller": {"ctrlr": "x", "dev_name": "other"},
}
DELETES = {
    "nbd_create_export": ("nbd_delete_export", "export_name"),
    "vhost_create_blk_controller": ("vhost_delete_controller", "ctrlr"),
}


class Steps:
    """Counts steps, and makes one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self.fails_at: int | None = None
        call, prepare, put = Engine.call, KeptFile.prepare, KeptFile.put_in_place

        async def engine_call(engine: Engine, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if self._fails():
                raise UbiError(ErrorKind.IO, "made to fail")
            return await call(engine, function, *args, **kwargs)

        def of_file(step: Any) -> Any:
            def taken(file: KeptFile, *args: Any) -> Any:
                if self._fails():
                    raise OSError(errno.EIO, "made to fail")
                return step(file, *args)

            return taken

        patch.setattr(Engine, "call", engine_call)
        patch.setattr(KeptFile, "prepare", of_file(prepare))
        patch.setattr(KeptFile, "put_in_place", of_file(put))

    def _fails(self) -> bool:
        self.taken += 1
        return self.taken - 1 == self.fails_at

    def begin(self, fails_at: int | None) -> None:
        """Count from 0; the step of that number fails."""
        self.taken, self.fails_at = 0, fails_at


@pytest.fixture
async def kept(world: World, tmp_path: Path) -> AsyncIterator[Domain]:
    """Return a domain with a base, an image and a bdev to export, that keeps its configuration in a file."""
    file = KeptFile(tmp_path / "kept.json")
    async with running_domain(world, tmp_path, keeper=ConfigKeeper(file, lambda _: [])) as domain:
        await domain.startup.start_init()
        await domain.aio("base", 32 * MIB)
        await domain.call("bdev_null_create", name="other", num_blocks=8, block_size=512)
        for name in ("x.raw", "image"):
            domain.file(name, 4 * MIB)
        yield domain


async def _everything(domain: Domain) -> dict[str, object]:
    """Return all that a create could leave behind."""
    return {
        "bdevs": await domain.call("bdev_get_bdevs"),
        "exports": await domain.call("nbd_get_exports"),
        "controllers": await domain.call("vhost_get_controllers"),
        "open": list(domain.world.open),
        "listeners": list(domain.world.listeners),
        "kept": json.loads((domain.dir / "kept.json").read_text()),
        "files": sorted(path.name for path in domain.dir.iterdir()),
        "descriptors": _descriptors(),
    }


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_create_method_is_here() -> None:
    creating = {method.name for method in METHODS if "_create" in method.name}
    assert creating == set(CREATES)


@pytest.mark.parametrize("method", CREATES)
async def test_a_failure_at_any_step_leaves_nothing(kept: Domain, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {key: str(kept.dir / CREATES[method][key]) for key in ("filename", "image_path") if key in CREATES[method]}
    params = CREATES[method] | paths
    await kept.call("bdev_get_bdevs")  # threads and what they open are there
    before = await _everything(kept)
    steps = Steps(monkeypatch)
    steps.begin(None)
    made = await kept.call(method, **params)
    count = steps.taken
    assert count >= 3, "the engine's part, and two of the file"

    async def delete() -> None:
        steps.begin(None)
        name = made if method == "bdev_malloc_create" else "x"
        by, parameter = DELETES.get(method, (method.replace("_create", "_delete"), "name"))
        await kept.call(by, **{parameter: name})

    await delete()
    assert await _everything(kept) == before
    for step in range(count):
        steps.begin(step)
        with pytest.raises(WireError) as caught:
            await kept.call(method, **params)
        code = -32602 if method.startswith("vhost") else -5
        assert (caught.value.code, caught.value.message) == (code, "Input/output error"), step
        steps.begin(None)
        assert await _everything(kept) == before, step
        made = await kept.call(method, **params)
        await delete()
        assert await _everything(kept) == before, step
