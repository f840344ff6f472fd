"""A machine's topology from a copy of its sysfs, with the traps that real ones have."""

from __future__ import annotations

import os
import tarfile

import pytest

from fabric import errors, limits
from fabric.paths.discovery import machine, roots
from fabric.paths.discovery.model import Kind
from fabric.paths.discovery.path_class import PathClass, Paths
from tests.unit.paths import sysfs_copy
from tests.unit.paths.sysfs_copy import FAST, NIC, hostile_archive, member


@pytest.fixture
def copy(tmp_path):
    return sysfs_copy.machine(tmp_path / "machine")


def read(copy, **words):
    return machine.read_sysfs(roots.open_root(copy.folder), "machine", **words)


def test_devices_hang_below_the_switch_that_joins_them(copy):
    found = read(copy)
    parents = {d.name: d.parent for d in found.devices if d.kind is not Kind.port}
    assert parents == {
        "numa0": None,
        "numa1": None,
        "0000:01:00.0": "cpu:0",
        "gpu0": "switch:0000:01:00.0",
        "nic0": "switch:0000:01:00.0",
        "gpu1": "cpu:1",
    }
    assert Paths(found).cls("gpu:0000:03:00.0", "nic:0000:04:00.0") is PathClass.PIX
    assert Paths(found).cls("gpu:0000:81:00.0", "nic:0000:04:00.0") is PathClass.SYS


def test_graphics_of_the_management_processor_are_no_gpu(copy):
    assert [gpu.address for gpu in read(copy).of_kind(Kind.gpu)] == ["0000:03:00.0", "0000:81:00.0"]


def test_link_that_is_clocked_down_while_idle_keeps_its_rate(copy):
    link = read(copy).uplinks["gpu:0000:03:00.0"]
    assert (link.speed, link.width, link.is_narrowed) == (16.0, 16, False)
    assert link.rate == pytest.approx(31.5e9, rel=0.01)


def test_link_that_lost_lanes_has_the_rate_of_the_rest_and_is_noted(copy):
    found = read(copy)
    link = found.uplinks["nic:0000:04:00.0"]
    assert (link.width, link.width_max) == (8, 16)
    assert link.rate == pytest.approx(15.75e9, rel=0.01)
    assert [(n.where, n.what) for n in found.notes] == [
        ("nic:0000:04:00.0", "runs on 8 lanes of 16")
    ]


def test_link_is_as_fast_as_the_slower_of_its_two_ends(copy):
    copy.file(f"devices/{sysfs_copy.SWITCH}/0000:02:00.0/max_link_speed", "8.0 GT/s PCIe")
    assert read(copy).uplinks["gpu:0000:03:00.0"].speed == 8.0


@pytest.mark.parametrize("width", ["0", "255", "no number"])
def test_width_that_makes_no_sense_is_unknown(copy, width):
    for place in (sysfs_copy.GPU, f"{sysfs_copy.SWITCH}/0000:02:00.0"):
        copy.file(f"devices/{place}/max_link_width", width)
        copy.file(f"devices/{place}/current_link_width", width)
    link = read(copy).uplinks["gpu:0000:03:00.0"]
    assert (link.width, link.rate) == (None, None)


def test_numa_nodes_have_their_cpus_memory_and_processor(copy):
    node = read(copy).by_id["cpu:1"]
    assert (node.numa, node.model, node.attributes["cpus"]) == (1, "Example CPU", "4-7")
    assert node.attributes["memory_bytes"] == str(1 << 30)
    assert (node.attributes["familyid"], node.attributes["arch"]) == ("6", "x86_64")


def test_function_that_names_no_node_is_near_the_only_one_with_its_cpus(copy):
    copy.file(f"devices/{sysfs_copy.FAR_GPU}/numa_node", "-1")
    copy.file(f"devices/{sysfs_copy.FAR_GPU}/local_cpulist", "4-7")
    assert read(copy).by_id["gpu:0000:81:00.0"].numa == 1


def test_function_that_may_be_near_any_node_hangs_below_an_unknown_one(copy):
    copy.file(f"devices/{sysfs_copy.FAR_GPU}/numa_node", "-1")
    copy.file(f"devices/{sysfs_copy.FAR_GPU}/local_cpulist", "0-7")
    found = read(copy)
    assert found.by_id["gpu:0000:81:00.0"].parent == "cpu:unknown"
    assert found.by_id["gpu:0000:81:00.0"].numa is None
    assert Paths(found).cls("gpu:0000:81:00.0", "gpu:0000:03:00.0") is PathClass.SYS


