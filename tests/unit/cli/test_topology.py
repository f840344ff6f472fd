"""`fabricctl topology`: this machine, a file or another's sysfs, as tree, tables, values, graph and difference."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from fabric.cli import places
from fabric.paths.discovery import load
from fabric.testing.fake_control import RAILS, TOPOLOGY
from tests.unit.paths import sysfs_copy

FIXTURES = Path(__file__).parent.parent / "paths/fixtures"
EIGHT = str(FIXTURES / "nccl_eight_gpus.xml")
ODD = str(FIXTURES / "nccl_odd.xml")

TREE = """\
nccl_eight_gpus, from NCCL topology XML: 2 NUMA nodes, 4 PCIe switches, 8 GPUs, 1 NVSwitch, 4 NICs, 4 ports

numa0  GenuineIntel x86_64  CPUs 0-15
├─ 0000:10:00.0  PLX 9797                        PCIe 4.0 x16   31.5 GB/s
│  ├─ gpu0  0000:11:00.0  NVIDIA A100-SXM4-80GB  PCIe 4.0 x16   31.5 GB/s
│  ├─ gpu1  0000:12:00.0  NVIDIA A100-SXM4-80GB  PCIe 4.0 x16   31.5 GB/s
│  └─ nic0  0000:13:00.0  Mellanox ConnectX-6    PCIe 4.0 x16   31.5 GB/s
│     └─ mlx5_0/1  200 Gbit/s
└─ 0000:20:00.0  PLX 9797                        PCIe 4.0 x16   31.5 GB/s
"""

ENDING = """
gpu0 … gpu7  NVLink: 12 to NVSwitch (300 GB/s)

between any two GPUs: NVL

     nic0 nic1 nic2 nic3
gpu0  PIX  PXN  PXN  PXN
gpu1  PIX  PXN  PXN  PXN
gpu2  PXN  PIX  PXN  PXN
gpu3  PXN  PIX  PXN  PXN
gpu4  PXN  PXN  PIX  PXN
gpu5  PXN  PXN  PIX  PXN
gpu6  PXN  PXN  PXN  PIX
gpu7  PXN  PXN  PXN  PIX

NVL NVLink or xGMI, PIX at most one PCIe switch, PXN NVLink to a GPU near the NIC

