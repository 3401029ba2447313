"""What a look at a base found: its verdict in words, what to do next, and the exit code of `ubi check`.

Source of the exit codes: qemu-img(1), check.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ubi_rpc.engine import UbiProblem, UbiReport


class Exit(IntEnum):
    """How a command ends."""

    OK = 0
    """Done; `check`: nothing is wrong."""
    FAILED = 1
    """It could not be done, a wrong command line included; nothing is known of the volume."""
    DAMAGED = 2
    """The volume is damaged or does not fit what was asked: an open refuses it."""
    UNCLEAN = 3
    """An open brings the volume in order by itself, and loses nothing by it."""
    NOT_A_VOLUME = 63
    """There is no volume that this program knows."""


NOT_OURS = frozenset(
    {
        "foreign_content",
        "layout_of_0_1_release",
        "ubiblk",
        "unknown_version",
        "superblock_unknown",
        "unknown_feature",
    }
)
"""Problems that say that the base belongs to something else, or to a later version of this program."""

NEEDS_TO_KNOW = frozenset({"stripe_size_needed"})
"""Problems that end with another argument."""

_VERDICTS = {
    "new": "holds no volume; bdev_ubi_create makes one of it",
    "clean": "was closed cleanly, and nothing is wrong with it",
    "unclean": "was not closed; bdev_ubi_create recovers it",
    "adoptable": "is a volume of bdev_ubi, and nothing is wrong with it; bdev_ubi_create adopts it",
    "refused": "is refused by bdev_ubi_create",
}

_RECOVERIES = {
    "map": "with its volatile map, so that every acknowledged write is there",
    "headers": "by its headers, so that every flushed write is there",
}


def exit_code(report: UbiReport) -> Exit:
    """Return what `ubi check` ends with."""
    names = {problem["name"] for problem in report["problems"]}
    if report["verdict"] == "refused":
        first = report["problems"][0]["name"]
        if first in NEEDS_TO_KNOW:
            return Exit.FAILED
        return Exit.NOT_A_VOLUME if first in NOT_OURS else Exit.DAMAGED
    if report["verdict"] == "new":
        return Exit.NOT_A_VOLUME
    return Exit.UNCLEAN if names or report["verdict"] == "unclean" or _is_half_adopted(report) else Exit.OK


def _is_half_adopted(report: UbiReport) -> bool:
    return report["verdict"] == "adoptable" and report["superblock"] is not None


def verdict_text(report: UbiReport) -> str:
    """Return the verdict as the rest of a sentence that begins with the base."""
    text = _VERDICTS[report["verdict"]]
    if _is_half_adopted(report):
        text = "is a volume of bdev_ubi whose adoption was cut short; bdev_ubi_create goes on with it"
    if report["recovery"] is not None:
        text = f"{text} {_RECOVERIES[report['recovery']]}"
    if report["problems"] and report["verdict"] not in {"refused", "new"}:
        text = text.replace("nothing is wrong with it", "an open mends what is wrong with it")
    return text


def check_lines(report: UbiReport) -> Iterator[str]:
    """Yield what `ubi check` prints."""
    yield f"{report['path']}: {verdict_text(report)}"
    for problem in report["problems"]:
        yield from problem_lines(problem)


def problem_lines(problem: UbiProblem) -> Iterator[str]:
    """Yield a problem: its name and sentence, then its places."""
    yield f"  {problem['name']}: {problem['message']}"
    if problem["stripes"]:
        yield f"    stripes {ranges_text(problem['stripes'])}"
    if problem["name"] in NEEDS_TO_KNOW:
        yield "    with --stripe-size-kb and --image it can be looked at"


def ranges_text(ranges: list[tuple[int, int]], most: int = 16) -> str:
    """Return ranges (first, one past the last) as "0-248, 505", the first `most` of them."""
    shown = [str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in ranges[:most]]
    rest = len(ranges) - most
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def inspect_lines(report: UbiReport) -> Iterator[str]:
    """Yield what `ubi inspect` prints: every field, a line each."""
    superblock = report["superblock"]
    fields: dict[str, object] = {
        "base": f"{report['path']}, {report['size_bytes']} bytes in blocks of {report['block_size']}",
        "verdict": f"{report['verdict']}: it {verdict_text(report)}",
        "version": report["version"],
        "stripe size": None if report["stripe_size_kb"] is None else f"{report['stripe_size_kb']} KiB",
        "stripes": None
        if report["stripes_total"] is None
        else f"{report['stripes_total']}, {report['stripes_set']} set",
        "superblock slots": ", ".join(report["slots"]),
    }
    if superblock is not None:
        features = zip(("compatible", "read-only compatible", "incompatible"), superblock["features"], strict=True)
        fields |= {
            "uuid": superblock["uuid"],
            "state": superblock["state"],
            "sequence": superblock["sequence"],
            "epoch": superblock["epoch"],
            "boot id": superblock["boot_id"],
            "image": f"{superblock['image_kind']}, {superblock['image_size_bytes']} bytes, {superblock['image_tag']}",
            "image end": superblock["image_end"],
            "set at the last clean close": superblock["set_headers"],
            "digest of states": superblock["digest_states"],
            "digest of checks": superblock["digest_checks"],
            "features": ", ".join(f"{name} {bits:#x}" for name, bits in features),
            "volatile map": superblock["map_path"],
        }
    width = max(map(len, fields)) + 2
    for name, value in fields.items():
        yield f"{name + ':':{width}}{'none' if value is None else value}"
    for problem in report["problems"]:
        yield from problem_lines(problem)
