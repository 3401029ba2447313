"""The daemon of the demo: started, asked through scripts/rpc.py, killed."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo.steps import DemoError, run, say

READY_TIMEOUT_S = 30
STOP_TIMEOUT_S = 30
CHECKOUT = Path(__file__).resolve().parent.parent


class Daemon:
    """One `ubi_tgt` in a work folder of its own.

    Args:
        folder: where it runs, so that the relative paths of the configuration lie there.
        config: the JSON configuration it is started with.
    """

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder = folder
        self.config = config
        self.rpc_socket = folder / "rpc.sock"
        self.log = folder / "daemon.log"
        self._pid_file = folder / "daemon.pid"

    def start(self) -> float:
        """Start it in a session of its own and return the seconds until it answered.

        Raises:
            DemoError: it ended, or did not answer within READY_TIMEOUT_S.
        """
        config = os.path.relpath(self.config, self.folder)
        arguments = ["--json", config, "-r", self.rpc_socket.name, "-S", ".", "--state-dir", "state"]
        say(f"$ (cd {shlex.quote(str(self.folder))} && ubi_tgt {shlex.join(arguments)}) &")
        began = time.monotonic()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ubi_rpc", *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(str(process.pid))
        while not self._listens():
            if process.poll() is not None or time.monotonic() - began > READY_TIMEOUT_S:
                raise DemoError(f"the daemon does not answer; the end of {self.log}:\n{self.log_tail()}")
            time.sleep(0.01)
        self.rpc("framework_wait_init", show=False)
        return time.monotonic() - began

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.rpc_socket))
            except OSError:
                return False
            return True

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of what the daemon wrote."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    def rpc(self, *arguments: str, show: bool = True) -> Any:
        """Call scripts/rpc.py and return the answer, decoded where it is JSON.

        Raises:
            DemoError: the call failed; the message has rpc.py's own words.
        """
        command = [str(CHECKOUT / "scripts/rpc.py"), "-s", str(self.rpc_socket), *arguments]
        if show:
            say(f"$ scripts/rpc.py {shlex.join(command[1:])}")
        answer = run([sys.executable, *command], cwd=str(self.folder), show=False)
        try:
            return json.loads(answer)
        except json.JSONDecodeError:
            return answer.strip()

    def pid(self) -> int | None:
        """Return the process of the daemon started last in this folder, if it still runs."""
        try:
            process = Path("/proc") / str(int(self._pid_file.read_text()))
            ours = b"ubi_rpc" in (process / "cmdline").read_bytes().split(b"\0")
            here = (process / "cwd").readlink() == self.folder
        except (OSError, ValueError):
            return None
        return int(process.name) if ours and here else None

    def end(self, how: signal.Signals) -> int | None:
        """Send `how` to the daemon, if there is one, and wait until its process is gone.

        Returns:
            Its exit code, negative for the signal that killed it; None if it was not ours to wait for.

        Raises:
            DemoError: it is still there after STOP_TIMEOUT_S.
        """
        pid = self.pid()
        if pid is None:
            return None
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, how)
            ended, _, _ = select.select([process], [], [], STOP_TIMEOUT_S)
            if not ended:
                raise DemoError(f"the daemon (process {pid}) does not end after {how.name}; its log: {self.log}")
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:  # an earlier demo left it running
            return None
        finally:
            os.close(process)
