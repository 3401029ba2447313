"""How the daemon comes up: states, the two passes of the configuration, framework_start_init.

Owns the state that methods are checked against. Does not own the objects that are brought up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.rpc.method import State
from ubi_rpc.storage.config_file import Call, ConfigError, Failed, Step, apply
from ubi_rpc.storage.config_keep import LOADING

EXIT_CANNOT_RUN = 1


class Startup:
    """The start of the subsystems.

    Args:
        call: makes one call of the configuration.
        ignore_errors: log calls that fail and go on.
        applied: what comes after the second pass, before anybody is told that the subsystems are up.
        failed: told when the second pass failed; the daemon is to stop with that error's exit code.
        call_failed: told of each call that failed, and the next ones are made; None: as `ignore_errors` says.
    """

    def __init__(
        self,
        call: Call,
        *,
        ignore_errors: bool,
        applied: Callable[[], Awaitable[None]],
        failed: Callable[[ConfigError], None],
        call_failed: Failed | None = None,
    ) -> None:
        self.state = State.STARTUP
        self.steps: list[Step] = []
        """The calls of the configuration."""
        self._call = call
        self._ignore_errors = ignore_errors
        self._applied = applied
        self._failed = failed
        self._call_failed = call_failed
        self._initialised = asyncio.Event()
        self._init: asyncio.Task[None] | None = None

    async def run_startup_pass(self) -> None:
        """Make the calls that belong before the subsystems are up.

        Raises:
            ConfigError: one failed.
        """
        await self._apply(startup=True)

    async def start_init(self) -> None:
        """Bring the subsystems up and make the remaining calls; a second caller waits for the first one's outcome.

        Raises:
            UbiError: invalid_state, the configuration failed and the daemon stops.
        """
        if self._init is None:
            self._init = asyncio.get_running_loop().create_task(self._bring_up())
        try:
            await asyncio.shield(self._init)
        except ConfigError as error:
            raise UbiError(ErrorKind.INVALID_STATE, str(error)) from error

    async def wait_init(self) -> None:
        """Return when the subsystems are up."""
        await self._initialised.wait()

    async def _bring_up(self) -> None:
        self.state = State.RUNTIME
        LOADING.set(True)
        try:
            await self._apply(startup=False)
            await self._applied()
        except (ConfigError, UbiError) as error:
            failure = error if isinstance(error, ConfigError) else ConfigError(str(error), EXIT_CANNOT_RUN)
            self._failed(failure)
            raise failure from error
        self._initialised.set()

    async def _apply(self, *, startup: bool) -> None:
        ignore = self._ignore_errors
        await apply(self.steps, self._call, startup=startup, ignore_errors=ignore, failed=self._call_failed)
