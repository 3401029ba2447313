"""SPDK's command line options that have no effect here: accepted, so that units and scripts of SPDK start this daemon.

There are no huge pages, no PCI devices, no tracing and no memory pools to set up.

Source: SPDK lib/event/app.c, v23.09 to 26.09 together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

WITH_VALUE = (
    ("-e", "--tpoint-group"),
    ("-i", "--shm-id"),
    ("-n", "--mem-channels"),
    ("-p", "--main-core", "--master-core"),
    ("-s", "--mem-size"),
    ("-A", "--pci-allowed"),
    ("-B", "--pci-blocked", "--pci-blacklist"),
    ("-W", "--pci-whitelist"),
    ("--base-virtaddr",),
    ("--env-context",),
    ("--huge-dir",),
    ("--iova-mode",),
    ("--lcores",),
    ("--max-delay",),
    ("--msg-mempool-size",),
    ("--num-trace-entries",),
    ("--vfio-vf-token",),
)
FLAGS = (
    ("-d", "--limit-coredump"),
    ("-g", "--single-file-segments"),
    ("-R", "--huge-unlink"),
    ("-u", "--no-pci"),
    ("--disable-cpumask-locks",),
    ("--enforce-numa",),
    ("--interrupt-mode",),
    ("--no-huge",),
    ("--silence-noticelog",),
)


class _Note(argparse.Action):
    """Notes the option as it was given."""

    @override
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.ignored = (*namespace.ignored, option_string)


def add_to(options: argparse.ArgumentParser) -> None:
    """Add the options; those given are in `ignored` of the result."""
    group = options.add_argument_group("options of SPDK without effect here")
    for names in WITH_VALUE:
        group.add_argument(*names, action=_Note, metavar="VALUE", dest="ignored", default=(), help=argparse.SUPPRESS)
    for names in FLAGS:
        group.add_argument(*names, action=_Note, nargs=0, dest="ignored", default=(), help=argparse.SUPPRESS)
    group.description = ", ".join("/".join(names) for names in (*WITH_VALUE, *FLAGS))
