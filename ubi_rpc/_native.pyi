"""Stub of the native module: the data plane as plain calls, plain data and descriptors.

Every method that opens, closes or waits may block for as long as the storage below does, with the
interpreter lock released: call it through `ubi_rpc.engine`, never on the event loop.
"""

from collections.abc import Mapping
from typing import Literal, TypedDict, final

ERROR_KINDS: list[str]
"""The engine's error kinds, in the order of `ubi_rpc.errors.ErrorKind`."""

VERSION: str

@final
class EngineError(Exception):
    """Raised by every engine call that fails. `kind` is one of ERROR_KINDS, `errno` is positive."""

    kind: str
    message: str
    errno: int

class BdevInfo(TypedDict):
    block_size: int  # bytes: 512 or 4096 (malloc and null: any multiple of 512 that is a power of two)
    num_blocks: int
    write_cache: bool  # true: a write is durable only after a flush
    readonly: bool
    unmap: bool
    write_zeroes: bool
    flush: bool
    unmap_reads_zero: bool
    remote: bool  # on NFS, CIFS, FUSE or another file system that is not this kernel's own
    uuid: str | None  # that of a volume, which is kept on disk; None: this kind keeps none
    survives: str  # "nothing" | "process" | "kernel" | "power": what acknowledged and flushed data outlive

class UbiStatus(TypedDict):
    uuid: str
    state: str  # on disk: "clean" | "open" | "sync_failed"
    epoch: int  # number of times that the volume was marked open
    map_path: str  # "" without a volatile map
    acknowledged_by: str  # what a first write to a stripe waits for: "map" or "header"
    recovered: str  # how the unclean end before was recovered: "map" | "headers" | "discarded"; "" when there was none
    image_path: str
    image_size_bytes: int
    stripe_size_kb: int
    stripes_total: int  # stripes that the image covers
    stripes_present: int  # copied or written, header durable or not
    stripes_filling: int
    stripes_published: int  # header durable
    fetched_bytes: int  # read from the image into the base since open
    bytes_written_to_base: int
    metadata_bytes_written: int
    syncs: int
    fetch_errors: int
    sync_failed: bool
    copy_on_read: bool
    no_sync: bool
    directio: bool  # as in effect: false where the image's file system refuses O_DIRECT
    last_error: str  # "" when there was none

class IoStat(TypedDict):
    bytes_read: int
    num_read_ops: int
    bytes_written: int
    num_write_ops: int
    bytes_unmapped: int
    num_unmap_ops: int
    num_flush_ops: int
    num_errors: int
    read_latency_ns: int  # of all completed ones together
    max_read_latency_ns: int  # since forget_extremes; 0 when there was none
    min_read_latency_ns: int
    write_latency_ns: int
    max_write_latency_ns: int
    min_write_latency_ns: int
    unmap_latency_ns: int
    max_unmap_latency_ns: int
    min_unmap_latency_ns: int

class NbdExportInfo(TypedDict):
    name: str
    connections: int

class UbiSuperblock(TypedDict):
    state: str  # "formatting" | "clean" | "open" | "adopting" | "sync_failed"
    uuid: str
    sequence: int
    epoch: int
    boot_id: str | None  # the boot in which it was opened; None when it is closed
    stripe_size_kb: int
    image_end: int  # bytes
    image_kind: str
    image_size_bytes: int
    image_tag: str
    set_headers: int  # as of the last clean close; the digests likewise
    digest_states: str  # 16 hexadecimal digits
    digest_checks: str
    features: list[int]  # compatible, read-only compatible, incompatible
    map_path: str | None

class UbiProblem(TypedDict):
    name: str  # one of a fixed list, docs/on-disk-format.md
    message: str  # a sentence that names the base, what is wrong and what to do
    sectors: list[int]  # header sectors that are wrong
    stripes: list[tuple[int, int]]  # the stripes whose headers are in them: first, and one past the last

class UbiReport(TypedDict):
    path: str
    size_bytes: int
    block_size: int
    verdict: str  # "new" | "clean" | "unclean" | "adoptable" (bdev_ubi's) | "refused": what an open would do
    recovery: str | None  # unclean: "map" or "headers" tells which stripes are on the base
    version: str | None  # "0.1" | "0.2"; None without our magic
    slots: list[str]  # of the two superblock slots: "valid" | "damaged" | "absent" | "unknown"
    superblock: UbiSuperblock | None  # the newer valid one
    stripe_size_kb: int | None
    stripes_total: int | None  # None when neither a superblock nor the caller says it
    stripes_set: int | None  # headers that are set
    problems: list[UbiProblem]  # empty: nothing is wrong; refused: the first one is why

