"""Every topology in the folder `FABRIC_TOPOLOGY_DATA` loads, or is refused with line and reason."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fabric import errors
from fabric.cli import topology_graph, topology_svg, topology_tree
from fabric.paths.discovery import dump, load, machine, nccl_write
from fabric.paths.discovery.model import Topology
from fabric.paths.discovery.path_class import PathClass, Paths

FOLDER = os.environ.get("FABRIC_TOPOLOGY_DATA", "")
FILES = sorted(
    p
    for p in Path(FOLDER or "/nonexistent").rglob("*")
    if re.search(r"\.(xml|tar(\.\w+)?)$", p.name)
)

pytestmark = pytest.mark.skipif(
    not FOLDER, reason="FABRIC_TOPOLOGY_DATA names no folder of topologies"
)


def read(path: Path) -> Topology:
    return load.load(path) if path.suffix == ".xml" else machine.read_root(path)


def test_folder_holds_topologies() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_loads_or_is_refused_with_line_and_reason(path: Path) -> None:
    try:
        found = read(path)
    except errors.ConfigError as refused:
        assert re.search(rf"{re.escape(str(path))}:\d+: \S+", refused.message), refused.message
        assert b"<system" not in path.read_bytes() and b"<topology" not in path.read_bytes()
        return
    assert found.devices
    assert dump.from_json(dump.to_json(found)) == found
    text = nccl_write.write(found)
    again = load.parse(text.encode())
    assert nccl_write.write(again) == text
    if found.source == "nccl":
        assert (again.devices, again.links) == (found.devices, found.links)
    assert max(len(line) for line in topology_tree.tree(found)) <= topology_tree.PLAIN_COLUMNS
    for draw in (
        topology_tree.render,
        topology_svg.svg,
        topology_graph.dot,
        topology_graph.mermaid,
    ):
        assert draw(found) == draw(read(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_paths_between_any_two_devices_of_a_file_have_the_same_class_both_ways(path: Path) -> None:
    try:
        found = read(path)
    except errors.ConfigError:
        return
    paths = Paths(found)
    ids = [device.id for device in found.devices]
    for index, one in enumerate(ids):
        assert paths.cls(one, one) is PathClass.LOC
        for other in ids[index + 1 :]:
            there = paths.between(one, other, relay=False).cls
            assert there is paths.between(other, one, relay=False).cls, (one, other)
