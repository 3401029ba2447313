"""How the demo runs other programs and what it prints about it; knows nothing about volumes."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

COMMAND_TIMEOUT_S = 120


class DemoError(Exception):
    """The demo cannot go on; the message says what was expected and what came."""


_titles = iter(range(1, 100))
_began = time.monotonic()


def title(text: str) -> None:
    """Print the heading of the next step, with the seconds since the start."""
    print(f"\n{next(_titles)}. {text}  [{time.monotonic() - _began:.1f} s]", flush=True)


def say(text: str) -> None:
    """Print one line under the current step, with paths as they are typed in the folder that we run in."""
    print(f"   {text.replace(f'{Path.cwd()}/', '')}", flush=True)


def run(command: Sequence[str], *, cwd: str | None = None, show: bool = True) -> str:
    """Run a program to its end and return what it printed on stdout.

    Args:
        command: program and arguments.
        cwd: folder to run it in; ours when None.
        show: print the command line first, so that it can be copied.

    Raises:
        DemoError: it is not installed, took longer than COMMAND_TIMEOUT_S or ended with an error.
    """
    line = shlex.join(command)
    if show:
        say(f"$ {line}")
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise DemoError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"no answer within {COMMAND_TIMEOUT_S} s: {line}") from error
    if done.returncode != 0:
        raise DemoError(f"exit code {done.returncode}: {line}\n{done.stderr or done.stdout}")
    return done.stdout


def expect(what: str, found: object, wanted: object) -> None:
    """Print that `what` is as it should be, or end the demo.

    Raises:
        DemoError: `found` differs from `wanted`.
    """
    if found != wanted:
        raise DemoError(f"{what}: found {found}, expected {wanted}")
    say(f"{what}: {found}" if isinstance(found, int) else f"{what}: as it should be")
