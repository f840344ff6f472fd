"""Which interfaces are rails, and why the others are not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fabric.paths.discovery.model import Device, Rail

#: what carries no traffic of its own to another machine
_NEVER = {
    "loopback": "reaches this machine alone",
    "virtual": "no hardware behind it",
}


def rails(
    ports: Sequence[Device], addresses: Mapping[str, Sequence[str]] | None = None
) -> list[Rail]:
    """Return every interface as a rail, usable or not.

    Parameters
    ----------
    addresses : mapping of str to sequence of str, optional
        The addresses of each interface; None where they cannot be known (a copy of another machine).
    """
    return [_rail(port, addresses) for port in ports]


def _rail(port: Device, addresses: Mapping[str, Sequence[str]] | None) -> Rail:
    is_rdma = port.attributes.get("flavour") == "rdma"
    own = tuple(() if addresses is None else addresses.get(port.name, ()))
    is_usable, reason = _verdict(port, own, is_rdma or addresses is None)
    return Rail(
        port.name,
        port.id,
        "rdma" if is_rdma else "tcp",
        is_usable,
        reason,
        port.rate,
        port.numa,
        own,
    )


def _verdict(port: Device, addresses: tuple[str, ...], needs_none: bool) -> tuple[bool, str]:
    flavour = port.attributes.get("flavour", "")
    if flavour in _NEVER:
        return False, _NEVER[flavour]
    master = port.attributes.get("master")
    if port.state == "down":
        return False, "down"
    if master and not addresses:
        return False, f"a part of {master}"
    if not needs_none and not addresses:
        return False, "no address"
    if port.state == "unknown":
        return True, "its state is unknown"
    return True, "up"
