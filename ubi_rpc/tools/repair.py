"""`ubi repair`: say what a repair does and what it costs, ask, and carry out exactly what was shown.

What there is to decide is one thing: whether stripes in doubt are taken as they are on the base (keep) or read from the
image again (drop). The engine plans and acts; nothing is written before the answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ubi_rpc.engine import plan_repair, repair
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.tools.report import Exit, problem_lines

if TYPE_CHECKING:
    from ubi_rpc.engine import UbiRepairPlan

Choice = Literal["keep", "drop"]

MEANINGS: dict[Choice, str] = {
    "keep": "take the stripes in doubt as they are on the base",
    "drop": "read the stripes in doubt from the image again",
}


@dataclass(frozen=True, slots=True)
class Repair:
    """What to repair.

    Args:
        base: file or block device of the volume.
        choice: what becomes of stripes in doubt; None leaves it open.
        image: the volume's image, when it is needed or has changed.
        stripe_size_kb: of a volume that does not say it.
        uuid: what a volume is called that has lost its superblocks; None for a new one.
        block_size: of the base; None for 512 for a file, a device's own.
        wait_s: how long to wait for a daemon to let go of the base.
        yes: ask nothing.
        dry_run: only show.
    """

    base: str
    choice: Choice | None
    image: str | None
    stripe_size_kb: int | None
    uuid: str | None
    block_size: int | None
    wait_s: float
    yes: bool
    dry_run: bool

    def plan(self, choice: Choice) -> UbiRepairPlan:
        """Ask the engine what it would do."""
        return plan_repair(
            self.base,
            choice=choice,
            image_path=self.image,
            stripe_size_kb=self.stripe_size_kb,
            uuid=self.uuid,
            block_size=self.block_size,
            wait_s=self.wait_s,
        )

    def apply(self, choice: Choice, token: int) -> None:
        """Let the engine carry out what it planned."""
        repair(
            self.base,
            choice=choice,
            token=token,
            image_path=self.image,
            stripe_size_kb=self.stripe_size_kb,
            uuid=self.uuid,
            block_size=self.block_size,
            wait_s=self.wait_s,
        )


def run(job: Repair) -> int:
    """Repair; return the exit code: 0 done or shown, 1 declined or undecided.

    Raises:
        UbiError: unsupported, no repair helps, and nothing was written. Any other: the base failed; what was written
            so far leaves a volume that can be repaired again.
    """
    try:
        plans = _plans(job)
    except UbiError as error:
        if error.kind is not ErrorKind.INVALID_STATE:
            raise
        print(error.message)
        return Exit.OK
    choice = _decide(job, plans)
    if choice is None:
        return Exit.FAILED
    print("\n".join(_plan_lines(plans[choice])))
    if job.dry_run or not (job.yes or _is_asked()):
        print("nothing was written; --yes carries it out")
        return Exit.OK
    if not job.yes and _ask("Do that? [y/N] ") not in {"y", "yes"}:
        print("nothing was written")
        return Exit.FAILED
    job.apply(choice, plans[choice]["token"])
    print(f"{job.base} is repaired; the next bdev_ubi_create opens it")
    return Exit.OK


def _plans(job: Repair) -> dict[Choice, UbiRepairPlan]:
    """Return the plan of each choice that there is, one at least."""
    choices: tuple[Choice, ...] = ("keep", "drop") if job.choice is None else (job.choice,)
    plans: dict[Choice, UbiRepairPlan] = {}
    refused: UbiError | None = None
    for choice in choices:
        try:
            plans[choice] = job.plan(choice)
        except UbiError as error:
            if error.kind is not ErrorKind.UNSUPPORTED:
                raise
            refused = refused or error
    if not plans and refused is not None:
        raise refused
    return plans


def _decide(job: Repair, plans: dict[Choice, UbiRepairPlan]) -> Choice | None:
    """Return what to do; None when it is left open. What loses nothing needs no decision."""
    if len(plans) == 1:
        return next(iter(plans))
    free = [choice for choice, plan in plans.items() if not plan["loses"]]
    if free:
        return free[0]
    print("\n".join(line for problem in plans["keep"]["problems"] for line in problem_lines(problem)))
    for choice, plan in plans.items():
        print(f"--{choice}: {MEANINGS[choice]}")
        print("\n".join(f"  {sentence}" for sentence in plan["loses"]))
    if job.yes or job.dry_run or not _is_asked():
        print("nothing was written; give --keep or --drop")
        return None
    answer = _ask("keep, drop, or nothing? ")
    if answer not in ("keep", "drop"):
        print("nothing was written")
        return None
    return "keep" if answer == "keep" else "drop"


def _plan_lines(plan: UbiRepairPlan) -> Iterator[str]:
    yield "What is wrong:"
    for problem in plan["problems"]:
        yield from problem_lines(problem)
    yield "What is done:"
    yield from (f"  {sentence}" for sentence in plan["steps"])
    yield "What is lost:" if plan["loses"] else "Nothing is lost."
    yield from (f"  {sentence}" for sentence in plan["loses"])


def _is_asked() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:
        return ""
