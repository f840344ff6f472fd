"""The demo tells the truth: exact when it is, not exact when KV was damaged unseen, and it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "token_exact", "prompts", "tokens", "dtype", "kv_link", "kv_bytes", "kv_messages", "ttft_ms", "kv_hidden_fraction",
    "audit_balanced", "leftovers", "nodes",
}  # fmt: skip
KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 4  # layers, K and V, heads, dim, float32

pytestmark = [pytest.mark.models, pytest.mark.deadline(240)]


def demo(report: Path, *words: str, fault: str = "", netns: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "KEEP": "", "NETNS": netns}
    if fault:
        environment |= {"FABRIC_FAULTS": "1", "FABRIC_ENGINE_FAULT": fault}
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), *words, "--report", str(report)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], report: Path) -> tuple[int, dict[str, Any], str]:
    output, _ = process.communicate(timeout=200)
    facts: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    return process.returncode, facts, output


def test_long_prompt_is_exact_balanced_clean_and_its_kv_is_hidden(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    status, facts, output = finish(demo(report, "long letter", "capital", "--tokens", "6"), report)
    assert status == 0, output
    assert facts.keys() >= KEYS
    assert facts["token_exact"] and facts["audit_balanced"] and facts["leftovers"] == []
    assert facts["kv_link"] == "tcp" and facts["nodes"] == ["a", "b"]
    assert facts["kv_bytes"] == sum(facts["prompt_tokens"]) * KV_BYTES_PER_TOKEN
    assert facts["kv_messages"] == 2 * 30
    assert facts["kv_hidden_fraction"] >= 0.95, output


@pytest.mark.netns
def test_nodes_in_two_network_namespaces_serve_exactly_and_leave_no_namespace(
    tmp_path: Path,
) -> None:
    report = tmp_path / "report.json"
    status, facts, output = finish(demo(report, "capital", "--tokens", "4", netns="1"), report)
    assert status == 0, output
    assert facts["token_exact"] and facts["audit_balanced"] and facts["leftovers"] == []
    assert facts["kv_link"] == "tcp"


@pytest.mark.parametrize(
    "fault",
    ["flip_after_checksum:12", pytest.param("zero_after_checksum:12", marks=pytest.mark.sweep)],
)
def test_kv_damaged_after_its_checksum_makes_the_answer_inexact(tmp_path: Path, fault: str) -> None:
    """The checksum cannot see it, so the comparison with one process must.

    Layer 11 (the 12th payload): without its KV this answer changes at its second token; some other layers can be
    zeroed without a change in a short answer.
    """
    report = tmp_path / "report.json"
    status, facts, output = finish(demo(report, "haiku", "--tokens", "12", fault=fault), report)
    assert status == 1, output
    assert facts["token_exact"] is False
    assert facts["audit_balanced"] and facts["leftovers"] == []


def test_interrupt_while_modules_load_leaves_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    process = demo(report, "capital", "--tokens", "4")
    assert process.stdout is not None
    for line in process.stdout:
        if "applying" in line:
            break
    process.send_signal(signal.SIGINT)
    status, facts, output = finish(process, report)
    assert status == 130, output
    assert facts["leftovers"] == [] and facts["token_exact"] is False
