"""The vhost-user-blk frontend: disks of virtual machines, a socket in the -S directory each.

Owns the sockets' names, which CPUs serve a controller and how its notifications are held back. The protocol is the
engine's. A controller outlives its machine: the next one connects to the same socket.

Source: SPDK lib/vhost/vhost_rpc.c, lib/vhost/vhost_blk.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ConfigDict
from typing_extensions import override

from ubi_rpc.engine import Bdev, BdevInfo, Engine, VhostController
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.frontends.export import Export, ExportPlan, Frontend, SavedCall
from ubi_rpc.frontends.sockets import SocketGate, check_socket_path
from ubi_rpc.params import Params, Text, UInt32
from ubi_rpc.settings import parse_cpus

TRANSPORT = "vhost_user_blk"
"""The one way from a machine to its disk. Source: SPDK, virtio_blk_get_transports."""

DEFAULT_IOPS_THRESHOLD = 60000
"""Requests a second above which notifications may be held back. Source: SPDK, SPDK_VHOST_COALESCING_IOPS_BASE."""


MIN_IOPS_THRESHOLD = 100
"""The rate is looked at every 10 ms: a lower one would be no request at all.

Source: SPDK, vhost_user_dev_set_coalescing."""

MAX_DELAY_BASE_US = (2**32 - 1) * 1_000_000 // 2_500_000_000
"""SPDK refuses delays from 2^32 ticks of the CPU's clock on; this is as many at 2.5 GHz, about 1.7 s.