def sweep_maps(state_dir: str) -> int:
    """Remove the volatile maps of other boots from a state directory; return how many.

    Only regular files of this user alone, called as a map is and with the header of that very map; none in a directory
    that other machines have as well.

    Errors: not_found, permission, io: the directory cannot be read.
    """

def ubi_inspect(
    path: str,
    *,
    image_path: str | None = None,
    stripe_size_kb: int | None = None,
    block_size: int | None = None,
    wait_s: float = 0.0,
) -> UbiReport:
    """Look at a base that nobody has open: what is on it, what an open would do, what is wrong. Writes nothing.

    Takes the base's lock (shared) for as long as it looks. `image_path` and `stripe_size_kb` are needed for a volume of
    bdev_ubi's, which says neither; with an image a volume over another one is a problem. block_size None: 512 for a
    file, a device's own. wait_s: how long to wait for a daemon to let go of the base.

    Errors: not_found, permission and invalid_params (no room for a volume) as create_aio; busy, naming the holder.
    """

class UbiRepairPlan(TypedDict):
    problems: list[UbiProblem]
    steps: list[str]  # what is done, a sentence each
    loses: list[str]  # what is lost by it or may be, a sentence each: show it, and ask
    token: int  # to be given to ubi_repair: what is applied is what was shown

def ubi_plan_repair(
    path: str,
    *,
    choice: Literal["keep", "drop"],
    image_path: str | None = None,
    stripe_size_kb: int | None = None,
    uuid: str | None = None,
    block_size: int | None = None,
    wait_s: float = 0.0,
) -> UbiRepairPlan:
    """Say what a repair of a base that nobody has open would do. Writes nothing.

    The first problem of `ubi_inspect` decides what can be done; `choice` says what becomes of the stripes in doubt,
    those of damaged header sectors or those that had no header yet when a flush failed: "keep" takes them as they are
    on the base, "drop" reads them from the image again. image_differs takes keep alone (with `image_path`: this
    image is accepted), map_missing, base_older_than_map and map_older_than_base take drop alone. superblock_damaged
    needs `image_path` and `stripe_size_kb`; `uuid` gives the volume its old one.

    Errors: invalid_state when nothing is wrong; unsupported for what no repair, or not this choice, helps against;
    not_found, permission, invalid_params and busy as ubi_inspect.
    """

def ubi_repair(
    path: str,
    *,
    choice: Literal["keep", "drop"],
    token: int,
    image_path: str | None = None,
    stripe_size_kb: int | None = None,
    uuid: str | None = None,
    block_size: int | None = None,
    wait_s: float = 0.0,
) -> None:
    """Carry out a plan, with the arguments that it was made with. The next open recovers the volume and says so.

    Takes the base's lock exclusively. A crash leaves it repaired, or refused as before.

    Errors: as ubi_plan_repair; invalid_state when the base is not what the plan was made from; io from the base.
    """

@final
class Bdev:
    def info(self) -> BdevInfo: ...
    def iostat(self, *, forget_extremes: bool = False) -> IoStat:
        """Counters and times; with forget_extremes the longest and shortest ones begin anew afterwards."""
    def resize(self, num_blocks: int | None = None) -> None:
        """Grow to num_blocks (null), or to the size that the file (aio) or the base (ubi) has by now.

        What a volume has more by then reads as zeros, whatever the base has there.

        EngineError: unsupported for other kinds; invalid_params (null) or busy (aio) for less than there is; for a
        volume what the base said, and it has its old size then.
        """
    def ubi_status(self) -> UbiStatus:
        """Progress and state of a ubi bdev; EngineError unsupported for the other kinds."""
    def close(self) -> None:
        """Finish what is in flight, publish, sync, release locks and descriptors.

        Exports must be gone first and bdevs above closed. Idempotent. Raises io when the last
        sync failed (the descriptors are released all the same).
        """

@final
class NbdListener:
    @property
    def address(self) -> str:
        """The socket's path, or HOST:PORT with the port really bound."""
    def add_export(
        self,
        *,
        name: str,
        bdev: Bdev,
        readonly: bool,
        default: bool,
        max_connections: int,
        max_handshakes_per_s: int,
        description: str,
    ) -> None:
        """Offer `bdev` as `name` at once. Limits of 0 are none."""
    def remove_export(self, name: str) -> None:
        """Refuse new clients, finish what is in flight, close the export's connections, return."""
    def exports(self) -> list[NbdExportInfo]: ...
    def open(self) -> None:
        """Let clients in; before, none is answered, and nothing is at the path of a Unix socket. Idempotent."""
    def close(self) -> None:
        """Stop listening, drop handshakes, remove the socket file. Exports must be gone first."""

