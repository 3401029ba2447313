"""Make an image, give it to the daemon, use the volume over NBD, kill the daemon, and see that nothing is lost.

    python -m demo [--folder DIR] [--once]

Leaves the daemon running in build/demo with the commands to try next; `--once` stops it and removes the folder.
Exit code 0 when every comparison held, 1 with a message when one did not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from demo.daemon import CHECKOUT, Daemon
from demo.image import FILES, IMAGE_BYTES, MIB, allocated_bytes, content, digest, file_digest, make_image
from demo.steps import DemoError, expect, say, title
from demo.volume import Volume, patched

CONFIG = CHECKOUT / "examples/spdk_conf.json"
BASE_BYTES = 8 * MIB + 1024 * MIB  # the overlay's own 8 MiB, then a volume twice as large as the image
SUN_PATH_BYTES = 107
MARK = ".ubi_rpc-demo"  # in a folder that a demo made and may remove

PATTERN = 0xA5
SCRATCH_WRITES = ((4096, 4096), (1 * MIB + 8192, 2 * MIB))  # (offset, length) in scratch.bin: a part, and whole stripes
FAR_WRITE = (IMAGE_BYTES + 64 * MIB, 1 * MIB)  # where the image has nothing


def work_folder() -> Path:
    """Return a folder under build/, or a shorter one if its socket names would not fit a socket address."""
    folder = CHECKOUT / "build/demo"
    if len(str(folder / "rpc.sock.lock")) <= SUN_PATH_BYTES:
        return folder
    return Path(tempfile.gettempdir()) / "ubi_rpc-demo"


def empty(folder: Path) -> None:
    """Make `folder` anew, stopping what an earlier demo left running in it.

    Raises:
        DemoError: it has files that no demo put there; nothing was removed.
    """
    mark = folder / MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise DemoError(f"{folder} is not empty and was not made by a demo: name another one")
    Daemon(folder, CONFIG).end(signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


def base_file(folder: Path) -> Path:
    """Return the file that the example configuration names as bdev aio0.

    Raises:
        DemoError: the configuration has no such bdev.
    """
    for subsystem in json.loads(CONFIG.read_text())["subsystems"]:
        for entry in subsystem["config"]:
            if entry["method"] == "bdev_aio_create" and entry["params"]["name"] == "aio0":
                return folder / str(entry["params"]["filename"])
    raise DemoError(f"{CONFIG} creates no bdev aio0")


def make_parts(folder: Path) -> Path:
    """Create the image and an empty base in `folder`; return the image."""
    title("A real disk image, and an empty base")
    image = folder / "image.raw"
    make_image(image)
    with base_file(folder).open("wb") as base:
        base.truncate(BASE_BYTES)
    say(f"{image.name}: ext4, {IMAGE_BYTES // MIB} MiB, {sum(FILES.values()) // MIB} MiB of files in it")
    say(f"{base_file(folder).name}: {BASE_BYTES // MIB} MiB, {allocated_bytes(base_file(folder)) // MIB} MiB allocated")
    return image


def bring_up(daemon: Daemon, image: Path) -> Volume:
    """Start the daemon and create the volume: the same commands the first time and after a crash."""
    say(f"ready after {daemon.start():.2f} s")
    volume = Volume.create(daemon, image)
    say(f"the volume appeared after {volume.create_s * 1000:.0f} ms, rpc.py's own start included: {volume.uri}")
    return volume


def use(volume: Volume) -> None:
    """Read a file out of the volume, then write into another and past the end of the image."""
    title("Read a file out of the volume, with qemu-img over NBD")
    expect("sha256 of /srv/data.bin", digest(volume.read_file("srv/data.bin")), digest(content("srv/data.bin")))
    volume.print_progress()
    title("Write into the middle of another file, and where the image has nothing; never flushed")
    for offset, length in SCRATCH_WRITES:
        volume.write(volume.offset_of("srv/scratch.bin", offset), length, PATTERN)
    volume.write(*FAR_WRITE, PATTERN)
    volume.print_progress()


def compare(volume: Volume) -> None:
    """Check what was written, what lies around it, and what was only read."""
    wanted = patched(content("srv/scratch.bin"), SCRATCH_WRITES, PATTERN)
    expect("/srv/scratch.bin, written parts and the rest", digest(volume.read_file("srv/scratch.bin")), digest(wanted))
    expect("/srv/data.bin, read before", digest(volume.read_file("srv/data.bin")), digest(content("srv/data.bin")))
    expect("/etc/motd, never touched before", digest(volume.read_file("etc/motd")), digest(content("etc/motd")))
    volume.check(*FAR_WRITE, PATTERN)
    say("the write past the image: as it should be")


def story(daemon: Daemon) -> Volume:
    """Tell the whole of it; return the volume as it is at the end."""
    image = make_parts(daemon.folder)
    image_digest = file_digest(image)
    title(f"The daemon, from {CONFIG.relative_to(CHECKOUT)}")
    use(bring_up(daemon, image))
    title("kill -9, and the same start again")
    daemon.end(signal.SIGKILL)
    volume = bring_up(daemon, image)
    title("Compare")
    compare(volume)
    expect("the image itself", file_digest(image), image_digest)
    title("What was copied and what was not")
    volume.print_progress()
    base = base_file(daemon.folder)
    say(f"{base.name}: {BASE_BYTES // MIB} MiB long, {allocated_bytes(base) // MIB} MiB allocated")
    return volume


def next_commands(daemon: Daemon, volume: Volume) -> None:
    """Print what a person may want to type next."""
    rpc = f"scripts/rpc.py -s {daemon.rpc_socket}"
    title("The daemon keeps running. Try")
    for line in (
        f"{rpc} bdev_get_bdevs",
        f"{rpc} bdev_ubi_get_status -n ubi0",
        f"{rpc} nbd_get_exports",
        f"nbdinfo '{volume.uri}'",
        f"nbdcopy --progress '{volume.uri}' {daemon.folder}/copy.raw",
        f"qemu-system-x86_64 -m 1G -drive file='{volume.uri}',format=raw,if=virtio",
        f"{rpc} spdk_kill_instance SIGTERM    # and rm -r {daemon.folder}",
    ):
        say(line)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work (default: build/demo); what is in it is removed")
    parser.add_argument("--once", action="store_true", help="stop the daemon and remove its folder at the end")
    return parser.parse_args()


def main() -> int:
    """Run the demo; see the module."""
    arguments = parse_arguments()
    folder = (arguments.folder or work_folder()).resolve()
    daemon = Daemon(folder, CONFIG)
    try:
        empty(folder)
        volume = story(daemon)
        if not arguments.once:
            next_commands(daemon, volume)
            return 0
        title("The end")
        expect("exit code of the daemon after SIGTERM", daemon.end(signal.SIGTERM), 0)
        shutil.rmtree(folder)
    except (DemoError, OSError, KeyboardInterrupt) as error:
        daemon.end(signal.SIGKILL)
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else error
        print(f"\nThe demo failed: {reason}\n\nThe daemon's last words:\n{daemon.log_tail()}", file=sys.stderr)
        print(f"\nIts folder is left as it was: {folder}", file=sys.stderr)
        return 1
    else:
        return 0


if __name__ == "__main__":
    sys.exit(main())
