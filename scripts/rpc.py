#!/usr/bin/env python3
"""Call a JSON-RPC method of a running daemon: SPDK's rpc.py for ubi_rpc, in one file.

Standard library only, Python 3.10 or newer: copy it anywhere. Flags, output and exit codes are those of SPDK's
scripts/rpc.py, so it drives SPDK as well, and SPDK's own drives this daemon.

Exit codes: 0 done; 1 the server refused, or cannot be reached; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

DEFAULT_ADDRESS = "/var/tmp/spdk.sock"  # noqa: S108
DEFAULT_PORT = 5260
DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 1e9  # more than a socket takes is not needed: 31 years
CONNECT_RETRY_S = 0.2
LOG_LEVELS = {"DEBUG": 10, "INFO": 20, "ERROR": 40}  # numbers of the logging module, as -v shows them
EXPLAIN_TIMEOUT_S = 1.0  # how long a failed call waits for the daemon's explanation

Params = dict[str, Any]


class RpcError(Exception):
    """A call failed. `str()` is what SPDK's client prints; `hint` is what the daemon adds, if it does."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def out(text: str) -> None:
    """Print a line on stdout, if there is one."""
    if sys.stdout is not None:
        sys.stdout.write(text + "\n")


def err(text: str) -> None:
    """Print a line on stderr, behind what is on stdout by then."""
    flush()
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")


def flush() -> None:
    """Hand over what was printed."""
    if sys.stdout is not None:
        sys.stdout.flush()


# How an answer is shown.


def show_nothing(_answer: Any) -> None:
    """Print nothing: the exit code says it."""


def show_name(answer: Any) -> None:
    """Print a name bare, anything else as JSON."""
    out(json.dumps(answer, indent=2).strip('"'))


def show_json(answer: Any) -> None:
    """Print indented JSON."""
    out(json.dumps(answer, indent=2))


# The commands.


class Argument(NamedTuple):  # a dataclass would take a fifth of the program's time to import
    """An argument of a command: its flags (or its one name) and what argparse takes."""

    flags: tuple[str, ...]
    options: dict[str, Any]


def arg(*flags: str, **options: Any) -> Argument:
    """Make an `Argument`."""
    return Argument(flags, options)


def switch(*flags: str, **options: Any) -> Argument:
    """Make a flag that is always sent, as SPDK's client does, false when it is not given."""
    return Argument(flags, {"action": "store_true", **options})


def number(*flags: str, **options: Any) -> Argument:
    """Make an argument that is an integer."""
    return Argument(flags, {"type": int, **options})


def on_off(dest: str, flag: str, *, old: bool = True, **options: Any) -> tuple[Argument, ...]:
    """Make --flag and --no-flag; with `old`, -e and -d too, as SPDK's clients had them before 26.05."""
    arguments = (Argument((flag,), {"dest": dest, "action": ON_OFF, **options}),)
    if not old:
        return arguments
    hidden = {"dest": dest, "action": "store_const", "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    return (
        *arguments,
        Argument(("-e", f"--enable-{flag[2:]}"), {**hidden, "const": True}),
        Argument(("-d", f"--disable-{flag[2:]}"), {**hidden, "const": False}),
    )


def comma_list(text: str) -> list[str]:
    """Split at commas."""
    return text.split(",")


def if_given(*flags: str, const: Any, **options: Any) -> Argument:
    """Make a flag that sends `const` when it is given and nothing otherwise."""
    return Argument(flags, {"action": "store_const", "const": const, **options})


class Command(NamedTuple):
    """A method as a command: its arguments are its parameters, in the order of `order` on the wire."""

    name: str
    help: str
    show: Callable[[Any], None]
    arguments: tuple[Argument, ...] = ()
    one_of: tuple[Argument, ...] = ()  # exactly one of these is given
    order: str = ""  # parameters as SPDK's client orders them, where that is not the arguments' order
    prepare: Callable[[Params], None] = lambda _params: None  # changes the parameters before they are sent
    run: Callable[[argparse.Namespace], None] | None = None  # for a command that is more than one call


