"""`ubi_tgt`: the daemon's command line. `python -m ubi_rpc` is the same."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from pathlib import Path

from ubi_rpc import settings
from ubi_rpc.log_output import LogOutput


def _check(path: Path) -> int:
    """Print what is wrong with a configuration; return the exit code."""
    from ubi_rpc.config_check import report
    from ubi_rpc.config_source import ConfigSource
    from ubi_rpc.methods import METHODS
    from ubi_rpc.storage.config_file import ConfigError

    try:
        lines, code = report(ConfigSource(path), METHODS)
    except ConfigError as error:
        lines, code = [str(error)], error.exit_code
    print("\n".join(lines))  # noqa: T201  what --check-config is for
    return code


def main() -> int:
    """Run the daemon with this process's arguments; return its exit code."""
    chosen = settings.parse(sys.argv[1:])
    if chosen is None:
        from ubi_rpc.engine import version

        print(f"ubi_rpc v{version()}")  # noqa: T201  what -v is for
        return 0
    if chosen.check_config is not None:
        return _check(chosen.check_config)
    logging.basicConfig(level=logging.INFO, handlers=[LogOutput()])
    # Guests may be waiting: no look for garbage among the modules and models that are made here, now or later.
    gc.disable()
    from ubi_rpc.daemon import Daemon  # what takes long to import comes after the command line is known to be good

    gc.freeze()
    gc.enable()
    return asyncio.run(Daemon(chosen).run())


if __name__ == "__main__":
    sys.exit(main())
