"""Codecs at the ends of channels between two nodes: bits, places, failures, and deaths in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fabric
from fabric.errors import ConfigError, TransformError
from tests.integration.kill_nodes import Cluster, Worker, balanced, settled, wait_for

pytestmark = pytest.mark.promise("P2", "P1")

PACKAGE = Path(__file__).with_name("codec_package")
CONSUMER = Path(__file__).with_name("codec_consumer.py")
MARK = Path(__file__).with_name("codec_mark.py")


@fabric.message("codec.kv")
class KV:
    number: int
    k: fabric.Tensor["tokens dim", "bf16"]
    extra: fabric.Tensor["n", "i64"] | None = None


def made(number: int, first: int = 0) -> KV:
    k = np.arange(64 * 128, dtype=np.uint16).reshape(64, 128) & 0x0F0F
    k[0, 0] = first or number
    return KV(number, k, np.arange(number % 5))


def is_made(got: Any, number: int) -> bool:
    wanted = made(number)
    same = np.array_equal(got.k, wanted.k) and np.array_equal(got.extra, wanted.extra)
    return bool(got.number == number and same and got.k.dtype == np.uint16)


class Ends:
    """Two nodes, and a port on each."""

    def __init__(self, cluster: Cluster, stack: ExitStack) -> None:
        self.near = cluster.node("a")
        self.far = cluster.node("b", self.near)
        self.cluster, self._stack, self._ports = cluster, stack, 0

    def port(self, node: Any) -> Any:
        self._ports += 1
        return self._stack.enter_context(fabric.attach(f"p{self._ports}", node.socket))

    def channel(self, name: str, receiver: Any, codec: dict[str, Any], **more: Any) -> Any:
        """Return a sender on the near node and a receiver on another."""
        source, sink = self.port(self.near), self.port(receiver)
        source.declare(name, KV, delivery="at_least_once", transforms=[codec], **more)
        inn = sink.receiver(name, KV)
        return source.sender(name, KV), inn

    def consumer(self, node: Any, channel: str) -> Worker:
        """Start a process that reports and acknowledges what it gets; it is ready."""
        output = node.folder / f"{channel}.out"
        command = [sys.executable, str(CONSUMER), channel]
        environment = {**os.environ, "FABRIC_SOCKET": node.socket}
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        worker = Worker(process, output, channel)
        self.cluster.workers.append(worker)
        worker.wait_for("ready")
        return worker


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    before = os.environ.get("PYTHONPATH")
    folder = Path(f"/tmp/fc-{os.getpid()}")
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.syspath_prepend(str(PACKAGE))
        paths = [str(PACKAGE), *([before] if before else [])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        cluster = Cluster(folder)
        stack.callback(cluster.close)
        yield Ends(cluster, stack)


def counts(sender: Any) -> dict[str, int]:
    rows: list[dict[str, Any]] = []
    sender.explain_codec(rows)
    found: dict[str, int] = rows[0]["counts"]
    return found


def take(receiver: Any, number: int) -> None:
    message = receiver.receive(20)
    assert message is not None and is_made(message, number)
    message.ack()
    message.release()


def test_what_is_encoded_between_nodes_arrives_as_declared_bit_for_bit(ends: Ends) -> None:
    sender, receiver = ends.channel("bits", ends.far, {"name": "shuffled", "when": "always"})
    for number in range(20):
        sender.send(made(number))
        take(receiver, number)
    with sender.loan(k=(64, 128), extra=(3,)) as draft:
        draft.number, draft.k[...], draft.extra[...] = 3, made(3).k, np.arange(3)
    take(receiver, 3)
    sender.send_many([made(1), made(2)])
    take(receiver, 1)
    take(receiver, 2)
    sender.flush(20)
    found = counts(sender)
    assert found["coded"] == 23 and found["wire_bytes"] < found["raw_bytes"] / 2
    assert sender.stats()["delivered"] == 23


def test_within_a_node_a_codec_acts_only_where_it_is_told_to(ends: Ends) -> None:
    codec = {"name": "shuffled", "when": "always"}
    sender, receiver = ends.channel("near", ends.near, codec)
    wait_for("a flow", sender.flows_known)
    sender.send(made(1))
    take(receiver, 1)
    assert "coded" not in counts(sender)
    sender, receiver = ends.channel("near.always", ends.near, {**codec, "where": "always"})
    sender.send(made(2))
    take(receiver, 2)
    assert counts(sender)["coded"] == 1


def test_a_codec_that_fails_lets_the_tensor_pass_raw_or_refuses_the_send(ends: Ends) -> None:
    codec = {"name": "shuffled", "when": "always", "trips": True}
    sender, receiver = ends.channel("passes", ends.far, codec)
    sender.send(made(7, first=0xEE))
    assert receiver.receive(20).k[0, 0] == 0xEE
    assert counts(sender)["errors"] == 1
    sender, receiver = ends.channel("refuses", ends.far, {**codec, "name": "refusing"})
    with pytest.raises(TransformError, match=r"'refusing' on 'refuses', field 'k'.*it tripped"):
        sender.send(made(7, first=0xEE))
    sender.send(made(8))
    take(receiver, 8)


@pytest.mark.parametrize(
    ("codec", "error", "said"),
    [
        ({"name": "shuffled", "levle": 1}, ConfigError, "has no parameter 'levle'; did you mean"),
        ({"name": "staged"}, ConfigError, "says tier='stage'"),
        ({"name": "shuffled", "when": "often"}, ConfigError, "use one of pays, always, never"),
        ({"name": "nowhere"}, ConfigError, "there is no transform 'nowhere'"),
    ],
)
def test_a_codec_that_cannot_be_is_refused_where_it_is_declared(
    ends: Ends, codec: dict[str, Any], error: type[Exception], said: str
) -> None:
    port = ends.port(ends.near)
    with pytest.raises(error, match=said):
        port.declare("refused", KV, transforms=[codec])


FILE = """version: 1
plugins: ["{mark}"]
channels:
  planned: {{type: codec.kv, delivery: at_least_once, transforms: [{entries}]}}
