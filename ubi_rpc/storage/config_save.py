"""The configuration as it is now, as SPDK's save_config writes it: entries that make the same objects again.

Pure: reads the objects and what option methods were told. Options of parts that are not here are saved once they were
set; those that every SPDK program has are always there, as SPDK has them.

Source: SPDK lib/init/subsystem.c (order of subsystems, who depends on whom), lib/bdev/bdev.c,
spdk_bdev_subsystem_config_json (bdev_set_options first, bdev_wait_for_examine last).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ubi_rpc.storage.entries import BdevEntry, ExportEntry

Entry = dict[str, object]

SUBSYSTEMS: Final[dict[str, tuple[str, ...]]] = {
    "scheduler": (),
    "sock": (),
    "iobuf": (),
    "accel": ("iobuf",),
    "bdev": ("accel", "sock", "iobuf"),
    "nbd": ("bdev",),
    "vhost_blk": ("bdev",),
}
"""Subsystems in the order in which they come up, each with those that it needs."""

OptionEntries = Callable[[str], list[Entry]]
"""Gives the entries of a subsystem's options."""


def subsystem_config(
    name: str,
    bdevs: Iterable[BdevEntry],
    exports: Iterable[ExportEntry],
    options: OptionEntries,
    more: Iterable[Entry] = (),
) -> list[Entry]:
    """Return the entries of one of `SUBSYSTEMS`; bdevs come with those that they stand on before them.

    Args:
        name: the subsystem.
        bdevs: those that there are, and `exports` likewise.
        exports: see `bdevs`.
        options: gives the entries of a subsystem's options.
        more: what comes after those that there are, and may stand on them.
    """
    entries = options(name)
    if name == "bdev":
        entries += [saved_bdev(entry) for entry in bdevs]
        entries += more
        entries.append({"method": "bdev_wait_for_examine"})
    for export in exports:
        if export.frontend.subsystem == name:
            entries += saved_export(export)
    if name != "bdev":
        entries += more
    return entries


def document(
    bdevs: Iterable[BdevEntry],
    exports: Iterable[ExportEntry],
    options: OptionEntries,
    more: Mapping[str, list[Entry]] | None = None,
) -> dict[str, object]:
    """Return a whole configuration, as `--json` reads it; `more` has further entries by subsystem."""
    bdevs, exports, more = list(bdevs), list(exports), {} if more is None else more
    names = [*SUBSYSTEMS, *(name for name in more if name not in SUBSYSTEMS)]
    config = {
        name: subsystem_config(name, bdevs, exports, options if name in SUBSYSTEMS else _no_options, more.get(name, ()))
        for name in names
    }
    return {"subsystems": [{"subsystem": name, "config": entries} for name, entries in config.items()]}


def _no_options(_subsystem: str) -> list[Entry]:
    return []


def saved_bdev(entry: BdevEntry) -> Entry:
    """Return the call that makes a bdev again: same name, same uuid."""
    params = {"name": entry.name, **entry.kind.saved(entry.params), "uuid": entry.uuid}
    return {"method": f"bdev_{entry.kind.name}_create", "params": params}


def saved_export(export: ExportEntry) -> list[Entry]:
    """Return the calls that make an export again."""
    return export.frontend.saved(export.plan, export.params, export.entry.name, export.handle)
