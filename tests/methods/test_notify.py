"""Notifications: what happened, numbered, the last 1024."""

from __future__ import annotations

from tests.conftest import Domain


async def test_objects_that_come_and_go_are_notified_in_order(domain: Domain) -> None:
    await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    await domain.call("nbd_create_export", bdev_name="n", export_name="e")
    await domain.call("bdev_null_delete", name="n")
    found = await domain.call("notify_get_notifications")
    assert [(event["type"], event["ctx"]) for event in found] == [
        ("bdev_register", "n"),
        ("nbd_export", "e"),
        ("nbd_unexport", "e"),
        ("bdev_unregister", "n"),
    ]
    assert [list(event) for event in found] == [["type", "ctx", "id"]] * 4
    assert {event["type"] for event in found} < set(await domain.call("notify_get_types"))


async def test_a_client_asks_from_where_it_was(domain: Domain) -> None:
    for _ in range(3):
        await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
        await domain.call("bdev_null_delete", name="n")
    found = await domain.call("notify_get_notifications", id=2, max=3)
    assert [event["id"] for event in found] == [2, 3, 4]
    assert await domain.call("notify_get_notifications", id=6) == []
    assert await domain.call("notify_get_notifications", max=0) == []


async def test_only_the_last_1024_are_kept(domain: Domain) -> None:
    for number in range(1100):
        domain.lifecycle.events.emit("bdev_resize", str(number))
    found = await domain.call("notify_get_notifications")
    assert (len(found), found[0]["id"], found[-1]["id"]) == (1024, 76, 1099)


async def test_wrong_params_get_spdks_answer(domain: Domain) -> None:
    assert await domain.error("notify_get_types", x=1) == (-32602, "No parameters required")
    assert await domain.error("notify_get_notifications", id=-1) == (-32602, "Invalid argument")
