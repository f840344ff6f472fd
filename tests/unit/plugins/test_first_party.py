import pytest
from fabric_plugins.tap import Tap
from fabric_plugins.throttle import Throttle

from fabric.abc.transform import Defer, TransformContext
from fabric.messages import MessageHeader


def context(now_s: float, headers: tuple[MessageHeader, ...] = ()) -> TransformContext:
    return TransformContext("p", "t", "c", int(now_s * 1e9), headers)


def header(payload_bytes: int, redelivered: bool = False) -> MessageHeader:
    return MessageHeader(None, 1, 1, 1, redelivered, 0, payload_bytes, 0)


def test_tap_counts_and_changes_nothing(capsys):
    tap, batch = Tap(), ["a", "b"]
    assert tap.apply(batch, context(10, (header(100), header(28, redelivered=True)))) is batch
    assert (tap.messages, tap.payload_bytes, tap.redelivered) == (2, 128, 1)
    assert "c: 2 messages (+2), 128 bytes, 1 redelivered" in capsys.readouterr().out


def test_tap_reports_at_most_once_a_second(capsys):
    tap = Tap()
    for now_s in (10, 10.5, 10.9, 11.1):
        tap.apply(["a"], context(now_s))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_throttle_defers_what_is_over_the_rate():
    results = Throttle(per_s=20).apply(["a", "b", "c"], context(0))
    assert results[:2] == ["a", "b"]
    assert isinstance(results[2], Defer) and results[2].after_s == pytest.approx(0.05)


def test_throttle_lets_its_rate_through_over_time():
    throttle, passed = Throttle(per_s=100), 0
    for step in range(1000):
        results = throttle.apply(["m"] * 5, context(step / 100))
        passed += sum(r == "m" for r in results)
    assert passed == pytest.approx(1000, abs=11)


def test_throttle_without_a_rate_is_refused(monkeypatch):
    monkeypatch.setenv("FABRIC_THROTTLE_PER_S", "0")
    with pytest.raises(ValueError, match="give a rate above 0"):
        Throttle()
