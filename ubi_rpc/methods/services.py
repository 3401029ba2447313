"""What the handlers may use: one container, made by the daemon and handed to every handler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ubi_rpc.frontends.nbd import NbdFrontend
from ubi_rpc.frontends.vhost_blk import VhostBlkFrontend
from ubi_rpc.log_control import LogControl
from ubi_rpc.storage.lifecycle import Lifecycle
from ubi_rpc.storage.options import Options


class Startup(Protocol):
    """The daemon's own start, as the framework methods see it."""

    async def start_init(self) -> None:
        """Bring the subsystems up; return when they are.

        Raises:
            UbiError: they are not, and the daemon is about to stop.
        """

    async def wait_init(self) -> None:
        """Return when the subsystems are up."""


@dataclass(frozen=True, slots=True)
class Services:
    """The daemon, as handlers see it.

    Args:
        lifecycle: creates and deletes objects; its registry answers questions.
        nbd: the NBD frontend.
        vhost_blk: the vhost-user-blk frontend.
        startup: the daemon's start.
        method_names: names of the methods; `current=True`: those that may be called now.
        kill: sends a signal to this process.
        version: the product's version, MAJOR.MINOR.PATCH with an optional suffix.
        discover: gives the OpenRPC document of the methods, the same one each time.
        log: the daemon's log.
        options: what option methods were told.
    """

    lifecycle: Lifecycle
    nbd: NbdFrontend
    vhost_blk: VhostBlkFrontend
    startup: Startup
    method_names: Callable[[bool], list[str]]
    kill: Callable[[int], None]
    version: str
    discover: Callable[[], dict[str, object]] = dict
    log: LogControl = field(default_factory=lambda: LogControl(()))
    options: Options = field(default_factory=Options)
