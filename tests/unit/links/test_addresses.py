"""Which address of this machine leads to which of a peer's, and what the system says of its interfaces."""

from __future__ import annotations

import socket

import pytest

from fabric.links import addresses
from fabric.links.addresses import LocalAddress

LOOPBACK = LocalAddress("lo", "127.0.0.1", 8, True, True, 1)
EAST = LocalAddress("eth0", "10.1.0.5", 24, index=2)
WEST = LocalAddress("eth1", "10.2.0.5", 24, index=3)
TWIN = LocalAddress("eth2", "10.1.0.6", 24, index=4)
UNPLUGGED = LocalAddress("eth3", "10.3.0.5", 24, is_usable=False, index=5)
ALL = (LOOPBACK, EAST, WEST, TWIN, UNPLUGGED)


def test_each_address_of_a_peer_is_dialled_from_the_network_that_it_is_in():
    assert addresses.pair((), ALL, ["10.2.0.9", "10.1.0.9"]) == [WEST, EAST]


def test_peer_in_no_network_of_ours_is_left_to_the_kernels_route():
    assert addresses.pair((), ALL, ["10.9.0.9", "gpu-17.example", "fd00::2"]) == [None, None, None]


def test_what_the_node_was_told_to_listen_on_is_used_rather_than_another_of_that_network():
    assert addresses.pair((TWIN,), ALL, ["10.1.0.9", "10.1.0.10", "10.2.0.9"]) == [TWIN, TWIN, WEST]


def test_two_interfaces_in_one_network_are_two_rails():
    chosen = addresses.pair((EAST, TWIN), ALL, ["10.1.0.8", "10.1.0.9", "10.1.0.10"])
    assert chosen == [EAST, TWIN, EAST]


def test_interface_without_carrier_is_not_used_to_dial():
    assert addresses.pair((), ALL, ["10.3.0.9"]) == [None]


def test_connection_keeps_to_its_interface_but_not_where_the_peer_is_on_this_machine():
    assert addresses.device_for(EAST, "10.1.0.9", ALL) == "eth0"
    assert addresses.device_for(EAST, "10.2.0.5", ALL) == "", (
        "it would wait on eth0 for an answer over lo"
    )
    assert addresses.device_for(LOOPBACK, "127.0.0.2", ALL) == ""


def test_every_address_of_loopbacks_network_is_loopbacks():
    assert addresses.owner_of("127.0.0.7", ALL) == LocalAddress("lo", "127.0.0.7", 8, True, True, 1)
    assert addresses.owner_of("10.1.0.7", ALL) is None, "another machine's"
    assert addresses.owner_of("10.1.0.6", ALL) == TWIN


def test_loopback_is_usable_only_where_there_is_nothing_else():
    assert addresses.usable((LOOPBACK, UNPLUGGED, WEST)) == (WEST,)
    assert addresses.usable((LOOPBACK, UNPLUGGED)) == (LOOPBACK,)


@pytest.mark.parametrize(
    ("said", "index", "bits"),
    [
        ("25000\n", "3", 25_000_000_000),
        ("-1\n", "3", 0),
        ("4294967295\n", "3", 0),
        ("0\n", "3", 0),
        ("fast\n", "3", 0),
        ("25000\n", "7", 0),
    ],
    ids=["25 Gbit/s", "virtual", "unknown, unsigned", "zero", "no number", "of another namespace"],
)
def test_speed_is_what_sysfs_says_or_unknown(tmp_path, said, index, bits):
    (tmp_path / "eth1").mkdir()
    (tmp_path / "eth1" / "speed").write_text(said)
    (tmp_path / "eth1" / "ifindex").write_text(index)
    assert addresses.bits_per_second("eth1", 3, tmp_path) == bits
    assert addresses.bits_per_second("eth9", 3, tmp_path) == 0


def test_speed_that_cannot_be_read_is_unknown():
    index = socket.if_nametoindex("lo")
    assert addresses.bits_per_second("lo", index) == 0, "sysfs answers EINVAL for loopback"


def test_addresses_of_this_machine_are_those_that_can_be_bound():
    found = addresses.local_addresses()
    assert any(a.is_loopback and a.is_usable and a.prefix == 8 for a in found)
    for each in found:
        with socket.socket() as sock:
            sock.bind((each.address, 0))
        assert socket.if_nametoindex(each.interface) == each.index


@pytest.mark.parametrize(
    ("address", "number"), [("10.0.0.1", 0x0A000001), ("::1", None), ("a.b", None), ("1.2.3", None)]
)
def test_only_dotted_addresses_have_a_network(address, number):
    assert addresses.number_of(address) == number
    assert EAST.holds(address) is False