note: line 7: the NVSwitches are hidden (a virtual machine): taken as one
"""


@pytest.fixture
def nobody(monkeypatch, short_dir):
    """No node is named, and none runs at the default place."""
    monkeypatch.delenv("FABRIC_SOCKET", raising=False)
    monkeypatch.setattr(places, "default_socket", lambda node="a": str(short_dir / "none.sock"))


def test_file_is_shown_as_a_tree_that_fits_a_hundred_columns(fabricctl, nobody):
    result = fabricctl("topology", "--from", EIGHT)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(TREE)
    assert result.out.endswith(ENDING)
    assert all(len(line) <= 100 for line in result.out.splitlines()[1:])


def test_wide_matrix_is_shown_in_blocks_of_one_size_that_fit(fabricctl, nobody, monkeypatch):
    monkeypatch.setattr("fabric.cli.topology_tree.PLAIN_COLUMNS", 16)
    out = fabricctl("topology", "--from", EIGHT).out
    assert "     nic0 nic1\ngpu0  PIX  PXN\n" in out
    assert "     nic2 nic3\ngpu0  PXN  PXN\n" in out


def test_what_is_odd_in_a_file_is_told_with_its_line(fabricctl, nobody):
    out = fabricctl("topology", "--from", ODD).out
    assert "note: line 6 (gpu0): a link to itself: no path uses it\n" in out
    assert "12 to itself (unused)" in out


def test_what_is_odd_of_many_is_told_once(fabricctl, nobody, tmp_path):
    file = tmp_path / "slow.xml"
    file.write_text(Path(EIGHT).read_text().replace('link_width="16"', 'link_width="0"'))
    out = fabricctl("topology", "--from", str(file)).out
    assert (
        'note: line 4 (0000:10:00.0) and 15 more: PCIe link of "16.0 GT/s PCIe" × 0: its rate is unknown'
        in out
    )


def test_without_a_node_this_machine_is_shown_and_how_to_start_one(fabricctl, nobody):
    result = fabricctl("topology")
    assert result.status == 0
    assert "from sysfs: 1 NUMA node" in result.out or "NUMA nodes" in result.out
    assert re.search(r"^lo +tcp +no +reaches this machine alone", result.out, re.M)
    assert result.out.endswith("no node runs here: fabricctl up starts one\n")


def test_with_a_node_its_view_follows_the_machines(fabricctl, control):
    out = fabricctl("topology").out
    assert out.index("from sysfs") < out.index("generation 3") < out.index("channel kv")
    assert "no node runs here" not in out


def test_rails_between_nodes_are_shown_with_state_rate_and_addresses(
    fabricctl, control, monkeypatch
):
    links = [{**TOPOLOGY["links"][0], "rails": RAILS}]
    monkeypatch.setitem(TOPOLOGY, "links", links)
    out = fabricctl("topology").out
    assert re.search(r"^a +b +0 +up +118.4 MB/s +veth0 +10.0.1.1 → 10.0.1.2$", out, re.M)
    assert re.search(r"^a +b +1 +down +\? +- +- → 10.0.2.2:7400$", out, re.M)


def test_machine_alone_asks_no_node(fabricctl, control):
    out = fabricctl("topology", "--machine").out
    assert "generation" not in out
    assert control.calls == []


def test_values_of_machine_and_node_are_in_one_object(fabricctl, control):
    answer = json.loads(fabricctl("topology", "-o", "json").out)
    assert answer["generation"] == 3
    assert answer["machine"]["format"] == "fabric.topology"
    assert "eth" in str(answer["machine"]["rails"]) or answer["machine"]["rails"]


def test_file_as_values_reads_back_as_the_file(fabricctl, nobody, tmp_path):
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        values = read(fabricctl("topology", "--from", EIGHT, "-o", form).out)
        dump = tmp_path / "dump.json"
        dump.write_text(json.dumps(values))
        assert load.load(dump) == load.load(EIGHT)


def test_xml_is_nccls_and_reads_back(fabricctl, nobody):
    out = fabricctl("topology", "--from", EIGHT, "-o", "xml").out
    assert load.parse(out.encode()).links == load.load(EIGHT).links
    assert ElementTree.fromstring(out).tag == "system"


def test_tables_have_a_row_for_every_device(fabricctl, nobody):
    rows = fabricctl("topology", "--from", EIGHT, "-o", "table").out.splitlines()
    assert re.fullmatch(
        r"gpu5 +gpu +NVIDIA A100-SXM4-80GB +0000:92:00.0 +0000:90:00.0 +1 +PCIe 4.0 x16 +31.5 GB/s +-",
        next(row for row in rows if row.startswith("gpu5")),
    )


def test_drawing_is_well_formed_names_every_device_and_is_the_same_twice(fabricctl, nobody):
    out = fabricctl("topology", "--from", EIGHT, "--graph", "svg").out
    text = "".join(ElementTree.fromstring(out).itertext())
    for word in ("gpu7", "mlx5_3/1", "0000:a0:00.0", "NVSwitch", "12 links, 300 GB/s", "31.5 GB/s"):
        assert word in text
    assert fabricctl("topology", "--from", EIGHT, "--graph", "svg").out == out


def test_graphs_for_other_tools_name_each_link_once(fabricctl, nobody):
    dot = fabricctl("topology", "--from", EIGHT, "--graph", "dot").out
    assert dot.count(' -- "nvswitch:hidden"') == 8
    assert dot.count("{") == dot.count("}") == 1
    assert '"switch:0000:10:00.0" -- "gpu:0000:11:00.0" [label="PCIe 4.0 x16 31.5 GB/s"];' in dot
    mermaid = fabricctl("topology", "--from", EIGHT, "--graph", "mermaid").out
    assert mermaid.startswith("flowchart LR\n")
    assert mermaid.count("===") == 8


def hostile(tmp_path):
    file = tmp_path / "x.xml"
    name = "a&quot;]; click d0 &lt;script&gt;"
    file.write_text(
        f'<system version="1"><cpu numaid="0"><nic><net name="{name}" speed="1" dev="0"/></nic></cpu></system>'
    )
    return str(file)


def test_names_from_a_file_stay_text_in_every_graph(fabricctl, nobody, tmp_path):
    file = hostile(tmp_path)
    svg = fabricctl("topology", "--from", file, "--graph", "svg").out
    assert "<script>" not in svg
    ElementTree.fromstring(svg)
    dot = fabricctl("topology", "--from", file, "--graph", "dot").out
    assert 'a\\"]; click' in dot
    mermaid = fabricctl("topology", "--from", file, "--graph", "mermaid").out
    assert "<script>" not in mermaid and '"];' not in mermaid


def test_names_that_would_move_the_cursor_are_shown_without_effect(fabricctl, nobody, tmp_path):
    values = json.loads(fabricctl("topology", "--from", EIGHT, "-o", "json").out)["machine"]
    port = next(d for d in values["devices"] if d["id"] == "port:mlx5_0/1")
    port["name"] = port["attributes"]["name"] = "\x1b[2Jevil\u202e"
    values["name"] = "\x1b]0;title\x07"
    values["rails"] = [
        {
            "interface": "\x1b[31m",
            "device": "port:mlx5_0/1",
            "transport": "tcp",
            "is_usable": True,
            "reason": "\x07",
        }
    ]
    file = tmp_path / "d.json"
    file.write_text(json.dumps(values))
    for arguments in (
        (),
        ("-o", "table"),
        ("-o", "xml"),
        ("--graph", "svg"),
        ("--graph", "dot"),
        ("--diff", EIGHT),
    ):
        out = fabricctl("topology", "--from", str(file), *arguments).out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", out), arguments
    ElementTree.fromstring(fabricctl("topology", "--from", str(file), "-o", "xml").out)


def test_guides_example_is_what_is_printed(fabricctl, nobody):
    guide = (Path(__file__).parents[3] / "docs/guides/topology.md").read_text()
    shown = re.search(r"```\n\$ fabricctl topology --from \S+\n(.*?)```", guide, re.S)
    assert shown is not None
    assert fabricctl("topology", "--from", EIGHT).out == shown[1]


def dump(fabricctl, path, *arguments):
    path.write_text(fabricctl("topology", "-o", "json", *arguments).out)
    return str(path)


def test_nothing_differs_from_a_dump_of_the_same(fabricctl, nobody, tmp_path):
    earlier = dump(fabricctl, tmp_path / "d.json", "--from", EIGHT)
    result = fabricctl("topology", "--from", EIGHT, "--diff", earlier)
    assert (result.status, result.out) == (0, f"nothing differs from {earlier}\n")


def test_what_differs_is_told_and_is_the_exit_status(fabricctl, nobody, tmp_path):
    earlier = dump(fabricctl, tmp_path / "d.json", "--from", EIGHT)
    later = tmp_path / "later.xml"
    later.write_text(Path(EIGHT).read_text().replace('name="mlx5_3"', 'name="mlx5_9"'))
    result = fabricctl("topology", "--from", str(later), "--diff", earlier)
    assert result.status == 2
    assert "- port:mlx5_3/1\n" in result.out and "+ port:mlx5_9/1\n" in result.out
    rows = json.loads(
        fabricctl("topology", "--from", str(later), "--diff", earlier, "-o", "json").out
    )
    assert {"what": "removed", "subject": "port:mlx5_3/1"} in rows


def test_interface_that_went_down_since_a_dump_of_this_kind_is_a_difference(
    fabricctl, nobody, tmp_path
):
    copy = sysfs_copy.machine(tmp_path / "m")
    earlier = dump(fabricctl, tmp_path / "d.json", "--sysfs-root", str(copy.folder))
    (copy.folder / f"sys/devices/{sysfs_copy.NIC}/net/ens1/operstate").write_text("down\n")
    result = fabricctl("topology", "--sysfs-root", str(copy.folder), "--diff", earlier)
    assert result.status == 2
    assert result.out == (
        "~ port:ens1: state up → down\n"
        "~ rail ens1: is_usable yes → no\n"
        "~ rail ens1: reason up → down\n"
    )


def test_another_machines_sysfs_is_shown_from_folder_and_archive(fabricctl, nobody, tmp_path):
    copy = sysfs_copy.machine(tmp_path / "m")
    archive = copy.archive(tmp_path / "m.tar.gz")
    folder = fabricctl("topology", "--sysfs-root", str(copy.folder)).out
    assert "PCIe 4.0 x8 of x16" in folder
    assert "note: nic:0000:04:00.0: runs on 8 lanes of 16\n" in folder
    assert fabricctl("topology", "--sysfs-root", str(archive)).out == folder


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--from", "/nonexistent.xml"), "No such file"),
        (("--sysfs-root", "/nonexistent"), "no such folder or archive"),
        (("--sysfs-root", EIGHT), "no readable tar archive"),
        (("--from", EIGHT, "--diff", "/nonexistent.json"), "No such file"),
        (("--from", EIGHT, "--diff", EIGHT, "-o", "xml"), "no words for it"),
    ],
)
def test_what_cannot_be_read_says_what_why_and_what_to_do(fabricctl, nobody, arguments, reason):
    result = fabricctl("topology", *arguments)
    assert result.status == 1
    assert result.out == ""
    assert re.match(r"error: .*\n  why: .*\n  do:  .*\n$", result.err)
    assert reason in result.err


@pytest.mark.parametrize(
    "arguments",
    [("--from", EIGHT, "--sysfs-root", "/"), ("--graph", "svg", "-o", "json"), ("--graph", "png"), ("-o", "toml")],
)  # fmt: skip
def test_arguments_that_contradict_or_are_unknown_are_wrong_usage(fabricctl, nobody, arguments):
    assert fabricctl("topology", *arguments).status == 2


def test_looking_at_a_machine_imports_nothing_heavy():
    program = (
        "import sys; from fabric.paths.discovery import machine, load; machine.read_machine()\n"
        "print(*[m for m in ('grpc', 'rich', 'yaml', 'numpy', 'torch', 'fabric._native') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.split() == []