Source: the same."""


class VhostBlkParams(Params):
    """Parameters of vhost_create_blk_controller; others are ignored, as SPDK does: each transport has its own.

    Args:
        ctrlr: name of the controller, and of its socket in the -S directory.
        dev_name: name or uuid of the bdev.
        readonly: the machine may not write; always so for a read-only bdev.
        cpumask: serve it on the reactors of these CPUs, 0x3 or [0,1]; on all of them when left out.
        packed_ring: offer the packed ring, which is not supported.
        transport: vhost_user_blk.
    """

    model_config = ConfigDict(extra="ignore")

    ctrlr: Text
    dev_name: Text
    readonly: bool = False
    cpumask: Text | None = None
    packed_ring: bool = False
    transport: Text = TRANSPORT


class CoalescingParams(Params):
    """Parameters of vhost_controller_set_coalescing.

    Args:
        ctrlr: name of the controller.
        delay_base_us: microseconds by which notifications wait at twice the threshold, up to 1717986, though none waits
            for longer than a second; 0 for never.
        iops_threshold: requests a second above which they wait, at least 100.
    """

    ctrlr: Text
    delay_base_us: UInt32
    iops_threshold: UInt32


class VhostBlkFrontend(Frontend[VhostBlkParams]):
    """vhost-user-blk controllers.

    Args:
        engine: serves them.
        socket_dir: where their sockets are.
        cpus: those of the reactors; None when they run anywhere.
    """

    name = "vhost_blk"
    subsystem = "vhost_blk"

    def __init__(self, engine: Engine, socket_dir: Path, cpus: tuple[int, ...] | None = None) -> None:
        self._engine = engine
        self._socket_dir = socket_dir
        self._cpus = cpus
        self.gate = SocketGate()

    @override
    def plan(self, params: VhostBlkParams, bdev_name: str, info: BdevInfo) -> ExportPlan:
        """Decide the socket and who serves it; EINVAL for what cannot be, EOPNOTSUPP for the packed ring."""
        if params.transport != TRANSPORT:
            raise UbiError(ErrorKind.INVALID_PARAMS, f"transport {params.transport!r}: there is only {TRANSPORT}")
        if params.packed_ring:
            raise UbiError(ErrorKind.UNSUPPORTED, "the packed ring is not supported; leave packed_ring out")
        if not params.ctrlr or "/" in params.ctrlr or params.ctrlr in {".", ".."}:
            raise UbiError(ErrorKind.INVALID_PARAMS, f"controller {params.ctrlr!r} cannot name a socket")
        path = str(self._socket_dir / params.ctrlr)
        check_socket_path(path)
        self.plan_cpus(params.cpumask)
        return ExportPlan(
            name=params.ctrlr,
            listener=path,
            readonly=params.readonly or info.readonly,
            default=False,
            max_connections=0,
            description="",
        )

    def plan_cpus(self, cpumask: str | None) -> tuple[int, ...]:
        """Return the CPUs that a mask names, all of the daemon's without one.

        Raises:
            UbiError: invalid_params for no mask, or one with CPUs that the daemon does not run on.
        """
        mine = self._cpus or tuple(sorted(os.sched_getaffinity(0)))
        if cpumask is None:
            return mine
        try:
            cpus = parse_cpus(cpumask)
        except ValueError as error:
            raise UbiError(ErrorKind.INVALID_PARAMS, f"cpumask {cpumask!r} is no CPU mask: {error}") from error
        if not set(cpus) <= set(mine):
            raise UbiError(ErrorKind.INVALID_PARAMS, f"cpumask {cpumask!r} names CPUs that no reactor runs on")
        return cpus

    @override
    async def open(self, plan: ExportPlan, params: VhostBlkParams, bdev: Bdev) -> Export:
        """Make the controller, then let machines in."""
        cpus = self.plan_cpus(params.cpumask)
        pinned = () if params.cpumask is None else cpus
        native = await self._engine.create_vhost_blk(
            bdev, name=plan.name, path=plan.listener, readonly=plan.readonly, cpus=pinned
        )
        try:
            await self.gate.admit(native)
        except UbiError:
            await native.close()
            raise
        return VhostBlkController(self, native, mask_of(cpus))

    async def close(self, native: VhostController) -> None:
        """Finish what is in flight, part with the machines, remove the socket."""
        self.gate.forget(native)
        await native.close()

    @override
    def saved(self, plan: ExportPlan, params: VhostBlkParams, bdev_name: str, opened: Export | None) -> list[SavedCall]:
        create: dict[str, object] = {
            "ctrlr": plan.name,
            "dev_name": bdev_name,
            "readonly": params.readonly,
            "transport": TRANSPORT,
        }
        if params.cpumask is not None:
            create["cpumask"] = mask_of(parse_cpus(params.cpumask))
        calls: list[SavedCall] = [{"method": "vhost_create_blk_controller", "params": create}]
        if isinstance(opened, VhostBlkController) and opened.delay_base_us:
            calls.append(
                {
                    "method": "vhost_controller_set_coalescing",
                    "params": {
                        "ctrlr": plan.name,
                        "delay_base_us": opened.delay_base_us,
                        "iops_threshold": opened.iops_threshold,
                    },
                }
            )
        return calls


class VhostBlkController(Export):
    """A controller that machines can reach."""

    def __init__(self, frontend: VhostBlkFrontend, native: VhostController, cpumask: str) -> None:
        self._frontend = frontend
        self._native = native
        self.uri = self.listener = native.path
        self.cpumask = cpumask
        self.delay_base_us = 0
        self.iops_threshold = DEFAULT_IOPS_THRESHOLD

    def set_coalescing(self, delay_base_us: int, iops_threshold: int) -> None:
        """Hold notifications back as said."""
        self._native.set_coalescing(delay_base_us, iops_threshold)
        self.delay_base_us, self.iops_threshold = delay_base_us, iops_threshold

    async def sessions(self, ctrlr: str) -> list[dict[str, object]]:
        """Return the machines that are connected, as SPDK shows them."""
        return [
            {
                "vid": one["vid"],
                "id": one["id"],
                "name": f"{ctrlr}s{one['vid']}",
                "started": one["started"],
                "max_queues": one["max_queues"],
                "inflight_task_cnt": one["inflight_task_cnt"],
            }
            for one in await self._native.sessions()
        ]

    @override
    async def connections(self) -> int:
        """Return how many machines are connected."""
        return len(await self._native.sessions())

    @override
    async def resized(self) -> None:
        """Tell the machines."""
        await self._native.notify_config_change()

    @override
    async def close(self) -> None:
        """Drain and drop it."""
        await self._frontend.close(self._native)


def mask_of(cpus: Iterable[int]) -> str:
    """Return CPUs as a mask, 0x3 for 0 and 1."""
    return hex(sum(1 << cpu for cpu in set(cpus)))
