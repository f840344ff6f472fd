"""How near two devices are: every class of NCCL's on the smallest machine that has it, and the rate of the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.paths.discovery import load
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Topology
from fabric.paths.discovery.path_class import PathClass, Paths, describe, matrix

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = {
    "c": Kind.cpu,
    "s": Kind.switch,
    "g": Kind.gpu,
    "n": Kind.nic,
    "p": Kind.port,
    "v": Kind.nvswitch,
}


def machine(tree, links=(), rate=10e9):
    """Make a topology: `tree` as ``child<parent`` words, `links` as (kind, source, target[, rate])."""
    devices, uplinks = [], []
    for word in tree.split():
        own, _, parent = word.partition("<")
        kind = KINDS[own[0]]
        devices.append(
            Device(own, kind, parent or None, own, rate=5e9 if kind is Kind.port else None)
        )
        if parent and kind is not Kind.port:
            uplinks.append(Link(LinkKind.pcie, own, parent, rate))
    more = [Link(LinkKind(k), a, b, *(rest or (40e9,))) for k, a, b, *rest in links]
    return Topology("m", "test", tuple(devices), (*uplinks, *more))


def cls(topology, source, target, **words):
    return Paths(topology).between(source, target, **words).cls


def test_device_is_at_its_own_place_and_so_is_a_nics_port():
    found = machine("c0 n0<c0 p0<n0")
    assert cls(found, "n0", "n0") is PathClass.LOC
    assert cls(found, "n0", "p0") is PathClass.LOC


def test_one_switch_is_pix_two_are_pxb_the_cpu_is_phb_and_another_node_is_sys():
    found = machine(
        "c0 c1 s0<c0 s1<s0 s2<s0 g0<s1 g1<s1 g2<s2 s9<c0 g3<s9 g4<c1", [("smp", "c0", "c1", None)]
    )
    assert [cls(found, "g0", g) for g in ("g1", "g2", "g3", "g4")] == [
        PathClass.PIX, PathClass.PXB, PathClass.PHB, PathClass.SYS,
    ]  # fmt: skip
    assert cls(found, "g0", "c0") is PathClass.PHB


def test_nvlink_is_nvl_and_through_one_more_gpu_nvb_but_not_through_two():
    links = [("nvlink", a, b) for a, b in (("g0", "g1"), ("g1", "g2"), ("g2", "g3"))]
    found = machine("c0 c1 c2 c3 g0<c0 g1<c1 g2<c2 g3<c3", [
        *links, *(("smp", f"c{a}", f"c{b}", None) for a in range(4) for b in range(a + 1, 4)),
    ])  # fmt: skip
    assert [cls(found, "g0", g) for g in ("g1", "g2", "g3")] == [
        PathClass.NVL, PathClass.NVB, PathClass.SYS,
    ]  # fmt: skip
    assert cls(found, "g2", "g0") is PathClass.NVB


def test_gpus_on_nvswitches_are_nvl_with_the_rate_of_all_their_links():
    links = [("nvlink", g, v, 25e9) for g in ("g0", "g1") for v in ("v0", "v1")]
    found = machine("c0 c1 v0<c0 v1<c0 g0<c0 g1<c1", [*links, ("smp", "c0", "c1", None)])
    path = Paths(found).between("g0", "g1")
    assert (path.cls, path.rate) == (PathClass.NVL, 50e9)
    assert len(path.hops) == 3


def test_no_traffic_goes_through_an_nvswitchs_own_pcie_link():
    found = machine("c0 c1 v0<c0 g0<c1", [("nvlink", "g0", "v0")])
    assert cls(found, "g0", "c0") is PathClass.DIS


def test_gpu_with_a_link_of_its_own_to_the_cpu_is_c2c():
    found = machine("c0 g0<c0", [("c2c", "g0", "c0", 450e9)])
    path = Paths(found).between("g0", "c0")
    assert (path.cls, path.rate) == (PathClass.C2C, 450e9)


def test_gpu_reaches_a_far_nic_through_the_gpu_beside_it_unless_that_is_forbidden():
    found = machine(
        "c0 c1 s0<c0 s1<c1 g0<s0 g1<s1 n0<s0 n1<s1 p0<n0 p1<n1",
        [("nvlink", "g0", "g1"), ("smp", "c0", "c1", None)],
    )
    assert cls(found, "g0", "p0") is PathClass.PIX
    path = Paths(found).between("g0", "p1")
    assert path.cls is PathClass.PXN
    assert path.hops == ("g0", "g1", "s1", "n1", "p1")
    assert (path.rate, path.narrowest) == (5e9, ("n1", "p1"))
    assert cls(found, "g0", "p1", relay=False) is PathClass.SYS


def test_gpu_without_a_link_to_that_gpu_goes_across_the_nodes():
    found = machine("c0 c1 s1<c1 g0<c0 g1<s1 n1<s1", [("smp", "c0", "c1", None)])
    assert cls(found, "g0", "n1") is PathClass.SYS


def test_hosts_that_only_their_ports_join_are_net_and_a_host_without_ports_is_not_joined():
    found = machine("c0 n0<c0 p0<n0 g0<c0 c1 n1<c1 p1<n1 g1<c1 c2 g2<c2")
    assert cls(found, "g0", "g1") is PathClass.NET
    assert cls(found, "g0", "g2") is PathClass.DIS


def test_way_with_an_unknown_rate_has_an_unknown_rate():
    found = machine("c0 s0<c0 g0<s0 g1<s0", rate=None)
    path = Paths(found).between("g0", "g1")
    assert (path.cls, path.rate) == (PathClass.PIX, None)


def test_rate_of_a_way_is_that_of_its_narrowest_link():
    found = machine("c0 s0<c0 g0<s0 n0<s0")
    slow = [link for link in found.links if link.source != "n0"]
    found = Topology("m", "test", found.devices, (*slow, Link(LinkKind.pcie, "n0", "s0", 1e9)))
    path = Paths(found).between("g0", "n0")
    assert (path.rate, path.narrowest) == (1e9, ("s0", "n0"))
    assert describe(found, path) == (
        "PIX (at most one PCIe switch): g0 → s0 → n0, 1 GB/s (bounded by s0 – n0)"
    )


def test_link_that_only_one_end_tells_of_serves_both_ways():
    found = machine("c0 c1 g0<c0 g1<c1", [("nvlink", "g0", "g1"), ("smp", "c0", "c1", None)])
    assert cls(found, "g1", "g0") is PathClass.NVL


def test_link_to_itself_makes_no_way():
    found = machine("c0 g0<c0 g1<c0", [("nvlink", "g0", "g0")])
    assert cls(found, "g0", "g1") is PathClass.PHB


def test_nothing_passes_through_a_nic():
    found = machine("c0 c1 n0<c0 p0<n0 p1<n0 g0<c0")
    found = Topology("m", "t", found.devices, (*found.links, Link(LinkKind.pcie, "n0", "c1", 1e9)))
    assert cls(found, "g0", "c1") in (PathClass.DIS, PathClass.NET)
    assert cls(found, "p0", "p1") is PathClass.LOC


def test_device_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        Paths(machine("c0")).between("c0", "g9")


def test_eight_gpus_on_nvswitches_are_near_as_nccl_says():
    found = load.load(FIXTURES / "nccl_eight_gpus.xml")
    gpus, nics = found.of_kind(Kind.gpu), found.of_kind(Kind.nic)
    rows = ["".join(c.name[-1] for c in row) for row in matrix(found, gpus, nics)]
    assert rows == ["XNNN"] * 2 + ["NXNN"] * 2 + ["NNXN"] * 2 + ["NNNX"] * 2
    assert {c for row in matrix(found, gpus, gpus) for c in row} == {PathClass.LOC, PathClass.NVL}
