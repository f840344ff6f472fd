"""A machine's topology as SVG, drawn without any library. Equal topologies give equal bytes.

NUMA nodes stand at the left, what hangs below them to the right; GPUs and NICs share one column, ports the next.
NVLinks and xGMI are arcs at the right of the GPUs; NVSwitches are one bar that all their GPUs reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from fabric.cli.topology_graph import COLOURS, fast, fast_text
from fabric.cli.topology_tree import heading, label, pcie_text
from fabric.paths.discovery import rates
from fabric.paths.discovery.model import Device, Kind, Topology

_ROW, _BOX_HEIGHT, _GAP = 46, 36, 62
_WIDTHS = {Kind.cpu: 190, Kind.switch: 200, Kind.port: 150}
_LEAF_WIDTH = 220
_MARGIN, _TOP = 20, 50
_LEAVES = (Kind.gpu, Kind.nic, Kind.pci, Kind.nvswitch)


@dataclass(frozen=True, slots=True)
class _Box:
    device: Device
    x: float
    y: float
    width: float

    @property
    def middle(self) -> float:
        return self.y + _BOX_HEIGHT / 2

    @property
    def right(self) -> float:
        return self.x + self.width


def svg(topology: Topology) -> str:
    """Return the drawing."""
    boxes = _Layout(topology).boxes
    parts = [
        *_uplinks(topology, boxes),
        *_arcs(topology, boxes),
        *(part for box in boxes.values() for part in _box(topology, box)),
    ]
    right = max((box.right for box in boxes.values()), default=300)
    arcs = _arc_room(topology, boxes)
    width = round(right + arcs + _MARGIN)
    bottom = max((box.y for box in boxes.values()), default=0) + _ROW
    title = escape(heading(topology))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{round(bottom + _MARGIN)}"'
            ' font-family="sans-serif" font-size="11">',
            f"<title>{title}</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{_MARGIN}" y="28" font-size="15">{title}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


class _Layout:
    """Where each box stands: leaves from top to bottom, everything else beside the middle of what hangs below it."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._next = float(_TOP)
        self.boxes: dict[str, _Box] = {}
        depth = max((self._depth(d) for d in topology.devices if d.kind is Kind.switch), default=0)
        self._leaf_x = _MARGIN + _WIDTHS[Kind.cpu] + _GAP + depth * (_WIDTHS[Kind.switch] + _GAP)
        for root in topology.children(None):
            if root.kind not in (Kind.port, Kind.nvswitch):  # NVSwitches are the bar
                self._place(root, 0)
                self._next += 10

    def _depth(self, device: Device) -> int:
        depth = 0
        while device.parent is not None:
            device, depth = self._topology.by_id[device.parent], depth + 1
        return depth

    def _place(self, device: Device, depth: int) -> float:
        """Place a device and all below it; return the middle of its box."""
        middles = [self._place(child, depth + 1) for child in self._topology.children(device.id)]
        if middles:
            y = (middles[0] + middles[-1]) / 2 - _BOX_HEIGHT / 2
        else:
            y, self._next = self._next, self._next + _ROW
        width = _WIDTHS.get(device.kind, _LEAF_WIDTH)
        if device.kind is Kind.port:
            x = self._leaf_x + _LEAF_WIDTH + _GAP
        elif device.kind in _LEAVES:
            x = self._leaf_x
        elif depth == 0:
            x = _MARGIN
        else:
            x = _MARGIN + _WIDTHS[Kind.cpu] + _GAP + (depth - 1) * (_WIDTHS[Kind.switch] + _GAP)
        self.boxes[device.id] = _Box(device, x, y, width)
        return y + _BOX_HEIGHT / 2


def _box(topology: Topology, box: _Box) -> Iterator[str]:
    words = label(topology, box.device).split("  ")
    if box.device.address and words[0] != box.device.address:
        words[0:2] = [f"{words[0]}  {box.device.address}"]
    yield (
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{_BOX_HEIGHT}" rx="4"'
        f' fill="{COLOURS[box.device.kind]}" stroke="#888"><title>{escape(box.device.id)}</title></rect>'
    )
    rows = [words[0], " ".join(words[1:])]
    for row, text in enumerate(rows):
        if text:
            weight = ' font-weight="bold"' if row == 0 else ""
            fitting = _fitting(text, box.width)
            yield (
                f'<text x="{box.x + 8:g}" y="{box.y + 15 + 14 * row:g}"{weight}>{escape(fitting)}</text>'
            )