class VhostSessionInfo(TypedDict):
    vid: int  # unique in the daemon
    id: int  # unique in the controller
    started: bool  # a ring runs
    max_queues: int  # rings that are set up
    inflight_task_cnt: int  # requests

@final
class VhostController:
    @property
    def path(self) -> str: ...
    def open(self) -> None:
        """Let machines in; before, nothing new is at the path. Idempotent."""
    def set_coalescing(self, *, delay_base_us: int, iops_threshold: int) -> None: ...
    def sessions(self) -> list[VhostSessionInfo]: ...
    def notify_config_change(self) -> None:
        """Tell the machines to look at the size again."""
    def close(self) -> None:
        """Stop listening, finish what is in flight, part with the machines, remove the socket file. Idempotent."""

@final
class Engine:
    def __new__(
        cls,
        *,
        cpus: list[int] | None,
        reactors: int,
        io_engine: Literal["auto", "io_uring", "threads"],
        memory_budget_bytes: int,
        socket_mode: int = 0o600,
        socket_group: int | None = None,
    ) -> Engine:
        """Start the reactors: one pinned to each of `cpus`, or `reactors` unpinned ones.

        Unix sockets of frontends get `socket_mode` and the group `socket_group` before they have their names; to make
        one fails with permission when this user may not give it to the group.
        """
    @property
    def io_engine(self) -> str: ...
    @property
    def event_fd(self) -> int:
        """An eventfd, readable while `drain_events` has something to return."""
    def drain_events(self) -> list[tuple[str, str, str]]:
        """(level, object, message) for each event since the last call; level is a logging level name."""
    def create_aio(
        self,
        *,
        name: str,
        path: str,
        block_size: int | None,
        readonly: bool,
        cache: Literal["none", "writeback"],
        fallocate: bool,
        descriptor: int | None = None,
    ) -> Bdev:
        """Open and lock a regular file or block device as a bdev.

        With a descriptor (O_PATH will do), what it stands for is opened and `path` only names it in messages.

        Errors: not_found (ENOENT); invalid_params with EISDIR for a directory, or with EINVAL for a block size that is
        not 512 or a larger power of two, does not divide the size or cannot be detected; busy, naming the holder, when
        another process keeps the lock for 30 s; unsupported when `cache` is "none" and the file system has no O_DIRECT.
        Nothing stays open after a failure.
        """
    def create_malloc(self, *, name: str, num_blocks: int, block_size: int) -> Bdev: ...
    def create_null(self, *, name: str, num_blocks: int, block_size: int) -> Bdev: ...
    def create_ubi(
        self,
        *,
        name: str,
        base: Bdev,
        image_path: str,
        stripe_size_kb: int | None,
        no_sync: bool,
        copy_on_read: bool,
        directio: bool,
        image_descriptor: int | None = None,
        uuid: str | None = None,
        wipe: bool = False,
        adopt: bool = False,
        recover: str | None = None,
        state_dir: str | None = None,
    ) -> Bdev:
        """Format the base (if its magic is zero) or open what is on it. Nothing is written on a refusal.

        stripe_size_kb None: the volume's own, 1024 for a new one; a volume of bdev_ubi's needs it. uuid: what a new
        volume gets and an old one must have. wipe: format although a superblock is left without a magic. adopt: take
        over what bdev_ubi has written. recover: None or "discard_unpublished", which opens an unclean volume of this
        boot without its map. state_dir: where its volatile map is made; None: writes wait for headers.

        With a descriptor, what it stands for is the image and `image_path` only names it.
        """
    def listen_nbd_unix(self, *, path: str, tls: Mapping[str, object] | None = None) -> NbdListener:
        """tls: the fields of `engine.TlsOptions`. EngineError: not_found or permission of its files, invalid_params."""
    def listen_nbd_tcp(self, *, host: str, port: int, tls: Mapping[str, object] | None = None) -> NbdListener: ...
    def create_vhost_blk(self, *, name: str, path: str, bdev: Bdev, readonly: bool, cpus: list[int]) -> VhostController:
        """Prepare a controller's socket; queues run on the reactors of `cpus`, on any for an empty list.

        Errors: busy when somebody listens at the path; already_exists when something that is no socket is there;
        invalid_params for a path that is too long, or CPUs that no reactor runs on; unsupported for larger blocks than
        64 KiB.
        """
    def shutdown(self) -> None:
        """Stop the reactors. All listeners and bdevs must be closed. Idempotent."""
