"""The NBD frontend: exports by name on shared listeners.

Owns the listeners: one is opened with its first export and closed with its last. The protocol is the engine's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from typing_extensions import override

from ubi_rpc.engine import Bdev, BdevInfo, Engine, NbdListener, TlsOptions
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.frontends.export import ANY_PORT, Export, ExportPlan, Frontend, SavedCall
from ubi_rpc.frontends.nbd_tls import TlsMode, keeps_strangers_out, plan_tls, tls_mode
from ubi_rpc.frontends.sockets import SocketGate, check_socket_path
from ubi_rpc.params import Params, Text, UInt32

MAX_STRING_BYTES = 4096
"""Longest export name or description. Source: NBD proto.md, "Values": string length."""


class NbdExportParams(Params):
    """Parameters of nbd_create_export.

    Args:
        bdev_name: name or uuid of the bdev to offer.
        export_name: what clients ask for; the bdev's name when left out, "" for the unnamed export.
        socket: path of the Unix socket; nbd.sock in the -S directory when neither is given.
        address: HOST:PORT to listen on instead; port 0 takes a free one. Loopback only, see allow_plaintext.
        allow_plaintext: listen on an address that other machines reach although that is not encrypted, or although
            anybody gets in.
        tls: "off", "on" (clients may use it) or "require". One answer for all exports of a listener.
        tls_creds: directory with server-cert.pem, server-key.pem, ca-cert.pem and perhaps ca-crl.pem.
        tls_psk: file of pre-shared keys, USER:HEX a line, as psktool writes it.
        tls_verify_peer: with tls_creds, let in only clients with a certificate of that CA.
        readonly: clients may not write; always so for a read-only bdev.
        default: clients that name no export get this one, even beside others on its listener.
        max_connections: 0 for no limit of its own.
        max_handshakes_per_s: clients that are let in each second, 0 for no limit; more are refused with a reason.
        description: shown to clients that list exports.
    """

    bdev_name: Text
    export_name: Text | None = None
    socket: Text | None = None
    address: Text | None = None
    allow_plaintext: bool = False
    tls: TlsMode = "off"
    tls_creds: Text | None = None
    tls_psk: Text | None = None
    tls_verify_peer: bool = True
    readonly: bool = False
    default: bool = False
    max_connections: UInt32 = 0
    max_handshakes_per_s: UInt32 = 0
    description: Text = ""


@dataclass(slots=True, eq=False)
class _Listener:
    """A listener and its users; `gate` is held while it opens or closes."""

    gate: asyncio.Lock = field(default_factory=asyncio.Lock)
    native: NbdListener | None = None
    tls: TlsOptions | None = None
    users: int = 0


class NbdFrontend(Frontend[NbdExportParams]):
    """NBD exports.

    Args:
        engine: serves them.
        socket_dir: where nbd.sock is, the listener of exports that name none.
    """

    name = "nbd"
    subsystem = "nbd"

    def __init__(self, engine: Engine, socket_dir: Path) -> None:
        self._engine = engine
        self._socket_dir = socket_dir
        self._listeners: dict[str, _Listener] = {}
        self.gate = SocketGate()

    @override
    def plan(self, params: NbdExportParams, bdev_name: str, info: BdevInfo) -> ExportPlan:
        """Decide name, listener and access; EINVAL for what cannot be, EPERM for plaintext beyond this machine."""
        name = bdev_name if params.export_name is None else params.export_name
        for what, text in (("export_name", name), ("description", params.description)):
            if len(text.encode()) > MAX_STRING_BYTES:
                raise UbiError(ErrorKind.INVALID_PARAMS, f"{what} is longer than NBD's {MAX_STRING_BYTES} bytes")
        tls = plan_tls(params.tls, params.tls_creds, params.tls_psk, verify_peer=params.tls_verify_peer)
        return ExportPlan(
            name=name,
            listener=self._plan_listener(params, tls),
            tls=tls,
            readonly=params.readonly or info.readonly,
            default=params.default,
            max_connections=params.max_connections,
            max_handshakes_per_s=params.max_handshakes_per_s,
            description=params.description,
        )

    def _plan_listener(self, params: NbdExportParams, tls: TlsOptions | None) -> str:
        if params.address is not None:
            if params.socket is not None:
                raise UbiError(ErrorKind.INVALID_PARAMS, "give socket or address, not both")
            is_open = params.allow_plaintext or keeps_strangers_out(tls)
            return plan_address(params.address, may_be_reached=is_open)
        path = os.path.normpath(self._socket_dir / (params.socket or "nbd.sock"))
        check_socket_path(path)
        return path

    @override
    async def open(self, plan: ExportPlan, params: NbdExportParams, bdev: Bdev) -> Export:
        """Make the listener if this is its first export, add the export, then let clients in."""
        async with AsyncExitStack() as undo:
            key, listener = await self._acquire(plan.listener, plan.tls)
            undo.push_async_callback(self._release, key)
            await listener.add_export(
                bdev,
                name=plan.name,
                readonly=plan.readonly,
                default=plan.default,
                max_connections=plan.max_connections,
                max_handshakes_per_s=plan.max_handshakes_per_s,
                description=plan.description,
            )
            undo.push_async_callback(listener.remove_export, plan.name)
            await self.gate.admit(listener)
            undo.pop_all()
        return NbdExport(self, key, listener, plan)

    @override
    def saved(
        self, plan: ExportPlan, params: NbdExportParams, bdev_name: str, opened: Export | None
    ) -> list[SavedCall]:
        given = params.model_dump(exclude_none=True)
        names = {"bdev_name": bdev_name, "export_name": plan.name}
        return [{"method": "nbd_create_export", "params": {**given, **names}}]

    async def close_export(self, key: str, listener: NbdListener, name: str) -> None:
        """Take an export away, and its listener when it was the last."""
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._release, key)
            await listener.remove_export(name)

    async def _acquire(self, where: str, tls: TlsOptions | None) -> tuple[str, NbdListener]:
        if where.endswith(ANY_PORT):
            native = await self._listen(where, tls)
            self._listeners[native.address] = _Listener(native=native, tls=tls, users=1)
            return native.address, native
        shared = self._listeners.setdefault(where, _Listener())
        shared.users += 1
        async with shared.gate:
            try:
                if shared.native is None:
                    shared.native, shared.tls = await self._listen(where, tls), tls
                elif shared.tls != tls:
                    raise UbiError(
                        ErrorKind.INVALID_PARAMS,
                        f'{where} is served with tls "{tls_mode(shared.tls)}"; '
                        "an export that shares it has the same TLS parameters",
                    )
            except UbiError:
                self._forget(where, shared)
                raise
        return where, shared.native

    async def _release(self, key: str) -> None:
        shared = self._listeners[key]
        async with shared.gate:
            native = shared.native
            if shared.users > 1 or native is None:
                shared.users -= 1
                return
            shared.native = None
            self.gate.forget(native)
            try:
                await native.close()
            finally:
                self._forget(key, shared)

    def _forget(self, key: str, shared: _Listener) -> None:
        shared.users -= 1
        if shared.users == 0:
            del self._listeners[key]

    async def _listen(self, where: str, tls: TlsOptions | None) -> NbdListener:
        if where.startswith("/"):
            return await self._engine.listen_nbd_unix(where, tls)
        host, port = split_address(where)
        return await self._engine.listen_nbd_tcp(host, port, tls)


class NbdExport(Export):
    """An NBD export that clients can reach."""

    def __init__(self, frontend: NbdFrontend, key: str, listener: NbdListener, plan: ExportPlan) -> None:
        self._frontend = frontend
        self.listener = key
        self._native = listener
        self._name = plan.name
        self.uri = nbd_uri(key, plan.name, is_encrypted=tls_mode(plan.tls) == "require")

    @override
    async def resized(self) -> None:
        """Clients that connect from now on see the size; NBD cannot tell the others."""

    @override
    async def connections(self) -> int:
        """Return how many clients are connected."""
        return next((one["connections"] for one in await self._native.exports() if one["name"] == self._name), 0)

    @override
    async def close(self) -> None:
        """Drain and drop it."""
        await self._frontend.close_export(self.listener, self._native, self._name)


def nbd_uri(listener: str, name: str, *, is_encrypted: bool) -> str:
    """Return the NBD URI of an export; which credentials a client has is its own business. Source: NBD uri.md."""
    scheme = "nbds" if is_encrypted else "nbd"
    if listener.startswith("/"):
        return f"{scheme}+unix:///{quote(name, safe='')}?socket={quote(listener)}"
    return f"{scheme}://{listener}/{quote(name, safe='')}"


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT, [IPV6]:PORT included.

    Raises:
        UbiError: invalid_params.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UbiError(ErrorKind.INVALID_PARAMS, f"address {address[:80]!r} is not HOST:PORT, such as 127.0.0.1:10809")
    return host, int(port)


def plan_address(address: str, *, may_be_reached: bool) -> str:
    """Return an address in its one spelling, IP:PORT; `localhost` is 127.0.0.1.

    Raises:
        UbiError: invalid_params for what is no IP address and port, permission for one that other machines reach.
    """
    host, port = split_address(address)
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UbiError(ErrorKind.INVALID_PARAMS, f"host {host!r} is no IP address; give one, or localhost") from None
    if not ip.is_loopback and not may_be_reached:
        raise UbiError(
            ErrorKind.PERMISSION,
            f"{address} can be reached from other machines, unencrypted or by anybody; use a loopback address, "
            'tls "require" with tls_verify_peer or tls_psk, or set allow_plaintext',
        )
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
