"""Same key, same target: rendezvous hashing, so a lost target moves only its own keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fabric.abc.route import Header, Target, route


@route("hash_key")
def hash_key(header: Header, targets: Sequence[Target]) -> Sequence[Target]:
    """Return the targets by weight for this key, heaviest first; no key counts as the empty one.

    Notes
    -----
    Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (highest random weight).
    """
    key = header.key or b""

    def weight(target: Target) -> bytes:
        seed = target.endpoint.to_bytes(8, "little")
        return hashlib.blake2b(key, digest_size=8, salt=seed).digest()

    return sorted(targets, key=lambda t: (weight(t), t.endpoint), reverse=True)