def size_to_blocks(params: Params) -> None:
    """Replace total_size, in MiB, by num_blocks.

    Raises:
        RpcError: the number of blocks is undefined.
    """
    total_bytes = params.pop("total_size") * 1024 * 1024
    try:
        params["num_blocks"] = int(total_bytes // params["block_size"])
    except (ArithmeticError, ValueError):
        raise RpcError("total_size must be a finite number and block_size not 0") from None


NAME = arg("name", help="Name of the block device")
UUID = arg("-u", "--uuid", help="UUID of the bdev (optional)")
ON_OFF = argparse.BooleanOptionalAction
LEVELS = ["ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"]
RESET_MODES = ["all", "maxmin", "error", "none"]
SIGNALS = ["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"]
PROTECTION = (
    arg("-m", "--md-size", type=int, help="Metadata size for this bdev. Default: 0"),
    arg("-t", "--dif-type", type=int, choices=[0, 1, 2, 3], help="Protection information type. Default: 0"),
    switch("-d", "--dif-is-head-of-md", help="Protection information is in the first 8 bytes of metadata"),
    arg("-f", "--dif-pi-format", type=int, choices=[0, 1, 2], help="Protection information format. Default: 0"),
)

FRAMEWORK = (
    Command("spdk_get_version", "Get the version", show_name),
    Command(
        "rpc_get_methods",
        "Get list of supported RPC methods",
        show_json,
        (
            switch("-c", "--current", help="Return only RPC methods callable in the current state"),
            switch("-i", "--include-aliases", help="Include deprecated method aliases"),
        ),
    ),
    Command("framework_start_init", "Start initialization of subsystems", show_nothing),
    Command("framework_wait_init", "Block until subsystems have been initialized", show_nothing),
    Command(
        "spdk_kill_instance",
        "Send signal to instance",
        show_nothing,
        (arg("sig_name", choices=SIGNALS, help="Signal to send"),),
    ),
)

SCHEDULER = (
    Command(
        "framework_set_scheduler",
        "Select thread scheduler (kept, without effect here)",
        show_nothing,
        (
            arg("name", help="Scheduler name"),
            number("-p", "--period", help="Scheduler period in microseconds"),
            number("--load-limit", help="Thread load above which threads may move (dynamic only)"),
            number("--core-limit", help="Load at which a core is full (dynamic only)"),
            number("--core-busy", help="Load at which threads leave a core (dynamic only)"),
            arg("--mappings", help="Comma-separated list of thread:core mappings (static only)"),
        ),
    ),
    Command("framework_get_scheduler", "Display the scheduler and its properties", show_json),
    Command("framework_get_governor", "Display the governor", show_json),
    Command(
        "scheduler_set_options",
        "Set scheduler options (kept, without effect here)",
        show_nothing,
        (
            arg("-i", "--isolated-core-mask", help="CPU mask of cores excluded from scheduling"),
            number("-s", "--scheduling-core", help="Core that the scheduler runs on"),
        ),
    ),
    Command(
        "framework_monitor_context_switch",
        "Control whether the context switch monitor is enabled",
        show_json,
        (*on_off("enabled", "--monitor", help="Enable or disable it; omit to query the current state"),),
    ),
    Command("framework_disable_cpumask_locks", "Disable CPU core lock files", show_nothing),
    Command("framework_enable_cpumask_locks", "Enable CPU core lock files", show_nothing),
    Command("framework_get_reactors", "Display list of all reactors", show_json),
    Command("thread_get_stats", "Display current statistics of all the threads", show_json),
    Command("thread_get_pollers", "Display current pollers of all the threads", show_json),
    Command("thread_get_io_channels", "Display current IO channels of all the threads", show_json),
    Command("framework_get_pci_devices", "Display the PCI devices that the application drives", show_json),
)

LEVEL = (arg("level", choices=LEVELS, help="Log level"),)
FLAG = (arg("flag", help='Log flag name (e.g. "rpc") or "all"'),)

LOG = (
    Command("log_set_flag", "Set log flag", show_nothing, FLAG),
    Command("log_clear_flag", "Clear log flag", show_nothing, FLAG),
    Command("log_get_flags", "Get log flags", show_json),
    Command("log_set_level", "Set log level", show_nothing, LEVEL),
    Command("log_get_level", "Get log level", show_json),
    Command("log_set_print_level", "Set log print level", show_nothing, LEVEL),
    Command("log_get_print_level", "Get log print level", show_json),
    Command(
        "log_enable_timestamps",
        "Enable or disable timestamps",
        show_nothing,
        one_of=(*on_off("enabled", "--timestamps", help="Begin lines of the log with the time, or not"),),
    ),
    Command("notify_get_types", "List available notifications", show_json),
    Command(
        "notify_get_notifications",
        "Get notifications",
        show_json,
        (
            number("-i", "--id", help="Index of the first event to return. Default: 0"),
            number("-n", "--max", help="Maximum number of events to return. Default: no limit"),
        ),
    ),
)


def group_multipath(params: Params) -> None:
    """Put the multipath options into one object, where any is given."""
    group = {key: params.pop(key) for key in ("policy", "selector", "min_io")}
    given = {key: value for key, value in group.items() if value is not None}
    params["multipath_opts"] = given or None


NVME = (
    arg("-a", "--action-on-timeout", choices=["none", "reset", "abort"], help="Action to take on command time out"),
    number("-t", "--timeout-us"),
    number("--timeout-admin-us"),
    number("-k", "--keep-alive-timeout-ms"),
    number("--arbitration-burst"),
    number("--low-priority-weight"),
    number("--medium-priority-weight"),
    number("--high-priority-weight"),
    number("-p", "--nvme-adminq-poll-period-us"),
    number("-i", "--nvme-ioq-poll-period-us"),
    number("-s", "--io-queue-requests"),
    arg("-d", "--disable-delay-cmd-submit", dest="delay_cmd_submit", action="store_false"),
    number("-c", "--transport-retry-count"),
    number("-r", "--bdev-retry-count"),
    number("-e", "--transport-ack-timeout"),
    number("-l", "--ctrlr-loss-timeout-sec"),
    number("-o", "--reconnect-delay-sec"),
    number("-u", "--fast-io-fail-timeout-sec"),
    switch("-f", "--disable-auto-failback"),
    switch("--generate-uuids"),
    number("--transport-tos"),
    switch("-m", "--nvme-error-stat"),
    number("-q", "--rdma-srq-size"),
    switch("--io-path-stat"),
    switch("--allow-accel-sequence"),
    number("--rdma-max-cq-size"),
    number("--rdma-cm-event-timeout-ms"),
    arg("--dhchap-digests", type=comma_list),
    arg("--dhchap-dhgroups", type=comma_list),
    *on_off("rdma_umr_per_io", "--rdma-umr-per-io", old=False),
    number("--tcp-connect-timeout-ms"),
    switch("--enable-flush"),
    arg("--policy", choices=["active_passive", "active_active"]),
    arg("--selector", choices=["round_robin", "queue_depth"]),
    number("--min-io"),
)

SOCK_IMPL = arg("-i", "--impl", dest="impl_name", required=True, help='Implementation name (e.g. "posix", "ssl")')

OPTIONS = (
    Command(
        "iobuf_set_options",
        "Set iobuf pool options (kept, without effect here)",
        show_nothing,
        (
            number("--small-pool-count", help="Number of small buffers in the pool"),
            number("--large-pool-count", help="Number of large buffers in the pool"),
            number("--small-bufsize", help="Size of a small buffer in bytes"),
            number("--large-bufsize", help="Size of a large buffer in bytes"),
            switch("--enable-numa", help="A pool for each NUMA node"),
        ),
    ),
    Command("iobuf_get_stats", "Display iobuf statistics", show_json),
    Command(
        "accel_set_options",
        "Set accel framework's options (kept, without effect here)",
        show_nothing,
        (
            number("--small-cache-size", help="Size of the small iobuf cache"),
            number("--large-cache-size", help="Size of the large iobuf cache"),
            number("--task-count", help="Maximum number of tasks per IO channel"),
            number("--sequence-count", help="Maximum number of sequences per IO channel"),
            number("--buf-count", help="Maximum number of accel buffers per IO channel"),
        ),
    ),
    Command(
        "sock_set_default_impl",
        "Set the default sock implementation (kept, without effect here)",
        show_name,
        (SOCK_IMPL,),
    ),
    Command("sock_get_default_impl", "Get the default sock implementation name", show_json),
    Command("sock_impl_get_options", "Get options of socket layer implementation", show_json, (SOCK_IMPL,)),
    Command(
        "sock_impl_set_options",
        "Set options of socket layer implementation (kept, without effect here)",
        show_nothing,
        (
            SOCK_IMPL,
            number("-r", "--recv-buf-size", help="Receive buffer size in bytes"),
            number("-s", "--send-buf-size", help="Send buffer size in bytes"),
            *on_off("enable_recv_pipe", "--recv-pipe", old=False, help="Receive pipe"),
            *on_off("enable_quickack", "--quickack", old=False, help="Quick ACK"),
            number("-p", "--enable-placement-id", help="Placement ID source"),
            *on_off("enable_zerocopy_send_server", "--zerocopy-send-server", old=False, help="Of server sockets"),
            *on_off("enable_zerocopy_send_client", "--zerocopy-send-client", old=False, help="Of client sockets"),
            number("--zerocopy-threshold", help="Bytes below which the zerocopy flag is omitted"),
            number("--tls-version", help="TLS version, 13 for 1.3 (ssl only)"),
            *on_off("enable_ktls", "--ktls", old=False, help="Kernel TLS (ssl only)"),
        ),
    ),
    Command(
        "bdev_set_options",
        "Set options of bdev subsystem (kept, without effect here)",
        show_nothing,
        (
            number("-p", "--bdev-io-pool-size", help="Number of bdev_io structures in the pool"),
            number("-c", "--bdev-io-cache-size", help="Maximum number of bdev_io structures cached per thread"),
            *on_off("bdev_auto_examine", "--auto-examine", help="Enable or disable auto examine"),
            number("--iobuf-small-cache-size", help="Size of the small iobuf per thread cache"),
            number("--iobuf-large-cache-size", help="Size of the large iobuf per thread cache"),
        ),
    ),
    Command(
        "bdev_raid_set_options",
        "Set options for bdev raid (kept, without effect here)",
        show_nothing,
        (
            number("-w", "--process-window-size-kb", help="Window of a background process in KiB"),
            number("-b", "--process-max-bandwidth-mb-sec", help="Its maximum bandwidth in MiB/s"),
        ),
    ),
    Command(
        "bdev_iscsi_set_options",
        "Set options for the bdev iscsi type (kept, without effect here)",
        show_nothing,
        (number("-t", "--timeout-sec", help="Timeout for command, in seconds; 0 for none"),),
    ),
    Command(
        "bdev_nvme_set_options",
        "Set options for the bdev nvme type (kept, without effect here)",
        show_nothing,
        NVME,
        prepare=group_multipath,
    ),
    Command(
        "bdev_nvme_set_hotplug",
        "Set hotplug options for bdev nvme type (kept, without effect here)",
        show_nothing,
        (number("-r", "--period-us", help="How often the hotplug is processed"),),
        one_of=(*on_off("enable", "--hotplug", help="Enable or disable hotplug"),),
        order="enable period_us",
    ),
)

BDEV = (
    Command(
        "bdev_get_bdevs",
        "Display current blockdev list or required blockdev",
        show_json,
        (
            arg("-b", "--name", help="Name of the block device"),
            arg("-t", "--timeout-ms", dest="timeout", type=int, help="Time in ms to wait for the bdev to appear"),
        ),
    ),
    Command(
        "bdev_aio_create",
        "Add a bdev of a file or block device",
        show_name,
        (
            arg("filename", help="Path to device or file"),
            NAME,
            arg("block_size", type=int, nargs="?", help="Block size; may be left out for block devices"),
            switch("-r", "--readonly", help="Set this bdev as read-only"),
            switch("--fallocate", help="Support unmap and write zeroes by fallocate"),
            UUID,
            switch("--no-wait", dest="nowait", help="Enable RWF_NOWAIT for block devices"),
            arg("--cache", choices=["none", "writeback"], help="Page cache: none is O_DIRECT. Default: none"),
        ),
    ),
    Command("bdev_aio_delete", "Delete an aio disk", show_nothing, (NAME,)),
    Command("bdev_aio_rescan", "Take the size that the file of an aio bdev has by now", show_name, (NAME,)),
    Command(
        "bdev_examine",
        "Examine a bdev",
        show_nothing,
        (arg("-b", "--name", required=True, help="Name or alias of the bdev"),),
    ),
    Command("bdev_wait_for_examine", "Report when all bdevs have been examined", show_nothing),
    Command(
        "bdev_get_iostat",
        "Display current I/O statistics of all or some bdevs",
        show_json,
        (
            switch("-c", "--per-channel", help="Display statistics of each channel of one bdev"),
            arg("--reset-mode", choices=RESET_MODES, help="What to set back to 0 afterwards"),
            arg("--names", type=comma_list, help="Bdev names, comma-separated"),
            arg("-b", "--name", help="One bdev, as SPDK's clients before 26.05 have it"),
        ),
    ),
    Command(
        "bdev_reset_iostat",
        "Reset I/O statistics of all bdevs or one",
        show_nothing,
        (
            arg("-b", "--name", help="Name of the bdev"),
            arg("-m", "--mode", choices=RESET_MODES, help="What to set back to 0. Default: all"),
        ),
    ),
    Command(
        "bdev_malloc_create",
        "Create a bdev with malloc backend",
        show_name,
        (
            arg("-b", "--name", help="Name of the bdev"),
            UUID,
            arg("total_size", type=float, help="Size in MB (float > 0)"),
            arg("block_size", type=int, help="Data block size for this bdev"),
            arg("-p", "--physical-block-size", type=int, help="Physical block size for this bdev"),
            arg("-o", "--optimal-io-boundary", type=int, help="Split on optimal IO boundary, in blocks. Default: 0"),
            *PROTECTION,
            switch("-i", "--md-interleave", help="Metadata is interleaved if set, separate if omitted"),
            arg("-n", "--numa-id", type=int, help="NUMA node to take the memory from. Default: -1, any"),
        ),
        order=(
            "num_blocks block_size physical_block_size name uuid optimal_io_boundary md_size md_interleave dif_type"
            " dif_is_head_of_md dif_pi_format numa_id"
        ),
        prepare=size_to_blocks,
    ),
    Command("bdev_malloc_delete", "Delete a malloc disk", show_nothing, (NAME,)),
    Command(
        "bdev_null_create",
        "Add a bdev with null backend",
        show_name,
        (
            NAME,
            UUID,
            arg("total_size", type=int, help="Size in MB (int > 0), data blocks only"),
            arg("block_size", type=int, help="Data block size for this bdev"),
            arg("-p", "--physical-block-size", type=int, help="Physical block size for this bdev"),
            *PROTECTION,
            arg("-a", "--preferred-write-alignment", type=int, help="Preferred write alignment in blocks"),
            arg("-g", "--preferred-write-granularity", type=int, help="Preferred write granularity in blocks"),
            arg("-s", "--optimal-write-size", type=int, help="Optimal write size in blocks"),
            arg("-c", "--preferred-unmap-alignment", type=int, help="Preferred unmap alignment in blocks"),
            arg("-r", "--preferred-unmap-granularity", type=int, help="Preferred unmap granularity in blocks"),
        ),
        order=(
            "num_blocks block_size physical_block_size name uuid md_size dif_type dif_is_head_of_md dif_pi_format"
            " preferred_write_alignment preferred_write_granularity optimal_write_size preferred_unmap_alignment"
            " preferred_unmap_granularity"
        ),
        prepare=size_to_blocks,
    ),
    Command("bdev_null_delete", "Delete a null bdev", show_nothing, (NAME,)),
    Command(
        "bdev_null_resize",
        "Resize a null bdev",
        show_name,
        (NAME, number("new_size", help="New size in MiB")),
    ),
)

UBI_NAME = (
    arg("name", nargs="?", default=argparse.SUPPRESS, help="Name of the ubi bdev"),
    arg("-n", "--name", help="The same, as a flag"),
)

UBI = (
    Command(
        "bdev_ubi_create",
        "Add a bdev that overlays an image on a base bdev, copying it when it is touched",
        show_name,
        (
            arg("-n", "--name", required=True, help="Name of the new bdev"),
            arg("-b", "--base-bdev", required=True, help="Bdev that holds the overlay"),
            arg("-i", "--image-path", required=True, help="Raw image: a file or block device"),
            arg(
                "-s",
                "--stripe-size-kb",
                type=int,
                help="KiB copied at a time, 64 to 1024. Default: the volume's own, 1024 for a new one",
            ),
            if_given("--no-sync", const=True, help="Answer a flush without making anything durable"),
            if_given(
                "--no-copy-on-read", dest="copy_on_read", const=False, help="Copy a stripe only when it is written"
            ),
            if_given("--no-directio", dest="directio", const=False, help="Read the image through the page cache"),
            if_given("--allow-remote", const=True, help="Stand on a base on NFS, CIFS or FUSE"),
            if_given("--wipe", const=True, help="Format a base whose first sector was zeroed but not its superblocks"),
            if_given("--adopt", const=True, help="Take over what bdev_ubi has written since the last close here"),
            arg(
                "--recover",
                choices=("discard_unpublished",),
                help="After a crash whose volatile map is lost: give up what only the map knew, as a power cut would",
            ),
            arg("--uuid", help="UUID of the bdev (optional)"),
        ),
    ),
    Command("bdev_ubi_delete", "Delete a ubi bdev", show_nothing, one_of=UBI_NAME),
    Command("bdev_ubi_get_status", "Show the state and progress of a ubi bdev", show_json, one_of=UBI_NAME),
)

NBD = (
    Command(
        "nbd_create_export",
        "Offer a bdev over NBD",
        show_json,
        (
            arg("bdev_name", help="Name of the bdev"),
            arg("-n", "--export-name", help="Name that clients ask for. Default: the bdev's name"),
            arg("--socket", help="Unix socket to listen on. Default: nbd.sock in the daemon's -S directory"),
            arg("--address", help="HOST:PORT to listen on instead"),
            if_given("--allow-plaintext", const=True, help="Let --address be one that other machines reach"),
            if_given("-r", "--readonly", const=True, help="Clients may not write"),
            if_given("--default", const=True, help="Serve clients that name no export"),
            arg("--max-connections", type=int, help="Connections at once. Default: 0, no limit of its own"),
            arg("--description", help="Text that clients see in the list of exports"),
        ),
    ),
    Command(
        "nbd_delete_export",
        "Stop offering a bdev over NBD",
        show_nothing,
        one_of=(
            arg("export_name", nargs="?", default=argparse.SUPPRESS, help="Name of the export"),
            arg("-n", "--export-name", help="The same, as a flag"),
        ),
    ),
    Command("nbd_get_exports", "Display the NBD exports", show_json),
)

VHOST = (
    Command(
        "vhost_create_blk_controller",
        "Add a new vhost block controller",
        show_nothing,
        (
            arg("ctrlr", help="Controller name, and that of its socket"),
            arg("dev_name", help="Name of the bdev"),
            arg("--cpumask", help="CPUs that serve the controller, a mask like 0x3. Default: all of the daemon's"),
            arg("--transport", help="Default: vhost_user_blk, the only one"),
            switch("-r", "--readonly", help="The machine may not write"),
            switch("-p", "--packed-ring", "--packed_ring", dest="packed_ring", help="Not supported: refused"),
        ),
    ),
    Command(
        "vhost_delete_controller",
        "Delete a vhost controller",
        show_nothing,
        (arg("ctrlr", help="Name of the controller"),),
    ),
    Command(
        "vhost_get_controllers",
        "Display the vhost controllers",
        show_json,
        (arg("-n", "--name", help="Show this one alone"),),
    ),
    Command(
        "vhost_controller_set_coalescing",
        "Hold a vhost controller's notifications back while requests come fast",
        show_nothing,
        (
            arg("ctrlr", help="Name of the controller"),
            arg("delay_base_us", type=int, help="Microseconds at twice the threshold; 0 for never"),
            arg("iops_threshold", type=int, help="Requests a second above which they wait"),
        ),
    ),
    Command(
        "virtio_blk_get_transports",
        "Display the ways from a machine to its disk",
        show_json,
        (arg("--name", help="Show this one alone"),),
    ),
)

OURS = (
    Command("rpc.discover", "Display the OpenRPC document of the methods", show_json),
    Command("ubi_rpc_get_last_error", "Display the reason of this connection's last error", show_json),
    Command(
        "ubi_rpc_set_options",
        "Set options of this connection",
        show_nothing,
        (*on_off("error_data", "--error-data", old=False, required=True, help="Add the reason to each error"),),
    ),
)

# Configurations: more than one call, as SPDK's client makes them.


def save_config(args: argparse.Namespace) -> None:
    """Print the configuration of all subsystems, or of some with those that they depend on."""
    needed: dict[str, set[str]] = {}
    for element in ask(args, "framework_get_subsystems"):
        name = element["subsystem"]
        needed[name] = {name}.union(*(needed[other] for other in element["depends_on"]))
    wanted = set(needed)
    if args.subsystems is not None:
        names = args.subsystems.split(",")
        if unknown := [name for name in names if name not in needed]:
            raise RpcError(f"No subsystem is called {unknown[0]}; there are {', '.join(needed)}")
        wanted = set().union(*(needed[name] for name in names))
    saved = [saved_subsystem(args, name) for name in needed if name in wanted]
    show_config({"subsystems": saved}, args.indent)


def save_subsystem_config(args: argparse.Namespace) -> None:
    """Print the configuration of one subsystem."""
    show_config(saved_subsystem(args, args.name), args.indent)


def saved_subsystem(args: argparse.Namespace, name: str) -> Params:
    """Return a subsystem's part of a configuration; servers older than 26.05 are not asked about batches."""
    params = {"name": name} | ({} if args.with_batches is None else {"with_batches": args.with_batches})
    return {"subsystem": name, "config": ask(args, "framework_get_config", params)}


def show_config(config: Params, indent: int) -> None:
    """Print a configuration; an indent below 0 is the compact form."""
    out(json.dumps(config, indent=None if indent < 0 else indent))


def ask(args: argparse.Namespace, method: str, params: Params | None = None) -> Any:
    """Call a method whose answer is needed to go on.

    Raises:
        RpcError: it failed, or there is no server to answer (--dry-run, --batch-mode).
    """
    if not args.client.answers:
        raise RpcError(f"{args.called_rpc_name} needs the answers of a server")
    return args.client.call(method, params)


def read_config(source: str | None) -> Any:
    """Read a configuration from stdin, a file, or the argument itself.

    Raises:
        RpcError: it is not JSON.
    """
    try:
        if source is None:
            return json.load(sys.stdin)
        if os.path.exists(source):  # noqa: PTH110
            with open(source, encoding="utf-8") as file:  # noqa: PTH123
                return json.load(file)
        try:
            return json.loads(source)
        except ValueError as error:
            raise ValueError(f"{source[:80]!r} is no file that is there, and not JSON: {error}") from None
    except (OSError, ValueError) as error:
        raise RpcError(f"The configuration cannot be read: {error}") from None


def load_config(args: argparse.Namespace) -> None:
    """Make the calls of a configuration, those before framework_start_init first.

    Raises:
        RpcError: a call failed, or the server does not know a method; then nothing was called.
    """
    config = read_config(args.json_conf)
    if not isinstance(config, dict) or not isinstance(config.get("subsystems"), list):
        raise RpcError("The configuration has no list 'subsystems'")
    entries = [entry for element in config["subsystems"] for entry in entries_of(element)]
    aliases = {"include_aliases": args.include_aliases}
    known = ask(args, "rpc_get_methods", aliases)
    require_known(entries, known)
    while True:
        allowed = set(ask(args, "rpc_get_methods", {"current": True, **aliases}))
        left = call_allowed(args, entries, allowed)
        progress = len(left) < len(entries)
        entries = left
        if "framework_start_init" in allowed:
            ask(args, "framework_start_init")
            progress = True
        if not entries or not progress:
            break
    if entries:
        out("Some configs were skipped because the RPC state that can call them passed over.")


def load_subsystem_config(args: argparse.Namespace) -> None:
    """Make the calls of one subsystem's configuration that the server's state allows."""
    entries = entries_of(read_config(args.json_conf))
    require_known(entries, ask(args, "rpc_get_methods"))
    allowed = set(ask(args, "rpc_get_methods", {"current": True}))
    if call_allowed(args, entries, allowed):
        out("Some configs were skipped because they cannot be called in the current RPC state.")


def entries_of(subsystem: Any) -> list[list[Params]]:
    """Return a subsystem's entries, each as the list of calls that it is.

    Raises:
        RpcError: it has another shape.
    """
    config = subsystem.get("config") if isinstance(subsystem, dict) else 0
    entries = [entry if isinstance(entry, list) else [entry] for entry in config] if isinstance(config, list) else []
    if (config is not None and not isinstance(config, list)) or not all(is_call(c) for entry in entries for c in entry):
        raise RpcError("A subsystem of the configuration is not {subsystem, config: [{method, params}, ...]}")
    return [entry for entry in entries if entry]


def is_call(value: Any) -> bool:
    """Say whether a value has the shape of a call."""
    return isinstance(value, dict) and isinstance(value.get("method"), str) and not set(value) - {"method", "params"}


def require_known(entries: list[list[Params]], known: list[str]) -> None:
    """Raise `RpcError` for a method that the server does not have."""
    for call in (call for entry in entries for call in entry):
        if call["method"] not in known:
            raise RpcError(f"Unknown method was included in the config file: {call['method']}")


def call_allowed(args: argparse.Namespace, entries: list[list[Params]], allowed: set[str]) -> list[list[Params]]:
    """Make the calls that are allowed, in order; return the entries that are not."""
    left = []
    for entry in entries:
        if any(call["method"] not in allowed for call in entry):
            left.append(entry)
            continue
        for call in entry:
            ask(args, call["method"], call.get("params"))
    return left


INDENT = number("-i", "--indent", default=2, help="Indent level; below 0 the compact form. Default: 2")
BATCHES = arg("--with-batches", action=ON_OFF, default=None, help="Keep calls that belong together in arrays")
CONFIG_FILE = arg("-j", "--json-conf", help="Configuration: a file, or JSON. Default: stdin")

CONFIG = (
    Command("framework_get_subsystems", "Print subsystems in initialization order", show_json),
    Command(
        "framework_get_config",
        "Print subsystem configuration",
        show_json,
        (arg("name", help="Name of the subsystem"), arg("--with-batches", action=ON_OFF, default=False)),
    ),
    Command("persist_get_unrestored", "Show what of the --persist file could not be restored, and why", show_json),
    Command(
        "save_config",
        "Write the current configuration to stdout",
        show_nothing,
        (INDENT, arg("-s", "--subsystems", help="Only these, comma-separated, and those that they depend on"), BATCHES),
        run=save_config,
    ),
    Command(
        "load_config",
        "Configure by a file that save_config wrote",
        show_nothing,
        (switch("-i", "--include-aliases", help="Include deprecated method aliases"), CONFIG_FILE),
        run=load_config,
    ),
    Command(
        "save_subsystem_config",
        "Write the current configuration of a subsystem to stdout",
        show_nothing,
        (INDENT, arg("-n", "--name", required=True, help="Name of the subsystem"), BATCHES),
        run=save_subsystem_config,
    ),
    Command(
        "load_subsystem_config",
        "Configure a subsystem by a file that save_subsystem_config wrote",
        show_nothing,
        (CONFIG_FILE,),
        run=load_subsystem_config,
    ),
)

COMMANDS = (*FRAMEWORK, *CONFIG, *SCHEDULER, *LOG, *OPTIONS, *BDEV, *UBI, *NBD, *VHOST, *OURS)


def run_command(command: Command, args: argparse.Namespace) -> None:
    """Call a command's method with its arguments and show the answer.

    Raises:
        RpcError: the call failed.
    """
    params = {key: getattr(args, key, None) for key in args.param_keys}
    command.prepare(params)
    order = command.order.split() or list(params)
    given = {key: params[key] for key in order if params.get(key) is not None}
    answer = args.client.call(command.name, given)
    if args.client.answers:
        command.show(answer)


# The clients.


class DryRunClient:
    """Prints requests instead of sending them."""

    answers = False

    def __init__(self, *, batch: bool) -> None:
        self._batch = batch
        self._requests: list[Params] = []
        self._last_id = 0

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Make `client.method(name=...)` a call, as plugins write it."""
        return lambda **params: self.call(method, {k: v for k, v in params.items() if v is not None})

    def call(self, method: str, params: Params | None = None) -> None:
        """Print the request, or keep it for the batch."""
        self._last_id += 1
        request = make_request(method, params, self._last_id)
        if self._batch:
            self._requests.append(request)
        else:
            out("Request:\n" + json.dumps(request, indent=2))

    def send_batch(self) -> None:
        """Print the batch."""
        if self._requests:
            out("Request:\n" + json.dumps(self._requests, indent=2))


class Client:
    """One connection to a daemon.

    Args:
        args: the global options.

    Raises:
        RpcError: there is no connection to be had.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._timeout_s = DEFAULT_TIMEOUT_S if args.rpc_timeout is None else min(args.rpc_timeout, MAX_TIMEOUT_S)
        self._batch = bool(args.batch_mode)
        self._levels = {"ERROR": (), "INFO": ("INFO",), "DEBUG": ("INFO", "DEBUG")}[args.verbose]
        self._requests: list[Params] = []
        self._last_id = 0
        self._received = b""
        self.answers = not self._batch
        self._log("INFO", f"Log level set to {LOG_LEVELS[args.verbose]}")
        self._socket = self._connect(args.server_addr, args.port, args.conn_retries)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Make `client.method(name=...)` a call, as plugins write it."""
        return lambda **params: self.call(method, {k: v for k, v in params.items() if v is not None})

    def call(self, method: str, params: Params | None = None) -> Any:
        """Call a method and return its result; in batch mode, keep the call for `send_batch`.

        Raises:
            RpcError: it failed; the text is SPDK's.
        """
        if not self._timeout_s > 0:  # nan as well
            raise RpcError(f"Timeout value is invalid: {self._timeout_s}\n")
        self._last_id += 1
        request = make_request(method, params, self._last_id)
        self._log("DEBUG", f"call('{method}')")
        self._log("DEBUG", f"append request:\n{json.dumps(request)}\n")
        if self._batch:
            self._requests.append(request)
            return None
        try:
            self._send(json.dumps(request, indent=2))
            response = self._receive(self._timeout_s)
        except ConnectionClosedError:
            if method == "spdk_kill_instance":
                return {}
            raise
        if not isinstance(response, dict) or not ("error" in response or "result" in response):
            raise RpcError(f"Not an answer to a request:\n{json.dumps(response)[:1000]}\n")
        if "error" in response:
            raise RpcError(describe_failure(request, response["error"]), self._explain())
        return response["result"]

    def send_batch(self) -> None:
        """Send the calls kept, and print their results.

        Raises:
            SystemExit: with 1 when any of them failed.
        """
        if not self._requests:
            return
        self._send(json.dumps(self._requests, indent=2))
        responses = self._receive(self._timeout_s)
        if not isinstance(responses, list):
            raise RpcError(f"Expected batch response array, got: {type(responses)}")
        errors = [response["error"] for response in responses if "error" in response]
        for response in responses:
            if response.get("result") is not None:
                out(json.dumps(response["result"], indent=2))
        for error in errors:
            err(json.dumps(error, indent=2))
        if errors:
            raise SystemExit(1)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _connect(self, address: str, port: int, retries: int) -> socket.socket:
        for _ in range(retries):
            with contextlib.suppress(OSError, OverflowError):
                return self._connect_once(address, port)
            time.sleep(CONNECT_RETRY_S)
        try:
            return self._connect_once(address, port)
        except (OSError, OverflowError) as error:  # the latter: no such port number
            raise RpcError(
                f"Error while connecting to {address}\nIs SPDK application running?\nError details: {error}"
            ) from error

    def _connect_once(self, address: str, port: int) -> socket.socket:
        family = address_family(address)
        if family is None:
            raise OSError(f"Invalid or non-existing address: '{address}'")
        shown = "UNIX socket: " + address if family == socket.AF_UNIX else f"{address}, port {port}"
        self._log("DEBUG", f"Trying to connect to {shown}")
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.connect(address if family == socket.AF_UNIX else (address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def _send(self, text: str) -> None:
        self._log("INFO", f"Requests:\n{text}\n")
        self._requests = []
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(text.encode())
        except TimeoutError:
            raise RpcError("Timeout while sending the request") from None
        except OSError:
            raise ConnectionClosedError("") from None

    def _receive(self, timeout_s: float) -> Any:
        """Wait for the next whole answer."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._received[-1:] in (b"\n", b"}", b"]"):
                try:
                    text = self._received.decode()
                    response, end = json.JSONDecoder().raw_decode(text.lstrip())
                except ValueError:
                    pass  # an answer that is not complete yet
                else:
                    self._received = text.lstrip()[end:].encode()
                    self._log("INFO", f"response:\n{json.dumps(response, indent=2)}\n")
                    return response
            self._received += self._receive_some(deadline)

    def _receive_some(self, deadline: float) -> bytes:
        partial = self._received.decode(errors="replace")
        remaining_s = deadline - time.monotonic()
        try:
            if remaining_s <= 0:
                raise TimeoutError
            self._socket.settimeout(remaining_s)
            received = self._socket.recv(1 << 18)
        except TimeoutError:
            raise RpcError(f"Timeout while waiting for response:\n{partial}\n") from None
        except OSError:
            received = b""
        if not received:
            raise ConnectionClosedError(partial)
        return received

    def _explain(self) -> str:
        """Ask our daemon what went wrong in its last answer; any other server has nothing to say."""
        try:
            self._send(json.dumps(make_request("ubi_rpc_get_last_error", None, self._last_id + 1)))
            response = self._receive(min(self._timeout_s, EXPLAIN_TIMEOUT_S))
            return str(response["result"]["message"])
        except (RpcError, LookupError, TypeError):
            return ""

    def _log(self, level: str, text: str) -> None:
        if level in self._levels:
            err(f"{level}: {text}")


