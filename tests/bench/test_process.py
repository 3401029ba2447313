"""Programs under measurement: their CPU time, their CPUs and their end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.process import BenchError, Process, run


def start(folder: Path, code: str) -> Process:
    return Process("program", [sys.executable, "-c", code], folder)


def test_cpu_s_counts_what_was_used(tmp_path: Path) -> None:
    process = start(tmp_path, "while True: pass")
    try:
        deadline = time.monotonic() + 30
        while process.cpu_s() < 0.2:
            assert time.monotonic() < deadline
    finally:
        process.stop()


def test_on_cpus_moves_the_process_and_back(tmp_path: Path) -> None:
    process = start(tmp_path, "import time; time.sleep(60)")
    try:
        before = os.sched_getaffinity(process.pid)
        one = {max(before)}
        with process.on_cpus(one):
            assert os.sched_getaffinity(process.pid) == one
        assert os.sched_getaffinity(process.pid) == before
    finally:
        process.stop()


def test_wait_for_socket_tells_the_last_words_of_a_program_that_ended(tmp_path: Path) -> None:
    process = start(tmp_path, "raise SystemExit('no such image')")
    with pytest.raises(BenchError, match="status 1:\nno such image"):
        process.wait_for_socket(tmp_path / "none.sock")
    process.stop()


def test_run_failure_has_the_programs_own_words() -> None:
    with pytest.raises(BenchError, match=r"status 3\nout"):
        run([sys.executable, "-c", "print('out'); raise SystemExit(3)"])
    with pytest.raises(BenchError, match="not installed"):
        run(["no-such-program-anywhere"])
