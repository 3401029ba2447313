"""Other programs: their start, end, CPU time and CPUs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

READY_TIMEOUT_S = 30
STOP_TIMEOUT_S = 60
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A run that cannot go on; the message says what to do."""


class Process:
    """A server with its output in a log.

    Args:
        name: for messages and the log's name.
        argv: the command.
        folder: the log and the working directory.
        env: additions to the environment.
    """

    def __init__(self, name: str, argv: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                argv, cwd=folder, env=os.environ | (env or {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_for_socket(self, path: Path) -> None:
        """Wait until something listens on a Unix socket.

        Raises:
            BenchError: the program ended, or nothing listened within READY_TIMEOUT_S.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not listens(path):
            self.check_alive()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not listen on {path}; see {self.log}")
            time.sleep(0.001)

    def check_alive(self) -> None:
        """Raise BenchError with the end of its log if the program has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended with status {self._process.returncode}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the end of what it wrote."""
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """End it with SIGTERM, after STOP_TIMEOUT_S with SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def cpu_s(self) -> float:
        """User and system time in seconds so far. Source: proc(5), /proc/PID/stat, utime and stime."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    @contextlib.contextmanager
    def on_cpus(self, cpus: set[int]) -> Iterator[None]:
        """Keep every thread that it has, and will have meanwhile, on some CPUs."""
        before = {thread: affinity for thread in self._threads() if (affinity := _affinity(thread))}
        self._move(dict.fromkeys(before, cpus))
        try:
            yield
        finally:
            everywhere = os.sched_getaffinity(0)
            self._move({thread: before.get(thread, everywhere) for thread in self._threads()})

    def _threads(self) -> list[int]:
        return [int(task.name) for task in Path(f"/proc/{self.pid}/task").iterdir()]

    @staticmethod
    def _move(affinities: dict[int, set[int]]) -> None:
        for thread, cpus in affinities.items():
            # It has ended, or it is a worker of the kernel's that may not be moved.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cpus)


def _affinity(thread: int) -> set[int] | None:
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:
        return None


def listens(path: Path) -> bool:
    """Whether something listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def run(argv: list[str]) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        BenchError: it failed; the message has its command and its own words.
    """
    try:
        done = subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise BenchError(f"{argv[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(argv)}: status {error.returncode}\n{error.stdout}{error.stderr}") from error
    return done.stdout
