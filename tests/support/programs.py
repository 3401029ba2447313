"""Other people's programs, run to their end."""

from __future__ import annotations

import subprocess


def run(*command: object, timeout_s: float = 60.0) -> str:
    """Run a program and return what it printed on stdout.

    Raises:
        AssertionError: it failed; the message has its words.
        TimeoutExpired: it did not end.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def fails(*command: object, timeout_s: float = 60.0) -> str:
    """Run a program that must fail and return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode != 0, f"{words} did not fail:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def nbdsh(uri: str, script: str) -> str:
    """Run a script of libnbd's Python in the system's interpreter, the only one that has it; `h` is connected."""
    connect = f"import nbd\nh = nbd.NBD()\nh.set_uri_allow_local_file(True)\nh.connect_uri({uri!r})\n"
    return run("/usr/bin/python3", "-c", connect + script)
