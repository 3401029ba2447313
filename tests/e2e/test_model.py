"""Anything that a client and an operator may do, in any order, against a plain array of bytes.

Proves INV-2 and INV-7 over orders of requests that nobody thought of.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image
from tests.support.nbd_client import Flag, NbdClient
from tests.support.seeds import SEED, rng

pytestmark = pytest.mark.timeout(150)

STRIPE = 64 << 10
IMAGE_SIZES = (2 * MIB, 2 * MIB + 512, 2 * MIB + 4096 * 3, 2 * MIB + 777, MIB - 1, STRIPE // 2)
DISK_BYTES = 2 * MIB + 4 * STRIPE
LENGTHS = st.one_of(
    st.integers(1, 64),  # blocks
    st.sampled_from((STRIPE // 4096, STRIPE // 512, 2 * STRIPE // 512)),
)


class VolumeMachine(RuleBasedStateMachine):
    """One volume on a daemon of its own, and the bytes that it must have."""

    io_engine = ""

    def __init__(self) -> None:
        super().__init__()
        self.holder = tempfile.TemporaryDirectory(prefix="ubi-")
        self.folder = Path(self.holder.name)
        self.daemon = Daemon(self.folder, self.io_engine)
        self.clients: list[NbdClient] = []
        self.model = bytearray()

    def teardown(self) -> None:
        try:
            if self.model:
                self._restart(killed=False)
                assert self._client(0).read_all() == self.model
        finally:
            self._leave()
            self.daemon.kill()
            self.holder.cleanup()

    @initialize(
        image_bytes=st.sampled_from(IMAGE_SIZES),
        block=st.sampled_from((512, 4096)),
        stripe_kb=st.sampled_from((64, 128)),
        copy_on_read=st.booleans(),
        cache=st.sampled_from(("none", "writeback")),
        structured=st.booleans(),
        directio=st.booleans(),
        holes=st.booleans(),
    )
    def make(
        self,
        *,
        image_bytes: int,
        block: int,
        stripe_kb: int,
        copy_on_read: bool,
        cache: str,
        structured: bool,
        directio: bool,
        holes: bool,
    ) -> None:
        """Make the volume; the base has old bytes past the metadata, which must never show."""
        data = make_image(self.folder / "image.raw", image_bytes, rng("model", image_bytes, holes), holes=holes)
        self.base = self.folder / "base.raw"
        self.base.write_bytes(bytes(METADATA_BYTES) + b"\xdb" * DISK_BYTES)
        self.block, self.cache, self.structured = block, cache, structured
        self.params: dict[str, Any] = {
            "stripe_size_kb": stripe_kb,
            "copy_on_read": copy_on_read,
            "directio": directio,
        }
        self.daemon.start()
        self._create()
        # Past the image the base's own bytes are the truth, from the first whole sector on.
        end = -(-image_bytes // 512) * 512
        tail = self._tail(end)
        self.model = bytearray(data + bytes(end - image_bytes) + tail)

    def _tail(self, end: int) -> bytes:
        """Return what the volume shows past the image: zeros, or what the base had there."""
        found = self._client(0).read_range(-(-end // self.block) * self.block, DISK_BYTES)
        assert found in (bytes(len(found)), b"\xdb" * len(found))
        lead = found[:1] * (DISK_BYTES - end - len(found))
        return lead + found

    def _create(self) -> None:
        self.daemon.create_aio("base0", self.base, self.block, cache=self.cache)
        self.daemon.create_ubi("ubi0", "base0", self.folder / "image.raw", **self.params)

    def _client(self, number: int) -> NbdClient:
        while len(self.clients) <= number:
            self.clients.append(self.daemon.client("ubi0", structured=self.structured))
        return self.clients[number]

    def _leave(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    def _restart(self, *, killed: bool) -> None:
        self._leave()
        if killed:
            self.daemon.kill()
        else:
            assert self.daemon.end() == 0, self.daemon.log_text()
        self.daemon.start()
        self._create()

    def _range(self, at: float, blocks: int) -> tuple[int, int]:
        """Turn a place between 0 and 1 and a length into a range inside the volume."""
        total = DISK_BYTES // self.block
        first = min(int(at * total), total - 1)
        return first * self.block, min(blocks, total - first) * self.block

    places = st.one_of(
        st.floats(0, 1, exclude_max=True),
        # Around the image's end and around the borders of stripes.
        st.builds(
            lambda stripe, by: max(0.0, stripe * STRIPE / DISK_BYTES + by),
            st.integers(0, 35),
            st.sampled_from((0.0, -0.0002)),
        ),
    )
    connections = st.integers(0, 2)

    @rule(at=places, blocks=LENGTHS, who=connections)
    def read(self, at: float, blocks: int, who: int) -> None:
        """Read and compare."""
        offset, length = self._range(at, blocks)
        assert self._client(who).read(offset, length) == self.model[offset : offset + length]

    @rule(at=places, blocks=LENGTHS, who=connections, fill=st.integers(0, 255), fua=st.booleans())
    def write(self, at: float, blocks: int, who: int, fill: int, fua: bool) -> None:
        """Write something that differs from sector to sector."""
        offset, length = self._range(at, blocks)
        data = b"".join((bytes([fill]) + sector.to_bytes(7, "big")) * 64 for sector in range(length // 512))
        self._client(who).write(offset, data, Flag.FUA if fua else Flag.NONE)
        self.model[offset : offset + length] = data

    @rule(at=places, blocks=LENGTHS, who=connections, no_hole=st.booleans(), fua=st.booleans())
    def write_zeroes(self, at: float, blocks: int, who: int, no_hole: bool, fua: bool) -> None:
        """Write zeroes."""
        offset, length = self._range(at, blocks)
        flags = (Flag.NO_HOLE if no_hole else 0) | (Flag.FUA if fua else 0)
        self._client(who).zero(offset, length, flags)
        self.model[offset : offset + length] = bytes(length)

    @rule(at=places, blocks=LENGTHS, who=connections)
    def discard(self, at: float, blocks: int, who: int) -> None:
        """Discard: each sector is as it was, or zeros, and stays what it is found to be."""
        offset, length = self._range(at, blocks)
        client = self._client(who)
        client.trim(offset, length)
        found = client.read(offset, length)
        for start in range(0, length, 512):
            sector = found[start : start + 512]
            assert sector in (bytes(512), self.model[offset + start : offset + start + 512])
        self.model[offset : offset + length] = found

    @rule(who=connections)
    def flush(self, who: int) -> None:
        """Flush."""
        self._client(who).flush()

    @rule(at=places, blocks=LENGTHS, who=connections)
    def prefetch(self, at: float, blocks: int, who: int) -> None:
        """Ask for a range to be copied."""
        self._client(who).call(5, *self._range(at, blocks))

    @rule()
    def reconnect(self) -> None:
        """Leave without a word."""
        self._leave()

    @rule()
    def delete_the_export(self) -> None:
        """Take the export away under its clients and offer it again."""
        self.daemon.call("nbd_delete_export", export_name="ubi0")
        assert all(client.is_closed() for client in self.clients)
        self._leave()
        self.daemon.export("ubi0")

    @rule(how=st.sampled_from(("delete the volume", "delete the base", "restart", "kill")))
    def reopen(self, how: str) -> None:
        """Have the volume closed, in any of the ways there are, and open it again."""
        if how == "delete the volume":
            self.daemon.call("bdev_ubi_delete", name="ubi0")
            self._leave()
            self.daemon.create_ubi("ubi0", "base0", self.folder / "image.raw", **self.params)
        elif how == "delete the base":
            self.daemon.call("bdev_aio_delete", name="base0")
            self._leave()
            assert not self.daemon.bdevs()
            self._create()
        else:
            self._restart(killed=how == "kill")


def test_any_order_of_requests_gives_the_models_bytes(io_engine: str) -> None:
    machine = type("Machine", (VolumeMachine,), {"io_engine": io_engine})
    checks = settings(
        max_examples=12,
        stateful_step_count=35,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(SEED)(machine), settings=checks)
