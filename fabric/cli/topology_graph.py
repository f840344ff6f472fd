"""A machine's topology as a graph for other tools: Graphviz's DOT, and Mermaid. Equal topologies give equal text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fabric.cli.topology_tree import label, pcie_text
from fabric.paths.discovery import rates
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Topology

COLOURS = {
    Kind.cpu: "#dbe7f6",
    Kind.switch: "#ececec",
    Kind.gpu: "#d9efd3",
    Kind.nvswitch: "#bfe3b4",
    Kind.nic: "#fbe3c8",
    Kind.port: "#fdf3e3",
    Kind.pci: "#f4f4f4",
}
FAST = (LinkKind.nvlink, LinkKind.xgmi, LinkKind.c2c)


def dot(topology: Topology) -> str:
    """Return a graph for ``dot -Tsvg``."""
    lines = [
        f"graph {_quoted(topology.name or 'machine')} {{",
        "  rankdir=LR; node [shape=box style=filled fontname=sans-serif];",
    ]
    for device in shown(topology):
        text = label(topology, device).replace("  ", "\\n")
        lines.append(
            f'  {_quoted(device.id)} [label={_quoted(text)} fillcolor="{COLOURS[device.kind]}"];'
        )
    for source, target, text, kind in edges(topology):
        style = {"fast": " color=darkgreen penwidth=2 constraint=false", "smp": " style=dashed"}
        lines.append(
            f"  {_quoted(source)} -- {_quoted(target)}"
            f" [label={_quoted(text)}{style.get(kind, '')}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(topology: Topology) -> str:
    """Return a flow chart that Markdown viewers draw."""
    names = {device.id: f"d{index}" for index, device in enumerate(shown(topology))}
    lines = ["flowchart LR"]
    for device in shown(topology):
        text = "<br/>".join(_escaped(part) for part in label(topology, device).split("  "))
        lines.append(f'  {names[device.id]}["{text}"]:::{device.kind}')
    arrows = {"fast": "===", "smp": "-.-"}
    for source, target, text, kind in edges(topology):
        word = f'|"{_escaped(text)}"|' if text else ""
        lines.append(f"  {names[source]} {arrows.get(kind, '---')}{word} {names[target]}")
    lines += [
        f"  classDef {kind} fill:{colour},stroke:#888,color:#222"
        for kind, colour in COLOURS.items()
    ]
    return "\n".join(lines) + "\n"


def shown(topology: Topology) -> list[Device]:
    """Return the devices of a graph: all but interfaces that no hardware carries."""
    return [d for d in topology.devices if d.kind is not Kind.port or d.parent is not None]


def edges(topology: Topology) -> Iterator[tuple[str, str, str, str]]:
    """Yield every link once: its ends, its words, and `pcie`, `fast`, `smp` or `port`."""
    for device in shown(topology):
        if device.parent is None:
            continue
        link = topology.uplinks.get(device.id)
        rate = "" if link is None or link.rate is None else f" {rates.text(link.rate)}"
        text = f"{pcie_text(link)}{rate}" if link else ""
        yield device.parent, device.id, text, "pcie" if link else "port"
    for link in fast(topology):
        yield link.source, link.target, fast_text(link), "fast"
    for link in topology.links:
        if link.kind in (LinkKind.smp, LinkKind.pci_peer):
            yield link.source, link.target, "", "smp"


def fast(topology: Topology) -> Iterator[Link]:
    """Yield NVLinks, xGMI and C2C links, those that both ends tell of once; none to itself."""
    told: set[tuple[str, str]] = set()
    for link in topology.links:
        if link.kind not in FAST or link.source == link.target:
            continue
        if (link.target, link.source) not in told:
            told.add((link.source, link.target))
            yield link


def fast_text(link: Link) -> str:
    """Return such a link in words: ``4 links, 100 GB/s``."""
    rate = "" if link.rate is None else f", {rates.text(link.rate)}"
    return f"{link.count} link{'s' if link.count > 1 else ''}{rate}"


def _quoted(text: str) -> str:
    # \n is DOT's own line feed and stays; every other backslash is a character.
    safe = text.replace("\\n", "\0").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + safe.replace("\0", "\\n") + '"'


def _escaped(text: str) -> str:
    return re.sub(r'["<>&#;|\[\]{}]', lambda match: f"#{ord(match[0])};", text)
