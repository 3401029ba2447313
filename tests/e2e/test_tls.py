"""TLS under the clients that people use: libnbd's tools and qemu's, with certificates and with pre-shared keys."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority, make_keys
from tests.support.daemon import Daemon
from tests.support.images import MIB
from tests.support.programs import fails, nbdsh, run
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(90)

SIZE = 8 * MIB
KEY = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Folders with what servers and clients show, and a file of keys."""

    server: Path
    client: Path
    stranger: Path
    """A client of another authority that takes the server's word for its own."""
    nobody: Path
    """A client without a certificate."""
    keys: Path


@pytest.fixture(scope="module")
def creds(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Return credentials that this module's tests share."""
    folder = tmp_path_factory.mktemp("creds")
    ours, others = Authority(folder / "ours"), Authority(folder / "others")
    server, client, stranger, nobody = (folder / name for name in ("server", "client", "stranger", "nobody"))
    made = Credentials(server, client, stranger, nobody, keys=folder / "keys.psk")
    ours.sign(made.server, "server")
    ours.sign(made.client, "client")
    others.sign(made.stranger, "client")
    shutil.copy(ours.certificate, made.stranger / "ca-cert.pem")
    made.nobody.mkdir()
    shutil.copy(ours.certificate, made.nobody / "ca-cert.pem")
    make_keys(made.keys, alice=KEY, bob=KEY[::-1])
    return made


def export(daemon: Daemon, name: str = "m", **params: Any) -> str:
    """Export a RAM disk on a free port of localhost and return HOST:PORT; clients check the server's name."""
    daemon.call("bdev_malloc_create", name=name, num_blocks=SIZE // 512, block_size=512)
    uri = daemon.export(name, address="127.0.0.1:0", **params)
    assert uri.startswith("nbds://" if params.get("tls") == "require" else "nbd://")
    return uri.split("/")[2]


def fill(path: Path) -> bytes:
    """Make a file of random bytes and zeros."""
    data = rng("tls", path.name).randbytes(3 * MIB) + bytes(MIB) + rng("more").randbytes(SIZE - 4 * MIB)
    path.write_bytes(data)
    return data


def test_certificates_copy_in_and_out_over_several_connections(
    daemon: Daemon, creds: Credentials, folder: Path
) -> None:
    uri = f"nbds://{export(daemon, tls='require', tls_creds=str(creds.server))}/m?tls-certificates={creds.client}"
    data = fill(source := folder / "in.raw")
    run("nbdcopy", "--connections=4", "--requests=16", "--flush", source, uri)
    run("nbdcopy", "--connections=4", uri, copy := folder / "out.raw")
    assert copy.read_bytes() == data
    shown = json.loads(run("nbdinfo", "--json", uri))
    assert shown["TLS"] is True
    assert daemon.call("nbd_get_exports")[0]["tls"] == "require"


def test_keys_copy_in_and_out_for_each_user(daemon: Daemon, creds: Credentials, folder: Path) -> None:
    where = export(daemon, tls="require", tls_psk=str(creds.keys))
    data = fill(source := folder / "in.raw")
    run("nbdcopy", source, f"nbds://alice@{where}/m?tls-psk-file={creds.keys}")
    run("nbdcopy", "--connections=4", f"nbds://bob@{where}/m?tls-psk-file={creds.keys}", copy := folder / "out.raw")
    assert copy.read_bytes() == data
    wrong = make_keys(folder / "wrong.psk", alice=KEY[::-1], mallory=KEY)
    for user in ("alice", "mallory"):
        fails("nbdinfo", f"nbds://{user}@{where}/m?tls-psk-file={wrong}")
    run("nbdinfo", f"nbds://alice@{where}/m?tls-psk-file={creds.keys}")


def test_a_unix_socket_serves_certificates_and_keys_at_once(daemon: Daemon, creds: Credentials) -> None:
    daemon.call("bdev_malloc_create", name="m", num_blocks=SIZE // 512, block_size=512)
    uri = daemon.export("m", tls="require", tls_creds=str(creds.server), tls_psk=str(creds.keys))
    assert uri == f"nbds+unix:///m?socket={daemon.nbd_socket}"
    with_key = uri.replace("://", "://alice@") + f"&tls-psk-file={creds.keys}"
    assert int(run("nbdinfo", "--size", with_key)) == SIZE
    # libnbd compares the certificate's name with the host's, of which a Unix socket has none.
    nbdsh(
        with_key,
        "assert h.get_tls_negotiated()\nh.pwrite(b'x' * 65536, 512)\nassert h.pread(65536, 512) == b'x' * 65536\n",
    )


def qemu(kind: str, folder: Path, **more: str) -> tuple[str, ...]:
    """Return qemu's words for a client's credentials."""
    options = ",".join(
        (f"tls-creds-{kind}", "id=tls0", "endpoint=client", f"dir={folder}", *(f"{k}={v}" for k, v in more.items()))
    )
    return ("--object", options, "--image-opts")


def qemu_disk(where: str) -> str:
    """Return qemu's name of the export `m`."""
    host, port = where.split(":")
    return f"driver=nbd,host={host},port={port},export=m,tls-creds=tls0"


def test_qemu_with_certificates_and_with_keys(daemon: Daemon, creds: Credentials, folder: Path) -> None:
    where = export(daemon, tls="require", tls_creds=str(creds.server), tls_psk=str(creds.keys))
    fill(source := folder / "in.raw")
    with_certificate = qemu("x509", creds.client, **{"verify-peer": "yes"})
    (folder / "psk").mkdir()
    make_keys(folder / "psk" / "keys.psk", bob=KEY[::-1])
    with_key = qemu("psk", folder / "psk", username="bob")
    run("nbdcopy", source, f"nbds://alice@{where}/m?tls-psk-file={creds.keys}")
    for words in (with_certificate, with_key):
        info = json.loads(run("qemu-img", "info", "--output=json", *words, qemu_disk(where)))
        assert info["virtual-size"] == SIZE
        out = folder / "out.raw"
        run("qemu-img", "convert", "-O", "raw", *words, qemu_disk(where), out)
        assert out.read_bytes() == source.read_bytes()


def test_who_is_not_known_stays_outside(daemon: Daemon, creds: Credentials) -> None:
    where = export(daemon, tls="require", tls_creds=str(creds.server))
    for folder in (creds.stranger, creds.nobody):
        fails("nbdinfo", f"nbds://{where}/m?tls-certificates={folder}")
    fails("qemu-img", "info", *qemu("x509", creds.stranger), qemu_disk(where))
    assert "TLS" in fails("nbdinfo", f"nbd://{where}/m")
    assert "TLS" in fails("qemu-img", "info", f"nbd://{where}/m")
    fails("nbdinfo", "--list", f"nbd://{where}")
    assert int(run("nbdinfo", "--size", f"nbds://{where}/m?tls-certificates={creds.client}")) == SIZE
    until(lambda: "a client was refused: TLS handshake" in daemon.log_text(), "a line in the log")


def test_without_verify_peer_every_client_is_let_in_and_still_encrypted(daemon: Daemon, creds: Credentials) -> None:
    where = export(daemon, tls="require", tls_creds=str(creds.server), tls_verify_peer=False)
    assert int(run("nbdinfo", "--size", f"nbds://{where}/m?tls-certificates={creds.nobody}")) == SIZE
    fails("nbdinfo", f"nbd://{where}/m")


def test_on_serves_both_and_off_only_plaintext(daemon: Daemon, creds: Credentials) -> None:
    both, plain = export(daemon, tls="on", tls_creds=str(creds.server)), export(daemon, "n")
    assert int(run("nbdinfo", "--size", f"nbd://{both}/m")) == SIZE
    assert int(run("nbdinfo", "--size", f"nbds://{both}/m?tls-certificates={creds.client}")) == SIZE
    assert int(run("nbdinfo", "--size", f"nbd://{plain}/n")) == SIZE
    fails("nbdinfo", f"nbds://{plain}/n?tls-certificates={creds.client}")
    # A server of another authority is not taken for this one.
    fails("nbdinfo", f"nbds://{both}/m?tls-certificates={creds.stranger.parent / 'others'}")


def handshake(where: str, *, version: str) -> str:
    """Upgrade to TLS by hand with the given version alone; return what was agreed on, or the error."""
    script = f"""
import socket, ssl, struct
plain = socket.create_connection({tuple(where.split(":"))!r}, 20)
plain.recv(18)
plain.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 5, 0))
assert plain.recv(20)[12:16] == bytes([0, 0, 0, 1])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_ciphers("ALL:@SECLEVEL=0")
context.minimum_version = context.maximum_version = ssl.TLSVersion.{version}
try:
    print(context.wrap_socket(plain).version())
except (ssl.SSLError, ConnectionError) as error:
    print(error)
"""
    return run("/usr/bin/python3", "-W", "ignore", "-c", script).strip()


def test_tls_is_1_2_at_least(daemon: Daemon, creds: Credentials) -> None:
    where = export(daemon, tls="require", tls_creds=str(creds.server), tls_verify_peer=False)
    assert handshake(where, version="TLSv1_3") == "TLSv1.3"
    assert handshake(where, version="TLSv1_2") == "TLSv1.2"
    assert "ERSION" in handshake(where, version="TLSv1_1").upper()


def test_new_certificates_are_for_new_connections_and_damaged_ones_for_nobody(
    daemon: Daemon, creds: Credentials, folder: Path
) -> None:
    shutil.copytree(creds.server, served := folder / "served")
    where = export(daemon, tls="require", tls_creds=str(served))
    old, new_client = f"nbds://{where}/m?tls-certificates={creds.client}", folder / "new-client"
    run("nbdinfo", old)
    (served / "server-cert.pem").write_text("no certificate")
    run("nbdinfo", old)
    until(lambda: "are not used" in daemon.log_text(), "a warning")
    other = Authority(folder / "other")
    other.sign(served, "server")
    other.sign(new_client, "client")
    run("nbdinfo", f"nbds://{where}/m?tls-certificates={new_client}")
    fails("nbdinfo", old)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_slow_client_in_its_tls_handshake_holds_up_nobody(daemon: Daemon, creds: Credentials, version: str) -> None:
    where = export(daemon, tls="require", tls_creds=str(creds.server), tls_verify_peer=False)
    host, port = where.split(":")
    stuck = []
    for _ in range(20):
        client = socket.create_connection((host, int(port)), 20)
        client.recv(18)
        client.sendall(bytes.fromhex("00000003 49484156454f5054 00000005 00000000"))
        assert client.recv(20)[12:16] == bytes([0, 0, 0, 1])
        client.sendall(b"\x16\x03\x01\x02\x00")  # the start of a record
        stuck.append(client)
    assert handshake(where, version=version) == version.replace("_", ".")
    for client in stuck:
        client.close()


def refused(daemon: Daemon, **params: Any) -> RpcError:
    """Return the error of an export that must fail."""
    with pytest.raises(RpcError) as caught:
        daemon.export("m", address="127.0.0.1:0", **params)
    assert daemon.call("nbd_get_exports") == []
    return caught.value


def test_bad_credentials_are_refused_with_the_reason_when_the_export_is_made(
    daemon: Daemon, creds: Credentials, folder: Path
) -> None:
    daemon.call("bdev_malloc_create", name="m", num_blocks=SIZE // 512, block_size=512)

    def says(what: str, name: str, **params: Any) -> None:
        error = refused(daemon, **{"tls": "require", **params})
        assert what in str(error), error
        assert name in str(error), error

    def damaged(name: str, content: str | None) -> str:
        shutil.rmtree(folder / "bad", ignore_errors=True)
        shutil.copytree(creds.server, folder / "bad")
        (folder / "bad" / name).unlink()
        if content is not None:
            (folder / "bad" / name).write_text(content)
        return str(folder / "bad")

    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        says("No such file", name, tls_creds=damaged(name, None))
        says("in PEM form", name, tls_creds=damaged(name, "nothing"))
    key = (creds.client / "client-key.pem").read_text()
    says("is not the key of", "server-key.pem", tls_creds=damaged("server-key.pem", key))
    Authority(folder / "authority").sign(folder / "expired", "server", days=-1)
    says("has expired on", "server-cert.pem", tls_creds=str(folder / "expired"))
    locked = folder / "locked.pem"
    run("openssl", "ec", "-in", creds.server / "server-key.pem", "-aes128", "-passout", "pass:x", "-out", locked)
    says("without a passphrase", "server-key.pem", tls_creds=damaged("server-key.pem", locked.read_text()))
    says("No such file", "absent", tls_psk=str(folder / "absent"))
    for text in ("alice", "alice:", ":00", "alice:0", "alice:xy", "alice:00\nbob"):
        (folder / "keys").write_text(text)
        says("is not USER:KEY", "keys", tls_psk=str(folder / "keys"))
    (folder / "keys").write_text("# nobody\n\n")
    says("holds no keys", "keys", tls_psk=str(folder / "keys"))
    says("needs tls_creds", "require")
    says("need tls", "tls_creds", tls="off", tls_creds=str(creds.server))
    if os.geteuid() != 0:
        (folder / "keys").chmod(0)
        says("Permission denied", "keys", tls_psk=str(folder / "keys"))


def test_exports_of_one_listener_have_one_kind_of_tls(daemon: Daemon, creds: Credentials) -> None:
    daemon.call("bdev_malloc_create", name="m", num_blocks=SIZE // 512, block_size=512)
    daemon.export("m", tls="require", tls_creds=str(creds.server))
    for params in ({}, {"tls": "on", "tls_creds": str(creds.server)}, {"tls": "require", "tls_psk": str(creds.keys)}):
        with pytest.raises(RpcError, match='is served with tls "require"'):
            daemon.export("m", export_name="other", **params)
    daemon.export("m", export_name="other", tls="require", tls_creds=str(creds.server))