class ConnectionClosedError(RpcError):
    """The server closed the connection before the whole answer came."""

    def __init__(self, partial: str) -> None:
        super().__init__(f"Connection closed with partial response:\n{partial}\n")


def make_request(method: str, params: Params | None, request_id: int) -> Params:
    """Make the request object as SPDK's client makes it: empty params are left out.

    Raises:
        RpcError: an argument is not UTF-8, so that JSON cannot hold it.
    """
    request: Params = {"jsonrpc": "2.0", "method": method, "id": request_id}
    if params:
        request["params"] = params
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RpcError("an argument is not UTF-8") from None
    return request


def describe_failure(request: Params, error: Any) -> str:
    """Return the text that SPDK's client prints for an error answer; programs parse it."""
    call = {**request.get("params", {}), "method": request["method"], "req_id": request["id"]}
    return "\n".join(
        [
            "request:",
            json.dumps(call, indent=2),
            "Got JSON-RPC error response",
            "response:",
            json.dumps(error, indent=2),
        ]
    )


def address_family(address: str) -> socket.AddressFamily | None:
    """Tell an IP address from a path that exists; None is neither."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, address)
            return family
    return socket.AF_UNIX if os.path.exists(address) else None  # noqa: PTH110


# The command line.


class Parser(argparse.ArgumentParser):
    """Suggests a command for one that does not exist."""

    def error(self, message: str) -> Any:
        """Print usage and fault on stderr and exit with 2."""
        if "invalid choice: " in message and "choose from" in message:
            from difflib import get_close_matches

            bad, _, known = message.partition("invalid choice: ")[2].partition(" (choose from ")
            close = get_close_matches(bad.strip("'"), known.rstrip(")").replace("'", "").split(", "), n=1)
            if close:
                message = f"{bad} not recognized, did you mean: {close[0]}?"
        super().error(message)


def needed_commands(arguments: list[str]) -> Iterable[Command]:
    """Return the commands that a command line may mean: making a parser for each takes longer than the call."""
    named = [command for command in COMMANDS if command.name in arguments]
    if not named or arguments[0] in {"-h", "--help"} or "--server" in arguments:
        return COMMANDS
    return named


def create_parser(commands: Iterable[Command]) -> tuple[Parser, Any]:
    """Make the parser of these commands, and the subparsers that plugins add to."""
    parser = Parser(description="JSON-RPC command line interface", usage="%(prog)s [options]")
    add = parser.add_argument
    add("-s", dest="server_addr", default=DEFAULT_ADDRESS, help="RPC domain socket path or IP address")
    add("-p", dest="port", type=int, default=DEFAULT_PORT, help="RPC port number (if server_addr is IP address)")
    add("-t", dest="rpc_timeout", type=float, help="Seconds to wait for a response, a float. Default: 60.0")
    add("-r", dest="conn_retries", type=int, default=0, help="Retry connecting N times every 0.2 s. Default: 0")
    add("-v", dest="verbose", action="store_const", const="INFO", default="ERROR", help="Set verbose mode to INFO")
    add("--verbose", dest="verbose", choices=["DEBUG", "INFO", "ERROR"], help="Set verbose level")
    add("--dry-run", action="store_true", help="Display request and exit")
    add("--go-client", action="store_true", help="Accepted, without effect: this client is the one there is")
    add(
        "--server",
        dest="is_server",
        action="store_true",
        help="Read command lines from stdin, each with its own connection; **STATUS=0 or **STATUS=1 ends each answer",
    )
    add(
        "-b",
        "--batch-mode",
        action=argparse.BooleanOptionalAction,
        help="Send the commands read from stdin as one JSON-RPC batch",
    )
    add("--plugin", dest="rpc_plugin", help="Module name of plugin with additional RPC commands")
    subparsers = parser.add_subparsers(help="RPC methods", dest="called_rpc_name", metavar="", parser_class=Parser)
    for command in commands:
        add_command(subparsers, command)
    return parser, subparsers


def add_command(subparsers: Any, command: Command) -> None:
    """Add one command's parser."""
    parser = subparsers.add_parser(command.name, help=command.help, description=command.help)
    keys = [parser.add_argument(*a.flags, **a.options).dest for a in command.arguments]
    if command.one_of:
        group = parser.add_mutually_exclusive_group(required=True)
        keys += [group.add_argument(*a.flags, **a.options).dest for a in command.one_of]
    run = command.run or (lambda args: run_command(command, args))
    parser.set_defaults(func=run, param_keys=tuple(dict.fromkeys(keys)))


