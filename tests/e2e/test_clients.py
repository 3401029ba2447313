"""Volumes under the clients that people use: libnbd's tools, qemu's, fio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import DISK_BYTES, IMAGE_BYTES, Volume, make_volume
from tests.support.daemon import Daemon
from tests.support.images import MIB, make_image, make_sparse
from tests.support.programs import fails, nbdsh, run
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(90)

CAN = ("cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero", "write")
CANNOT = ("rotational", "read-only")


def test_nbdinfo_shows_size_blocks_and_abilities(volume: Volume) -> None:
    export = json.loads(run("nbdinfo", "--json", volume.uri))["exports"][0]
    assert export["export-name"] == "ubi0"
    assert export["export-size"] == DISK_BYTES
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (512, 64 * MIB)
    assert export["can_multi_conn"]
    assert int(run("nbdinfo", "--size", volume.uri)) == DISK_BYTES
    for ability in CAN:
        run("nbdinfo", "--can", ability, volume.uri)
    for ability in CANNOT:
        fails("nbdinfo", "--is", ability, volume.uri)


def test_nbdinfo_lists_every_export_and_finds_the_default_one(daemon: Daemon) -> None:
    for name in ("one", "two", "three"):
        daemon.call("bdev_null_create", name=name, num_blocks=1 << 20, block_size=512)
    daemon.export("one", description="the first")
    daemon.export("two", export_name="deux", default=True)
    daemon.export("three", export_name="räksmörgås / 3", readonly=True)
    unnamed = f"nbd+unix:///?socket={daemon.nbd_socket}"
    listed = json.loads(run("nbdinfo", "--list", "--json", unnamed))["exports"]
    assert {export["export-name"] for export in listed} == {"one", "deux", "räksmörgås / 3"}
    assert [export.get("description") for export in listed if export["export-name"] == "one"] == ["the first"]
    assert json.loads(run("nbdinfo", "--json", unnamed))["exports"][0]["export-size"] == 512 << 20
    uri = daemon.call("nbd_get_exports")[2]["uri"]
    run("nbdinfo", "--is", "read-only", uri)
    assert "No such file" in fails("nbdinfo", f"nbd+unix:///absent?socket={daemon.nbd_socket}")


def test_nbdinfo_over_tcp_on_a_free_port(daemon: Daemon) -> None:
    daemon.call("bdev_malloc_create", name="m", num_blocks=128, block_size=4096)
    uri = daemon.export("m", address="127.0.0.1:0")
    assert uri.startswith("nbd://127.0.0.1:")
    assert int(run("nbdinfo", "--size", uri)) == 128 * 4096


def test_nbdcopy_out_over_several_connections_gives_the_image(volume: Volume, folder: Path) -> None:
    copy = folder / "copy.raw"
    run("nbdcopy", "--connections=4", "--requests=16", volume.uri, copy)
    assert copy.read_bytes() == volume.content


def test_nbdcopy_in_over_several_connections_replaces_everything(volume: Volume, folder: Path) -> None:
    other = folder / "other.raw"
    data = make_image(other, DISK_BYTES, rng("other"), holes=True)
    run("nbdcopy", "--connections=4", "--requests=16", "--flush", other, volume.uri)
    run("nbdcopy", volume.uri, copy := folder / "copy.raw")
    assert copy.read_bytes() == data
    assert volume.image.read_bytes() == volume.content[: volume.image.stat().st_size]


def test_nbdcopy_from_volume_to_volume(volume: Volume, folder: Path) -> None:
    volume.daemon.create_aio("plain", make_sparse(folder / "plain.raw", DISK_BYTES), cache="writeback")
    run("nbdcopy", "--connections=2", volume.uri, volume.daemon.export("plain"))
    assert (folder / "plain.raw").read_bytes() == volume.content


@pytest.mark.parametrize("copy_on_read", [True, False])
def test_qemu_img_finds_volume_and_image_identical(daemon: Daemon, folder: Path, copy_on_read: bool) -> None:
    volume = make_volume(daemon, folder, copy_on_read, copy_on_read=copy_on_read)
    for _ in range(2):  # the first time from the image, the second, if it copies, from the base
        run("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", volume.image, volume.uri)
    assert (daemon.status("ubi0")["stripes_present"] > 0) is copy_on_read


def test_qemu_img_convert_both_ways(volume: Volume, folder: Path) -> None:
    qcow2 = folder / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", volume.uri, qcow2)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, volume.image)
    other = folder / "other.raw"
    make_image(other, DISK_BYTES, rng("convert"), holes=True)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, volume.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", other, volume.uri)


def test_qemu_io_patterns_hold(volume: Volume) -> None:
    commands = (
        "write -P 0xab 4k 60k",
        "write -f -P 0xcd 64k 512",  # -f: FUA
        "write -P 0xee 1M 256k",
        "write -z -u 1100k 64k",
        "write -z 1200k 4k",
        "write -P 0x11 2M 1M",
        "discard 2M 512k",
        "flush",
        f"write -P 0x77 {volume.image.stat().st_size - 512} 4k",  # over the image's end
        "aio_write -P 0x55 5M 128k",
        "aio_flush",
    )
    checks = (
        "read -P 0xab 4k 60k",
        "read -P 0xcd 64k 512",
        "read -P 0xee 1M 76k",
        "read -P 0 1100k 64k",
        "read -P 0xee 1164k 36k",
        "read -P 0 1200k 4k",
        "read -P 0xee 1204k 76k",
        "read -P 0 2M 512k",
        "read -P 0x11 2560k 512k",
        f"read -P 0x77 {volume.image.stat().st_size - 512} 4k",
        "read -P 0x55 5M 128k",
        "read -P 0 7M 2M",
    )
    words = [word for command in (*commands, *checks) for word in ("-c", command)]
    out = run("qemu-io", "-f", "raw", *words, volume.uri)
    assert "failed" not in out, out
    again = run("qemu-io", "-f", "raw", "-t", "none", *[word for check in checks for word in ("-c", check)], volume.uri)
    assert "failed" not in again, again
    assert "Pattern verification failed" in fails("qemu-io", "-f", "raw", "-c", "read -P 1 4k 60k", volume.uri)


FIO = (
    *("--ioengine=nbd", "--thread", "--iodepth=16", "--rw=randrw", "--randrepeat=0", "--offset_increment=2M"),
    *("--size=2M", "--numjobs=4", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--group_reporting"),
    "--output-format=json",
)


@pytest.mark.parametrize(
    "blocks",
    [("--bs=4k",), ("--bsrange=4k-64k", "--blockalign=4k", "--serialize_overlap=1")],
    ids=["4k", "mixed"],
)
def test_fio_verifies_four_jobs(volume: Volume, folder: Path, blocks: tuple[str, ...]) -> None:
    report = folder / "fio.json"
    seed = rng("fio", blocks).getrandbits(31)
    run("fio", "--name=v", *FIO, f"--uri={volume.uri}", *blocks, f"--randseed={seed}", f"--output={report}")
    jobs = json.loads(report.read_text()[report.read_text().index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0]
    assert jobs[0]["write"]["total_ios"] > 0


def test_fio_verifies_two_volumes_of_one_image_at_once(volume: Volume, folder: Path) -> None:
    base = make_sparse(folder / "base1.raw", volume.base.stat().st_size)
    volume.daemon.create_aio("base1", base, cache="writeback")
    other = volume.daemon.create_ubi("ubi1", "base1", volume.image, stripe_size_kb=1024)
    report = folder / "fio.json"
    jobs = [
        word for i, uri in enumerate((volume.uri, other)) for word in (f"--name=v{i}", *FIO, f"--uri={uri}", "--bs=8k")
    ]
    run("fio", *jobs, f"--output={report}")
    assert all(job["error"] == 0 for job in json.loads(report.read_text()[report.read_text().index("{") :])["jobs"])


def test_libnbd_reads_what_a_volume_says_of_itself_and_large_requests(volume: Volume) -> None:
    nbdsh(
        volume.uri,
        f"assert h.get_size() == {DISK_BYTES} and h.can_multi_conn() and h.get_structured_replies_negotiated()\n"
        f"data = bytes(range(256)) * ({8 * MIB} // 256)\n"
        f"h.pwrite(data, 512, nbd.CMD_FLAG_FUA)\n"
        f"assert h.pread({8 * MIB}, 512) == data\n"
        "h.cache(65536, 0)\n"
        "h.trim(65536, 0)\n"
        "h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE)\n"
        "assert h.pread(65536, 0) == bytes(65536) == h.pread(65536, 131072)\n"
        "h.flush()\n"
        "h.shutdown()\n",
    )


def test_libnbd_without_structured_replies(volume: Volume) -> None:
    nbdsh(
        volume.uri,
        "h = nbd.NBD()\n"
        "h.set_request_structured_replies(False)\n"
        f"h.connect_uri({volume.uri!r})\n"
        "assert not h.get_structured_replies_negotiated()\n"
        f"assert h.pread(4 << 20, 0) == open({str(volume.image)!r}, 'rb').read(4 << 20)\n",
    )


def mapped(uri: str, context: str) -> list[dict[str, int]]:
    """Return what nbdinfo says of a metadata context; the extents cover the disk."""
    extents: list[dict[str, int]] = json.loads(run("nbdinfo", "--json", f"--map={context}", uri))
    assert sum(extent["length"] for extent in extents) == DISK_BYTES
    return extents


def test_nbdinfo_map_and_qemu_img_map_agree_with_the_content(volume: Volume) -> None:
    ours = [
        (extent["offset"], extent["length"], extent["type"] == 3) for extent in mapped(volume.uri, "base:allocation")
    ]
    found = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", volume.uri))
    assert [(extent["start"], extent["length"], extent["zero"]) for extent in found] == ours
    assert {is_zero for _, _, is_zero in ours} == {False, True}
    for offset, length, is_zero in ours:
        assert not (is_zero and any(volume.content[offset : offset + length]))
    assert volume.daemon.status("ubi0")["stripes_present"] == 0


def test_nbdinfo_map_shows_what_was_written_and_what_is_the_images(volume: Volume) -> None:
    assert {extent["type"] for extent in mapped(volume.uri, "qemu:allocation-depth")} == {0, 2}
    assert mapped(volume.uri, "x-ubi:fetch")[0]["type"] == 0
    run("qemu-io", "-f", "raw", "-c", "write -P 7 64k 64k", volume.uri)
    depth = mapped(volume.uri, "qemu:allocation-depth")
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in depth[:2]] == [
        (0, 65536, 2),
        (65536, 65536, 1),
    ]
    assert [extent["type"] for extent in mapped(volume.uri, "x-ubi:fetch")[:3]] == [0, 1, 0]


def test_nbdcopy_with_eight_connections_both_ways(volume: Volume, folder: Path) -> None:
    run("nbdcopy", "--connections=8", "--requests=64", volume.uri, copy := folder / "copy.raw")
    assert copy.read_bytes() == volume.content
    data = make_image(other := folder / "other.raw", DISK_BYTES, rng("eight"), holes=True)
    run("nbdcopy", "--connections=8", "--requests=64", "--flush", other, volume.uri)
    run("nbdcopy", "--connections=8", volume.uri, copy)
    assert copy.read_bytes() == data


def test_the_difference_is_taken_by_qemu_img_rebase(volume: Volume, folder: Path) -> None:
    run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 128k", "-c", "write -z 3M 64k", volume.uri)
    difference = folder / "difference.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", volume.uri, difference)
    run("qemu-img", "rebase", "-f", "qcow2", "-F", "raw", "-b", volume.image, difference)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", difference, volume.uri)
    own = [one for one in json.loads(run("qemu-img", "map", "--output=json", difference)) if one["depth"] == 0]
    kept = [(one["start"], one["length"]) for one in own if one["start"] < IMAGE_BYTES - MIB]
    assert kept[0] == (1 * MIB, 128 << 10), own
    assert sum(length for _, length in kept) <= (128 + 64) << 10, "what was changed and no more"


def test_every_context_agrees_with_every_other_at_once(volume: Volume) -> None:
    nbdsh(
        volume.uri,
        "names = ['base:allocation', 'qemu:allocation-depth', 'x-ubi:fetch']\n"
        "h = nbd.NBD()\n"
        "for name in names: h.add_meta_context(name)\n"
        f"h.connect_uri({volume.uri!r})\n"
        "h.pread(65536, 0)\n"
        "seen = {}\n"
        "def note(name, offset, extents, error):\n"
        "    at = offset\n"
        "    for length, value in zip(extents[::2], extents[1::2]):\n"
        "        seen.setdefault(name, []).append((at, at + length, value))\n"
        "        at += length\n"
        "h.block_status(h.get_size(), 0, note)\n"
        "assert sorted(seen) == sorted(names), seen\n"
        "at = lambda name, byte: next(value for start, end, value in seen[name] if start <= byte < end)\n"
        "for byte in range(0, h.get_size(), 65536):\n"
        "    allocation, depth, fetch = (at(name, byte) for name in names)\n"
        f"    assert depth == 0 or byte < {IMAGE_BYTES}, (byte, depth)\n"
        "    assert (depth == 2) == (fetch & 1 == 0), (byte, depth, fetch)\n"
        "    if allocation & 2: assert h.pread(512, byte) == bytes(512), byte\n",
    )


def test_a_read_error_of_the_image_fails_the_copy(volume: Volume, folder: Path) -> None:
    run("qemu-io", "-f", "raw", "-c", "read 0 64k", volume.uri)
    with volume.image.open("ab") as image:
        image.write(b"x")  # what is missing cannot be fetched any more
    fails("nbdcopy", volume.uri, folder / "copy.raw")
    fails("qemu-img", "convert", "-f", "raw", "-O", "raw", volume.uri, folder / "other.raw")
    run("qemu-io", "-f", "raw", "-c", "read 0 64k", volume.uri)
