"""Nodes of the fabric in namespaces: their addresses there, and what the bench asks them over the control socket."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from bench.namespaces import Bed
from bench.node import BenchNode
from fabric.controlplane.api.client import ControlClient

MEET_S = 20.0
ASK_S = 10.0
POLL_S = 0.02


class Nodes:
    """Several nodes; each of `places` is (namespace, addresses), and all join the first.

    Parameters
    ----------
    bed : Bed
    folder : Path
        For sockets, state and logs; short.
    places : sequence of (str, sequence of str)
    fault : str
        For ``FABRIC_ENGINE_FAULT`` of the first one.
    port : int
        Where all of them listen.
    """

    def __init__(
        self,
        bed: Bed,
        folder: Path,
        places: Sequence[tuple[str, Sequence[str]]],
        fault: str = "",
        port: int = 7700,
    ) -> None:
        secret = folder / "secret"
        secret.write_text(secrets.token_hex(16))
        secret.chmod(0o600)
        self.nodes: list[BenchNode] = []
        first = f"{places[0][1][0]}:{port}"
        try:
            for number, (namespace, addresses) in enumerate(places):
                node = BenchNode(
                    folder,
                    f"n{number}",
                    *("--secret-file", str(secret)),
                    join=first if number else None,
                    listen=[f"{address}:{port}" for address in addresses],
                    inside=bed.inside(namespace),
                    environment=faults(fault) if fault and not number else {},
                )
                self.nodes.append(node)
                node.start()
            self._meet()
        except BaseException:
            self.stop()
            raise

    def _meet(self) -> None:
        """Wait until every node sees all others, over every rail.

        Raises
        ------
        RuntimeError
            They did not meet within `MEET_S`.
        """
        until = time.monotonic() + MEET_S
        for number in range(len(self.nodes)):
            while lacks := self._lacking(number):
                if time.monotonic() > until:
                    raise RuntimeError(f"n{number} does not see {lacks} within {MEET_S:g} s")
                time.sleep(POLL_S)

    def _lacking(self, number: int) -> str:
        """Return what a node does not see yet; empty where it sees everything."""
        with self.client(number) as client:
            if not client.is_serving():
                return "its own daemon"
            serving = sum(row["state"] == "serving" for row in client.ls("node"))
            if serving < len(self.nodes):
                return f"{len(self.nodes) - serving} of {len(self.nodes)} nodes"
            rails = [row for row in client.path_ls() if row["state"] != "up"]
        return ", ".join(f"rail {row['rail']} to {row['peer']}" for row in rails)

    def socket(self, number: int) -> str:
        """Return where modules attach to a node."""
        return str(self.nodes[number].socket)

    def client(self, number: int) -> ControlClient:
        """Return a client of a node's control API."""
        return ControlClient(f"{self.socket(number)}.ctl", deadline_s=ASK_S)

    def stop(self) -> None:
        """End all. Safe to repeat."""
        for node in reversed(self.nodes):
            node.stop()


def faults(fault: str) -> dict[str, str]:
    """Return the environment that arms a fault of the engine."""
    return {"FABRIC_FAULTS": "1", "FABRIC_ENGINE_FAULT": fault}
