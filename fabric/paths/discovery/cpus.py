"""Sets of CPUs, as a list (``0-3,8``) and as NCCL's mask (``00000000,0000010f``). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fabric import limits

_PART = re.compile(r"(\d+)(?:-(\d+))?")


def parse_list(text: str) -> frozenset[int]:
    """Return the numbers of ``0-3,8``.

    Raises
    ------
    ValueError
        It is no such list, or names a number beyond `limits.TOPOLOGY_CPUS_MAX`.
    """
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last >= limits.TOPOLOGY_CPUS_MAX:
            raise ValueError(f"{text[:60]!r} is no list of CPUs such as 0-3,8")
        found.update(range(first, last + 1))
    return frozenset(found)


def parse_mask(text: str) -> frozenset[int]:
    """Return the numbers of a mask in words of 32 bits, the highest first; hwloc's ``0x`` and empty words are read.

    Raises
    ------
    ValueError
        It is no such mask, or larger than `limits.TOPOLOGY_CPUS_MAX` allows.
    """
    words = text.strip().split(",") if text.strip() else []
    if len(words) * 32 > limits.TOPOLOGY_CPUS_MAX:
        raise ValueError(f"a mask of {len(words) * 32} CPUs; at most {limits.TOPOLOGY_CPUS_MAX}")
    bits = 0
    for word in words:
        value = int(word, 16) if word.strip() else 0
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{word[:40]!r} is no word of 32 bits")
        bits = bits << 32 | value
    return frozenset(n for n in range(bits.bit_length()) if bits >> n & 1)


def list_text(numbers: Iterable[int]) -> str:
    """Return ``0-3,8``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def mask_text(numbers: Iterable[int]) -> str:
    """Return the mask in words of 32 bits, the highest first, at least two, as NCCL writes it."""
    bits = sum(1 << number for number in set(numbers))
    words: list[str] = []
    while bits or len(words) < 2:
        words.append(f"{bits & 0xFFFF_FFFF:08x}")
        bits >>= 32
    return ",".join(reversed(words))
