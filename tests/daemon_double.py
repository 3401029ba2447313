"""`ubi_tgt` over the engine's double, for tests of the process: start, stop, signals, exit codes.

UBI_TEST_HOLD names calls of the double that wait until the signal UBI_TEST_LET_GO_ON, or for ever;
UBI_TEST_STOP_TIMEOUT_S replaces the daemon's own.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests import engine_double
from ubi_rpc import settings
from ubi_rpc.__main__ import main

if __name__ == "__main__":
    world = engine_double.World()
    for call in filter(None, os.environ.get("UBI_TEST_HOLD", "").split(",")):
        world.hold(call)
    if name := os.environ.get("UBI_TEST_LET_GO_ON"):
        signal.signal(signal.Signals[name], lambda *_: world.let_go())
    if timeout := os.environ.get("UBI_TEST_STOP_TIMEOUT_S"):
        settings.STOP_TIMEOUT_S = float(timeout)
    engine_double.install(pytest.MonkeyPatch(), world)
    sys.exit(main())
