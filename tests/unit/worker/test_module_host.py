"""A module is bound to its channels, fed, drained and ended by its host; nothing it raises is swallowed."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import ConfigError, ContractError
from fabric.worker.host import HostSettings, ModuleHost, load_module_class
from fabric.worker.module import Call, In, Module, Out, Serve, fields_of


class Text:
    """Stands for a message type."""


class Letter:
    """A received message; remembers how it ended."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.ends: list[str] = []
        self.ended = threading.Event()

    def ack(self) -> None:
        self.ends.append("ack")

    def nack(self) -> None:
        self.ends.append("nack")

    def fail(self, error: Exception) -> None:
        self.ends.append(f"fail {error}")
        self.ended.set()

    def release(self) -> None:
        self.ends.append("release")
        self.ended.set()


class Endpoint:
    """Receives from, or sends to, a list."""

    def __init__(self, channel: str, *types: type) -> None:
        self.channel, self.types = channel, types
        self.waiting: queue.Queue[Letter] = queue.Queue()
        self.sent: list[Any] = []
        self.flushed = False

    def receive(self, timeout: float) -> Letter | None:
        try:
            return self.waiting.get(timeout=min(timeout, 0.01))
        except queue.Empty:
            return None

    def pending(self) -> int:
        return self.waiting.qsize()

    def send(self, item: Any) -> None:
        self.sent.append(item)

    def flush(self, timeout: float) -> None:
        self.flushed = True


