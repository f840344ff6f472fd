"""Topologies from files: NCCL's XML both ways, hwloc's XML, own dumps; hostile and wrong ones are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric import errors, limits
from fabric.paths.discovery import diff, dump, load, nccl_write
from fabric.paths.discovery.model import Kind, LinkKind
from fabric.paths.discovery.path_class import PathClass, Paths
from fabric.paths.discovery.xml_source import Refused

FIXTURES = Path(__file__).parent / "fixtures"
EIGHT = FIXTURES / "nccl_eight_gpus.xml"
ODD = FIXTURES / "nccl_odd.xml"
HWLOC = FIXTURES / "hwloc_small.xml"


def parse(text):
    return load.parse(text.encode())


def system(inside):
    return f'<system version="1">\n<cpu numaid="0">\n{inside}\n</cpu>\n</system>'


def gpu_with(link):
    return system(f'<pci busid="0000:01:00.0">\n<gpu dev="0">{link}</gpu></pci>')


def refusal(text):
    with pytest.raises(Refused) as refused:
        parse(text)
    return refused.value.line, refused.value.what


def test_nccl_file_gives_its_devices_with_rates_in_bytes():
    found = load.load(EIGHT)
    counts = {kind: len(found.of_kind(kind)) for kind in Kind}
    assert counts == {
        Kind.cpu: 2, Kind.switch: 4, Kind.gpu: 8, Kind.nvswitch: 1, Kind.nic: 4, Kind.port: 4, Kind.pci: 0,
    }  # fmt: skip
    gpu = found.by_id["gpu:0000:92:00.0"]
    assert (gpu.name, gpu.numa, gpu.model) == ("gpu5", 1, "NVIDIA A100-SXM4-80GB")
    assert found.uplinks[gpu.id].rate == pytest.approx(31.5e9, rel=0.01)
    assert found.by_id["port:mlx5_2/1"].rate == 25e9
    assert found.by_id["cpu:1"].attributes["cpus"] == "16-31"
    fast = list(found.links_from(gpu.id, LinkKind.nvlink))
    assert [(link.target, link.count, link.rate) for link in fast] == [
        ("nvswitch:hidden", 12, 300e9)
    ]


@pytest.mark.parametrize("file", [EIGHT, ODD], ids=lambda file: file.stem)
def test_nccl_file_that_is_written_again_reads_as_the_same(file):
    found = load.load(file)
    text = nccl_write.write(found)
    again = parse(text)
    assert again.devices == found.devices
    assert again.links == found.links
    assert nccl_write.write(again) == text


def test_odd_things_of_nccl_files_are_kept_and_noted_with_their_lines():
    found = load.load(ODD)
    notes = {(note.where, note.what.partition(":")[0]) for note in found.notes}
    assert ("line 3", "numaid -1") in notes
    assert ("line 6 (gpu0)", "a link to itself") in notes
    assert any(n.where == "line 4 (gpu0)" and "rate is unknown" in n.what for n in found.notes)
    assert any(n.where == "line 7" and "not there" in n.what for n in found.notes)
    assert any(
        n.where == "line 13 (switch:0000:05:00.0#2)" and "more than once" in n.what
        for n in found.notes
    )
    assert found.uplinks["gpu:0001:00:00.0"].rate is None
    assert found.by_id["pci:0000:06:00.0"].kind is Kind.pci
    assert found.by_id["cpu:unknown"].numa is None
    assert found.by_id["port:eth0"].rate == 12.5e9
    assert found.by_id["port:eth1"].rate is None
    assert found.uplinks["nic:0000:81:00.0"].width is None


def test_two_switches_of_one_address_are_two_devices():
    found = load.load(ODD)
    assert found.by_id["gpu:0000:07:00.0"].parent == "switch:0000:05:00.0#2"
    assert found.by_id["pci:0000:06:00.0"].parent == "switch:0000:05:00.0"


def test_chip_to_chip_link_leads_to_the_gpus_own_cpu():
    found = parse(
        system(
            '<pci busid="0000:01:00.0" class="0x030200"><gpu dev="0"><c2c bw="44712" count="10"/></gpu></pci>'
        )
    )
    link = next(found.links_from("gpu:0000:01:00.0", LinkKind.c2c))
    assert (link.target, link.rate, link.count) == ("cpu:0", pytest.approx(447.12e9), 10)
    assert Paths(found).cls("gpu:0000:01:00.0", "cpu:0") is PathClass.C2C
    assert nccl_write.write(parse(nccl_write.write(found))) == nccl_write.write(found)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('<graphs version="1"/>', 1, "NCCL_GRAPH_FILE"),
        ("<html/>", 1, "begins with <system>"),
        ('<system version="9"/>', 1, "1 and 2 are known"),
        ("<system/>", 1, "1 and 2 are known"),
        ('<system version="1">\n<gpu/></system>', 2, "where <cpu> should stand"),
        ('<system version="1">\n<cpu/></system>', 2, "without a numaid"),
        ('<system version="1"><cpu\nnumaid="x"/></system>', 1, "no whole number"),
        (system('<pci busid="nonsense"/>'), 3, "no PCI address"),
        (system('<pci busid="0000:01:00.0" class="0xzz"/>'), 3, "no whole number"),
        (gpu_with('<nvlink target="0:1:2.3" count="0"/>'), 4, "count"),
        (gpu_with('<nvlink target="?" count="1"/>'), 4, "target"),
        ('<system version="1">\n<cpu numaid="0" affinity="zz"/></system>', 2, "affinity"),
        ("<system", 1, "not XML"),
        ('<system version="1">\n\n</cpu>', 3, "not XML"),
        ("", 1, "neither XML"),
        ("hello", 1, "neither XML"),
        ('<topology version="1.0"/>', 1, "versions 2 and 3 are read"),
        ("<topology/>", 1, "hwloc 1"),
    ],
)  # fmt: skip
def test_file_that_is_no_topology_is_refused_with_line_and_reason(text, line, reason):
    where, what = refusal(text)
    assert where == line
    assert reason in what


BOMB = """<?xml version="1.0"?>
<!DOCTYPE system [
<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
]>
<system version="1"><cpu numaid="0">&b;</cpu></system>"""


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        '<!DOCTYPE topology [<!ENTITY x SYSTEM "file:///etc/passwd">]><topology version="2.0">&x;</topology>',
        '<!DOCTYPE topology [<!ELEMENT topology ANY>]><topology version="2.0"/>',
        '<!DOCTYPE t SYSTEM "hwloc2.dtd" [<!ENTITY % p SYSTEM "http://127.0.0.1/x">%p;]><topology version="2.0"/>',
    ],
)
def test_document_type_that_declares_anything_is_refused(text):
    assert "declare" in refusal(text)[1]


def test_entity_that_nobody_declared_is_refused():
    text = '<!DOCTYPE topology SYSTEM "hwloc2.dtd"><topology version="2.0">&x;</topology>'
    found = load.parse(text.encode())  # the DTD is not opened, so the entity stays nothing
    assert found.devices == ()
    assert "not XML" in refusal("<system>&x;</system>")[1]


def test_hwlocs_plain_document_type_is_read():
    assert load.load(HWLOC).source == "hwloc"


def test_file_beyond_the_limits_is_refused(monkeypatch, tmp_path):
    for name, value, word in (
        ("TOPOLOGY_FILE_BYTES_MAX", 100, "bytes"),
        ("TOPOLOGY_ELEMENTS_MAX", 3, "more than 3 elements"),
        ("TOPOLOGY_DEPTH_MAX", 2, "deeper than 2"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, value)
            with pytest.raises(errors.ConfigError, match=word):
                load.load(EIGHT)


def test_error_names_file_line_and_reason_and_a_missing_file_is_one(tmp_path):
    bad = tmp_path / "bad.xml"
    bad.write_text('<system version="1">\n<cpu/>\n</system>')
    with pytest.raises(errors.ConfigError, match=r"bad\.xml:2: <cpu> without a numaid") as refused:
        load.load(bad)
    assert refused.value.context["line"] == 2
    with pytest.raises(errors.ConfigError, match="No such file"):
        load.load(tmp_path / "nope.xml")


def test_hwloc_file_gives_switches_as_one_device_and_drops_what_is_of_no_interest():
    found = load.load(HWLOC)
    parents = {d.name: d.parent for d in found.devices}
    assert parents == {
        "numa0": None, "numa1": None, "0000:01:00.0": "cpu:0", "gpu0": "switch:0000:01:00.0",
        "nic0": "switch:0000:01:00.0", "ib0": "nic:0000:04:00.0", "mlx5_0/1": "nic:0000:04:00.0", "gpu1": "cpu:1",
    }  # fmt: skip
    gpu = found.by_id["gpu:0000:03:00.0"]
    assert (gpu.model, gpu.numa) == ("Tesla V100-SXM2-32GB", 0)
    assert found.uplinks[gpu.id].rate == pytest.approx(15.75e9, rel=0.01)
    assert found.by_id["port:mlx5_0/1"].state == "up"


def test_nvlinks_of_hwloc_are_read_from_its_distances():
    found = load.load(HWLOC)
    links = {
        (k.source, k.target, k.count, k.rate) for k in found.links if k.kind is LinkKind.nvlink
    }
    near, far = "gpu:0000:03:00.0", "gpu:0000:81:00.0"
    assert links == {(near, far, 2, 50e9), (far, near, 2, 50e9)}


def test_xgmi_links_of_hwloc_are_read_likewise():
    found = parse(HWLOC.read_text().replace("NVLinkBandwidth", "XGMIBandwidth"))
    links = [(k.count, k.rate) for k in found.links if k.kind is LinkKind.xgmi]
    assert links == [(1, 50e9)] * 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('nbobjs="2"', 'nbobjs="3"', "4 bandwidths between 2 objects"),
        ("1000000 50000 50000 1000000", "1000000 50000 50000", "3 bandwidths between 2 objects"),
        ("1000000 50000 ", "1000000 -5 ", "no bandwidth"),
        ("0302 [10de:1db5] [10de:1249] a1", "what", "cannot be read"),
        ('pci_busid="0000:81:00.0"', 'pci_busid="x"', "no PCI address"),
        ('pci_link_speed="7.876923"', 'pci_link_speed="fast"', "fast"),
        ('type="NUMANode" os_index="1"', 'type="NUMANode"', "os_index"),
        (
            'cpuset="0x0000000c" nodeset="0x00000002" gp_index="5"',
            'cpuset="zz" gp_index="5"',
            "cpuset",
        ),
    ],
)
def test_hwloc_value_that_cannot_be_read_is_refused_with_its_line(old, new, reason):
    text = HWLOC.read_text()
    assert old in text
    line, what = refusal(text.replace(old, new))
    assert reason in what
    assert line > 1


def test_device_of_several_nodes_in_hwloc_hangs_below_an_unknown_one():
    inside = (
        '<object type="NUMANode" os_index="0" cpuset="0x1" nodeset="0x1" gp_index="3"/>'
        '<object type="NUMANode" os_index="1" cpuset="0x2" nodeset="0x2" gp_index="4"/>'
        '<object type="Bridge" gp_index="5" bridge_type="0-1">'
        '<object type="PCIDev" gp_index="6" pci_busid="0000:01:00.0" pci_type="0200 [15b3:101b] [0:0]"/></object>'
    ).replace("[0:0]", "[0000:0000]")
    text = (
        f'<topology version="2.0"><object type="Machine" nodeset="0x3">{inside}</object></topology>'
    )
    assert parse(text).by_id["nic:0000:01:00.0"].parent == "cpu:unknown"


@pytest.mark.parametrize("file", [EIGHT, ODD, HWLOC], ids=lambda file: file.stem)
def test_dump_reads_as_what_was_dumped(file):
    found = load.load(file)
    text = json.dumps({"generation": 3, "machine": dump.to_json(found)})
    assert parse(text) == found
    assert parse(json.dumps(dump.to_json(found))) == found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.update(format="x"), "no dump"),
        (lambda v: v.update(version=2), "version 2"),
        (lambda v: v["devices"][0].update(id=5), r"\$\.devices\[0\]\.id"),
        (lambda v: v["devices"][0].update(kind="toaster"), "toaster"),
        (lambda v: v["devices"].append(v["devices"][0]), "there twice"),
        (lambda v: v["devices"][3].update(parent="gpu:nowhere"), "which is not there"),
        (lambda v: v["devices"][2].update(parent=v["devices"][2]["id"]), "below itself"),
        (lambda v: v["links"][0].update(target="x"), "leads to 'x'"),
    ],
)
def test_dump_that_is_wrong_is_refused_with_the_place(change, reason):
    values = dump.to_json(load.load(EIGHT))
    change(values)
    with pytest.raises(ValueError, match=reason):
        dump.from_json(values)


def test_text_that_is_no_json_is_refused_with_its_line():
    assert refusal('{\n"format": ,}') == (2, "not JSON: Expecting value")
    assert "no dump" in refusal("{}")[1]
    assert refusal("{" * 100_000)[1]


DAMAGE = st.tuples(st.integers(0, 1 << 20), st.sampled_from([
    b'"-1"', b'"0"', b'""', b'"99999999999999999999"', b'"x"', b'"fffffff:ff:ff.0"', b'"0x068000"', b'"nan"',
    b'"1e400"', '"²"'.encode(), b"<", b"</pci>", b"&x;", b"null", b"[", b"\xff",
]))  # fmt: skip


@example(None, [(2195, b'""')])  # a note about a thing without a name
@settings(max_examples=200, deadline=None)
@given(st.sampled_from([EIGHT, ODD, HWLOC, None]), st.lists(DAMAGE, min_size=1, max_size=4))
def test_damaged_file_loads_or_is_refused_and_never_anything_else(file, damage):
    data = json.dumps(dump.to_json(load.load(ODD))).encode() if file is None else file.read_bytes()
    for place, text in damage:
        values = list(re.finditer(rb'"[^"]*"|<|>', data))
        value = values[place % len(values)]
        data = data[: value.start()] + text + data[value.end() :]
    try:
        found = load.parse(data)
    except Refused as refused:
        assert refused.line >= 1 and refused.what
        return
    nccl_write.write(found)
    assert dump.from_json(dump.to_json(found)) == found


def lines(before, after):
    return [str(found) for found in diff.differences(before, after)]


def test_same_topology_differs_in_nothing():
    assert lines(load.load(EIGHT), load.load(EIGHT)) == []


def test_differences_name_what_came_went_and_changed():
    text = EIGHT.read_text()
    before = parse(text)
    after = parse(
        text.replace('<net name="mlx5_0" dev="0" speed="200000"', '<net name="mlx5_0" dev="0" speed="100000"')
        .replace('link_width="16">\n        <gpu dev="7"', 'link_width="8">\n        <gpu dev="7"')
        .replace('name="mlx5_3"', 'name="mlx5_9"')
    )  # fmt: skip
    found = lines(before, after)
    assert "~ port:mlx5_0/1: rate 25 GB/s → 12.5 GB/s" in found
    assert "- port:mlx5_3/1" in found and "+ port:mlx5_9/1" in found
    assert "~ pcie gpu:0000:a2:00.0 → switch:0000:a0:00.0: width 16 → 8" in found
    assert [
        line.replace("+", "*").replace("-", "+", 1)
        for line in lines(after, before)
        if line[0] == "-"
    ]
