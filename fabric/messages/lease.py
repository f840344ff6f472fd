"""`Lease`: the right to read (and write) memory that a port exposed. A value: it travels in messages as a field.

What can be done with one is `Port.get` and `Port.put`; only the process that exposed it can revoke it.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec

from fabric.errors import ConfigError
from fabric.limits import TENSOR_RANK_MAX


class Exposure(Protocol):
    """What the exposing process keeps of a lease."""

    array: Any

    def revoke(self) -> None:
        """Let nobody read it any more."""


#: (port, incarnation, lease) → what this process exposed
exposures: dict[tuple[int, int, int], Exposure] = {}


class Lease(msgspec.Struct, frozen=True, array_like=True):
    """Memory that a port exposed; made by `Port.expose`.

    Attributes
    ----------
    node, port, incarnation : int
        Who exposed it.
    lease : int
        Its number there; never used again.
    segment, endpoint : int
        Where it lies, and who serves other nodes.
    bytes : int
        Size of the memory.
    dtype : str
    shape : tuple of int
    writable : bool
        Whether `put` is allowed.
    """

    node: int
    port: int
    incarnation: int
    lease: int
    segment: int
    endpoint: int
    bytes: int
    dtype: str
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=TENSOR_RANK_MAX)]
    writable: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        """What names it in the cluster."""
        return self.port, self.incarnation, self.lease

    @property
    def array(self) -> Any:
        """The exposed memory itself, in the process that exposed it: write here what others shall read."""
        return self._exposure().array

    def revoke(self) -> None:
        """End the lease: every later `get` and `put` raises `StaleHandleError`. Idempotent.

        Raises
        ------
        ConfigError
            This process did not expose it, or not in this life of its port.
        """
        found = exposures.get(self.key)
        if found is not None:
            found.revoke()
        elif not _was_ours(self.key):
            raise ConfigError("only the process that exposed a lease can revoke it")

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.revoke()

    def _exposure(self) -> Exposure:
        found = exposures.get(self.key)
        if found is None:
            raise ConfigError("the lease is not, or no longer, exposed by this process")
        return found


#: (port, incarnation) → the highest lease this process gave; what is below and not exposed was revoked
issued: dict[tuple[int, int], int] = {}


def _was_ours(key: tuple[int, int, int]) -> bool:
    return 0 < key[2] <= issued.get(key[:2], 0)