def test_machine_without_numa_has_one_node_with_all_its_cpus(tmp_path):
    copy = sysfs_copy.SysfsCopy(tmp_path / "m")
    copy.file("devices/system/cpu/online", "0-1")
    copy.function("pci0000:00/0000:00:03.0", "0x020000", "0x1af4", "0x1041", numa_node="-1")
    found = read(copy)
    assert found.by_id["cpu:0"].attributes["cpus"] == "0-1"
    assert found.by_id["nic:0000:00:03.0"].parent == "cpu:0"


def test_switch_below_a_switch_is_found_by_its_depth(copy):
    below = f"{sysfs_copy.SWITCH}/0000:02:02.0/0000:05:00.0"
    copy.function(below.rpartition("/")[0], "0x060400", "0x10b5", "0x9797")
    copy.function(below, "0x060400", "0x10b5", "0x9797")
    copy.function(f"{below}/0000:06:00.0", "0x060400", "0x10b5", "0x9797")
    copy.function(f"{below}/0000:06:00.0/0000:07:00.0", "0x030200", "0x10de", "0x20b2", **FAST)
    found = read(copy)
    assert found.by_id["gpu:0000:07:00.0"].parent == "switch:0000:05:00.0"
    assert found.by_id["switch:0000:05:00.0"].parent == "switch:0000:01:00.0"
    assert Paths(found).cls("gpu:0000:07:00.0", "gpu:0000:03:00.0") is PathClass.PXB


def test_older_infiniband_adapter_is_a_nic(copy):
    copy.function(
        "pci0000:80/0000:80:02.0/0000:82:00.0", "0x0c0600", "0x1077", "0x7322", numa_node="1"
    )
    assert read(copy).by_id["nic:0000:82:00.0"].numa == 1


def port(copy, name):
    return read(copy).by_id[f"port:{name}"]


def test_interface_hangs_below_its_nic_and_has_its_line_rate(copy):
    found = port(copy, "ens1")
    assert (found.parent, found.numa, found.state) == ("nic:0000:04:00.0", 0, "up")
    assert found.rate == 200e9 / 8
    assert found.attributes["flavour"] == "physical"


@pytest.mark.parametrize("speed", ["-1", "0", "4294967295", "", "unknown"])
def test_speed_that_is_none_is_unknown(copy, speed):
    copy.interface("ens2", NIC, speed=speed)
    assert port(copy, "ens2").rate is None


def test_speed_that_the_kernel_refuses_to_tell_is_unknown(copy):
    copy.interface("ens2", NIC)
    (copy.folder / f"sys/devices/{NIC}/net/ens2/speed").unlink()
    assert port(copy, "ens2").rate is None


def test_speed_of_this_machines_loopback_is_unknown_and_no_error():
    """The kernel answers EINVAL."""
    found = machine.read_sysfs(roots.open_root("/"), "this")
    assert found.by_id["port:lo"].rate is None
    assert found.by_id["port:lo"].attributes["flavour"] == "loopback"


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"operstate": "up"}, "up"),
        ({"operstate": "down"}, "down"),
        ({"operstate": "lowerlayerdown"}, "down"),
        ({"operstate": "dormant"}, "down"),
        ({"operstate": "unknown", "carrier": "1"}, "up"),
        ({"operstate": "unknown", "carrier": "0"}, "down"),
        ({"operstate": "unknown", "flags": "0x1002"}, "down"),
        ({"operstate": "unknown"}, "unknown"),
    ],
)
def test_state_is_the_operstate_or_else_the_carrier(copy, values, state):
    copy.interface("ens2", NIC, **values)
    assert port(copy, "ens2").state == state


@pytest.mark.parametrize(
    ("values", "extra", "flavour"),
    [
        ({"type": "772"}, None, "loopback"),
        ({}, "bridge/bridge_id", "bridge"),
        ({}, "bonding/slaves", "bond"),
        ({"ifindex": "5", "iflink": "9"}, None, "veth"),
        ({"ifindex": "5", "iflink": "5"}, None, "virtual"),
        ({"uevent": "DEVTYPE=vlan\nINTERFACE=x"}, None, "vlan"),
        ({"type": "65534"}, "tun_flags", "tun"),
        ({"type": "32"}, None, "infiniband"),
    ],
)
def test_interfaces_without_hardware_are_told_apart(copy, values, extra, flavour):
    copy.interface("x0", **values)
    if extra:
        copy.file(f"devices/virtual/net/x0/{extra}", "1")
    found = port(copy, "x0")
    assert found.attributes["flavour"] == flavour
    assert found.parent is None


