"""Sizes and durations as text."""

import pytest

from fabric import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("64MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("2kb", 2000),
        ("0", 0),
    ],
)
def test_a_size_names_its_bytes(text, expected):
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "64MiC", "0.3B", "1e3", "1 2", "nan", "1K", "3M"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|part of a byte"):
        units.parse_bytes(text)


def test_large_sizes_stay_exact():
    assert units.parse_bytes("9007199254740993") == 9007199254740993


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (64 << 20, "64.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people(count, text):
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ns"), (8.5e-7, "850 ns"), (180e-6, "180.0 µs"), (0.0123, "12.3 ms"), (4, "4.0 s"), (200, "3 min 20 s"),
     (7260, "2 h 1 min")],
)  # fmt: skip
def test_durations_for_people(seconds, text):
    assert units.format_seconds(seconds) == text
