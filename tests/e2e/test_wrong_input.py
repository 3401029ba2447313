"""Wrong input: the right code, a message that helps, nothing created, nothing lost."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, digest, make_image, make_sparse
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(60)

EINVAL, ENODEV, EEXIST, EPERM = -22, -19, -17, -1
DECODE = -32603


@dataclass(slots=True)
class Bench:
    """What a wrong call must leave alone.

    Args:
        daemon: with `base0` on `base`, and `taken0` under the overlay `ubi0`.
        folder: where the files are.
        image: 2 MiB.
        base: the file of base0, 12 MiB of random bytes after a blank metadata area.
    """

    daemon: Daemon
    folder: Path
    image: Path
    base: Path

    def params(self, **changes: Any) -> dict[str, Any]:
        """Return parameters of bdev_ubi_create that would work, but for the changes; None leaves a parameter out."""
        good = {"name": "new", "base_bdev": "base0", "image_path": str(self.image), "stripe_size_kb": 64}
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def refused(self, method: str, **params: Any) -> RpcError:
        """Make a call that must fail; the daemon's objects and the base's bytes must be what they were."""
        before = (self.daemon.bdevs(), self.daemon.call("nbd_get_exports"), digest(self.base))
        with pytest.raises(RpcError) as caught:
            self.daemon.call(method, **params)
        assert (self.daemon.bdevs(), self.daemon.call("nbd_get_exports"), digest(self.base)) == before
        return caught.value


@pytest.fixture
def bench(daemon: Daemon, folder: Path) -> Iterator[Bench]:
    """Return the bench; afterwards the call without mistakes must work."""
    image, base = folder / "image.raw", folder / "base.raw"
    make_image(image, 2 * MIB, rng("wrong input"))
    base.write_bytes(bytes(METADATA_BYTES) + rng("base").randbytes(4 * MIB))
    daemon.create_aio("base0", base)
    daemon.create_aio("taken0", make_sparse(folder / "taken.raw", 12 * MIB))
    daemon.create_ubi("ubi0", "taken0", image)
    made = Bench(daemon, folder, image, base)
    yield made
    assert daemon.call("bdev_ubi_create", **made.params()) == "new"


# What is wrong, the code, and a part of the message that says what to do.
UBI_CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "missing image": ({"image_path": "/nowhere/image.raw"}, EINVAL, "/nowhere/image.raw: No such file"),
    "directory as image": ({"image_path": "/tmp"}, EINVAL, "/tmp is "),
    "device as image": ({"image_path": "/dev/null"}, EINVAL, "/dev/null is "),
    "empty image path": ({"image_path": ""}, EINVAL, "image"),
    "stripe size 0": ({"stripe_size_kb": 0}, EINVAL, "64 to 1024"),
    "stripe size 32": ({"stripe_size_kb": 32}, EINVAL, "64 to 1024"),
    "stripe size 100": ({"stripe_size_kb": 100}, EINVAL, "power of two"),
    "stripe size 2048": ({"stripe_size_kb": 2048}, EINVAL, "64 to 1024"),
    "stripe size 2 MiB": ({"stripe_size_kb": None, "stripe_size_mb": 2}, EINVAL, "64 to 1024"),
    "both stripe sizes": ({"stripe_size_mb": 1}, EINVAL, "not both"),
    "missing base": ({"base_bdev": "absent"}, ENODEV, "absent"),
    "claimed base": ({"base_bdev": "taken0"}, EPERM, "taken0"),
    "duplicate name": ({"name": "ubi0"}, EEXIST, "ubi0"),
    "the base's own name": ({"name": "base0"}, EEXIST, "base0"),
    "empty name": ({"name": ""}, EINVAL, "name"),
    "name of a wrong type": ({"name": 5}, DECODE, "name"),
    "stripe size as text": ({"stripe_size_kb": "64"}, DECODE, "stripe_size_kb"),
    "stripe size in halves": ({"stripe_size_kb": 64.5}, DECODE, "stripe_size_kb"),
    "negative stripe size": ({"stripe_size_kb": -64}, DECODE, "stripe_size_kb"),
    "huge stripe size": ({"stripe_size_kb": 2**40}, DECODE, "stripe_size_kb"),
    "flag as text": ({"no_sync": "yes"}, DECODE, "no_sync"),
    "flag as number": ({"copy_on_read": 1}, DECODE, "copy_on_read"),
    "image path as list": ({"image_path": ["a"]}, DECODE, "image_path"),
    "NUL in the image path": ({"image_path": "/tmp/a\0b"}, DECODE, "NUL"),
    "unknown key": ({"stripe_size": 64}, DECODE, "stripe_size"),
    "no image path": ({"image_path": None}, DECODE, "image_path"),
    "no base": ({"base_bdev": None}, DECODE, "base_bdev"),
    "wrong uuid": ({"uuid": "not-a-uuid"}, DECODE, "uuid"),
}


@pytest.mark.parametrize("case", UBI_CASES)
def test_wrong_overlay_is_refused_and_leaves_nothing(bench: Bench, case: str) -> None:
    changes, code, part = UBI_CASES[case]
    error = bench.refused("bdev_ubi_create", **bench.params(**changes))
    assert error.code == code
    assert part in error.detail
    if code == DECODE:
        assert error.message == "spdk_json_decode_object failed"


@pytest.mark.parametrize("size_bytes", [512, METADATA_BYTES, METADATA_BYTES + MIB, METADATA_BYTES + 2 * MIB - 512])
def test_a_base_that_is_too_small_is_refused_with_what_it_takes(bench: Bench, size_bytes: int) -> None:
    small = make_sparse(bench.folder / "small.raw", size_bytes)
    bench.daemon.create_aio("small0", small)
    error = bench.refused("bdev_ubi_create", **bench.params(base_bdev="small0"))
    assert (error.code, error.message) == (EINVAL, "Invalid argument")
    assert str(size_bytes) in error.detail
    assert "8 MiB" in error.detail
    assert small.read_bytes() == bytes(size_bytes)


def test_a_readonly_base_is_refused(bench: Bench) -> None:
    bench.daemon.create_aio("ro0", make_sparse(bench.folder / "ro.raw", 12 * MIB), readonly=True)
    error = bench.refused("bdev_ubi_create", **bench.params(base_bdev="ro0"))
    assert error.code == EINVAL
    assert "read-only" in error.detail


@pytest.mark.parametrize("content", [b"not a volume", b"BDEV_UBI\0\x07\0\x01\0", b"\0" * 4 + b"\x01"])
def test_a_base_with_something_else_on_it_is_refused_and_unharmed(bench: Bench, content: bytes) -> None:
    other = bench.folder / "other.raw"
    other.write_bytes(content.ljust(12 * MIB, b"\x5a"))
    before = digest(other)
    bench.daemon.create_aio("other0", other)
    error = bench.refused("bdev_ubi_create", **bench.params(base_bdev="other0"))
    assert error.code == EINVAL
    assert "other0" in error.detail
    assert digest(other) == before


def test_a_volume_opened_with_another_stripe_size_is_refused(bench: Bench) -> None:
    with bench.daemon.client("ubi0") as client:
        client.write(0, b"\xaa" * 4096)
    bench.daemon.call("bdev_ubi_delete", name="ubi0")
    taken = bench.folder / "taken.raw"
    before = digest(taken)
    error = bench.refused("bdev_ubi_create", **bench.params(base_bdev="taken0", stripe_size_kb=128))
    assert error.code == EINVAL
    assert digest(taken) == before


AIO_CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "missing file": ({"filename": "/nowhere/base.raw"}, -2, "/nowhere/base.raw: No such file"),
    "directory": ({"filename": "/tmp"}, -21, "/tmp is a directory"),
    "not aligned": ({"filename": "odd.raw"}, EINVAL, "not a multiple of 512"),
    "block size 100": ({"block_size": 100}, EINVAL, "power of two"),
    "block size 256": ({"block_size": 256}, EINVAL, "512"),
    "no block size": ({"block_size": 0}, EINVAL, "block_size"),
    "duplicate name": ({"name": "base0"}, EEXIST, "base0"),
    "unknown key": ({"blocksize": 512}, DECODE, "blocksize"),
    "unknown cache": ({"cache": "all"}, DECODE, "cache"),
}


@pytest.mark.parametrize("case", AIO_CASES)
def test_wrong_aio_bdev_is_refused_and_leaves_nothing(bench: Bench, case: str) -> None:
    changes, code, part = AIO_CASES[case]
    (bench.folder / "odd.raw").write_bytes(bytes(12 * MIB + 100))
    good = {"name": "new0", "filename": "fresh.raw", "block_size": 512}
    make_sparse(bench.folder / "fresh.raw", MIB)
    params = {**good, **changes}
    params["filename"] = str(bench.folder / params["filename"])  # absolute names stay as they are
    error = bench.refused("bdev_aio_create", **params)
    assert error.code == code
    assert part in error.detail


def test_a_file_in_use_by_another_bdev_is_refused(bench: Bench) -> None:
    error = bench.refused("bdev_aio_create", name="again", filename=str(bench.base), block_size=512)
    assert error.code == -16
    assert "base0" in error.detail


EXPORT_CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "missing bdev": ({"bdev_name": "absent"}, ENODEV, "absent"),
    "duplicate export": ({"bdev_name": "base0", "export_name": "ubi0"}, EEXIST, "ubi0"),
    "two ways to listen": ({"bdev_name": "base0", "socket": "a.sock", "address": "127.0.0.1:0"}, EINVAL, "not both"),
    "reachable without encryption": ({"bdev_name": "base0", "address": "0.0.0.0:0"}, EPERM, "by anybody"),
    "no port": ({"bdev_name": "base0", "address": "127.0.0.1"}, EINVAL, "HOST:PORT"),
    "socket path too long": ({"bdev_name": "base0", "socket": "/tmp/" + "s" * 120}, EINVAL, "longer"),
    "socket in no folder": ({"bdev_name": "base0", "socket": "/nowhere/nbd.sock"}, -2, "/nowhere/nbd.sock"),
    "name too long": ({"bdev_name": "base0", "export_name": "n" * 4097}, EINVAL, "4096"),
    "negative limit": ({"bdev_name": "base0", "max_connections": -1}, DECODE, "max_connections"),
}


@pytest.mark.parametrize("case", EXPORT_CASES)
def test_wrong_export_is_refused_and_leaves_nothing(bench: Bench, case: str) -> None:
    changes, code, part = EXPORT_CASES[case]
    error = bench.refused("nbd_create_export", **changes)
    assert error.code == code
    assert part in error.detail


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("bdev_ubi_delete", {"name": "absent"}, ENODEV),
        ("bdev_ubi_delete", {"name": "base0"}, ENODEV),
        ("bdev_aio_delete", {"name": "ubi0"}, ENODEV),
        ("bdev_ubi_delete", {}, DECODE),
        ("bdev_ubi_get_status", {"name": "base0"}, ENODEV),
        ("nbd_delete_export", {"export_name": "absent"}, ENODEV),
        ("bdev_get_bdevs", {"name": "absent"}, ENODEV),
        ("bdev_get_bdevs", {"name": 1}, DECODE),
        ("bdev_magic_create", {}, -32601),
    ],
)
def test_wrong_call_is_refused_with_its_code(bench: Bench, method: str, params: dict[str, Any], code: int) -> None:
    error = bench.refused(method, **params)
    assert error.code == code
    assert error.detail


def _connected(daemon: Daemon) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(daemon.rpc_socket))
    return client


def _request(method: str = "bdev_malloc_create", **extra: Any) -> dict[str, Any]:
    params = {"name": "bad", "num_blocks": 8, "block_size": 512}
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params, **extra}


NOT_JSON = {
    "garbage": b"\x00\xff\xfe garbage",
    "no quotes": b"{jsonrpc: 2.0}",
    "single quotes": b"{'jsonrpc': '2.0'}",
    "trailing comma": b'{"jsonrpc":"2.0","id":1,"method":"bdev_malloc_create",}',
    "NaN": json.dumps(_request(params={"num_blocks": float("nan")})).encode(),
    "infinity": json.dumps(_request(params={"num_blocks": float("inf")})).encode(),
    "comment": b"/* hello */ " + json.dumps(_request()).encode(),
    "not UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}',
    "too deep": b"[" * 100,
    "leading zero": b'{"id":01}',
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_no_json_ends_its_connection_and_nothing_else(bench: Bench, case: str) -> None:
    before = bench.daemon.bdevs()
    with _connected(bench.daemon) as client:
        client.sendall(NOT_JSON[case])
        assert client.recv(4096) == b""
    assert bench.daemon.bdevs() == before


NOT_REQUESTS: dict[str, Any] = {
    "a number": 5,
    "text": "bdev_malloc_create",
    "null": None,
    "an empty array": [],
    "an empty object": {},
    "wrong version": _request(jsonrpc="1.0"),
    "method as number": {**_request(), "method": 5},
    "unknown member": _request(surplus=1),
    "params as text": _request(params="x"),
    "id as object": _request(id={}),
}


@pytest.mark.parametrize("case", NOT_REQUESTS)
def test_json_that_is_no_request_is_refused_and_the_connection_goes_on(bench: Bench, case: str) -> None:
    before = bench.daemon.bdevs()
    with _connected(bench.daemon) as client, client.makefile("rb") as answers:
        client.sendall(json.dumps(NOT_REQUESTS[case]).encode())
        answer = json.loads(answers.readline())
        assert answer["error"]["code"] in (-32600, -32601, -32603, -32602), answer
        assert answer["error"]["message"]
        client.sendall(json.dumps({"jsonrpc": "2.0", "id": "still here", "method": "spdk_get_version"}).encode())
        assert json.loads(answers.readline())["id"] == "still here"
    assert bench.daemon.bdevs() == before


def test_a_duplicate_key_creates_nothing(bench: Bench) -> None:
    before = bench.daemon.bdevs()
    text = json.dumps(_request()).replace('"num_blocks": 8', '"num_blocks": 8, "num_blocks": 9')
    with _connected(bench.daemon) as client, client.makefile("rb") as answers:
        client.sendall(text.encode())
        assert json.loads(answers.readline())["error"]["code"] == DECODE
    assert bench.daemon.bdevs() == before


def test_a_client_that_dies_in_mid_request_creates_nothing(bench: Bench) -> None:
    before = bench.daemon.bdevs()
    for cut in (1, 20, -1):
        with _connected(bench.daemon) as client:
            client.sendall(json.dumps(_request()).encode()[:cut])
    assert bench.daemon.bdevs() == before
