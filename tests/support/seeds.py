"""The seed of a run: printed at its start, and taken back by UBI_TEST_SEED."""

from __future__ import annotations

import os
import random

SEED = int(os.environ.get("UBI_TEST_SEED") or random.SystemRandom().getrandbits(32))


def rng(*names: object) -> random.Random:
    """Return a generator that depends on the run's seed and on `names` alone, not on which other tests ran."""
    return random.Random(":".join(map(str, (SEED, *names))))
