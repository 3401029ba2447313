"""`ubi`: look at, repair and export a volume that no daemon has open.

Owns the command line, the exit codes and the last word of every command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from typing_extensions import override

from ubi_rpc.engine import inspect, version
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.tools.report import Exit, check_lines, exit_code, inspect_lines

if TYPE_CHECKING:
    from ubi_rpc.engine import UbiReport

EXIT_CODES = """exit codes: 0 done, nothing is wrong; 1 it could not be done; 2 the volume is damaged;
3 the next open brings it in order, nothing is lost; 63 no volume that is known here"""


class _Parser(argparse.ArgumentParser):
    """Ends with 1 after a wrong command line: 2 says that a volume is damaged."""

    @override
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.FAILED, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of ubi's command line."""
    options = _Parser(prog="ubi", description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    options.add_argument("-v", "--version", action="version", version=f"ubi_rpc v{version()}")
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, text, run in (
        ("check", "say whether anything is wrong with a volume; writes nothing", check),
        ("inspect", "show everything that is on a base; writes nothing", show),
    ):
        command = _command(commands, name, text, run)
        command.add_argument("-i", "--image", metavar="FILE", help="the volume's image: say as well whether it is")
        command.add_argument("--json", action="store_true", help="print everything as JSON")
    mend = _command(commands, "repair", "mend a volume that bdev_ubi_create refuses; says first what is lost", repair)
    mend.add_argument("-i", "--image", metavar="FILE", help="the volume's image, where it is needed or has changed")
    mend.add_argument("--uuid", metavar="UUID", default=None, help="of a volume that has lost its superblocks")
    choice = mend.add_mutually_exclusive_group()
    choice.add_argument("--keep", dest="choice", action="store_const", const="keep",
                        help="take stripes in doubt as they are on the base")  # fmt: skip
    choice.add_argument("--drop", dest="choice", action="store_const", const="drop",
                        help="read stripes in doubt from the image again")  # fmt: skip
    mend.add_argument("-y", "--yes", action="store_true", help="do it without asking")
    mend.add_argument("-n", "--dry-run", action="store_true",
                      help="only say what would be done, as without a terminal and without --yes")  # fmt: skip
    export = _command(commands, "export", "write a volume's content to a file", export_volume)
    export.add_argument("out", metavar="FILE", type=Path, help="file to write; sparse where the volume is zero")
    export.add_argument("-i", "--image", metavar="FILE", required=True, help="the volume's image")
    export.add_argument("-O", "--format", choices=("raw", "qcow2"), default="raw", help="default: %(default)s")
    export.add_argument("-p", "--progress", action="store_true", help="show how far it is")
    export.add_argument("--force", action="store_true", help="replace FILE if it exists")
    return options


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command for one base."""
    command = commands.add_parser(name, help=text, description=f"ubi {name}: {text}", epilog=EXIT_CODES)
    command.set_defaults(run=run)
    add = command.add_argument
    add("base", metavar="BASE", help="file or block device that the volume is on")
    add("-s", "--stripe-size-kb", metavar="KIB", type=int, default=None,
        help="needed for a volume of bdev_ubi's, which does not say it")  # fmt: skip
    add("--block-size", metavar="BYTES", type=int, default=None,
        help="default: 512 for a file, a device's own")  # fmt: skip
    add("--wait", metavar="S", type=float, default=0.0,
        help="wait so many seconds for a daemon to let go of the base")  # fmt: skip
    return command


def look(args: argparse.Namespace) -> UbiReport:
    """Look at the base that the command line names."""
    return inspect(
        args.base,
        image_path=args.image,
        stripe_size_kb=args.stripe_size_kb,
        block_size=args.block_size,
        wait_s=args.wait,
    )


def check(args: argparse.Namespace) -> int:
    """Run `ubi check`."""
    report = look(args)
    code = exit_code(report)
    if args.json:
        print(json.dumps({**report, "exit_code": int(code)}, indent=2))
    else:
        print("\n".join(check_lines(report)))
    return code


def show(args: argparse.Namespace) -> int:
    """Run `ubi inspect`."""
    report = look(args)
    print(json.dumps(report, indent=2) if args.json else "\n".join(inspect_lines(report)))
    return Exit.OK


def repair(args: argparse.Namespace) -> int:
    """Run `ubi repair`."""
    from ubi_rpc.tools.repair import Repair, run

    job = Repair(
        base=args.base,
        choice=args.choice,
        image=args.image,
        stripe_size_kb=args.stripe_size_kb,
        uuid=args.uuid,
        block_size=args.block_size,
        wait_s=args.wait,
        yes=args.yes,
        dry_run=args.dry_run,
    )
    return run(job)


def export_volume(args: argparse.Namespace) -> int:
    """Run `ubi export`."""
    from ubi_rpc.tools.export import Export, run

    job = Export(
        base=args.base,
        out=args.out,
        image=args.image,
        format=args.format,
        progress=args.progress,
        force=args.force,
        stripe_size_kb=args.stripe_size_kb,
        block_size=args.block_size,
    )
    return asyncio.run(run(job, look(args)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    args = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UbiError as error:
        advice = "; delete its bdev there first, or --wait for it" if error.kind is ErrorKind.BUSY else ""
        print(f"ubi {args.command}: {error.message}{advice}", file=sys.stderr)
        return Exit.FAILED
    except OSError as error:  # stdout takes no more; BrokenPipeError: its reader has gone, and needs no telling
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"ubi {args.command}: {error}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
