"""Beds that are not rails side by side: a shared bottleneck, a port that many send to, two links of one host."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.namespaces import Bed, Rail, run, shape
from bench.paths.nodes import Nodes
from bench.paths.stage import FABRIC, FAR, NEAR, PORT, Stage
from bench.sides import FREE, Pair, Subject, SubjectFailed

SWITCH = "s"
SENDERS = 4
PORT_MBIT = 1000
BRIDGE = "br0"
SLOW_MBIT = 400
LONE = "l"


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


class BesideStage(Stage):
    """Nodes joined by a tcp rail and one of UCX, in three cases.

    *better*: on a loopback that is shaped, which UCX's shared memory passes by. *worse*: over two interfaces, of which
    UCX has the shaped one. *alike*: on a loopback of its own, nothing shaped.
    """

    CASES = ("better", "worse", "alike")

    def _lay(self, rates: Sequence[int]) -> None:
        self.rails += [Rail(self.bed, 0, NEAR, FAR, 0), Rail(self.bed, 1, NEAR, FAR, SLOW_MBIT)]
        self.bed.namespace(LONE)
        shape(self.bed.full(NEAR), "lo", SLOW_MBIT)
        self._besides: dict[str, Nodes] = {}

    def _places(self, case: str) -> list[tuple[str, list[str]]]:
        if case != "worse":
            where = NEAR if case == "better" else LONE
            return [
                (where, ["127.0.0.1", "ucx+shm:127.0.0.2"]),
                (where, ["127.0.0.3", "ucx+shm:127.0.0.4"]),
            ]
        plain, shaped = self.rails
        return [
            (NEAR, [plain.near_address, f"ucx+tcp:{shaped.near_address}"]),
            (FAR, [plain.far_address, f"ucx+tcp:{shaped.far_address}"]),
        ]

    def beside(self, case: str) -> tuple[Nodes, Pair]:
        """Return the nodes of a case, and a pair from the first to the second.

        Raises
        ------
        SubjectFailed
            They do not start.
        """
        key = (FABRIC, (), case)
        if key not in self._pairs:
            folder = Path(tempfile.mkdtemp(prefix="n", dir=self.folder))
            port = PORT + len(self._besides)
            try:
                nodes = self._besides[case] = Nodes(self.bed, folder, self._places(case), "", port)
            except (RuntimeError, OSError) as error:
                raise SubjectFailed(f"{FABRIC}: {error}") from error
            options = {"near": nodes.socket(0), "far": nodes.socket(1), "channel": case}
            self._pairs[key] = Pair(Subject(FABRIC, "bench.ours.rails", options), FREE)
        return self._besides[case], self._pairs[key]

    def drop(self, who: str) -> None:
        """As ever, and the nodes."""
        super().drop(who)
        self._stop()

    def close(self) -> None:
        """As ever, and the nodes."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        besides = getattr(self, "_besides", {})
        while besides:
            besides.popitem()[1].stop()
