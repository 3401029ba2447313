"""`ubi_tgt`: the daemon's command line. `python -m ubi_rpc` is the same."""

from __future__ import annotations

import asyncio
import logging
import sys

from ubi_rpc import settings
from ubi_rpc.log_output import LogOutput


def main() -> int:
    """Run the daemon with this process's arguments; return its exit code."""
    chosen = settings.parse(sys.argv[1:])
    if chosen is None:
        from ubi_rpc.engine import version

        print(f"ubi_rpc v{version()}")  # noqa: T201  what -v is for
        return 0
    logging.basicConfig(level=logging.INFO, handlers=[LogOutput()])
    from ubi_rpc.daemon import Daemon  # what takes long to import comes after the command line is known to be good

    return asyncio.run(Daemon(chosen).run())


if __name__ == "__main__":
    sys.exit(main())
