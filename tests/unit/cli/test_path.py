"""`fabricctl path` and `bench path`: what is asked, what is printed, at 80 and at 120 columns."""

import json
import os
import re
from typing import Any

import pytest
import yaml

from fabric import errors
from fabric.cli import path_tables
from fabric.controlplane.rail_probe import Wish
from fabric.testing.fake_control import PATH_SHOWN, RAILS
from fabric.worker.probe_plan import Budget

MIB = 1 << 20


def as_terminal(monkeypatch, columns):
    """Let tables believe that they are shown on a terminal of that width."""
    from fabric.cli import output

    monkeypatch.setattr(output.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        output.shutil, "get_terminal_size", lambda *_: os.terminal_size((columns, 24))
    )


def plain(text):
    """Return text without what makes a terminal's headings bold."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# ------------------------------------------------------------------ ls
def test_listing_has_a_line_a_rail_with_marks_and_what_waits(fabricctl, control):
    lines = fabricctl("path", "ls").out.splitlines()
    assert lines[0].split() == [
        "PEER", "RAIL", "STATE", "RATE", "LATENCY", "SHARE", "IN", "FLIGHT", "INTERFACE", "FAILURES", "WINDOW",
        "RESENT", "ADDRESSES",
    ]  # fmt: skip
    assert lines[1].split()[:6] == ["b", "0*", "up", "118.4", "MB/s", "180.0"]
    assert "veth0 → eth0" in lines[1] and "10.0.1.1 → 10.0.1.2" in lines[1]
    assert "1!" in lines[2] and "down, waits" in lines[2]
    assert "- → 10.0.2.2:7400" in lines[2]
    assert lines[-2:] == [
        "* takes what goes whole (records); ! pinned: others carry nothing",
        "large messages to b wait: no pinned rail is up; fabricctl path unpin b",
    ]
    assert control.calls == [("path_ls", "")]


@pytest.mark.parametrize(
    "shown", [path_tables.listing, lambda rows: path_tables.shown(shown_of(rows))]
)
def test_rail_that_is_left_out_is_shown_with_the_reason(shown):
    reason = "adds nothing (without it 125.0 MB/s, with it 96.2 MB/s)"
    rows: list[Any] = [
        RAILS[0],
        {**RAILS[0], "rail": 1, "is_primary": False, "left_out": reason},
    ]
    text = shown(rows)
    assert "up, left out" in text and f"rail 1 to b is left out: {reason}" in text
    assert "rail 0 to b" not in text


@pytest.mark.parametrize(
    "shown", [path_tables.listing, lambda rows: path_tables.shown(shown_of(rows))]
)
def test_rails_of_several_links_have_a_column_for_it_and_rails_of_tcp_alone_have_none(shown):
    rows: list[Any] = [RAILS[0], {**RAILS[0], "rail": 1, "link": "ucx+shm"}]
    assert "LINK" in shown(rows) and "ucx+shm" in shown(rows)
    assert "LINK" not in shown(rows[:1])


def shown_of(rows):
    return {**PATH_SHOWN, "rails": rows, "size_bytes": MIB}


def test_listing_of_another_node_asks_for_that(fabricctl, control):
    assert fabricctl("path", "ls", "--from", "b").status == 0
    assert control.calls == [("path_ls", "b")]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "verb", [("ls",), ("show", "b"), ("probe", "b"), ("pin", "b", "--rail", "1")]
)
def test_every_line_fits_a_terminal(fabricctl, control, monkeypatch, columns, verb):
    as_terminal(monkeypatch, columns)
    lines = plain(fabricctl("path", *verb).out).splitlines()
    assert lines and max(len(line) for line in lines) <= columns
    assert any("veth0" in line for line in lines) or columns == 80 or verb[0] == "pin"


def test_wide_leaves_no_column_out(fabricctl, control, monkeypatch):
    as_terminal(monkeypatch, 80)
    narrow = plain(fabricctl("path", "ls").out)
    assert "10.0.1.1" not in narrow and "too narrow for" in narrow
    assert "10.0.1.1 → 10.0.1.2" in fabricctl("path", "ls", "-o", "wide").out


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_machines_get_every_field(fabricctl, control, form):
    text = fabricctl("path", "ls", "-o", form).out
    rows = json.loads(text) if form == "json" else yaml.safe_load(text)
    assert rows[0]["rate"] == 118_400_000 and rows[0]["base_ns"] == 180_000
    assert rows[1]["last_error"] == "10.0.2.2:7400 does not answer within 0.2 s"


# ------------------------------------------------------------------ show, why
def test_show_has_the_formula_the_counts_changes_and_decisions(fabricctl, control):
    out = fabricctl("path", "show", "b", "--size", "4MiB").out
    assert control.calls == [("path_show", "b", None, 4 * MIB, "")]
    assert out.startswith("a → b: tcp (the best that both nodes offer); pinned to rail 1\n")
    assert "score for 4.0 MiB: base + (in flight + size) / rate now = finish" in out
    assert "10.0.2.2:7400 does not answer within 0.2 s" in out
    (last,) = [line for line in out.splitlines() if line.endswith("it stayed silent")]
    assert last.split()[1:4] == ["1", "suspect", "down"]
    assert "0: 9.0 ms, 1: 12.0 ms" in out and "finishes first" in out
    assert "no rail can be used" in out


def test_why_says_it_in_words_then_rail_by_rail(fabricctl, control):
    out = fabricctl(
        "path", "why", "--from", "a", "--to", "b", "--size", "64MiB", "--class", "bulk"
    ).out
    assert control.calls == [("path_why", "a", "b", 64 * MIB, "bulk")]
    assert out.startswith("a → b, 64.0 MiB of class bulk, over tcp:\n  64.0 MiB of class bulk go")
    assert "180.0 µs + (256.0 KiB in flight + 64.0 MiB) / 118.4 MB/s = 569.2 ms" in out
    assert "down: it has no connection" in out
    assert "the scheduler itself made the split" in out


def test_why_needs_both_ends(fabricctl, control):
    assert fabricctl("path", "why", "--from", "a").status == 2
    assert control.calls == []


# ------------------------------------------------------------------ probe, pin
def test_probe_states_its_budget_and_shows_what_failed(fabricctl, control):
    result = fabricctl("path", "probe", "b", "--bytes", "16MiB", "--seconds", "0.5")
    assert control.calls == [("path_probe", "b", None, Wish(20, 16 * MIB, 0.5), "")]
    assert result.err == (
        "probing the rails to b: 20 round trips and at most 16.0 MiB of payload in 0.5 s a rail\n"
    )
    assert "rail 1: 10.0.2.2:7400 does not answer within 1 s" in result.out
    assert "118.4 MB/s" in result.out and result.status == 0


def test_probe_that_reaches_no_rail_fails(fabricctl, control):
    control.path_probe_answer = {
        **control.path_probe_answer,
        "rails": [{"rail": 1, "state": "down", "failed": "no answer"}],
    }
    result = fabricctl("path", "probe", "b", "--rail", "1")
    assert result.status == 1 and "rail 1: no answer" in result.out


def test_pin_takes_numbers_and_repeats_the_warning(fabricctl, control):
    result = fabricctl("path", "pin", "b", "--rail", "0,2")
    assert control.calls == [("path_pin", "b", [0, 2])]
    assert result.out.startswith("traffic to b goes over rail 0, 2 alone; fabricctl path unpin b\n")
    assert "warning: traffic to node b waits" in result.out


def test_unpin_asks_for_no_rails(fabricctl, control):
    result = fabricctl("path", "unpin", "b")
    assert control.calls == [("path_pin", "b", [])]
    assert result.out == "traffic to b may use every rail again\n"


@pytest.mark.parametrize("text", ["", "one", "8", "0;1", "-1"])
def test_rail_that_is_none_reaches_no_daemon(fabricctl, control, text):
    result = fabricctl("path", "pin", "b", f"--rail={text}")
    assert result.status == 1 and "why: --rail: " in result.err
    assert control.calls == []


def test_refusal_says_what_why_and_what_to_do(fabricctl, control):
    control.failure = errors.ConfigError("there is no rail 3 to node 'b'; it has 0, 1")
    result = fabricctl("path", "pin", "b", "--rail", "3")
    assert result.err == (
        "error: cannot pin the path to b\n  why: there is no rail 3 to node 'b'; it has 0, 1\n"
        "  do:  correct it and run the command again\n"
    )


# ------------------------------------------------------------------ bench path
def test_bench_path_states_its_budget_and_compares_alone_with_together(fabricctl, control):
    result = fabricctl("bench", "path", "b", "--seconds", "3", "--bytes", "512MiB")
    assert control.calls == [("bench_path", "b", Budget(3.0, 512 * MIB, 64 * MIB))]
    assert result.err.startswith("measuring the rails to b: at most 3 s, 512.0 MiB of payload")
    assert "each rail alone:" in result.out and "all rails at once:" in result.out
    assert "0: 118.0 MB/s, 1: 118.0 MB/s" in result.out
    assert "they share no bottleneck" in result.out


@pytest.mark.parametrize("columns", [80, 120])
def test_bench_path_fits_a_terminal(fabricctl, control, monkeypatch, columns):
    as_terminal(monkeypatch, columns)
    assert (
        max(len(line) for line in plain(fabricctl("bench", "path", "b").out).splitlines())
        <= columns
    )
