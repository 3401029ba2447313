"""What a frontend is and what an export of one is, whatever the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from ubi_rpc.engine import Bdev, BdevInfo, TlsOptions

ANY_PORT = ":0"
"""How the address of a listener ends that takes a free port; no two exports share it before it is open."""

SavedCall = dict[str, object]
"""A call of a saved configuration: {"method", "params"}."""

P_contra = TypeVar("P_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What will be offered, decided before anything is opened.

    Args:
        name: the export's name, unique in its frontend.
        listener: where clients connect: a socket's path or HOST:PORT.
        readonly: clients may not write.
        default: what a client gets that names no export on this listener.
        max_connections: 0 for no limit of its own.
        description: for people; sent to clients that list exports.
        max_handshakes_per_s: clients that are let in each second; 0 for no limit.
        tls: how the listener speaks TLS; None: not at all.
    """

    name: str
    listener: str
    readonly: bool
    default: bool
    max_connections: int
    description: str
    max_handshakes_per_s: int = 0
    tls: TlsOptions | None = None

    @property
    def any_port(self) -> bool:
        """Whether the listener takes a free port, so that no other export is on it yet."""
        return self.listener.endswith(ANY_PORT)


class Export(Protocol):
    """An open export."""

    uri: str
    """What a client connects to."""
    listener: str
    """Where it listens, with the port that it really has."""

    async def connections(self) -> int:
        """Return how many clients are connected."""

    async def resized(self) -> None:
        """Take note that the bdev has grown; whoever can tell its clients does."""

    async def close(self) -> None:
        """Refuse new clients, finish what is in flight, drop the connections."""


class Frontend(Protocol[P_contra]):
    """One protocol by which bdevs are offered. `P_contra` is the params model of its create method."""

    name: str
    subsystem: str
    """Where its exports are in a configuration."""

    def plan(self, params: P_contra, bdev_name: str, info: BdevInfo) -> ExportPlan:
        """Decide what to offer, without I/O; raise the `UbiError` for parameters that cannot be served."""

    async def open(self, plan: ExportPlan, params: P_contra, bdev: Bdev) -> Export:
        """Act. After a failure nothing is left."""

    def saved(self, plan: ExportPlan, params: P_contra, bdev_name: str, opened: Export | None) -> list[SavedCall]:
        """Return the calls that make an export again as it is now."""
