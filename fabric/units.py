"""Sizes and durations as text, both ways. Pure."""

from __future__ import annotations

import re

_SIZES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
#: as JSON Schema says them: whole texts
DURATION_PATTERN = r"^\s*\d{1,12}(?:\.\d{1,12})?\s*(?:[nuµm]?s|min|m|h)\s*$"
SIZE_PATTERN = r"^\s*\d+(?:\.\d+)?\s*(?:B|[KMG]B|[KMGT]iB)?\s*$"
_DURATION = re.compile(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*([a-zµ]+)\s*")
_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes that a size such as ``64MiB``, ``1.5 GiB`` or ``4096`` names.

    Raises
    ------
    ValueError
        The text is no size, its unit is unknown, or it names a part of a byte.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _SIZES:
        raise ValueError(f"{text!r} is not a size; write for example 64MiB, 1.5GiB or 4096")
    value = (
        float(match[1]) * _SIZES[match[2].upper()]
        if "." in match[1]
        else int(match[1]) * _SIZES[match[2].upper()]
    )
    if value != int(value):
        raise ValueError(f"{text!r} names a part of a byte")
    return int(value)


def parse_seconds(text: str) -> float:
    """Return the seconds that a duration such as ``5s``, ``250 ms`` or ``1.5min`` names.

    Raises
    ------
    ValueError
        The text is no duration, or its unit is missing or unknown.
    """
    match = _DURATION.fullmatch(text)
    unit = match[2] if match else ""
    if match is None or unit not in _SECONDS:
        raise ValueError(
            f"{text[:40]!r} is not a duration; write for example 5s, 250ms or 2min"
            f" (units: {', '.join(_SECONDS)})"
        )
    return float(match[1]) * _SECONDS[unit]


def format_bytes(count: float) -> str:
    """Return a size for people, binary units: ``64.0 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Return a duration for people: ``850 ns``, ``12.3 ms``, ``4.0 s``, ``3 min 20 s``."""
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
