"""Fixtures for tests that kill the daemon."""

from __future__ import annotations

import pytest

from tests.support.fixtures import folder, io_engine, unstarted_daemon
from tests.support.seeds import SEED

__all__ = ["folder", "io_engine", "unstarted_daemon"]


@pytest.fixture(autouse=True)
def _seed_of_a_failure() -> None:
    print(f"UBI_TEST_SEED={SEED}")
