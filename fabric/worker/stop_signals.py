"""SIGTERM and SIGINT of a worker process."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable


def on_stop_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM and SIGINT, in a thread of its own.

    A handler runs in the main thread, between two of its instructions: one that sets an event hangs for ever where the
    signal came while the main thread was inside that event's lock.
    """

    def handle(*_: object) -> None:
        # `threading` would take a lock that the main thread may hold.
        _thread.start_new_thread(stop, ())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
