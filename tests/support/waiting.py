"""Waiting for something that sends no event, bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.005


def until(look: Callable[[], T], what: str, timeout_s: float = 20.0) -> T:
    """Look again and again until what is seen is true, and return it.

    Raises:
        AssertionError: it was not, for `timeout_s`; the message has `what` and what was seen last.
    """
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what} (last seen: {seen!r})")
        time.sleep(POLL_S)
    return seen
