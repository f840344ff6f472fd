"""Beds that are not rails side by side: a bottleneck that rails share, a port that several nodes send to."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.namespaces import Bed, run, shape
from bench.paths.nodes import Nodes
from bench.paths.stage import FABRIC, FAR, NEAR, Stage
from bench.sides import FREE, Pair, Subject, SubjectFailed

SWITCH = "s"
SENDERS = 4
PORT_MBIT = 1000
BRIDGE = "br0"


def bridge(bed: Bed) -> None:
    """Make a switch: a namespace with a bridge in it."""
    full = bed.namespace(SWITCH)
    run("ip", "-n", full, "link", "add", BRIDGE, "type", "bridge")
    run("ip", "-n", full, "link", "set", BRIDGE, "up")


def plug(bed: Bed, name: str, device: str, port: str, *addresses: str) -> None:
    """Join a device of a namespace to the switch."""
    full, switch = bed.full(name), bed.full(SWITCH)
    pair = ("type", "veth", "peer", "name", port, "netns", switch)
    run("ip", "-n", full, "link", "add", device, *pair)
    run("ip", "-n", switch, "link", "set", port, "master", BRIDGE)
    run("ip", "-n", switch, "link", "set", port, "up")
    for address in addresses:
        run("ip", "-n", full, "address", "add", f"{address}/24", "dev", device)
    run("ip", "-n", full, "link", "set", device, "up")


class SharedRail:
    """One of two rails whose bytes go through the same 1 Gbit/s: as `bench.namespaces.Rail` is seen by a stage."""

    def __init__(self, number: int) -> None:
        self.number, self.mbit = number, PORT_MBIT // 2
        self.device = f"r{number}"
        self.near_address, self.far_address = f"10.77.{number}.1", f"10.77.{number}.2"


class SharedStage(Stage):
    """The near node has two devices, the far one has both addresses on one, behind one shaped port of a switch."""

    def _lay(self, rates: Sequence[int]) -> None:
        bridge(self.bed)
        rails = [SharedRail(number) for number in range(2)]
        for rail in rails:
            plug(self.bed, NEAR, rail.device, f"n{rail.number}", rail.near_address)
        plug(self.bed, FAR, "r0", "f0", *(rail.far_address for rail in rails))
        shape(self.bed.full(SWITCH), "f0", PORT_MBIT)
        shape(self.bed.full(FAR), "r0", PORT_MBIT)
        self.rails.extend(rails)  # type: ignore[arg-type]
        self._tell_mptcp()


class IncastStage(Stage):
    """One receiving node behind a shaped port of a switch, four sending ones on ports that are as fast."""

    def _lay(self, rates: Sequence[int]) -> None:
        bridge(self.bed)
        plug(self.bed, FAR, "r0", "f0", "10.77.0.100")
        shape(self.bed.full(SWITCH), "f0", PORT_MBIT)
        shape(self.bed.full(FAR), "r0", PORT_MBIT)
        self._cluster: Nodes | None = None
        for number in range(SENDERS):
            name = f"n{number}"
            self.bed.namespace(name)
            plug(self.bed, name, "r0", f"p{number}", f"10.77.0.{number + 1}")
            shape(self.bed.full(name), "r0", PORT_MBIT)
            shape(self.bed.full(SWITCH), f"p{number}", PORT_MBIT)

    def cluster(self) -> Nodes:
        """Return the nodes: the receiver, then the senders.

        Raises
        ------
        SubjectFailed
            They do not start.
        """
        if self._cluster is None:
            places = [(FAR, ["10.77.0.100"])]
            places += [(f"n{number}", [f"10.77.0.{number + 1}"]) for number in range(SENDERS)]
            folder = Path(tempfile.mkdtemp(prefix="n", dir=self.folder))
            try:
                self._cluster = Nodes(self.bed, folder, places)
            except (RuntimeError, OSError) as error:
                raise SubjectFailed(f"{FABRIC}: {error}") from error
        return self._cluster

    def sender(self, number: int, part: str) -> Pair:
        """Return the pair from one sender to the receiver."""
        key = (FABRIC, (number,), part)
        if key not in self._pairs:
            nodes = self.cluster()
            options = {"near": nodes.socket(number + 1), "far": nodes.socket(0)}
            options["channel"] = f"{part}{number}"
            self._pairs[key] = Pair(Subject(FABRIC, "bench.ours.rails", options), FREE)
        return self._pairs[key]

    def drop(self, who: str) -> None:
        """As ever, and the cluster."""
        super().drop(who)
        self._stop()

    def close(self) -> None:
        """As ever, and the cluster."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        cluster, self._cluster = getattr(self, "_cluster", None), None
        if cluster is not None:
            cluster.stop()