"""


def test_a_file_gives_transforms_their_parameters_and_what_does_not_fit_is_refused(
    ends: Ends,
) -> None:
    def text(entries: str) -> str:
        return FILE.format(mark=MARK, entries=entries)

    sender, receiver = ends.channel("planned", ends.far, {"name": "shuffled", "when": "never"})
    sender.send(made(4))
    take(receiver, 4)
    with pytest.raises(
        ConfigError, match="'codec_mark' has no parameter 'row'; did you mean 'rows'"
    ):
        ends.near.call("apply", text("{name: codec_mark, row: 32}"))
    coded = "{name: shuffled, when: always, level: 2}"
    with pytest.raises(ConfigError, match="'refusing' follows the codec 'shuffled'"):
        ends.near.call("apply", text(f"{coded}, refusing"))
    ends.near.call("apply", text(f"{{name: codec_mark, rows: 32}}, {coded}"))
    half = KV(5, made(5).k[:32])
    sender.send(half)
    got = receiver.receive(20)
    assert np.array_equal(got.k, half.k) and got.extra is None
    got.ack()
    rows = ends.far.call(
        "codec_why", "planned"
    )  # the stage is on the near node: its outlet encodes
    assert sum(row["counts"].get("coded", 0) for row in rows) == 1
    assert {row["when"] for row in rows} == {"always"}
    sender.send(made(6))
    wait_for("its refusal", lambda: "failed(transform_error)" in sender.stats())
    ends.near.call(
        "apply", "version: 1\nchannels:\n  planned: {type: codec.kv, delivery: at_least_once}\n"
    )
    sender.send(made(7))
    take(receiver, 7)


def test_nothing_is_lost_when_a_receiver_dies_with_encoded_messages(ends: Ends) -> None:
    codec = {"name": "shuffled", "when": "always"}
    source = ends.port(ends.near)
    source.declare("dies", KV, delivery="at_least_once", pattern="queue", transforms=[codec])
    dying = ends.consumer(ends.far, "dies")
    sender = source.sender("dies", KV)
    for number in range(40):
        sender.send(made(number))
    dying.wait_for("got", 1)
    dying.kill()
    receiver = ends.port(ends.far).receiver("dies", KV)
    before = {report["got"] for report in dying.reports("acked")}
    seen = set()
    while len(seen | before) < 40:
        message = receiver.receive(20)
        assert message is not None, f"{40 - len(seen | before)} messages never came again"
        assert is_made(message, message.number)
        seen.add(message.number)
        message.ack()
    balanced(ends.near)


def test_killed_stage_host_between_coded_hops_is_healed_and_loses_nothing(ends: Ends) -> None:
    codec = {"name": "shuffled", "when": "always"}
    sender, receiver = ends.channel("staged", ends.far, codec)
    sender.send(made(0))
    take(receiver, 0)
    options = {"channel": "staged", "kind": "transform"}
    ends.far.call("plugin_load", str(MARK), MARK.read_text(), **options)  # so its inlet decodes
    row = next(r for r in ends.far.call("ls", "plugin") if r["name"] == "codec_mark")
    seen: list[int] = []
    for number in range(1, 61):
        sender.send(made(number), deadline=20)
        if number == 20:
            os.kill(row["pid"], signal.SIGKILL)
    while set(seen) != set(range(1, 61)):
        message = receiver.receive(20)
        assert message is not None, f"{sorted(set(range(1, 61)) - set(seen))} never came"
        assert is_made(message, message.number)
        seen.append(message.number)
        message.ack()
    assert settled(ends.near, "staged")["failed"] == 0
    balanced(ends.near)
