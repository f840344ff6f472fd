"""Traces in three formats; what is no request is refused with file, line and reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric import errors
from fabric.paths import replay, trace
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Topology
from fabric.paths.trace import Request


def write(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_text(text)
    return file


def test_mooncake_lines_are_read_in_order_of_time(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000, "input_length": 7, "output_length": 1, "hash_ids": [1]},
        {"timestamp": 1000, "input_length": 9, "output_length": 1, "hash_ids": []},
    ]
    file = write(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert trace.read(file) == [Request(0.0, 9), Request(2.0, 7)]
    assert trace.read(file, 1) == [Request(0.0, 7)]


def test_azure_rows_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.4799600,3180,8\n",
    )
    first, second = trace.read(file)
    assert (first.tokens, second.tokens) == (4808, 3180)
    assert second.at_s == pytest.approx(0.5)


def test_own_lines_name_bytes_and_nodes(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '{"at_s": 1.5, "bytes": 1000, "source": 3, "target": 0}\n{"at_s": 2, "bytes": 5}\n',
    )
    assert trace.read(file) == [Request(0.0, 0, 1000, 3, 0), Request(0.5, 0, 5)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither JSON lines nor a CSV"),
        ("a,b\n1,2\n", "line 1: neither"),
        ('{"timestamp": 1}\n', "line 1: 'input_length' is missing"),
        ('{"timestamp": 1, "input_length": 5}\n{nonsense\n', "line 2: "),
        ('{"timestamp": 1, "input_length": 0}\n', "line 1: 0 tokens"),
        ('{"timestamp": -1, "input_length": 5}\n', "line 1: a time of"),
        ('{"timestamp": "x", "input_length": 5}\n', "line 1: "),
        ('{"at_s": 1, "bytes": 5, "source": "a"}\n', "line 1: 'a' is no number"),
        ("TIMESTAMP,ContextTokens\nyesterday,5\n", "line 2: "),
        ("TIMESTAMP,ContextTokens\n", "holds no request"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_line(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(errors.ConfigError) as refused:
        trace.read(file)
    assert reason in str(refused.value) and str(file) in str(refused.value)


def test_a_trace_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        trace.read(tmp_path / "absent")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        trace.read(tmp_path / "bytes")


def test_a_cluster_takes_the_rails_of_a_machine() -> None:
    ports = tuple(
        Device(f"port:{i}", Kind.port, rate=rate) for i, rate in enumerate((5e9, None, 50e9))
    )
    assert replay.rails_of(Topology(devices=ports)) == (50e9, 5e9)
    cards = (Device("nic:0", Kind.nic), Device("nic:1", Kind.nic))
    buses = (Link(LinkKind.pcie, "nic:0", "cpu:0", 16e9),)
    assert replay.rails_of(Topology(devices=cards, links=buses)) == (16e9,)
    with pytest.raises(errors.ConfigError, match="no network device"):
        replay.rails_of(Topology(name="empty"))


def test_a_load_scales_the_times_of_the_trace() -> None:
    requests = [Request(0.0, tokens=1000), Request(100.0, tokens=1000)]
    cluster = replay.Cluster(nodes=4, rates=(1e9,))
    moved = replay.transfers(requests, cluster, replay.Load(1000, share=0.5), 1)
    assert [size for _, size, _, _ in moved] == [1_000_000, 1_000_000]
    assert moved[1][0] == pytest.approx(2e6 / (0.5 * 2e9) * 1e9)
    as_they_are = replay.transfers(requests, cluster, replay.Load(1000, share=0), 1)
    assert as_they_are[1][0] == 100 * 10**9
    assert all(source < 2 <= target for _, _, source, target in moved)


def test_a_transfer_between_nodes_that_are_not_there_is_refused() -> None:
    cluster = replay.Cluster(nodes=4, rates=(1e9,))
    for source, target in ((0, 9), (1, 1)):
        rows = [Request(0.0, bytes=5, source=source, target=target)]
        with pytest.raises(errors.ConfigError, match=f"from node {source} to {target}"):
            replay.transfers(rows, cluster, replay.Load(), 1)
    with pytest.raises(errors.ConfigError, match="nodes"):
        replay.replay([Request(0.0, bytes=5)], replay.Cluster(nodes=1), replay.Load(), 1, "hashed")
    with pytest.raises(errors.ConfigError, match="policy"):
        replay.replay([Request(0.0, bytes=5)], cluster, replay.Load(), 1, "best")


def test_one_rail_in_so_many_is_slow_and_always_the_same() -> None:
    cluster = replay.Cluster(nodes=100, slow_one_in=50)
    slow = replay.slow_rails(cluster, 7)
    assert len(slow) == 16 and slow == replay.slow_rails(cluster, 7) != replay.slow_rails(
        cluster, 8
    )
    assert replay.slow_rails(replay.Cluster(slow_one_in=0), 7) == []
