"""A share of the frames in process: `python -m tests.fuzz.run SEED FRAMES` in an empty folder; prints what it found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import engine_double
from tests.conftest import Domain, running_domain
from tests.fuzz.grammar import Grammar, check
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.framing import INCOMPLETE, JsonSyntaxError, request_parser
from ubi_rpc.rpc.session import Session

WAITING = {"bdev_get_bdevs", "framework_wait_init"}  # they may wait for ever
ANSWERING = [method for method in METHODS if method.name not in WAITING]
AT_ONCE = 50


class Tracebacks(logging.Handler):
    """Collects what is logged with a traceback; nothing else is formatted."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record.getMessage())

    @contextlib.contextmanager
    def installed(self) -> Iterator[list[str]]:
        """Collect for a while."""
        logger = logging.getLogger("ubi_rpc")
        logger.addHandler(self)
        logger.propagate = False
        yield self.found
        logger.propagate = True
        logger.removeHandler(self)


def rss_kib() -> int:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def values(grammar: Grammar) -> list[object]:
    """Make a frame, cut it, and parse it as far as it can be."""
    parser, found = request_parser(), []
    with contextlib.suppress(JsonSyntaxError):
        for piece in grammar.pieces(grammar.frame()):
            parser.feed(piece)
            while (value := parser.next_value()) is not INCOMPLETE:
                found.append(value)
    return found


async def answer_all(domain: Domain, grammar: Grammar, frames: int) -> int:
    """Have the dispatcher answer frames, some at a time, check the answers and return their number."""
    session, answered = Session(), 0
    for _ in range(0, frames, AT_ONCE):
        requests = [value for _ in range(AT_ONCE) for value in values(grammar)]
        for answer in await asyncio.gather(*(domain.dispatcher.handle(value, session) for value in requests)):
            if answer is not None:
                check(answer)
                answered += 1
        session.error_data = False
        domain.world.log.clear()
        domain.killed.clear()
    return answered


async def main(seed: int, frames: int) -> None:
    """Run the share."""
    world = engine_double.World()
    with pytest.MonkeyPatch.context() as patch, Tracebacks().installed() as tracebacks:
        engine_double.install(patch, world)
        async with running_domain(world, Path.cwd()) as domain:
            grammar = Grammar(ANSWERING, seed)
            await answer_all(domain, grammar, 500)  # what is loaded once
            before = rss_kib()
            answered = await answer_all(domain, grammar, frames)
    print(json.dumps({"answered": answered, "tracebacks": tracebacks, "growth_kib": rss_kib() - before}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
