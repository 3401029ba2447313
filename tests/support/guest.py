"""A virtual machine in software emulation with disks over vhost-user-blk: a real Debian kernel and a small user land.

Source: QEMU docs/system/devices/vhost-user.rst; linux
Documentation/driver-api/early-userspace/buffer-format.rst (cpio).
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "guest"
"""Where scripts/setup.sh unpacks the guest's kernel, and where what is built for guests is kept."""
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
MEMORY_MIB = 192
BOOT_TIMEOUT_S = 120.0


def missing() -> str | None:
    """Return what a guest needs and is not here, None when all is."""
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64"
    if not list((BUILD / "kernel").glob("boot/vmlinuz-*")):
        return f"a kernel in {BUILD / 'kernel'}"
    busybox = shutil.which("busybox")
    if busybox is None or b"/ld-linux" in Path(busybox).read_bytes():
        return "a static busybox"
    return None


def kernel() -> Path:
    """Return the guest's kernel."""
    return next((BUILD / "kernel").glob("boot/vmlinuz-*"))


def _cpio_entry(name: str, mode: int, data: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(f"{field:08x}".encode() for field in fields) + name.encode() + b"\0"
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def initramfs() -> bytes:
    """Return the file system that the kernel starts with: busybox, the disk's drivers, guest_init.sh."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    parts = [_cpio_entry(name, 0o40755, b"") for name in ("bin", "dev", "modules")]
    parts.append(_cpio_entry("bin/busybox", 0o100755, Path(busybox).read_bytes()))
    parts.append(_cpio_entry("init", 0o100755, (HERE / "guest_init.sh").read_bytes()))
    for module in MODULES:
        (found,) = (BUILD / "kernel" / "lib" / "modules").rglob(f"{module}.ko*")
        data = found.read_bytes()
        parts.append(
            _cpio_entry(f"modules/{module}.ko", 0o100644, lzma.decompress(data) if found.suffix == ".xz" else data)
        )
    return b"".join(parts) + _cpio_entry("TRAILER!!!", 0, b"")


def load_program() -> Path:
    """Return guest_load, built when it is older than its source."""
    source, program = HERE / "guest_load.rs", BUILD / "guest_load"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        built = BUILD / f"guest_load.{os.getpid()}"
        flags = ["-O", "--edition", "2024", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]
        subprocess.run(["rustc", *flags, "-o", built, source], check=True)
        built.rename(program)
    return program


def _copy_program(tree: Path, program: Path) -> None:
    """Put a program of this machine into a tree, with the libraries that it needs."""
    needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for library in (word for word in needed.split() if word.startswith("/")):
        (tree / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, tree / library.lstrip("/"))
    shutil.copy(program, tree / "bin")


def make_root_image(path: Path, job: str, size_mib: int = 48) -> Path:
    """Make the image of a root disk: busybox, the load, some files to verify, and the job."""
    tree = path.with_suffix(".tree")
    for folder in ("bin", "dev", "proc", "sys", "data", "mnt"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin" / "busybox")
    for name in (
        "sh",
        "echo",
        "md5sum",
        "cat",
        "sync",
        "poweroff",
        "dd",
        "mount",
        "umount",
        "sleep",
        "mkdir",
        "seq",
        "ls",
        "wc",
    ):
        (tree / "bin" / name).symlink_to("busybox")
    shutil.copy(load_program(), tree / "bin" / "guest_load")
    _copy_program(tree, Path("/usr/sbin/blkdiscard"))
    for number in range(8):
        (tree / "data" / f"file{number}").write_bytes(bytes([number]) * (300_000 + number))
    (tree / "job.sh").write_text("echo GUEST up\n" + job + "\necho GUEST job ends\nsync\npoweroff -f\n")
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", tree, path], check=True)
    shutil.rmtree(tree)
    return path


class Guest:
    """A machine that runs a job and powers off.

    Args:
        folder: where its initramfs is put and its console is kept.
        sockets: of its disks' controllers, the root disk's first.
        queues: of each disk.
        disk_options: more properties of the disk devices.
        reconnect_ms: how often it tries to reach a controller that is gone; 0 for never.
    """

    def __init__(
        self,
        folder: Path,
        sockets: list[Path],
        *,
        queues: int = 1,
        disk_options: str = "",
        reconnect_ms: int = 0,
        cpus: int = 1,
    ) -> None:
        image = folder / "initramfs"
        image.write_bytes(initramfs())
        command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", str(cpus)]
        command += ["-m", f"{MEMORY_MIB}M", "-object", f"memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on"]
        command += ["-numa", "node,memdev=mem", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        command += ["-kernel", str(kernel()), "-initrd", str(image), "-serial", "stdio"]
        command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
        command += ["-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off"]
        reconnect = f",reconnect-ms={reconnect_ms}" if reconnect_ms else ""
        for number, socket in enumerate(sockets):
            command += ["-chardev", f"socket,id=disk{number},path={socket}{reconnect}"]
            options = f"chardev=disk{number},num-queues={queues}{disk_options}"
            command += ["-device", f"vhost-user-blk-pci,{options}"]
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.lines.append(line.rstrip())
                self._grown.notify_all()

    def type_line(self, text: str = "") -> None:
        """Type a line on the console."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    @property
    def console(self) -> str:
        """All that it has printed."""
        return "\n".join(self.lines)

    def wait_line(self, text: str, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Return the first line with `text`.

        Raises:
            AssertionError: it did not come in time, or the machine ended without; with the console.
        """
        deadline = time.monotonic() + timeout_s
        with self._grown:
            while True:
                found = next((line for line in self.lines if text in line), None)
                if found is not None:
                    return found
                assert self._reader.is_alive(), f"the guest ended without {text!r}:\n{self.console}"
                assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s:\n{self.console}"
                self._grown.wait(1.0)

    def wait_end(self, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Wait until it has powered off; return the console."""
        self.process.wait(timeout_s)
        self._reader.join()
        return self.console
