"""Create, delete, cascade, undo, and what happens when they meet."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from tests.conftest import MIB, Domain
from tests.engine_double import EngineError
from ubi_rpc.errors import UbiError
from ubi_rpc.rpc.wire_errors import WireError

IO_ERROR = EngineError("io", "the disk is gone", errno.EIO)
NO_DEVICE = (-19, "No such device")
EXISTS = (-17, "File exists")
NOT_PERMITTED = (-1, "Operation not permitted")
NULL = {"num_blocks": 8, "block_size": 512}


async def _stack(domain: Domain) -> None:
    """Make aio0, ubi0 on it, and two exports of ubi0."""
    await domain.aio()
    await domain.ubi()
    await domain.call("nbd_create_export", bdev_name="ubi0", export_name="one")
    await domain.call("nbd_create_export", bdev_name="ubi0", export_name="two", address="127.0.0.1:0")


async def _waiting(domain: Domain, call: str, caller: asyncio.Task[Any]) -> None:
    """Return when `call` waits in the double."""
    waiting = domain.world.waiting[call]
    await asyncio.to_thread(waiting.wait, 30)
    assert not caller.done()


async def test_deleting_a_base_takes_everything_above_down_top_first(domain: Domain) -> None:
    await _stack(domain)
    domain.world.log.clear()
    assert await domain.call("bdev_aio_delete", name="aio0") is True
    assert [line.partition(" ")[0] for line in domain.world.log] == [
        "remove_export",
        "close_listener",
        "remove_export",
        "close_listener",
        "close",
        "close",
    ]
    assert domain.world.log[-2:] == ["close ubi0", "close aio0"]
    assert await domain.names() == []
    assert await domain.call("nbd_get_exports") == []
    assert domain.world.listeners == []
    events = [(event.type, event.ctx) for event in domain.lifecycle.events.history]
    assert events[-4:] == [
        ("nbd_unexport", "one"),
        ("nbd_unexport", "two"),
        ("bdev_unregister", "ubi0"),
        ("bdev_unregister", "aio0"),
    ]
    assert [event.id for event in domain.lifecycle.events.history] == list(range(len(events)))


async def test_deleting_the_overlay_frees_its_base(domain: Domain) -> None:
    await _stack(domain)
    assert await domain.error("bdev_ubi_create", name="u", base_bdev="aio0", image_path="/x") == NOT_PERMITTED
    await domain.call("bdev_ubi_delete", name="ubi0")
    assert (await domain.bdev("aio0"))["claimed"] is False
    await domain.ubi("again")


@pytest.mark.parametrize("step", ["create_aio", "create_ubi", "listen", "add_export"])
async def test_a_failure_at_any_step_leaves_nothing_of_it(domain: Domain, step: str) -> None:
    """Undo: after the failure the same calls succeed, so no name, claim, bdev or listener was left."""
    domain.world.failures[step] = IO_ERROR
    with pytest.raises(WireError) as caught:
        await _stack(domain)
    assert (caught.value.code, caught.value.message) == (-5, "Input/output error")
    opened = {"create_aio": 0, "create_ubi": 1, "listen": 2, "add_export": 2}[step]
    assert len(domain.world.open) == opened
    assert domain.world.listeners == []
    domain.world.failures.clear()
    for name in reversed(await domain.names()):
        await domain.call(f"bdev_{'aio' if name == 'aio0' else 'ubi'}_delete", name=name)
    await _stack(domain)


async def test_a_failing_close_is_reported_and_the_objects_are_gone_all_the_same(
    domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    await _stack(domain)
    domain.world.failures["close"] = IO_ERROR
    assert await domain.error("bdev_aio_delete", name="aio0") == (-5, "Input/output error")
    domain.world.failures.clear()
    assert await domain.names() == []
    assert await domain.call("nbd_get_exports") == []
    assert "close failed as well" in caplog.text  # ubi0's is reported, aio0's is logged
    await _stack(domain)


async def test_a_failing_undo_still_frees_the_name(domain: Domain) -> None:
    await domain.call("bdev_null_create", name="n", **NULL)
    domain.world.failures["add_export"] = domain.world.failures["close_listener"] = IO_ERROR
    assert (await domain.error("nbd_create_export", bdev_name="n"))[0] == -5
    domain.world.failures.clear()
    domain.world.listeners.clear()
    assert await domain.call("nbd_create_export", bdev_name="n")


async def test_a_file_that_a_bdev_writes_to_is_used_by_no_other(domain: Domain) -> None:
    """By its identity: a link is the same file. Readers may share."""
    await domain.aio("writer")
    (domain.dir / "link").hardlink_to(domain.dir / "writer.raw")
    (domain.dir / "symlink").symlink_to("writer.raw")
    busy = (-16, "Device or resource busy")
    for name in ("writer.raw", "link", "symlink"):
        params = {"name": "a", "filename": str(domain.dir / name), "block_size": 512}
        assert await domain.error("bdev_aio_create", **params) == busy
        assert await domain.error("bdev_aio_create", readonly=True, **params) == busy
    await domain.aio("base", 64 * MIB)
    for image in ("base.raw", "writer.raw", "link"):  # its own base, too
        params = {"name": "u", "base_bdev": "base", "image_path": str(domain.dir / image)}
        expected = busy if image != "base.raw" else (-22, "Invalid argument")  # larger than what the base has room for
        assert await domain.error("bdev_ubi_create", **params) == expected
    await domain.call("bdev_aio_delete", name="writer")
    image = str(domain.dir / "writer.raw")
    await domain.call("bdev_ubi_create", name="u", base_bdev="base", image_path=image)
    await domain.call("bdev_aio_create", name="r", filename=image, block_size=512, readonly=True)
    assert await domain.error("bdev_aio_create", name="w", filename=image, block_size=512) == busy
    await domain.aio("base2")
    await domain.ubi("u2", "base2")


async def test_a_file_is_free_once_its_bdev_is_being_deleted(domain: Domain) -> None:
    await domain.aio()
    _, let_go = domain.world.hold("close")
    deletion = asyncio.create_task(domain.call("bdev_aio_delete", name="aio0"))
    await _waiting(domain, "close", deletion)
    again = {"name": "again", "filename": str(domain.dir / "aio0.raw"), "block_size": 512}
    assert await domain.call("bdev_aio_create", **again) == "again"
    let_go.set()
    assert await deletion is True


async def test_of_concurrent_creates_of_one_name_exactly_one_succeeds(domain: Domain) -> None:
    results = await asyncio.gather(
        *(domain.call("bdev_null_create", name="n", **NULL) for _ in range(50)), return_exceptions=True
    )
    assert results.count("n") == 1
    errors = [result for result in results if isinstance(result, WireError)]
    assert {(error.code, error.message) for error in errors} == {EXISTS}
    assert len(errors) == 49
    assert domain.world.open == ["n"]


async def test_of_concurrent_creates_with_one_uuid_exactly_one_succeeds(domain: Domain) -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    results = await asyncio.gather(
        *(domain.call("bdev_null_create", name=f"n{i}", uuid=uuid, **NULL) for i in range(20)), return_exceptions=True
    )
    assert [result for result in results if not isinstance(result, WireError)] == ["n0"]


async def test_of_concurrent_overlays_on_one_base_exactly_one_succeeds(domain: Domain) -> None:
    await domain.aio()
    image = domain.file("image", 4 * MIB)
    results = await asyncio.gather(
        *(domain.call("bdev_ubi_create", name=f"u{i}", base_bdev="aio0", image_path=image) for i in range(20)),
        return_exceptions=True,
    )
    assert results[0] == "u0"
    assert {(e.code, e.message) for e in results[1:] if isinstance(e, WireError)} == {NOT_PERMITTED}
    assert await domain.names() == ["aio0", "u0"]


async def test_a_second_create_succeeds_when_the_first_one_failed(domain: Domain) -> None:
    _, let_go = domain.world.hold("create_null")
    first = asyncio.create_task(domain.call("bdev_null_create", name="n", **NULL))
    second = asyncio.create_task(domain.call("bdev_null_create", name="n", **NULL))
    await _waiting(domain, "create_null", first)
    domain.world.failures_once["create_null"] = IO_ERROR
    let_go.set()
    with pytest.raises(WireError, match="the disk is gone"):
        await first
    assert await second == "n"


async def test_creating_on_a_base_that_is_being_deleted_finds_no_base(domain: Domain) -> None:
    await domain.aio()
    _, let_go = domain.world.hold("close")
    deletion = asyncio.create_task(domain.call("bdev_aio_delete", name="aio0"))
    await _waiting(domain, "close", deletion)
    creation = asyncio.create_task(domain.error("bdev_ubi_create", name="u", base_bdev="aio0", image_path="/x"))
    export = asyncio.create_task(domain.error("nbd_create_export", bdev_name="aio0"))
    again = asyncio.create_task(domain.error("bdev_aio_delete", name="aio0"))
    assert await domain.names() == []  # after the settle limit; what is being deleted is not listed
    let_go.set()
    assert await deletion is True
    assert await creation == await export == await again == NO_DEVICE


async def test_deleting_a_base_waits_for_the_overlay_that_is_being_created_on_it(domain: Domain) -> None:
    await domain.aio()
    image = domain.file("image", 4 * MIB)
    _, let_go = domain.world.hold("create_ubi")
    creation = asyncio.create_task(domain.call("bdev_ubi_create", name="u", base_bdev="aio0", image_path=image))
    await _waiting(domain, "create_ubi", creation)
    deletion = asyncio.create_task(domain.call("bdev_aio_delete", name="aio0"))
    let_go.set()
    assert await creation == "u"
    assert await deletion is True
    assert domain.world.open == []
    assert domain.world.log[-2:] == ["close u", "close aio0"]


async def test_pipelined_requests_act_in_the_order_of_arrival(domain: Domain) -> None:
    """As SPDK, whose handlers of these methods finish before the next request is looked at."""
    filename, image = domain.file("disk"), domain.file("image", 4 * MIB)
    aio = {"name": "a", "filename": filename, "block_size": 512}
    names = ["bdev_aio_create", "bdev_ubi_create", "nbd_create_export", "bdev_get_bdevs", "nbd_get_exports"]
    params: list[dict[str, Any]] = [
        aio,
        {"name": "u", "base_bdev": "a", "image_path": image},
        {"bdev_name": "u", "export_name": "e"},
        {},
        {},
    ]
    for _ in range(5):
        results = await asyncio.gather(
            *(domain.call(name, **given) for name, given in zip(names, params, strict=True)),
            domain.call("bdev_get_bdevs", name="u"),
            domain.call("nbd_delete_export", export_name="e"),
            domain.call("bdev_aio_delete", name="a"),
        )
        assert results[:2] == ["a", "u"]
        assert [bdev["name"] for bdev in results[3]] == ["a", "u"]
        assert [export["export_name"] for export in results[4]] == ["e"]
        assert results[5][0]["name"] == "u"
        assert results[6:] == [True, True]
    assert domain.world.open == []


async def test_create_goes_on_without_its_caller(domain: Domain) -> None:
    _, let_go = domain.world.hold("create_null")
    caller = asyncio.create_task(domain.call("bdev_null_create", name="n", **NULL))
    await _waiting(domain, "create_null", caller)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    let_go.set()
    assert (await domain.call("bdev_get_bdevs", name="n", timeout=30000))[0]["name"] == "n"


async def test_stop_finishes_what_acts_refuses_what_waits_and_closes_everything(domain: Domain) -> None:
    await _stack(domain)
    await domain.call("bdev_null_create", name="other", **NULL)
    _, let_go = domain.world.hold("create_null")
    acting = asyncio.create_task(domain.call("bdev_null_create", name="n", **NULL))
    await _waiting(domain, "create_null", acting)
    waiting = asyncio.create_task(domain.error("bdev_null_create", name="n", **NULL))
    stop = asyncio.create_task(domain.lifecycle.stop())
    await asyncio.sleep(0)
    let_go.set()
    assert await acting == "n"
    await stop
    assert (await waiting)[0] in {-125, -17}
    assert (await domain.error("bdev_null_create", name="late", **NULL)) == (-125, "Operation canceled")
    assert domain.world.open == []


async def test_stop_tries_everything_and_raises_what_failed(domain: Domain) -> None:
    await _stack(domain)
    domain.world.failures["close"] = IO_ERROR
    with pytest.raises(UbiError, match="the disk is gone"):
        await domain.lifecycle.stop()
    assert domain.world.open == []
    assert domain.world.listeners == []


@pytest.mark.parametrize("seed", range(10))
async def test_random_concurrent_creates_and_deletes_leave_a_true_registry(domain: Domain, seed: int) -> None:
    chance = random.Random(seed)
    image = domain.file("image", 4 * MIB)
    files = {name: domain.file(name) for name in ("a0", "a1")}

    async def one() -> None:
        base, ubi = chance.choice(list(files)), f"u{chance.randrange(2)}"
        calls: list[tuple[str, dict[str, Any]]] = [
            ("bdev_aio_create", {"name": base, "filename": files[base], "block_size": 512}),
            ("bdev_ubi_create", {"name": ubi, "base_bdev": base, "image_path": image}),
            ("bdev_ubi_create", {"name": base, "base_bdev": ubi, "image_path": image}),
            ("nbd_create_export", {"bdev_name": chance.choice([base, ubi])}),
            ("nbd_delete_export", {"export_name": chance.choice([base, ubi])}),
            ("bdev_aio_delete", {"name": base}),
            ("bdev_ubi_delete", {"name": ubi}),
            ("bdev_get_bdevs", {}),
            ("nbd_get_exports", {}),
        ]
        method, params = chance.choice(calls)
        try:
            await domain.call(method, **params)
        except WireError as error:
            if error.code not in {-1, -17, -19, -22}:
                raise

    tasks = [asyncio.create_task(one()) for _ in range(150)]
    for task in chance.sample(tasks, 15):
        asyncio.get_running_loop().call_later(chance.random() / 50, task.cancel)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError), result
    await domain.lifecycle.stop()  # the double asserts the order of closing
    assert domain.world.open == []
    assert domain.world.listeners == []
    assert domain.lifecycle.registry.bdevs() == []
