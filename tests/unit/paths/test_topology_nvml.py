"""What NVML adds to a topology; a library that plays two GPUs with NVSwitches, and all that real ones refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fabric.paths.discovery import nccl_write, nvml
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Topology
from fabric.paths.discovery.path_class import PathClass, Paths

NEAR, FAR = "0000:03:00.0", "0000:81:00.0"


class NVMLError(Exception):
    pass


class FakeNvml:
    """Answers as nvidia-ml-py does: bus ids of eight digits, bytes or text, errors for what a GPU has not."""

    NVMLError = NVMLError
    NVML_P2P_CAPS_INDEX_READ = (0,)  # as nvidia-ml-py 13.615 has it

    def __init__(self, far=None, refuse=(), links=4, ancestor=50):
        self.far = far or {link: (2, b"00000000:61:00.0") for link in range(links)}
        self.refuse = set(refuse)
        self.ancestor = ancestor
        self.is_open = False
        self.gpus = ["00000000:03:00.0", b"00000000:81:00.0"]

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in object.__getattribute__(self, "refuse"):
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *arguments):
        raise NVMLError("Not Supported")

    def nvmlInit(self):
        self.is_open = True

    def nvmlShutdown(self):
        assert self.is_open
        self.is_open = False

    def nvmlSystemGetDriverVersion(self):
        return "570.1"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetPciInfo(self, handle):
        return SimpleNamespace(busId=self.gpus[handle])

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA H100 80GB HBM3" if handle else "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return (9, 0)

    def nvmlDeviceGetNvLinkState(self, handle, link):
        if link > len(self.far):
            raise NVMLError("Invalid Argument")
        return int(link < len(self.far))

    def nvmlDeviceGetNvLinkVersion(self, handle, link):
        return 4

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle, link):
        return self.far[link][0]

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle, link):
        return SimpleNamespace(busId=self.far[link][1])

    def nvmlDeviceGetP2PStatus(self, handle, far, index):
        assert index == 0
        return 0

    def nvmlDeviceGetTopologyCommonAncestor(self, handle, far):
        return self.ancestor


@pytest.fixture
def machine():
    cpus = [Device(f"cpu:{n}", Kind.cpu, None, f"numa{n}", numa=n) for n in (0, 1)]
    gpus = [
        Device(
            f"gpu:{place}", Kind.gpu, f"cpu:{n}", f"gpu{n}", numa=n, address=place, vendor_id=0x10DE
        )
        for n, place in enumerate((NEAR, FAR))
    ]
    links = [Link(LinkKind.pcie, g.id, g.parent, 10e9) for g in gpus]
    smp = Link(LinkKind.smp, "cpu:0", "cpu:1")
    return Topology("m", "sysfs", (*cpus, *gpus), (*links, smp))


def join(machine, library):
    return nvml.add(machine, nvml.read(library))


def test_gpus_get_their_names_numbers_memory_and_peers(machine):
    gpu = join(machine, FakeNvml()).by_id[f"gpu:{FAR}"]
    assert (gpu.name, gpu.model) == ("gpu1", "NVIDIA H100 80GB HBM3")
    assert gpu.attributes["memory_bytes"] == str(80 << 30)
    assert (gpu.attributes["sm"], gpu.attributes["uuid"]) == ("90", "GPU-1")
    assert gpu.attributes[f"p2p {NEAR}"] == "ok"


def test_nvlinks_to_switches_that_sysfs_does_not_show_lead_to_one_hidden_switch(machine):
    found = join(machine, FakeNvml())
    links = [k for k in found.links if k.kind is LinkKind.nvlink]
    assert [(k.source, k.target, k.count, k.rate) for k in links] == [
        (f"gpu:{place}", "nvswitch:hidden", 4, 100e9) for place in (NEAR, FAR)
    ]
    assert Paths(found).cls(f"gpu:{NEAR}", f"gpu:{FAR}") is PathClass.NVL
    assert 'target="fffffff:ff:ff.0" count="4" tclass="0x068000"' in nccl_write.write(found)


def test_nvlinks_between_gpus_lead_to_each_other(machine):
    links = {0: (0, b"00000000:81:00.0"), 1: (0, "00000000:81:00.0")}
    found = join(machine, FakeNvml(far=links))
    fast = list(found.links_from(f"gpu:{NEAR}", LinkKind.nvlink))
    assert [(k.target, k.count, k.rate) for k in fast] == [(f"gpu:{FAR}", 2, 50e9)]


def test_nvlink_to_a_cpu_leads_to_the_gpus_own_node(machine):
    found = join(machine, FakeNvml(far={0: (1, b"00000004:04:00.0")}))
    assert [k.target for k in found.links if k.kind is LinkKind.nvlink] == ["cpu:0", "cpu:1"]


def test_nvlink_to_a_gpu_that_is_not_here_is_noted(machine):
    found = join(machine, FakeNvml(far={0: (0, b"00000000:99:00.0")}))
    assert not [k for k in found.links if k.kind is LinkKind.nvlink]
    assert any("0000:99:00.0, which is not here" in note.what for note in found.notes)


def test_links_that_are_down_are_counted_and_noted(machine):
    """One link more than are up answers, and is inactive; beyond it the GPU refuses."""
    found = join(machine, FakeNvml())
    assert [n.what for n in found.notes if "down" in n.what] == ["1 NVLinks are down"] * 2


def test_distance_that_nvml_sees_differently_is_noted_once(machine):
    found = join(machine, FakeNvml(ancestor=30))
    told = [n.what for n in found.notes if "by NVML" in n.what]
    assert told == ["the way to gpu1 is SYS by the PCI tree, PHB by NVML"]
    assert not [n for n in join(machine, FakeNvml()).notes if "by NVML" in n.what]


@pytest.mark.parametrize(
    "question",
    sorted(
        name
        for name in vars(FakeNvml)
        if name.startswith("nvml") and name not in ("nvmlInit", "nvmlShutdown")
    ),
)
def test_question_that_is_refused_leaves_out_its_fact_alone(machine, question):
    library = FakeNvml(refuse={question})
    found = join(machine, library)
    assert not library.is_open
    assert len(found.of_kind(Kind.gpu)) == 2
    if question == "nvmlDeviceGetName":
        assert found.by_id[f"gpu:{NEAR}"].attributes["uuid"] == "GPU-0"
    if question in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetPciInfo"):
        assert "NVLinks are not known" in found.notes[0].what


def test_machine_without_driver_or_library_is_noted_only_where_it_has_such_gpus(machine):
    report = nvml.read(FakeNvml(refuse={"nvmlInit"}))
    assert report.absent == "Not Supported"
    assert "Not Supported" in nvml.add(machine, report).notes[0].what
    bare = Topology("m", "sysfs", machine.devices[:2])
    assert nvml.add(bare, report) is bare


def test_library_that_is_not_installed_is_said_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert nvml.read().absent == "nvidia-ml-py is not installed"


def test_gpu_that_sysfs_does_not_show_is_noted(machine):
    library = FakeNvml()
    library.gpus.append("00000000:99:00.0")
    assert any("is not in sysfs" in note.what for note in join(machine, library).notes)
