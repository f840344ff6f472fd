"""A tensor in a GPU's memory through a channel: read when it is sent, put on a GPU after it came."""

from __future__ import annotations

import numpy as np

import fabric
from fabric.messages import device
from fabric.testing.local import LocalFabric


@fabric.message("test.on_device")
class OnDevice:
    k: fabric.Tensor["tokens dim", "f32"]


def test_tensor_on_a_gpu_is_sent_and_put_on_one_after_it_came(fake_cuda, monkeypatch):
    sent = np.arange(6000, dtype=np.float32).reshape(2, 3000)
    with LocalFabric() as node:
        monkeypatch.setenv("FABRIC_SOCKET", node.path)
        with fabric.attach("left") as left, fabric.attach("right") as right:
            left.declare("k", OnDevice, pattern="stream")
            out, inn = left.sender("k", OnDevice), right.receiver("k", OnDevice)
            out.send(OnDevice(device.to_device(sent)), deadline=20)
            with inn.receive(timeout=20) as got:
                assert (got.k == sent).all()
                assert (device.to_host(device.to_device(got.k, 1)) == sent).all()
                got.ack()
