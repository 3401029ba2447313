"""SPDK's JSON configuration: what a file may say, and in which order its calls are made.

Owns the shape and the order. Bytes become values elsewhere (`Source`), a call is made by whoever is given to `apply`,
so that a file goes through the same decoding and the same handlers as a client.

Source: SPDK lib/init/json_config.c.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ubi_rpc.suggest import did_you_mean

SUBSYSTEMS = frozenset({"bdev", "nbd", "vhost_blk"})
"""Subsystems whose methods are all here: an unknown method in one of them is a fault of the file."""

EXIT_BAD_CONFIG = 234
"""-EINVAL as a process's exit code. Source: SPDK, seen."""

EXIT_UNKNOWN_METHOD = 254
"""-ENOENT as a process's exit code. Source: SPDK, seen."""

CREATIONS_AT_ONCE = 16
"""Creations of a file that are under way at once; each waits for storage most of its time."""

_CREATION = re.compile(r"^bdev_\w+_create$|_create_export$")
_OBJECT = re.compile(r"^bdev_\w+_create$|_create_export$|^vhost_create_\w+_controller$")

_log = logging.getLogger(__name__)


def makes_object(method: str) -> bool:
    """Say whether a method makes a bdev or an export."""
    return _OBJECT.search(method) is not None


class ConfigError(Exception):
    """A configuration that cannot be applied.

    Args:
        message: names file, line, column and what is wrong.
        exit_code: what the daemon exits with.
    """

    def __init__(self, message: str, exit_code: int = EXIT_BAD_CONFIG) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CallFailedError(Exception):
    """A call of the file that was refused; `str()` says with which code and why.

    Args:
        message: that.
        parameter: the path of the one at fault, "" where none is named.
        stopping: nothing is wrong with it; the daemon is about to end.
    """

    def __init__(self, message: str, parameter: str = "", *, stopping: bool = False) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.stopping = stopping


class Source(Protocol):
    """A parsed file that knows where its objects are."""

    @property
    def name(self) -> str:
        """Return the file's name for messages."""

    @property
    def root(self) -> object:
        """Return the parsed value; objects are dicts."""

    def position(self, value: dict[str, object]) -> tuple[int, int]:
        """Return line and column of an object of the file, counted from 1."""

    def member_position(self, value: object, path: str) -> tuple[int, int] | None:
        """Return line and column of the member of an object that a path leads to, as far as it does."""

    def duplicates(self, value: dict[str, object]) -> list[str]:
        """Return the keys that an object has more than once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One call.

    Args:
        subsystem: where it stands.
        method: its method.
        params: as parsed; None when absent.
        source: the file.
        found: the entry as it stands there.
        what: subsystem, index and method, for messages.
    """

    subsystem: str
    method: str
    params: object
    source: Source
    found: dict[str, object]
    what: str

    @property
    def where(self) -> str:
        """File, line, column, subsystem, index and method."""
        return self.where_is("")

    def where_is(self, parameter: str) -> str:
        """Return the same with the line and column of a parameter; the entry's where it has none."""
        line, column = self.source.member_position(self.params, parameter) or self.source.position(self.found)
        return f"{self.source.name}:{line}:{column}: {self.what}"


@dataclass(frozen=True, slots=True)
class Step:
    """Calls that are made together: one, or a batch. `startup`: they belong before the subsystems are up."""

    entries: tuple[Entry, ...]
    startup: bool

    @property
    def creates(self) -> bool:
        """Whether all that it does is to make bdevs and exports."""
        return all(_CREATION.search(entry.method) for entry in self.entries)


Call = Callable[[str, object], Awaitable[object]]
"""Makes one call by method and params; raises `CallFailedError`."""

Failed = Callable[[Entry, str], None]
"""Told of a call that failed and why, beginning with where it stands; returns to go on."""