def test_sysfs_of_another_network_namespace_is_not_taken_for_this_ones(copy):
    """Its `ens1` is another interface than ours of that name, and ours are not in it."""
    copy.file(f"devices/{NIC}/net/ens1/ifindex", "2")
    copy.file("devices/virtual/net/lo/ifindex", "1")
    present = {"lo": (1, "up"), "ens1": (7, "down"), "rail0": (8, "up")}
    found = read(copy, present=present, addresses={"rail0": ["10.0.0.1"]})
    assert {p.name: (p.state, p.parent) for p in found.of_kind(Kind.port)} == {
        "lo": ("up", None), "ens1": ("down", None), "rail0": ("up", None), "mlx5_0/1": ("up", "nic:0000:04:00.0"),
    }  # fmt: skip
    assert found.notes[-1].where == "ens1, rail0"
    assert "another network namespace" in found.notes[-1].what
    assert [rail.interface for rail in found.rails if rail.is_usable] == ["rail0", "mlx5_0/1"]


def test_sysfs_of_this_namespace_gives_its_interfaces_hardware(copy):
    copy.file(f"devices/{NIC}/net/ens1/ifindex", "2")
    found = read(copy, present={"ens1": (2, "up")})
    assert found.by_id["port:ens1"].parent == "nic:0000:04:00.0"
    assert "port:lo" not in found.by_id


def test_file_among_the_interfaces_is_none(copy):
    copy.file("class/net/bonding_masters", "bond0")
    assert "port:bonding_masters" not in read(copy).by_id


def test_rdma_port_has_its_rate_state_and_nic(copy):
    found = port(copy, "mlx5_0/1")
    assert (found.parent, found.state, found.rate) == ("nic:0000:04:00.0", "up", 200e9 / 8)
    assert found.attributes["link_layer"] == "InfiniBand"


def test_rdma_port_that_is_not_active_is_down(copy):
    place = copy.folder / f"sys/devices/{NIC}/infiniband/mlx5_0/ports/1/state"
    place.write_text("1: DOWN\n")
    assert port(copy, "mlx5_0/1").state == "down"


def verdicts(copy, **words):
    return {rail.interface: (rail.is_usable, rail.reason) for rail in read(copy, **words).rails}


def test_rails_are_the_interfaces_that_reach_others_and_each_says_why_or_why_not(copy):
    copy.interface("down0", NIC, operstate="down")
    copy.interface("bare0", NIC)
    copy.interface("part0", NIC)
    copy.link(f"devices/{NIC}/net/part0/master", "../../../../virtual/net/bond0")
    own = {"ens1": ["10.0.0.1"], "lo": ["127.0.0.1"], "down0": ["10.0.1.1"]}
    assert verdicts(copy, addresses=own) == {
        "ens1": (True, "up"),
        "lo": (False, "reaches this machine alone"),
        "down0": (False, "down"),
        "bare0": (False, "no address"),
        "part0": (False, "a part of bond0"),
        "mlx5_0/1": (True, "up"),
    }


def test_rails_of_another_machine_are_not_judged_by_addresses_that_nobody_knows(copy):
    assert verdicts(copy)["ens1"] == (True, "up")


def test_archive_is_read_like_the_folder_and_nothing_of_it_is_written(copy, tmp_path):
    archive = copy.archive(tmp_path / "machine.tar.gz")
    before = sysfs_copy.count_files(tmp_path)
    found = machine.read_root(archive)
    assert (found.devices, found.links, found.rails) == (
        read(copy).devices, read(copy).links, read(copy).rails,
    )  # fmt: skip
    assert sysfs_copy.count_files(tmp_path) == before


@pytest.mark.parametrize("below", ["", "sys"])
def test_root_is_found_whether_named_above_or_at_sys(copy, below):
    assert roots.open_root(copy.folder / below).names("class") == ["infiniband", "net"]


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (member("../outside"), "leads out of the archive"),
        (member("/etc/passwd"), "leads out of the archive"),
        (member("machine/sys/../../../x"), "leads out of the archive"),
    ],
)
def test_archive_whose_members_lead_out_is_refused(tmp_path, hostile, reason):
    archive = hostile_archive(tmp_path / "a.tar", member("machine/sys/class/net/x/type"), hostile)
    with pytest.raises(errors.ConfigError, match=reason):
        machine.read_root(archive)


