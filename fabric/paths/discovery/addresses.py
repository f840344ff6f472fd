"""The addresses of this network namespace's interfaces, as the kernel tells them now."""

from __future__ import annotations

import errno
import ipaddress
import socket

from fabric import errors, limits
from fabric.paths.discovery import rtnetlink


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
        for index, address in _ask():
            if index in names:
                found.setdefault(names[index], []).append(address)
    except OSError as error:
        raise errors.BrokenError(
            f"the addresses of the interfaces cannot be read: {error.strerror or error}"
        ) from error
    return {name: tuple(sorted(own, key=lambda a: (":" in a, a))) for name, own in found.items()}


def _ask() -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        asked.settimeout(limits.NETLINK_ANSWER_S)
        asked.bind((0, 0))
        any_family = rtnetlink.ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        asked.send(rtnetlink.request(rtnetlink.RTM_GETADDR, any_family, 1))
        while True:
            data, (sender, _) = asked.recvfrom(limits.NETLINK_DATAGRAM_BYTES)
            for kind, _flags, body in rtnetlink.messages(data) if sender == 0 else ():
                if kind == rtnetlink.NLMSG_DONE:
                    return found
                if kind == rtnetlink.NLMSG_ERROR:
                    raise OSError(errno.EIO, "the kernel refuses the request")
                found += _address(body)


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
