"""The seeded soak: ``python -m tests.soak.soak [--minutes N] [--seed S] [--fault NAME:ARGUMENT]``.

Two nodes, real processes, random traffic, faults and changes; after every step what is promised is
checked (`rig.Rig.check`). A failure prints the seed, the steps and the ends of all logs, and leaves the folder.
Exit status 1 then.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.soak.actions import add, go_back, logs, step
from tests.soak.processes import Violation
from tests.soak.rig import Rig

QUIET_EVERY = 25  # steps between two moments at which everybody leaves
FIRST_ACTORS = 5
# What the links of node b do throughout: one of these, drawn by the seed.
FAULTS = (
    "", "", "link_delay_us:300", "link_rate_bytes:50000000", "link_lose:300", "link_repeat:50", "link_reorder:50",
    "link_corrupt:400",
)  # fmt: skip


def soak(rig: Rig, seconds: float) -> int:
    """Run steps until the time is over; returns how many.

    Raises
    ------
    Violation
        Something promised does not hold.
    """
    rig.start()
    go_back(rig)
    for _ in range(FIRST_ACTORS):
        add(rig)
    rig.check()
    rig.quiet()  # what is held now, with everything set up once and nobody there, is what may be held
    deadline, steps = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        steps += 1
        print(f"  {steps:4} {step(rig)}", flush=True)
        rig.check()
        if steps % QUIET_EVERY == 0:
            be_quiet(rig)
    be_quiet(rig)
    return steps


def be_quiet(rig: Rig) -> None:
    """Everybody leaves, the first plan is back: nothing may be left behind."""
    go_back(rig)
    rig.quiet()
    rig.check()


def main(arguments: list[str]) -> int:
    """Soak once; 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0, help="0: a new one, which is printed")
    parser.add_argument("--fault", help="an engine fault of node b, NAME:ARGUMENT; default: drawn")
    options = parser.parse_args(arguments)
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    print(f"soak: {options.minutes:g} minutes, seed {seed} (repeat: make soak SEED={seed})")
    fault = random.Random(seed).choice(FAULTS) if options.fault is None else options.fault
    print(f"  links of node b: {fault or 'as they are'}")
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    rig = Rig(folder, seed, fault)
    try:
        steps = soak(rig, options.minutes * 60)
    except (Exception, KeyboardInterrupt) as error:
        explain(rig, seed, error)
        return 1
    finally:
        rig.close()
    print(f"soak: held over {steps} steps, {rig.audits} balanced audits, seed {seed}")
    print(f"  work by channel: {rig.work}\n  typed errors: {rig.errors}")
    print("  most that clients held over their first quiet moment:")
    for role, held in sorted(rig.growth.items()):
        print(
            f"    {role}: {held.fds} descriptors, {held.threads} threads, {held.private_bytes >> 20} MiB"
        )
    shutil.rmtree(folder)
    return 0


def explain(rig: Rig, seed: int, error: BaseException) -> None:
    """Print everything that helps to find out why."""
    if not isinstance(error, Violation):
        traceback.print_exception(error)
    history, tails = "\n".join(rig.history), logs(rig.folder)
    print(f"\nNOT HELD: {error}\nseed {seed}, folder {rig.folder}\nsteps:\n{history}\n{tails}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