class ConfigReader:
    """Turns a file into steps.

    Args:
        source: the file.
        methods: for each known method whether it may be called before the subsystems are up.
        ignore_errors: drop what is unknown instead of refusing the file.
        failed: told of unknown methods, which are left out then; the same as `apply`'s.
    """

    def __init__(
        self, source: Source, methods: Mapping[str, bool], *, ignore_errors: bool, failed: Failed | None = None
    ) -> None:
        self._source = source
        self._methods = methods
        self._ignore_errors = ignore_errors
        self._failed = failed
        self.doubts: list[str] = []
        """What is allowed and probably a mistake."""

    def steps(self) -> list[Step]:
        """Return the calls in file order.

        Raises:
            ConfigError: the file has another shape, or names a method that a known subsystem does not have.
        """
        root = self._source.root
        if not isinstance(root, dict):
            raise ConfigError(f"{self._source.name}: the configuration is not a JSON object")
        if "subsystems" not in root:
            _log.warning("config=%s has no 'subsystems'; nothing is configured", self._source.name)
            return []
        subsystems = root["subsystems"]
        if not isinstance(subsystems, list) or "subsystems" in self._source.duplicates(root):
            raise self._fault(root, "'subsystems' is not one array")
        return [step for index, element in enumerate(subsystems) for step in self._subsystem(index, element)]

    def _subsystem(self, index: int, element: object) -> list[Step]:
        found = self._object(element, self._source.root, f"subsystem {index}")
        name, config = found.get("subsystem"), found.get("config")
        if set(found) != {"subsystem", "config"} or not isinstance(name, str):
            raise self._fault(found, f"subsystem {index} does not have exactly 'subsystem', a string, and 'config'")
        if config is not None and not isinstance(config, list):
            raise self._fault(found, f"'config' of subsystem {name!r} is neither an array nor null")
        steps = []
        for position, item in enumerate(config or []):
            step = self._step(found, name, position, item)
            if step is None:
                break
            if step.entries:
                steps.append(step)
        return steps

    def _step(self, parent: object, subsystem: str, index: int, item: object) -> Step | None:
        """Return one step; None when the subsystem is one that this program does not have."""
        items = item if isinstance(item, list) else [item]
        entries = [self._entry(parent, subsystem, index, one) for one in items]
        known = [entry for entry in entries if entry.method in self._methods]
        for entry in entries:
            if entry in known:
                continue
            if subsystem not in SUBSYSTEMS:
                hint = did_you_mean(subsystem, SUBSYSTEMS)
                skipped = f"subsystem={subsystem} is not part of this program and is skipped{hint}"
                _log.log(logging.WARNING if hint else logging.INFO, "config=%s %s", entry.where, skipped)
                self.doubts += [f"{entry.where}: {skipped}"] if hint else []
                return None
            hint = did_you_mean(entry.method, self._methods)
            if self._failed is not None:
                self._failed(entry, f"{entry.where}: method does not exist{hint}")
                continue
            if not self._ignore_errors:
                raise ConfigError(f"{entry.where}: method does not exist{hint}", EXIT_UNKNOWN_METHOD)
            _log.error("config=%s method does not exist; skipped", entry.where)
        startup = {self._methods[entry.method] for entry in known}
        if len(startup) > 1:
            raise ConfigError(f"{entries[0].where}: a batch mixes start-up and runtime methods")
        return Step(tuple(known), startup=True in startup)

    def _entry(self, parent: object, subsystem: str, index: int, item: object) -> Entry:
        found = self._object(item, parent, f"subsystem {subsystem!r}, entry {index}")
        method = found.get("method")
        params = found.get("params", {})
        if not isinstance(method, str) or set(found) - {"method", "params"}:
            raise self._fault(
                found, f"subsystem {subsystem!r}, entry {index} does not have 'method', a string, and maybe 'params'"
            )
        if params is None:
            raise self._fault(found, f"subsystem {subsystem!r}, entry {index} ({method}): params is null; leave it out")
        what = f"subsystem {subsystem!r}, entry {index} ({method})"
        return Entry(subsystem, method, found.get("params"), self._source, found, what)

    def _object(self, value: object, parent: object, what: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self._fault(parent, f"{what} is not an object")
        if repeated := self._source.duplicates(value):
            raise self._fault(value, f"{what} has {repeated[0]!r} more than once")
        return value

    def _where(self, value: object) -> str:
        line, column = self._source.position(value) if isinstance(value, dict) else (1, 1)
        return f"{self._source.name}:{line}:{column}"

    def _fault(self, value: object, message: str) -> ConfigError:
        return ConfigError(f"{self._where(value)}: {message}")


async def apply(
    steps: list[Step], call: Call, *, startup: bool, ignore_errors: bool, failed: Failed | None = None
) -> None:
    """Make the calls of one of the two passes, in file order.

    Creations overlap, some at a time: they keep the order of the file where they have an object in common.

    Args:
        steps: of the file.
        call: makes one call.
        startup: the pass before the subsystems are up, or the one after.
        ignore_errors: log a call that fails and go on.
        failed: told of calls that fail, whatever `ignore_errors` says.

    Raises:
        ConfigError: a call failed, and nobody was there to be told, or the daemon is stopping; the later ones were not
            made, a few that had started excepted.
    """
    if failed is None:
        failed = _skip if ignore_errors else _refuse
    under_way: deque[asyncio.Task[list[_Failure]]] = deque()
    try:
        for step in steps:
            if step.startup != startup:
                continue
            most = CREATIONS_AT_ONCE if step.creates else 1
            while len(under_way) >= most:
                _judge(await under_way.popleft(), failed)
            under_way.append(asyncio.get_running_loop().create_task(_make(step, call)))
            if not step.creates:
                _judge(await under_way.popleft(), failed)
        while under_way:
            _judge(await under_way.popleft(), failed)
    finally:
        if under_way:
            await asyncio.wait(under_way)


@dataclass(frozen=True, slots=True)
class _Failure:
    entry: Entry
    reason: str
    stopping: bool


async def _make(step: Step, call: Call) -> list[_Failure]:
    """Make the calls of a step and return which failed, and why."""
    failures = await asyncio.gather(*(_call_one(entry, call) for entry in step.entries))
    return [failure for failure in failures if failure is not None]


def _judge(failures: list[_Failure], failed: Failed) -> None:
    for failure in failures:
        (_refuse if failure.stopping else failed)(failure.entry, failure.reason)


def _refuse(_entry: Entry, reason: str) -> None:
    raise ConfigError(reason)


def _skip(_entry: Entry, reason: str) -> None:
    _log.error("config=%s; skipped", reason)


async def _call_one(entry: Entry, call: Call) -> _Failure | None:
    try:
        await call(entry.method, entry.params)
    except CallFailedError as error:
        return _Failure(entry, f"{entry.where_is(error.parameter)}: {error}", error.stopping)
    return None
