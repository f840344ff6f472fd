"""`fabricctl bench edge`: the budget is said before, figures and what was left out after."""

import json

import pytest

from fabric import errors
from fabric.worker.probe_plan import Budget

MIB = 1 << 20


def test_budget_is_stated_before_it_starts_and_handed_on(fabricctl, control):
    result = fabricctl("bench", "edge", "a", "b", "--seconds", "2", "--bytes", "256MiB")
    assert result.status == 0
    assert result.err == (
        "measuring a → b: at most 2 s, 256.0 MiB of payload and 64.0 MiB of memory a node;"
        " Ctrl-C takes everything away\n"
    )
    assert control.calls == [("bench_edge", "a", "b", Budget(2.0, 256 * MIB, 64 * MIB))]


def test_edge_of_one_node_is_that_node_twice(fabricctl, control):
    assert fabricctl("bench", "edge", "a").status == 0
    assert control.calls == [("bench_edge", "a", "a", Budget(5.0, 1024 * MIB, 64 * MIB))]


def test_table_has_figures_what_was_left_out_the_path_and_the_load(fabricctl, control):
    lines = fabricctl("bench", "edge", "a", "b").out.splitlines()
    assert lines[0] == "a → b"
    figures = ["25.5", "80.25", "-", "-", "20.5", "-", "14.5", "40000"]
    assert lines[2].split()[-8:] == figures
    assert "  16 MiB loaned, window 8: needs 176.0 MiB of --memory" in lines
    assert any("tcp instead of ucx: ucx is not there on node 'b'" in line for line in lines)
    assert lines[-1] == "took 4.2 s and 900.0 MiB of payload"


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_machines_get_the_same_figures(fabricctl, control, form):
    import yaml

    text = fabricctl("bench", "edge", "a", "b", "-o", form).out
    answer = json.loads(text) if form == "json" else yaml.safe_load(text)
    assert answer["budget"] == {"seconds": 5, "size_bytes": 1024 * MIB, "memory_bytes": 64 * MIB}
    assert answer["steps"][0]["p50_us"] == 25.5
    assert answer["steps"][1]["left_out"] == "needs 176.0 MiB of --memory"
    assert answer["path"][0]["checksums"] is True
    assert answer["load"][0]["busy_percent"] == 12.5


def test_size_that_is_none_reaches_no_daemon(fabricctl, control):
    result = fabricctl("bench", "edge", "a", "--memory", "plenty")
    assert result.status == 1
    assert "why: --memory: 'plenty' is not a size" in result.err
    assert control.calls == []


def test_refusal_says_what_why_and_what_to_do(fabricctl, control):
    control.failure = errors.PathBrokenError("node 'b' is suspect")
    result = fabricctl("bench", "edge", "a", "b")
    assert result.status == 1
    assert "error: cannot measure a → b\n  why: node 'b' is suspect\n" in result.err
