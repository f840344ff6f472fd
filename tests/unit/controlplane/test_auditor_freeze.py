"""What becomes of frozen ports when one of them leaves before it is thawed."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import _native
from fabric.controlplane.auditor import Auditor
from tests.unit.native.pair import Attached, pair


def known(side: Attached) -> Any:
    """A port as the daemon knows it, with a descriptor of its own."""
    return SimpleNamespace(port=side.number, is_alive=True, state_fd=os.dup(side.state))


@pytest.mark.promise("P1", "P4")
async def test_port_that_is_forgotten_while_frozen_keeps_nobody_frozen() -> None:
    with pair() as joined:
        leaving, staying = known(joined.a), known(joined.b)
        daemon: Any = SimpleNamespace(
            context=SimpleNamespace(native=_native), ports=[leaving, staying]
        )
        auditor = Auditor(daemon)
        await auditor.serve("freeze", {})
        os.close(leaving.state_fd)
        leaving.state_fd = -1
        leaving.is_alive = False
        await auditor.serve("thaw", {})
        begun = time.monotonic()
        joined.b.port.progress()
        assert time.monotonic() - begun < 1.0
        await auditor.serve("freeze", {})  # and the next audit looks again
        await auditor.serve("thaw", {})
        joined.b.port.progress()
        assert joined.b.port.stats()["freeze_overruns"] == 0
        os.close(staying.state_fd)