def load_plugin(arguments: list[str], subparsers: Any, loaded: list[str]) -> None:
    """Import the module that --plugin names, once, and let it add its commands."""
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--plugin", dest="rpc_plugin")
    name = finder.parse_known_args(arguments)[0].rpc_plugin
    if name is None or name in loaded:
        return
    import importlib

    try:
        importlib.import_module(name).spdk_rpc_plugin_initialize(subparsers)
        loaded.append(name)
    except ModuleNotFoundError:
        out(f"Module {name} not found")
    except AttributeError:
        out(f"Module {name} does not contain 'spdk_rpc_plugin_initialize' function")


def execute_script(parser: Parser, client: Any, lines: Iterable[str], *, batch: bool) -> int:
    """Run a command a line on one connection, up to the first that fails; `#` begins a comment line."""
    import shlex

    executed: list[str] = []
    try:
        for line in map(str.rstrip, lines):
            if not line:
                continue
            executed.append(line)
            if line.lstrip().startswith("#"):
                continue
            args = parser.parse_args(shlex.split(line))
            if not hasattr(args, "func"):
                raise RpcError("a line needs a command")
            args.client = client
            args.func(args)
        if batch:
            executed.clear()
            client.send_batch()
    except (RpcError, ValueError) as error:
        out("Exception:")
        if executed:
            out("\n".join(executed) + " <<<")
        report(error)
        return 1
    return 0