def _fitting(text: str, width: float) -> str:
    count = int((width - 12) / 6.4)
    return text if len(text) <= count else text[: count - 1] + "…"


def _uplinks(topology: Topology, boxes: dict[str, _Box]) -> Iterator[str]:
    for box in boxes.values():
        parent = boxes.get(box.device.parent or "")
        if parent is None:
            continue
        link = topology.uplinks.get(box.device.id)
        dashes = ' stroke-dasharray="4 3"' if link is not None and link.is_narrowed else ""
        bend = parent.right + 10
        said = f"{pcie_text(link)} {rates.text(link.rate)}" if link else ""
        yield (
            f'<path d="M{parent.right:g} {parent.middle:g}H{bend:g}V{box.middle:g}H{box.x:g}"'
            f' fill="none" stroke="#999"{dashes}><title>{escape(said)}</title></path>'
        )
        if link is not None and link.rate is not None:
            yield (
                f'<text x="{box.x - 3:g}" y="{box.middle - 4:g}" font-size="8" fill="#666"'
                f' text-anchor="end">{escape(rates.text(link.rate))}</text>'
            )


def _arc_room(topology: Topology, boxes: dict[str, _Box]) -> float:
    reach = [
        abs(boxes[link.source].middle - boxes[link.target].middle)
        for link in fast(topology)
        if link.source in boxes and link.target in boxes
    ]
    has_bar = bool(topology.of_kind(Kind.nvswitch))
    return (190 if has_bar else 30 + min(max(reach), 500) / 3 + 40) if reach or has_bar else 0


def _arcs(topology: Topology, boxes: dict[str, _Box]) -> Iterator[str]:
    right = max((box.right for box in boxes.values()), default=0) + 10
    to_switches: dict[str, tuple[int, float | None]] = {}
    for link in fast(topology):
        ends = [topology.by_id[link.source], topology.by_id[link.target]]
        if any(end.kind is Kind.nvswitch for end in ends):
            own = next((end for end in ends if end.kind is not Kind.nvswitch), None)
            if own is not None:
                count, rate = to_switches.get(own.id, (0, 0.0))
                total = None if rate is None or link.rate is None else rate + link.rate
                to_switches[own.id] = (count + link.count, total)
            continue
        one, other = boxes[link.source], boxes[link.target]
        bulge = 30 + min(abs(one.middle - other.middle), 500) / 3
        said = f"{ends[0].name} – {ends[1].name}: {fast_text(link)}"
        yield (
            f'<path d="M{one.right:g} {one.middle:g}L{right:g} {one.middle:g}'
            f"Q{right + bulge:g} {(one.middle + other.middle) / 2:g} {right:g} {other.middle:g}"
            f'L{other.right:g} {other.middle:g}" fill="none" stroke="#4a9a3a" stroke-opacity="0.6"'
            f' stroke-width="{1 + min(link.count, 8) / 2:g}"><title>{escape(said)}</title></path>'
        )
    if to_switches:
        yield from _bar(right + 95, to_switches, boxes)


def _bar(
    x: float, ends: dict[str, tuple[int, float | None]], boxes: dict[str, _Box]
) -> Iterator[str]:
    """Draw all NVSwitches as one bar, and each GPU's links to it."""
    rows = [boxes[id].middle for id in ends]
    top, bottom = min(rows) - 12, max(rows) + 12
    for id, (count, rate) in ends.items():
        box = boxes[id]
        said = f"{count} links{'' if rate is None else f', {rates.text(rate)}'}"
        yield (
            f'<path d="M{box.right:g} {box.middle:g}H{x:g}" stroke="#4a9a3a" stroke-width="2"/>'
            f'<text x="{x - 4:g}" y="{box.middle - 4:g}" font-size="9" text-anchor="end">{escape(said)}</text>'
        )
    yield (
        f'<rect x="{x:g}" y="{top:g}" width="34" height="{bottom - top:g}" rx="4"'
        f' fill={quoteattr(COLOURS[Kind.nvswitch])} stroke="#888"/>'
        f'<text x="{x + 21:g}" y="{(top + bottom) / 2:g}" text-anchor="middle"'
        f' transform="rotate(90 {x + 17:g} {(top + bottom) / 2:g})">NVSwitch</text>'
    )
