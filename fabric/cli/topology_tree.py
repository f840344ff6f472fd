"""A machine's topology as text: its tree of devices, its NVLinks, how near devices are, and its rails."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from fabric import units
from fabric.cli.output import ABSENT, Column, cell, table
from fabric.paths.discovery import cpus, path_class, rates
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Note, Topology

PLAIN_COLUMNS = 100  # where no terminal says how wide it is
NOTES_SHOWN = 10
CPUS_SHOWN = 24  # characters of a list of CPUs; of a longer one the count
_FAST = (LinkKind.nvlink, LinkKind.xgmi)
_SOURCES = {"sysfs": "sysfs", "nccl": "NCCL topology XML", "hwloc": "hwloc XML"}
_COUNTED = {
    Kind.cpu: "NUMA node",
    Kind.switch: "PCIe switch",
    Kind.gpu: "GPU",
    Kind.nvswitch: "NVSwitch",
    Kind.nic: "NIC",
    Kind.port: "port",
    Kind.pci: "PCI function",
}
_RAILS = (
    Column("rail", "interface"),
    Column("carries", "transport"),
    Column("usable", "is_usable"),
    Column("why", "reason"),
    Column("line rate", lambda row: rates.line_text(row["rate"])),
    Column("numa", "numa", True),
    Column("addresses", "addresses"),
)


def render(topology: Topology) -> str:
    """Return the whole text; sections that would be empty are left out."""
    sections = [
        plain(heading(topology)),
        plain("\n".join(tree(topology))),
        plain("\n".join(fast_links(topology))),
        plain("\n\n".join(distances(topology, _columns()))),
        rails(topology),
        plain("\n".join(notes(topology.notes))),
    ]
    return "\n\n".join(section for section in sections if section)


def plain(text: str) -> str:
    """Return a text without what would move a terminal's cursor or hide: a file may hold anything in its names."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def heading(topology: Topology) -> str:
    """Return one line: what machine, from where, how many of what."""
    counts = [
        f"{count} {word}{'es' if word.endswith('ch') and count > 1 else 's' if count > 1 else ''}"
        for kind, word in _COUNTED.items()
        if (count := sum(d.kind is kind and not _is_no_node(d) for d in topology.devices))
    ]
    product = topology.attributes.get("product")
    source = _SOURCES.get(topology.source, topology.source)
    words = [topology.name or "machine", *([product] if product else []), f"from {source}"]
    return f"{', '.join(words)}: {', '.join(counts) or 'nothing'}"


def _is_no_node(device: Device) -> bool:
    """Tell whether it stands for a NUMA node that is not known, which may be one of the others."""
    return device.kind is Kind.cpu and device.numa is None


def tree(topology: Topology) -> list[str]:
    """Return the devices as a tree, each with its PCIe link and what that carries."""
    rows: list[tuple[str, str, str]] = []
    for root in topology.children(None):
        if root.kind is not Kind.port:  # interfaces that no hardware carries: see the rails
            rows.append((label(topology, root), "", ""))
            rows += _branches(topology, root, "")
    left = max((len(row[0]) for row in rows), default=0)
    middle = max((len(row[1]) for row in rows), default=0)
    return [f"{a:<{left}}  {b:<{middle}}  {c:>10}".rstrip() for a, b, c in rows]


def _branches(topology: Topology, parent: Device, indent: str) -> Iterator[tuple[str, str, str]]:
    children = topology.children(parent.id)
    for child in children:
        is_last = child is children[-1]
        link = topology.uplinks.get(child.id)
        words, rate = ("", "") if link is None else (pcie_text(link), rates.text(link.rate))
        yield f"{indent}{'└─ ' if is_last else '├─ '}{label(topology, child)}", words, rate
        yield from _branches(topology, child, indent + ("   " if is_last else "│  "))


def label(topology: Topology, device: Device) -> str:
    """Return a device in a few words."""
    words = [device.name]
    if device.kind is Kind.cpu:
        memory = rates.whole(device.attributes.get("memory_bytes", ""))
        words += [_shortened(device.model, 44), _cpus_text(device.attributes.get("cpus", ""))]
        words += [units.format_bytes(memory) if memory else ""]
    elif device.kind is Kind.port:
        flavour = device.attributes.get("flavour", "")
        layer = device.attributes.get("link_layer", "")
        words += [layer or (flavour if flavour not in ("physical", "rdma") else "")]
        words += [device.state if device.state != "unknown" else "", rates.line_text(device.rate)]
    elif device.kind is Kind.switch:
        words += [_shortened(device.model or "PCIe switch")]
    else:
        words += [device.address, _shortened(device.model)]
    return "  ".join(word for word in words if word and word != "?")


def _cpus_text(text: str) -> str:
    if len(text) <= CPUS_SHOWN:
        return f"CPUs {text}" if text else ""
    try:
        return f"{len(cpus.parse_list(text))} CPUs"
    except ValueError:  # a dump may say anything
        return _shortened(f"CPUs {text}", CPUS_SHOWN)


def _shortened(text: str, size: int = 34) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def pcie_text(link: Link) -> str:
    """Return a PCIe link in words: ``PCIe 4.0 x16``, ``PCIe 4.0 x8 of x16``."""
    generation = rates.pcie_generation(link.speed)
    words = [f"PCIe {generation}.0" if generation else "PCIe"]
    if link.width:
        words.append(f"x{link.width}")
    if link.is_narrowed:
        words.append(f"of x{link.width_max}")
    return " ".join(words)


