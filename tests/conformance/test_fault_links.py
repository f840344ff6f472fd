"""The link conformance suite over links that lose, repeat, reorder, corrupt and delay frames."""

from __future__ import annotations

import pytest

from fabric.testing import fault_rigs
from fabric.testing.link_conformance import LinkConformance

assert set(fault_rigs.FAULTS) >= {"link_lose", "link_repeat", "link_reorder", "link_corrupt"}


@pytest.mark.promise("P2", "P6")
class TestFaultInproc(LinkConformance):
    rig_name = "fault_inproc"


@pytest.mark.promise("P2", "P6")
class TestFaultTcp(LinkConformance):
    rig_name = "fault_tcp"


@pytest.mark.promise("P2", "P6")
class TestFaultRails(LinkConformance):
    rig_name = "fault_rails"
