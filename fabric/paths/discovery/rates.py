"""What links can carry, in bytes/s of one direction, from what is known of their making. Pure.

Figures are raw line rates less line coding: PCI Express base specifications; NVIDIA's and AMD's data sheets.
"""

from __future__ import annotations

import re

_PCIE_CODING = {
    2.5: 0.8,
    5.0: 0.8,
    8.0: 128 / 130,
    16.0: 128 / 130,
    32.0: 128 / 130,
    64.0: 242 / 256,
}
_PCIE_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_SPEED = re.compile(r"(\d+(?:\.\d+)?)\s*GT/s", re.IGNORECASE)
_IB_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*Gb/sec")
GBIT = 1e9 / 8
PCIE_LANES_MAX = 32  # 255 is what reads where there is no such register
#: NVLink of one link by the GPU's compute capability (major, minor)
_NVLINK = {
    60: 20e9,
    61: 20e9,
    70: 25e9,
    72: 25e9,
    80: 25e9,
    86: 14.0625e9,
    90: 25e9,
    100: 50e9,
    103: 50e9,
}
_NVLINK_VERSIONS = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 50e9}
#: xGMI of one link, by the gfx number of the GPU
_XGMI = {"906": 46e9, "908": 46e9, "910": 50e9, "90a": 50e9, "940": 64e9, "941": 64e9, "942": 64e9}


def parse_pcie_speed(text: str) -> float | None:
    """Return the GT/s that ``16 GT/s``, ``16.0 GT/s PCIe`` or ``Unknown`` (None) names."""
    match = _SPEED.search(text)
    return float(match[1]) if match else None


def pcie(speed: float | None, width: int | None) -> float | None:
    """Return the rate of a PCIe link of `width` lanes at `speed` GT/s, or None when one is not known."""
    if not speed or not width:
        return None
    return speed * 1e9 / 8 * _PCIE_CODING.get(speed, 128 / 130) * width


def pcie_generation(speed: float | None) -> int | None:
    """Return the PCIe generation with that GT/s, or None."""
    return _PCIE_GENERATIONS.get(speed) if speed else None


def nvlink(capability: int | None) -> float | None:
    """Return the rate of one NVLink of a GPU with compute capability 80 (8.0), or None."""
    return _NVLINK.get(capability) if capability else None


def nvlink_version(version: int | None) -> float | None:
    """Return the rate of one NVLink of that version, or None."""
    return _NVLINK_VERSIONS.get(version) if version else None


def xgmi(gfx: str) -> float | None:
    """Return the rate of one xGMI link of an AMD GPU such as ``gfx942`` or ``910``, or None."""
    return _XGMI.get(gfx.removeprefix("gfx"))


def parse_infiniband(text: str) -> float | None:
    """Return the bytes/s that ``200 Gb/sec (4X HDR)`` names, or None."""
    match = _IB_RATE.match(text)
    return float(match[1]) * GBIT if match and float(match[1]) > 0 else None


def whole(text: str) -> int | None:
    """Return the whole number that a text is, or None; never an error, however long the text."""
    try:
        return int(text)
    except ValueError:
        return None


def from_mbit(text: str) -> float | None:
    """Return the bytes/s of a speed in Mbit/s as sysfs and NCCL give it; 0, -1 and what is no number are None."""
    speed = whole(text)
    # An unsigned -1 is what some drivers say.
    return speed * 1e6 / 8 if speed and 0 < speed < 0xFFFF_FFFF else None


def text(rate: float | None) -> str:
    """Return a rate for people: ``31.5 GB/s``, ``119.2 MB/s``, or ``?``."""
    if rate is None:
        return "?"
    for unit, size in (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)):
        if rate >= size:
            value = f"{rate / size:.1f}".removesuffix(".0")
            return f"{value} {unit}"
    return f"{rate / 1e3:.0f} kB/s"


def line_text(rate: float | None) -> str:
    """Return a line rate as networks are named by it: ``200 Gbit/s``, ``100 Mbit/s``, or ``?``."""
    if rate is None:
        return "?"
    bits = rate * 8
    return f"{bits / 1e9:g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:g} Mbit/s"


def pcie_shape(rate: float | None) -> tuple[int | None, float | None]:
    """Return lanes and GT/s of a PCIe link by its rate, where only one pair of the usual ones fits; else None, None."""
    if not rate:
        return None, None
    fits = [
        (width, speed)
        for speed in _PCIE_GENERATIONS
        for width in (1, 2, 4, 8, 16)
        if abs((pcie(speed, width) or 0) - rate) < 0.001 * rate
    ]
    return fits[0] if len(fits) == 1 else (None, None)
