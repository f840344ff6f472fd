"""How two halves of a library without addresses of its own find each other: one file each in their folder.

And what must go when they are gone: some libraries leave segments in /dev/shm when they are killed, some always.
"""

from __future__ import annotations

import time
from pathlib import Path

CONNECT_S = 30.0
POLL_S = 0.005
SHARED = Path("/dev/shm")
SEGMENTS = "segments"
OTHER = {"near": "far", "far": "near"}


def exchange(folder: Path, role: str, own: bytes, step: str = "address") -> bytes:
    """Leave `own` for the other half and return what it left.

    Raises
    ------
    TimeoutError
        The other half left nothing within `CONNECT_S`.
    """
    draft = folder / f"{step}.{role}.draft"
    draft.write_bytes(own)
    draft.rename(folder / f"{step}.{role}")
    other, deadline = folder / f"{step}.{OTHER[role]}", time.monotonic() + CONNECT_S
    while not other.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the {OTHER[role]} half left no {step} in {folder}")
        time.sleep(POLL_S)
    return other.read_bytes()


def note_segments(folder: Path, role: str, segments: set[Path]) -> None:
    """Leave the names of segments that no prefix tells from others, for `sweep`."""
    (folder / f"{SEGMENTS}.{role}").write_text(
        "".join(f"{segment}\n" for segment in sorted(segments))
    )


def sweep(folder: Path) -> None:
    """Remove what a pair has left in /dev/shm: under a prefix with its folder's name, or noted in the folder."""
    left = set(SHARED.glob(f"{segment_prefix(folder)}*"))
    for notes in folder.glob(f"{SEGMENTS}.*"):
        left.update(Path(line) for line in notes.read_text().splitlines())
    for segment in left:
        if segment.parent == SHARED:
            segment.unlink(missing_ok=True)


def segment_prefix(folder: Path) -> str:
    """Return how the names of a pair's own segments begin."""
    return f"bench-{folder.name}-"
