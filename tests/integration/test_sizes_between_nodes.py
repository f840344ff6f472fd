"""Payloads of every size cross between nodes whole: inline, odd, of every slot class, empty."""

import numpy as np
import pytest

import fabric
from tests.integration.kill_nodes import clusters, settled

pytestmark = pytest.mark.promise("P2", "P6")
cluster = pytest.fixture(clusters)
MIB = 1 << 20
SIZES = (0, 1, 63, 64, 65, 4095, 4097, 5000, 70_000, MIB - 1, MIB + 1, 9 * MIB + 7, 33 * MIB + 1)


@fabric.message("sizes.part")
class Part:
    number: int
    data: fabric.Tensor["n", "u8"]


def test_every_size_arrives_as_it_was_sent(cluster):
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    with fabric.attach("in", socket=b.socket) as inn, fabric.attach("out", socket=a.socket) as out:
        inn.declare("sizes", Part, pattern="stream", delivery="at_least_once")
        receiver, sender = inn.receiver("sizes", Part), out.sender("sizes", Part)
        for number, size in enumerate(SIZES):
            data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
            sender.send(Part(number, data), deadline=10.0)
            with receiver.receive(timeout=10.0) as got:
                assert got is not None, f"{size} bytes did not arrive"
                assert got.number == number and np.array_equal(got.data, data)
                got.ack()
        sender.flush(10.0)
    assert settled(a, "sizes")["delivered"] == len(SIZES)