def run_server(parser: Parser, subparsers: Any, plugins: list[str]) -> int:
    """Run each line of stdin as a whole command line, with a connection of its own."""
    import shlex

    for line in sys.stdin or ():
        status = 1
        try:
            arguments = shlex.split(line)
            load_plugin(arguments, subparsers, plugins)
            args = parser.parse_args(arguments)
            if not hasattr(args, "func"):
                raise RpcError("a line needs a command")
            status = call_once(args)
        except SystemExit:
            pass  # argparse has said why
        except (RpcError, ValueError) as error:
            report(error)
        out(f"**STATUS={status}")
        flush()
    return 0


def call_once(args: argparse.Namespace) -> int:
    """Connect, run the command of `args`, close."""
    args.client = Client(args)
    try:
        args.func(args)
    finally:
        args.client.close()
    return 0


def report(error: Exception) -> None:
    """Print a failure: SPDK's text on stdout, the daemon's explanation on stderr."""
    out(str(error))
    if isinstance(error, RpcError) and error.hint:
        err(error.hint)


def run(arguments: list[str]) -> int:
    """Do what the command line says and return the exit code."""
    parser, subparsers = create_parser(needed_commands(arguments))
    plugins: list[str] = []
    load_plugin(arguments, subparsers, plugins)
    args = parser.parse_args(arguments)
    has_command = hasattr(args, "func")
    if not (has_command or args.is_server) and (sys.stdin is None or sys.stdin.isatty()):
        parser.print_help()
        return 1
    if args.is_server:
        return run_server(parser, subparsers, plugins)
    try:
        args.client = DryRunClient(batch=bool(args.batch_mode)) if args.dry_run else Client(args)
        if has_command:
            args.func(args)
            if args.batch_mode:
                args.client.send_batch()
            return 0
    except RpcError as error:
        report(error)
        return 1
    return execute_script(parser, args.client, sys.stdin, batch=bool(args.batch_mode))


def main() -> int:
    """Run as a program: no traceback for what a user or a server can cause."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = run(sys.argv[1:])
        finally:  # argparse leaves through SystemExit, with its help still in the buffer
            flush()
    except OSError as error:  # stdout takes no more; BrokenPipeError: its reader has gone, and needs no telling
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            err(f"rpc.py: {error}")
        code = 1
    except KeyboardInterrupt:
        code = 130
    return code


if __name__ == "__main__":
    sys.exit(main())
