"""The daemon with its real engine, as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.nbd_client import NbdClient
from tests.support.rpc_client import RpcClient

CHECKOUT = Path(__file__).resolve().parent.parent.parent
READY = "ubi_tgt ready"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


class Daemon:
    """One `ubi_tgt` in a folder of its own, started and ended as often as one likes.

    Args:
        folder: where its sockets and its state are, and where it runs.
        io_engine: "io_uring" or "threads".
        package: the folder that `ubi_rpc` is imported from.
        environ: further variables of its environment.
    """

    def __init__(self, folder: Path, io_engine: str, package: Path = CHECKOUT, **environ: str) -> None:
        self.folder = folder
        self._environ = {**os.environ, "PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1", **environ}
        self.io_engine = io_engine
        self.rpc_socket = folder / "rpc.sock"
        self.nbd_socket = folder / "nbd.sock"
        self.log: list[str] = []
        self._ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._rpc: RpcClient | None = None

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process that was started last."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def start(self, *arguments: str) -> Daemon:
        """Start it and return when it serves.

        Raises:
            AssertionError: it ended, or did not serve within START_TIMEOUT_S; its log is in the message.
        """
        self.launch(*arguments)
        assert self._ready.wait(START_TIMEOUT_S), self.log_text()
        assert self.process.poll() is None, self.log_text()
        engine = re.search(r"io_engine=(\w+)", self.log_text())
        assert engine is not None, self.log_text()
        assert engine[1] == self.io_engine
        return self

    def launch(self, *arguments: str) -> None:
        """Start it and return at once."""
        self._ready.clear()
        self.log.clear()
        options = ["-r", str(self.rpc_socket), "-S", str(self.folder), "--state-dir", str(self.folder / "state")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ubi_rpc", *options, "--io-engine", self.io_engine, *arguments],
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            if READY in line:
                self._ready.set()
        self._ready.set()

    def log_text(self) -> str:
        """Return what it has logged since its last start."""
        return "".join(self.log)

    def end(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send a signal, wait for the end and return the exit code.

        Raises:
            TimeoutExpired: it is still there after `timeout_s`.
        """
        self.process.send_signal(how)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end and return the exit code, negative for a signal."""
        code = self.process.wait(timeout_s)
        self._drop_rpc()
        if self._reader is not None:
            self._reader.join(STOP_TIMEOUT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self.end(signal.SIGKILL)

    def _drop_rpc(self) -> None:
        if self._rpc is not None:
            self._rpc.close()
            self._rpc = None

    @property
    def rpc(self) -> RpcClient:
        """A connection that is kept for as long as the process runs."""
        if self._rpc is None:
            self._rpc = RpcClient(self.rpc_socket)
        return self._rpc

    def call(self, method: str, **params: object) -> Any:
        """Return a call's result; raises RpcError."""
        return self.rpc.call(method, **params)

    def create_aio(self, name: str, path: Path, block_size: int = 512, **params: object) -> str:
        """Make an aio bdev that offers unmap."""
        params = {"fallocate": True, **params}
        self.call("bdev_aio_create", name=name, filename=str(path), block_size=block_size, **params)
        return name

    def create_ubi(self, name: str, base: str, image: Path, stripe_size_kb: int = 64, **params: object) -> str:
        """Make an overlay and export it under its name."""
        self.call(
            "bdev_ubi_create",
            name=name,
            base_bdev=base,
            image_path=str(image),
            stripe_size_kb=stripe_size_kb,
            **params,
        )
        return self.export(name)

    def export(self, bdev: str, **params: object) -> str:
        """Export a bdev and return the URI."""
        uri = self.call("nbd_create_export", bdev_name=bdev, **params)["uri"]
        assert isinstance(uri, str)
        return uri

    def status(self, name: str) -> dict[str, Any]:
        """Return bdev_ubi_get_status."""
        found = self.call("bdev_ubi_get_status", name=name)
        assert isinstance(found, dict)
        return found

    def connections(self, export: str) -> int:
        """Return how many clients an export has."""
        return next(int(one["connections"]) for one in self.call("nbd_get_exports") if one["export_name"] == export)

    def bdevs(self) -> list[dict[str, Any]]:
        """Return bdev_get_bdevs."""
        found = self.call("bdev_get_bdevs")
        assert isinstance(found, list)
        return found

    def client(self, export: str, **options: Any) -> NbdClient:
        """Connect to an export."""
        return NbdClient(str(self.nbd_socket), export, **options)

    def delete_all(self) -> None:
        """Take down every export and every bdev, those that stand on others first."""
        for export in self.call("nbd_get_exports"):
            self.call("nbd_delete_export", export_name=export["export_name"])
        for controller in self.call("vhost_get_controllers"):
            self.call("vhost_delete_controller", ctrlr=controller["ctrlr"])
        kinds = {"AIO disk": "aio", "Malloc disk": "malloc", "Null disk": "null", "Ubi disk": "ubi"}
        for bdev in reversed(self.bdevs()):
            self.call(f"bdev_{kinds[bdev['product_name']]}_delete", name=bdev["name"])

    def descriptors(self) -> list[str]:
        """Return what its descriptors point at, sorted; numbers that differ from run to run are left out."""
        found = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                found.append(re.sub(r"\[\d+\]", "", str(link.readlink())))
            except FileNotFoundError:
                continue  # closed since the folder was read
        return sorted(found)

    def threads(self) -> list[str]:
        """Return the names of its threads, sorted."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sorted((task / "comm").read_text().strip() for task in tasks)

    def memory_bytes(self) -> int:
        """Return its resident memory that is not the page cache's."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


def write_config(path: Path, *calls: tuple[str, dict[str, object]]) -> str:
    """Write a JSON configuration with calls of the subsystem `bdev`; return its path for the command line."""
    entries = [{"method": method, "params": params} for method, params in calls]
    path.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": entries}]}))
    return str(path)
