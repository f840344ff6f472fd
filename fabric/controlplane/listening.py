"""Where a node listens for others: `--listen`, given once for each rail, and the sockets made of it.

A rail is of link `tcp`; written ``ucx:HOST:PORT`` or ``ucx+TRANSPORTS:HOST:PORT`` it is one of UCX, whose connections
begin at that address.

Standard library, limits and errors only: the keeper makes the sockets and keeps them over every daemon's restart.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fabric import limits
from fabric.errors import BusyError, ConfigError
from fabric.links import addresses
from fabric.links.rail_link import TCP, is_ucx, split_link

Address = tuple[str, int]
EVERYWHERE = "0.0.0.0"  # every usable interface's address, not the kernel's wildcard


class Listening(NamedTuple):
    """A socket that listens for other nodes, and the link of its rail."""

    sock: socket.socket
    link: str


def address_of(key: str, text: str) -> Address:
    """Read HOST:PORT; raises `ConfigError` naming the option."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"{key} {text!r}: write HOST:PORT, for example 127.0.0.1:7400", key=key, found=text
        )
    return host.strip("[]"), int(port)


def links_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the link of every `--listen`; raises `ConfigError` where it names transports that cannot be."""
    return tuple(split_link(text)[0] for text in texts)


def addresses_of(texts: Sequence[str]) -> tuple[Address, ...]:
    """Read every `--listen`: HOST:PORT, and further ones, whose port is the first's where they leave it out.

    Raises
    ------
    ConfigError
        One is malformed or given twice, or there are more than `limits.RAILS_PER_PEER_MAX`.
    """
    found: list[Address] = []
    for link, text in map(split_link, texts):
        has_port = ":" in text and not text.endswith("]")
        if found and text and not has_port:
            address = text.strip("[]"), found[0][1]
        else:
            address = address_of("--listen", text)
        if is_ucx(link) and ":" in address[0]:
            raise ConfigError(
                f"--listen {link}:{text}: a rail of UCX has an IPv4 address; give one, or a rail of tcp",
                key="--listen",
            )
        if address in found and address[1]:
            raise ConfigError(
                f"--listen {text!r} is given twice: each rail has an address of its own",
                key="--listen",
            )
        found.append(address)
    if len(found) > limits.RAILS_PER_PEER_MAX:
        raise ConfigError(
            f"--listen is given {len(found)} times: a node has at most {limits.RAILS_PER_PEER_MAX}"
            " (RAILS_PER_PEER_MAX) rails; leave the slowest out",
            key="--listen",
        )
    return tuple(found)


def listen_on(wanted: Sequence[Address], links: Sequence[str] = ()) -> list[Listening]:
    """Listen on every address, the first rail's first; 0.0.0.0 means every usable interface's.

    Parameters
    ----------
    links : sequence of str
        Of each address; tcp where there are fewer.

    Raises
    ------
    BusyError
        An address is taken.
    ConfigError
        One is not this machine's.
    """
    made: list[Listening] = []
    try:
        for number, (host, port) in enumerate(wanted):
            link = links[number] if number < len(links) else TCP
            for each in _expanded(host):
                if len(made) == limits.RAILS_PER_PEER_MAX:
                    _say_left_out(each)
                    continue
                # Port 0 is any free one; the rails of a node share it, unless they have one address.
                used = port or _shared_port(made, each)
                made.append(Listening(listen_tcp((each, used)), link))
    except BaseException:
        for listening in made:
            listening.sock.close()
        raise
    return made


def _shared_port(made: Sequence[Listening], host: str) -> int:
    names = [listening.sock.getsockname() for listening in made]
    return names[0][1] if names and all(name[0] != host for name in names) else 0


def _expanded(host: str) -> tuple[str, ...]:
    if host != EVERYWHERE:
        return (host,)
    found = tuple(a.address for a in addresses.usable(addresses.local_addresses()))
    return found or (host,)


def _say_left_out(address: str) -> None:
    print(
        f"fabricd: {address} is not listened on: a node has at most {limits.RAILS_PER_PEER_MAX}"
        " (RAILS_PER_PEER_MAX) rails; choose with --listen",
        file=sys.stderr,
    )


def listen_tcp(address: Address) -> socket.socket:
    """Listen for other nodes; `BusyError` when the address is taken, `ConfigError` when it is not ours."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"the address {host}:{port} is taken; choose another --listen", host=host, port=port
            ) from error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}; choose another --listen", host=host
        ) from error
    return sock