class FakePort:
    """Opens `Endpoint`s of every role and notes readiness."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.is_ready = threading.Event()

    def _open(self, channel: str, *types: type) -> Endpoint:
        return self.endpoints.setdefault(channel, Endpoint(channel, *types))

    receiver = sender = responder = requester = _open

    def ready(self) -> None:
        self.is_ready.set()


class Upper(Module):
    """Upper-cases text."""

    text: In[Text]
    loud: Out[Text]

    def on_text(self, message: Any) -> None:
        if message.text == "bad":
            raise ValueError("cannot")
        self.loud.send(message.text.upper())


class Running:
    """A host on its own thread."""

    def __init__(self, cls: type[Module], **settings: Any) -> None:
        self.port = FakePort()
        self.host = ModuleHost(self.port, cls, HostSettings("m:C", "m1", **settings))
        self.status: int | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self.port.is_ready.wait(5)

    def _serve(self) -> None:
        self.status = self.host.serve()

    def put(self, channel: str, text: str) -> Letter:
        letter = Letter(text)
        self.port.endpoints[channel].waiting.put(letter)
        assert letter.ended.wait(5)
        return letter

    def stop(self) -> int | None:
        self.host.stop(grace_s=2.0)
        self._thread.join(5)
        return self.status


def test_message_is_acknowledged_after_its_handler_returned() -> None:
    running = Running(Upper)
    assert running.put("text", "hello").ends == ["ack", "release"]
    assert running.port.endpoints["loud"].sent == ["HELLO"]
    assert running.stop() == 0


def test_message_whose_handler_raises_is_refused_and_the_next_is_served() -> None:
    running = Running(Upper)
    assert running.put("text", "bad").ends == ["nack", "release"]
    assert running.put("text", "good").ends == ["ack", "release"]
    assert running.stop() == 0


def test_fields_bind_to_the_channels_that_the_configuration_names() -> None:
    running = Running(Upper, channels={"text": "incoming"})
    assert set(running.port.endpoints) == {"incoming", "loud"}
    assert running.port.endpoints["incoming"].types == (Text,)
    running.stop()


def test_async_handlers_and_async_run_share_one_loop() -> None:
    class Async(Upper):
        async def start(self) -> None:
            self.loop_threads = {threading.current_thread().name}

        async def on_text(self, message: Any) -> None:
            self.loop_threads.add(threading.current_thread().name)
            self.loud.send(message.text)

    running = Running(Async)
    assert running.put("text", "x").ends == ["ack", "release"]
    assert running.host.module.loop_threads == {"module-loop"}
    assert running.stop() == 0


def test_stop_serves_what_waits_then_drains_then_flushes() -> None:
    class Slow(Upper):
        def drain(self) -> None:
            self.loud.send("drained")

    running = Running(Slow)
    letters = [Letter("x") for _ in range(5)]
    for letter in letters:
        running.port.endpoints["text"].waiting.put(letter)
    assert running.stop() == 0
    assert all(letter.ends == ["ack", "release"] for letter in letters)
    loud = running.port.endpoints["loud"]
    assert loud.sent == ["X"] * 5 + ["drained"] and loud.flushed


def test_failure_of_run_ends_the_module_with_status_one() -> None:
    class Broken(Module):
        def run(self) -> None:
            raise RuntimeError("weights are gone")

    running = Running(Broken)
    running._thread.join(5)
    assert running.status == 1


def test_run_that_ignores_a_stop_does_not_hold_the_host_beyond_its_grace() -> None:
    released = threading.Event()

    class Stuck(Module):
        def run(self) -> None:
            released.wait(30)

    running = Running(Stuck)
    running.host.stop(grace_s=0.1)
    running._thread.join(3)
    assert running.status == 0
    released.set()


def test_failed_request_is_answered_with_its_error() -> None:
    class Server(Module):
        ask: Serve[Text, Text]

        def on_ask(self, message: Any) -> None:
            raise ValueError("no such city")

    running = Running(Server)
    assert running.put("ask", "x").ends == ["fail no such city"]
    assert running.stop() == 0


def test_snapshot_of_one_incarnation_is_given_to_the_next(tmp_path: Path) -> None:
    class Counter(Module):
        state = b"0"

        def restore(self, state: bytes) -> None:
            self.state = state

        def snapshot(self) -> bytes:
            return self.state + b"1"

    for expected in (b"01", b"011"):
        running = Running(Counter, state_file=tmp_path / "state")
        running.stop()
        assert (tmp_path / "state").read_bytes() == expected


def test_fields_carry_kind_and_types() -> None:
    class Every(Module):
        a: In[Text]
        b: Out[Text]
        c: Serve[Text, Letter]
        d: Call[Text, Letter]
        plain: int

    assert [(f.name, f.kind, f.types) for f in fields_of(Every)] == [
        ("a", In, (Text,)),
        ("b", Out, (Text,)),
        ("c", Serve, (Text, Letter)),
        ("d", Call, (Text, Letter)),
    ]


def test_handler_without_a_field_is_refused_by_name() -> None:
    class Wrong(Module):
        text: Out[Text]

        def on_text(self, message: Any) -> None: ...

    with pytest.raises(ContractError, match="on_text belongs to no In"):
        fields_of(Wrong)


def test_field_without_its_message_type_is_refused() -> None:
    class Bare(Module):
        text: In  # type: ignore[type-arg]

    with pytest.raises(ContractError, match="text needs 1 message type"):
        fields_of(Bare)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_colon", "write package.module:Class"),
        ("no.such.package:Class", "No module named"),
        ("fabric.worker.module:Nothing", "no attribute"),
        ("fabric.worker.host:HostSettings", "is not a subclass"),
        ("/no/such/file.py:Class", "no file"),
    ],
)
def test_class_that_cannot_be_loaded_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_module_class(name)


def test_class_of_a_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from fabric.worker.module import Module\nclass Mine(Module):\n    pass\n")
    assert load_module_class(f"{file}:Mine").__name__ == "Mine"


def test_settings_name_the_variable_that_is_missing_or_wrong() -> None:
    with pytest.raises(ConfigError, match="FABRIC_MODULE is not set"):
        HostSettings.from_environment({})
    base = {"FABRIC_MODULE": "m:C", "FABRIC_MODULE_NAME": "n"}
    with pytest.raises(ConfigError, match="FABRIC_MODULE_CONFIG is not JSON"):
        HostSettings.from_environment({**base, "FABRIC_MODULE_CONFIG": "{"})
    with pytest.raises(ConfigError, match="must be a JSON object"):
        HostSettings.from_environment({**base, "FABRIC_MODULE_CHANNELS": "[]"})
    assert HostSettings.from_environment({**base, "FABRIC_MODULE_CONFIG": '{"a": 1}'}).config == {
        "a": 1
    }
