"""The roles of a scatter channel: `scatterer` splits rows over many consumers, `expert` turns the rows that it gets.

A call may fail, typed and naming the part (a consumer died, or said no); what it returns is whole and in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fabric import _native, errors, limits
from tests.soak.role import COPY_BYTES_PER_S, DEADLINE_S, RETRY_S, Actor, Rows, declare

ROWS_MAX = 48
DIMS = {1: 2, 64: 4, 2000: 4, 70_000: 1}  # bytes of a row and how often
TURN = 0xA5
NUMBERS = 1000  # an index counts modulo the consumers that are there
REFUSED_SHARE = 0.02


def checksums(data: Any) -> Any:
    """Return the checksum of each row."""
    return np.array([_native.crc32c(np.ascontiguousarray(row)) for row in data], np.int64)


# ------------------------------------------------------------------ the asking end
def scatterer(actor: Actor) -> None:
    """Scatter numbered rows by random indices, and hold the gathered answer against them."""
    job = actor.job
    number = 0

    def serve(port: Any) -> None:
        nonlocal number
        declare(port, job)
        asking = port.scatterer(job["channel"], Rows, Rows)
        actor.report(ready=True)
        while not actor.leaving.is_set():
            number += 1
            rows = draw(actor, number)
            size = rows.data.nbytes
            if scatter_once(actor, asking, rows):
                actor.beat()
            else:
                port.check()  # lost: attach anew
                actor.pause(RETRY_S)
            actor.pause(job["pause_s"] + size / COPY_BYTES_PER_S)

    actor.work(serve)


def draw(actor: Actor, number: int) -> Rows:
    """Return a message of some of the actor's bytes; now and then without any row."""
    count = actor.chance.randrange(0, ROWS_MAX)
    dim = actor.chance.choices(list(DIMS), list(DIMS.values()))[0]
    start = actor.chance.randrange(0, len(actor.bytes) - count * dim)
    data = actor.bytes[start : start + count * dim].reshape(count, dim)
    return Rows(number, checksums(data), data)


def scatter_once(actor: Actor, asking: Any, rows: Rows) -> bool:
    """Call once; False when it failed in one of the ways in which it may."""
    index = [actor.chance.randrange(NUMBERS) for _ in range(len(rows.data))]
    try:
        with actor.within("scatter", DEADLINE_S):
            back = asking.call(rows, np.array(index, np.int64), deadline=DEADLINE_S)
    except (errors.DeadlineExceeded, errors.CapacityError):
        return False
    except (errors.RemoteError, errors.PeerLostError) as error:
        if "part" not in error.context:
            actor.violate(f"a scatter failed without naming the part: {error!r}")
        return False
    if back.number != rows.number or not np.array_equal(back.data, rows.data ^ TURN):
        what = f"scatter {rows.number} of {rows.data.shape}"
        actor.violate(f"{what} gave {back.data.shape} as {back.number}, not what was sent, turned")
    if not np.array_equal(back.crcs, rows.crcs):
        actor.violate(f"scatter {rows.number}: the rows came back in another order")
    return True


# ------------------------------------------------------------------ the answering end
def expert(actor: Actor) -> None:
    """Check the rows of every part and answer with them turned; refuse one now and then."""
    job = actor.job

    def serve(port: Any) -> None:
        declare(port, job)
        responder = port.responder(job["channel"], Rows, Rows)
        actor.report(ready=True)
        while not actor.leaving.is_set():
            with actor.within("receive", 0.2):
                request = responder.receive(timeout=0.2)
            if request is not None:
                turn(actor, request)

    actor.work(serve)


def turn(actor: Actor, request: Any) -> None:
    """Answer one part."""
    if actor.chance.random() < REFUSED_SHARE:
        request.fail(ValueError("an expert that says no now and then"))
        return
    try:
        with actor.within("read", limits.CONTROL_CALL_S):  # the daemon may have to be asked
            asked = request.message
            data = np.array(asked.data)
            crcs = np.array(asked.crcs)
        with actor.within("reply", DEADLINE_S):
            if not np.array_equal(checksums(data), crcs):
                actor.violate(
                    f"a part of scatter {asked.number}, {data.shape}, is not what was sent"
                )
            request.reply(Rows(asked.number, crcs, data ^ TURN))
            actor.beat()
    except errors.FabricError:
        pass  # the asking end gave up or is gone; counted
