"""iperf3 is a line of its own, whatever becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import iperf

FAKE = """#!/bin/sh
case $1 in
  --server) exec sleep 60 ;;
  *) printf '%s' '{"end": {"sum_sent": {"bits_per_second": 4e10}}}' ;;
esac
"""


def test_its_bits_are_told_in_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "iperf3"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert iperf.sentence() == "iperf3, one stream over loopback: 5.00 GB/s (printed only)"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60"])
def test_one_that_fails_is_a_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program = tmp_path / "iperf3"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(iperf, "DEADLINE_S", 0.5)
    assert iperf.sentence().startswith("iperf3: ")


def test_it_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert iperf.sentence() == "iperf3: not installed (printed only)"
