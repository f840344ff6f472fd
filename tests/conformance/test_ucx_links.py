"""The link conformance suite over UCX: tcp, shared memory, beside a tcp rail, and with faults."""

from __future__ import annotations

import pytest

from fabric.testing import ucx_rigs
from fabric.testing.link_conformance import LinkConformance

assert ucx_rigs.UcxTcpRig.transports == "tcp"

pytestmark = [pytest.mark.needs_ucx, pytest.mark.promise("P2", "P6")]


class TestUcxTcp(LinkConformance):
    rig_name = "ucx_tcp"


class TestUcxShm(LinkConformance):
    rig_name = "ucx_shm"


class TestUcxBesideTcp(LinkConformance):
    rig_name = "ucx_rails"


class TestFaultUcxTcp(LinkConformance):
    rig_name = "fault_ucx_tcp"


class TestFaultUcxShm(LinkConformance):
    rig_name = "fault_ucx_shm"
