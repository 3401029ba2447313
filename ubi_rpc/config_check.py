"""`--check-config`: everything about a configuration that can be known without applying it.

The shape, the methods, the parameters of every entry, and that an entry names only bdevs that an earlier one makes.
Opens nothing but the file itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ubi_rpc.params import Params
from ubi_rpc.rpc.decode import read_params
from ubi_rpc.rpc.method import Method, State
from ubi_rpc.storage.config_file import ConfigError, ConfigReader, Entry, Source, Step

REFERENCES = ("base_bdev", "bdev_name", "dev_name")
"""Parameters that name a bdev which has to be there."""


def check(source: Source, methods: Sequence[Method]) -> tuple[list[str], list[str]]:
    """Return the faults of a configuration, none when there are none, each with its place in the file; and its doubts.

    Raises:
        ConfigError: its shape is wrong, so that nothing else can be said.
    """
    table = {method.name: method for method in methods}
    early = {name: State.STARTUP in method.states for name, method in table.items()}
    reader = ConfigReader(source, early, ignore_errors=False)
    steps = reader.steps()
    made: set[str] = set()
    faults = [fault for step in _in_order(steps) for entry in step.entries for fault in _faults(entry, table, made)]
    return faults, reader.doubts


def _in_order(steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.startup] + [step for step in steps if not step.startup]


def _faults(entry: Entry, methods: dict[str, Method], made: set[str]) -> Iterator[str]:
    """Yield what is wrong with an entry; `made` are names and uuids of the bdevs so far."""
    method = methods[entry.method]
    params = read_params(method, entry.params)
    if not isinstance(params, Params):
        code, message = method.decode_error
        for fault in params:
            yield f"{entry.where_is(fault.parameter)}: {code} {message}: {fault.detail}"
        return
    for parameter in REFERENCES:
        name = getattr(params, parameter, None)
        if name is not None and name not in made:
            yield f"{entry.where_is(parameter)}: {parameter}: no entry before this one makes a bdev called {name!r}"
    if entry.method.startswith("bdev_") and entry.method.endswith("_create"):
        yield from _made(entry, params, made)


def _made(entry: Entry, params: Params, made: set[str]) -> Iterator[str]:
    for parameter in ("name", "uuid"):
        alias = getattr(params, parameter, None)
        if alias is None:
            continue
        if alias in made:
            yield f"{entry.where_is(parameter)}: an entry before this one makes a bdev called {alias!r} as well"
        made.add(alias)


def report(source: Source, methods: Sequence[Method]) -> tuple[list[str], int]:
    """Return the lines to print and the exit code: that of a daemon that would be started with the file."""
    try:
        faults, doubts = check(source, methods)
    except ConfigError as error:
        return [str(error)], error.exit_code
    if faults:
        return faults + doubts, ConfigError("").exit_code
    return [*doubts, f"{source.name}: ok"], 0
