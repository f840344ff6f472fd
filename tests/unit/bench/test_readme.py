"""The README's tables of the bench: what a report says, no more and no less."""

from __future__ import annotations

from typing import Any

import pytest

from bench import readme

MACHINE = {
    "date": "2026-11-21 16:00:00 +0000", "cpu": "a CPU", "cpus": 2, "memory_gib": 23, "kernel": "6.18",
    "python": "3.11.7", "load_1min": 0.04,
}  # fmt: skip


def case(**more: Any) -> dict[str, Any]:
    return {
        "group": "latency", "name": "64 B", "unit": "µs", "direction": "lower", "ours": 1.3,
        "peers": {"pyzmq": 40.0, "ucxx": 9.9, "absent": None}, "floor": 0.7, "bar": 0.3, "against": "peer:best",
        "attempts": [{"ratio": 0.131}], "holds": True,
    } | more  # fmt: skip


def test_line_names_the_best_peer_by_the_direction_of_the_figure() -> None:
    assert "9.9 (ucxx)" in readme.line(case())
    assert "40 (pyzmq)" in readme.line(case(direction="higher"))


def test_line_of_a_bar_that_misses_shows_every_attempt() -> None:
    found = readme.line(
        case(holds=False, attempts=[{"ratio": 0.5}, {"ratio": None}, {"ratio": 0.4}])
    )
    assert "0.50, –, 0.40" in found and "not held" in found and "≤ 0.3 × best peer" in found


def test_case_without_peers_has_a_dash() -> None:
    assert "| – |" in readme.line(case(peers={}, against="floor"))


def test_block_counts_what_holds_and_says_where_and_when() -> None:
    block = readme.group_block(MACHINE, "latency", [case(), case(holds=False)], "page.md")
    assert "latency: 1 of 2 bars hold" in block and "measurements/page.md" in block
    assert "a CPU, 2 CPUs" in block and "2026-11-21 16:00" in block


def test_groups_without_a_new_report_keep_theirs() -> None:
    blocks = [
        readme.group_block(MACHINE, group, [case(group=group)], "page.md")
        for group in ("latency", "paths")
    ]
    text = readme.between_marks(f"{readme.BEGIN}{readme.END}", "\n".join(blocks))
    assert readme.kept_blocks(text) == dict(zip(("latency", "paths"), blocks, strict=True))
    assert readme.kept_blocks("nothing") == {}


def test_page_has_every_peer() -> None:
    page = readme.group_page(MACHINE, "latency", [case()])
    assert "ucxx 9.9, pyzmq 40" in page and "absent" not in page


def test_only_what_lies_between_the_marks_changes() -> None:
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    found = readme.between_marks(text, "new")
    assert found.startswith("before\n") and found.endswith("after\n")
    assert "new" in found and "old" not in found


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        readme.between_marks("nothing", "new")
