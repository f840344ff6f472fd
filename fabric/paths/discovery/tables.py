"""A table of the kernel's, read whole over rtnetlink: its links, its addresses. One socket a call; nothing is kept."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from fabric import limits
from fabric.paths.discovery import rtnetlink


def read(kind: int, family: int = socket.AF_UNSPEC) -> Iterator[bytes]:
    """Yield the body of each entry.

    Parameters
    ----------
    kind : int
        `rtnetlink.RTM_GETLINK` or `rtnetlink.RTM_GETADDR`.
    family : int
        Of the addresses that are asked for; `AF_UNSPEC`: any.

    Raises
    ------
    OSError
        The kernel refuses, or does not answer within `limits.NETLINK_ANSWER_S`.
    """
    header = rtnetlink.LINK if kind == rtnetlink.RTM_GETLINK else rtnetlink.ADDRESS
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        asked.settimeout(limits.NETLINK_ANSWER_S)
        asked.bind((0, 0))
        asked.send(rtnetlink.request(kind, header.pack(family, 0, 0, 0, 0), 1))
        while True:
            data, (sender, _) = asked.recvfrom(limits.NETLINK_DATAGRAM_BYTES)
            for what, _flags, body in rtnetlink.messages(data) if sender == 0 else ():
                if what == rtnetlink.NLMSG_DONE:
                    return
                if what == rtnetlink.NLMSG_ERROR:
                    raise OSError(errno.EIO, "the kernel refuses the request")
                yield body
