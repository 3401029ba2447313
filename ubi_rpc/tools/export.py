"""`ubi export`: a volume's content in a file, raw or qcow2, by qemu-img over a private NBD socket of this process.

The file appears under its name when it is complete and durable, or not at all. The volume is opened as a daemon opens
it, so one that was not closed is recovered first; nothing is copied into it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import stat
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ubi_rpc.engine import Bdev, Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.frontends.nbd import nbd_uri
from ubi_rpc.tools.report import Exit, verdict_text

if TYPE_CHECKING:
    from ubi_rpc.engine import UbiReport

EXPORT = "volume"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_S = 10.0
"""How long qemu-img may take to end when it is told to."""


@dataclass(frozen=True, slots=True)
class Export:
    """What to export.

    Args:
        base: file or block device of the volume.
        out: file to write.
        image: the volume's image.
        format: of the file.
        progress: show how far it is.
        force: replace `out`.
        stripe_size_kb: of a volume that does not say it.
        block_size: of the base; None for 512 for a file, a device's own.
    """

    base: str
    out: Path
    image: str
    format: Literal["raw", "qcow2"]
    progress: bool
    force: bool
    stripe_size_kb: int | None
    block_size: int | None


async def run(job: Export, report: UbiReport) -> int:
    """Export and return the exit code: 0, or 128 and the signal that stopped it.

    Args:
        job: what to export.
        report: what is on the base.

    Raises:
        UbiError: the volume cannot be opened, `out` exists or cannot be written, qemu-img is missing or has failed.
            There is no file that was not there before.
    """
    _refuse(job, report)
    loop, task, caught = asyncio.get_running_loop(), asyncio.current_task(), list[int]()

    def stop(number: int) -> None:
        if not caught and task is not None:
            task.cancel()
        caught.append(number)

    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        await _export(job, report)
    except asyncio.CancelledError:
        print(f"ubi export: stopped; {job.out} was not written", file=sys.stderr)
        return 128 + caught[0]
    return Exit.OK


def _refuse(job: Export, report: UbiReport) -> None:
    """Refuse what an open would format, what it would refuse, and a file that is there."""
    if report["verdict"] == "new":
        raise UbiError(ErrorKind.INVALID_PARAMS, f"{job.base} {verdict_text(report)}; there is nothing to export")
    if report["verdict"] == "refused":
        raise UbiError(ErrorKind.INVALID_PARAMS, report["problems"][0]["message"])
    if shutil.which("qemu-img") is None:
        raise UbiError(ErrorKind.NOT_FOUND, "qemu-img is not installed; it is in the package qemu-utils")
    with suppress(FileNotFoundError):
        mode = job.out.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UbiError(ErrorKind.INVALID_PARAMS, f"{job.out} exists and is no regular file; name another")
        if not job.force:
            raise UbiError(ErrorKind.ALREADY_EXISTS, f"{job.out} exists; name another file, or give --force")
        if any(Path(other).samefile(job.out) for other in (job.base, job.image)):
            raise UbiError(ErrorKind.INVALID_PARAMS, f"{job.out} is a part of the volume; name another file")


async def _export(job: Export, report: UbiReport) -> None:
    with ExitStack() as files:
        folder = files.enter_context(tempfile.TemporaryDirectory(prefix="ubi-export-"))  # mode 0700
        partial = job.out.with_name(f".{job.out.name}.{os.getpid()}.partial")
        files.callback(partial.unlink, missing_ok=True)
        async with AsyncExitStack() as parts:
            uri = await _serve(job, report, Path(folder) / "s", parts)
            await _convert(job, uri, partial)
        _finish(job, partial)


async def _serve(job: Export, report: UbiReport, socket: Path, parts: AsyncExitStack) -> str:
    """Open the volume, offer it for reading, and return the URI; `parts` takes everything down again."""
    engine = Engine()
    parts.push_async_callback(engine.shutdown)
    await engine.start(cpus=None, reactors=1, io_engine="auto")
    volume = await _open(job, report, engine, parts)
    listener = await engine.listen_nbd_unix(str(socket), None)
    parts.push_async_callback(listener.close)
    await listener.add_export(
        volume, name=EXPORT, readonly=True, default=True, max_connections=0, max_handshakes_per_s=0, description=""
    )
    parts.push_async_callback(listener.remove_export, EXPORT)
    await listener.open()
    return nbd_uri(str(socket), EXPORT, is_encrypted=False)


async def _open(job: Export, report: UbiReport, engine: Engine, parts: AsyncExitStack) -> Bdev:
    base = await engine.create_aio(
        name=job.base,
        path=job.base,
        block_size=report["block_size"],
        readonly=False,
        cache="writeback",
        fallocate=False,
        descriptor=_found(job.base, parts),
    )
    parts.push_async_callback(base.close)
    stripe_size_kb = report["stripe_size_kb"]
    if stripe_size_kb is None:
        raise AssertionError("an open that is not refused knows the stripe size")
    volume = await engine.create_ubi(
        name=job.base,
        base=base,
        image_path=job.image,
        stripe_size_kb=stripe_size_kb,
        no_sync=False,
        copy_on_read=False,
        directio=False,
        image_descriptor=_found(job.image, parts),
    )
    parts.push_async_callback(volume.close)
    return volume


def _found(path: str, parts: AsyncExitStack) -> int:
    """Return a descriptor that stands for a file, for as long as `parts` is open."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        code = error.errno or errno.EIO
        raise UbiError(ErrorKind.NOT_FOUND, f"{path}: {os.strerror(code)}", errno=code) from error
    parts.callback(os.close, descriptor)
    return descriptor


async def _convert(job: Export, uri: str, partial: Path) -> None:
    """Run qemu-img; when this is cancelled it is ended first.

    Raises:
        UbiError: io, it has failed; its own words are in the message.
    """
    arguments = ["convert", *(["-p"] if job.progress else []), "-f", "raw", "-O", job.format, uri, str(partial)]
    child = await asyncio.create_subprocess_exec(
        "qemu-img", *arguments, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        _, said = await child.communicate()
    except asyncio.CancelledError:
        await _end(child)
        raise
    if child.returncode:
        words = said.decode(errors="replace").strip().removeprefix("qemu-img: ")
        raise UbiError(ErrorKind.IO, f"{job.out} was not written: {words or f'qemu-img ended with {child.returncode}'}")


async def _end(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _finish(job: Export, partial: Path) -> None:
    """Make the file durable and give it its name."""
    try:
        _sync(partial)
        if job.force:
            partial.replace(job.out)
        else:
            job.out.hardlink_to(partial)  # refuses a file that has appeared meanwhile
        _sync(job.out.absolute().parent)
    except FileExistsError:
        raise UbiError(ErrorKind.ALREADY_EXISTS, f"{job.out} has appeared meanwhile and was left as it is") from None
    except OSError as error:
        code = error.errno or errno.EIO
        raise UbiError(ErrorKind.IO, f"{job.out} was not written: {os.strerror(code)}", errno=code) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
