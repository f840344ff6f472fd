"""The hash of a key and the weight of a target for it, as the native sender computes them."""

from __future__ import annotations

_WORD = (1 << 64) - 1


def hash_of(key: bytes) -> int:
    """Return 64 bits of a key: FNV-1a with a final mix; the empty key is 0."""
    if not key:
        return 0
    value = 0xCBF29CE484222325
    for byte in key:
        value = (value ^ byte) * 0x100000001B3 & _WORD
    value ^= value >> 32
    value = value * 0xD6E8FEB86659FD93 & _WORD
    return value ^ value >> 32


def mix(value: int) -> int:
    """Return the finaliser of splitmix64 (Steele, Lea, Flood, 2014) of 64 bits."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31


def weight(key_hash: int, endpoint: int) -> int:
    """Return the weight of an endpoint for a key: the highest wins (Thaler and Ravishankar, 1998)."""
    return mix(key_hash ^ mix(endpoint))