def fast_links(topology: Topology) -> list[str]:
    """Return each GPU's NVLinks and xGMI links; GPUs with the same are told of in one line."""
    told = [(gpu.name, _links_of(topology, gpu)) for gpu in topology.of_kind(Kind.gpu)]
    told = [(name, text) for name, text in told if text]
    rows = [
        (_span([name for name, _ in group]), text)
        for text, group in ((t, list(g)) for t, g in groupby(told, key=lambda row: row[1]))
    ]
    width = max((len(names) for names, _ in rows), default=0)
    return [f"{names:<{width}}  {text}" for names, text in rows]


def _links_of(topology: Topology, gpu: Device) -> str:
    others = len(topology.of_kind(Kind.gpu)) - 1
    counts: dict[str, tuple[int, float | None]] = {}
    kinds = set()
    for link in topology.links_from(gpu.id, *_FAST, LinkKind.c2c):
        target = topology.by_id[link.target]
        name = "NVSwitch" if target.kind is Kind.nvswitch else target.name
        name = "itself (unused)" if target is gpu else name
        count, rate = counts.get(name, (0, 0.0))
        total = None if rate is None or link.rate is None else rate + link.rate
        counts[name] = (count + link.count, total)
        kinds.add({LinkKind.xgmi: "xGMI", LinkKind.c2c: "C2C"}.get(link.kind, "NVLink"))
    if not counts:
        return ""
    word = "/".join(sorted(kinds))
    if len(counts) == others > 2 and len(set(counts.values())) == 1:
        count, rate = next(iter(counts.values()))
        return f"{word} to each other: {count} link{'s' * (count > 1)}, {rates.text(rate)} to each"
    ends = [
        f"{count} to {name}{'' if rate is None else f' ({rates.text(rate)})'}"
        for name, (count, rate) in counts.items()
    ]
    return f"{word}: {', '.join(ends)}"


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def distances(topology: Topology, columns: int) -> list[str]:
    """Return how near GPUs and NICs are to each other, in blocks that fit, and what the words mean."""
    gpus, nics = topology.of_kind(Kind.gpu), topology.of_kind(Kind.nic)
    rows = gpus or nics
    met: set[path_class.PathClass] = set()
    blocks = []
    for what, targets in (("GPUs", gpus), ("NICs", nics)):
        classes = path_class.matrix(topology, rows, targets)
        found = {cls for row in classes for cls in row} - {path_class.PathClass.LOC}
        met |= found
        if len(found) == 1 and len(targets) > 2 and targets is rows:
            blocks.append(f"between any two {what}: {found.pop().name}")
        elif found:
            blocks += _blocks(rows, targets, classes, columns)
    if not met:
        return []
    legend = ", ".join(f"{cls.name} {path_class.MEANINGS[cls]}" for cls in sorted(met))
    return [*blocks, "\n".join(_wrapped(legend, columns))]


def _blocks(
    rows: Sequence[Device],
    targets: Sequence[Device],
    classes: Sequence[Sequence[path_class.PathClass]],
    columns: int,
) -> Iterator[str]:
    """Yield the matrix in blocks of as many columns each, none wider than `columns`."""
    left = max(len(row.name) for row in rows)
    wide = max(len(target.name) for target in targets) + 1
    fitting = max(1, (columns - left) // wide)
    count = -(-len(targets) // fitting)
    size = -(-len(targets) // count)
    for start in range(0, len(targets), size):
        end = start + size
        lines = [" " * left + "".join(f"{t.name:>{wide}}" for t in targets[start:end])]
        for row, found in zip(rows, classes, strict=True):
            words = "".join(f"{_word(c):>{wide}}" for c in found[start:end])
            lines.append(f"{row.name:<{left}}{words}")
        yield "\n".join(lines)


def _word(cls: path_class.PathClass) -> str:
    return ABSENT if cls is path_class.PathClass.LOC else cls.name


def rails(topology: Topology) -> str:
    """Return the interfaces as rails: which can be used, and why others cannot."""
    if not topology.rails:
        return ""
    rows = [
        {
            "interface": plain(rail.interface),
            "transport": plain(rail.transport),
            "is_usable": rail.is_usable,
            "reason": plain(rail.reason),
            "rate": rail.rate,
            "numa": rail.numa,
            "addresses": [plain(address) for address in rail.addresses],
        }
        for rail in topology.rails
    ]
    return table(_RAILS, rows, "no rails")


def notes(found: Sequence[Note]) -> Iterator[str]:
    """Yield what was odd, the same of several in one line."""
    told: dict[str, list[str]] = {}
    for note in found:
        told.setdefault(note.what, []).append(note.where)
    for what, where in list(told.items())[:NOTES_SHOWN]:
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        yield f"note: {where[0]}{more}: {what}"
    if len(told) > NOTES_SHOWN:
        yield f"note: {len(told) - NOTES_SHOWN} more in -o json"


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_COLUMNS


def _wrapped(text: str, columns: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(columns, 20))


DEVICES = (
    Column("device", "name"),
    Column("kind", "kind"),
    Column("model", "model"),
    Column("address", "address"),
    Column("below", "parent"),
    Column("numa", "numa", True),
    Column("link", "link"),
    Column("rate", "rate", True),
    Column("state", "state"),
)


def devices(topology: Topology) -> str:
    """Return every device as a row of a table, for grep."""
    rows = []
    for device in topology.devices:
        link = topology.uplinks.get(device.id)
        parent = topology.by_id.get(device.parent or "")
        rate = rates.line_text(device.rate) if device.kind is Kind.port else ABSENT
        rows.append(
            {
                "name": plain(device.name),
                "kind": cell(str(device.kind)),
                "model": plain(device.model),
                "address": plain(device.address),
                "parent": plain(parent.name) if parent else None,
                "numa": device.numa,
                "link": pcie_text(link) if link else None,
                "rate": rates.text(link.rate) if link else rate,
                "state": plain(device.state),
            }
        )
    return table(DEVICES, rows, "no devices")