def test_link_that_leads_out_of_an_archive_finds_nothing(tmp_path):
    archive = hostile_archive(
        tmp_path / "a.tar",
        member("m/sys/class/net/x/type"),
        member("m/sys/class/net/x/address", tarfile.SYMTYPE, "/etc/hostname"),
        member("m/sys/class/net/x/mtu", tarfile.SYMTYPE, "../../../../../../../../etc/hostname"),
    )
    attributes = machine.read_root(archive).by_id["port:x"].attributes
    assert "mac" not in attributes and "mtu" not in attributes


def test_link_that_leads_out_of_a_copied_folder_finds_nothing(copy, tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    copy.interface("ens2", NIC)
    place = copy.folder / f"sys/devices/{NIC}/net/ens2"
    (place / "address").symlink_to(tmp_path / "secret")
    (place / "ifalias").symlink_to("../" * 20 + str(tmp_path / "secret").lstrip("/"))
    sysfs = roots.open_root(copy.folder)
    assert sysfs.text("class/net/ens2/address") is None
    assert sysfs.text("class/net/ens2/ifalias") is None


def test_links_that_go_in_a_circle_end(copy):
    copy.link("class/net/a", "b")
    copy.link("class/net/b", "a")
    assert roots.open_root(copy.folder).text("class/net/a/speed") is None


def test_devices_and_pipes_of_an_archive_are_left_out(tmp_path):
    archive = hostile_archive(
        tmp_path / "a.tar",
        member("m/sys/class/net/x/type"),
        member("m/sys/class/net/x/speed", tarfile.CHRTYPE),
        member("m/sys/class/net/x/mtu", tarfile.FIFOTYPE),
        member("m/sys/class/net/x/address", tarfile.LNKTYPE, "m/sys/class/net/x/type"),
    )
    assert roots.open_root(archive).names("class/net/x") == ["type"]


def test_pipe_in_a_copied_folder_is_not_waited_for(copy):
    copy.interface("ens2", NIC)
    place = copy.folder / f"sys/devices/{NIC}/net/ens2/speed"
    place.unlink()
    os.mkfifo(place)
    assert port(copy, "ens2").rate is None


def test_archive_of_too_many_members_or_bytes_is_refused_by_the_limit(copy, tmp_path, monkeypatch):
    archive = copy.archive(tmp_path / "a.tar.gz")
    with monkeypatch.context() as patch:
        patch.setattr(limits, "SYSFS_ARCHIVE_MEMBERS_MAX", 3)
        with pytest.raises(errors.ConfigError, match="more than 3 members"):
            machine.read_root(archive)
    monkeypatch.setattr(limits, "SYSFS_ARCHIVE_BYTES_MAX", 5)
    with pytest.raises(errors.ConfigError, match="more than 5 bytes"):
        machine.read_root(archive)


def test_damaged_archive_and_what_is_no_sysfs_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive at all")
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("a.tar", "no readable tar"),
        ("empty", "has a sys/"),
        ("nope", "no such"),
    ):
        with pytest.raises(errors.ConfigError, match=reason):
            machine.read_root(tmp_path / name)


def test_archive_that_is_cut_short_is_refused(copy, tmp_path):
    archive = copy.archive(tmp_path / "a.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(errors.ConfigError, match="no readable tar"):
        machine.read_root(archive)


def test_archive_whose_files_are_filled_up_with_zeros_reads_like_others(copy, tmp_path):
    """As tar makes them of a sysfs: each claims 4096 bytes."""
    whole = read(copy)
    for file in [p for p in copy.folder.rglob("*") if p.is_file() and not p.is_symlink()]:
        file.write_bytes(file.read_bytes().ljust(4096, b"\0"))
    found = machine.read_root(copy.archive(tmp_path / "a.tar.gz"))
    assert (found.devices, found.links) == (whole.devices, whole.links)


def test_archive_with_damaged_bytes_is_refused(copy, tmp_path):
    archive = copy.archive(tmp_path / "a.tar.gz")
    data = bytearray(archive.read_bytes())
    data[100:200] = b"\xff" * 100
    archive.write_bytes(data)
    with pytest.raises(errors.ConfigError, match="no readable tar"):
        machine.read_root(archive)
