"""Our daemon, driven by JSON-RPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from bench.process import READY_TIMEOUT_S, BenchError, Process, listens
from bench.rpc import RpcClient

CHECKOUT = Path(__file__).resolve().parent.parent
UBI_METADATA_BYTES = 8 << 20
BLOCK_BYTES = 512
STRIPE_KIB = 1024


def nbd_uri(socket: Path, export: str) -> str:
    """Return an export as NBD clients name it."""
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(str(socket))}"


def seconds_to_start(python: Path, folder: Path, config: Path | None = None) -> float:
    """Start a daemon, and end it once it is ready."""
    began = time.perf_counter()
    with Daemon.running(python, folder, config):
        return time.perf_counter() - began


class Daemon:
    """A running `ubi_tgt` with its sockets, state and log in one folder."""

    def __init__(self, python: Path, folder: Path, config: Path | None = None, options: tuple[str, ...] = ()) -> None:
        """Start it; `ready` tells when it answers."""
        self.rpc_socket = folder / "rpc.sock"
        self.nbd_socket = folder / "nbd.sock"
        argv = [str(python), "-m", "ubi_rpc", "-r", str(self.rpc_socket), "-S", str(folder)]
        argv += ["--state-dir", str(folder / "state")]
        argv += ["--json", str(config)] if config else []
        argv += options
        self.process = Process("ubi_rpc", argv, folder, {"PYTHONPATH": str(CHECKOUT)})

    @classmethod
    @contextmanager
    def running(cls, python: Path, folder: Path, config: Path | None = None) -> Iterator[Daemon]:
        """Start it, wait until it is ready, end it afterwards."""
        daemon = cls(python, folder, config)
        try:
            daemon.wait_until_ready()
            yield daemon
        finally:
            daemon.process.stop()

    def wait_until_ready(self) -> None:
        """Wait until it has started and applied its configuration.

        Raises:
            BenchError: it ended or did not answer within READY_TIMEOUT_S.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not listens(self.rpc_socket):
            self.process.check_alive()
            if time.monotonic() > deadline:
                raise BenchError(f"the daemon does not answer; see {self.process.log}")
            time.sleep(0.001)
        try:
            with self.client() as client:
                client.call("framework_wait_init")
        except (BenchError, OSError) as error:
            raise BenchError(f"the daemon did not start: {error}\n{self.process.log_tail()}") from error

    def client(self) -> RpcClient:
        """Connect to it."""
        return RpcClient(self.rpc_socket)

    def create_aio(self, name: str, path: Path, cache: str = "writeback") -> None:
        """Make a bdev of a file: through the page cache, as most peers have it, or with `none` past it."""
        with self.client() as client:
            client.call("bdev_aio_create", name=name, filename=str(path), block_size=BLOCK_BYTES, cache=cache)

    def create_ubi(self, name: str, base: str, image: Path) -> None:
        """Make a volume of an image over a base."""
        with self.client() as client:
            client.call("bdev_ubi_create", name=name, base_bdev=base, image_path=str(image), stripe_size_kb=STRIPE_KIB)

    def export(self, bdev: str) -> str:
        """Offer a bdev on the daemon's NBD socket and return the export's name."""
        with self.client() as client:
            answer = client.call("nbd_create_export", bdev_name=bdev, socket=str(self.nbd_socket))
        return str(answer["export_name"])

    def uri(self, export: str) -> str:
        """Return an export of that socket as NBD clients name it."""
        return nbd_uri(self.nbd_socket, export)

    def check_all_present(self, name: str) -> None:
        """Raise BenchError unless every stripe of a volume is present."""
        with self.client() as client:
            status = client.call("bdev_ubi_get_status", name=name)
        status = status[0] if isinstance(status, list) else status
        present, total = status["stripes_present"], status["stripes_total"]
        if present != total:
            raise BenchError(f"{name}: {present} of {total} stripes are present")
