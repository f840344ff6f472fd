"""The addresses of this network namespace's interfaces, as the kernel tells them now."""

from __future__ import annotations

import ipaddress
import socket

from fabric import errors
from fabric.paths.discovery import rtnetlink, tables


def interface_addresses() -> dict[str, tuple[str, ...]]:
    """Return the addresses of each interface by its name, IPv4 first, without link-local ones.

    Raises
    ------
    BrokenError
        The kernel does not tell.
    """
    found: dict[str, list[str]] = {}
    try:
        names = dict(socket.if_nameindex())
        for body in tables.read(rtnetlink.RTM_GETADDR):
            for index, address in _address(body):
                if index in names:
                    found.setdefault(names[index], []).append(address)
    except OSError as error:
        raise errors.BrokenError(
            f"the addresses of the interfaces cannot be read: {error.strerror or error}"
        ) from error
    return {name: tuple(sorted(own, key=lambda a: (":" in a, a))) for name, own in found.items()}


def _address(body: bytes) -> list[tuple[int, str]]:
    if len(body) < rtnetlink.ADDRESS.size:
        return []
    _, _, flags, scope, index = rtnetlink.ADDRESS.unpack_from(body)
    unusable = rtnetlink.IFA_F_TENTATIVE | rtnetlink.IFA_F_DADFAILED
    if scope == rtnetlink.SCOPE_LINK or flags & unusable:
        return []
    fields = dict(rtnetlink.attributes(body[rtnetlink.ADDRESS.size :]))
    raw = fields.get(rtnetlink.IFA_LOCAL) or fields.get(rtnetlink.IFA_ADDRESS, b"")
    return [(index, str(ipaddress.ip_address(raw)))] if len(raw) in (4, 16) else []
