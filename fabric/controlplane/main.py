"""Entry of `fabricd`: refuse early and clearly, take the sockets, become the keeper.

The same command line starts the daemon under the keeper, in a process of its own (`fabric.controlplane.daemon`).
"""

from __future__ import annotations

import os
import resource
import sys

from fabric.controlplane.incarnations import next_incarnation
from fabric.controlplane.keeper import Keeper, KeeperOptions
from fabric.controlplane.listening import listen_on
from fabric.controlplane.options import (
    Options,
    listen_unix,
    parse,
    prepare_state,
    read_secret,
)
from fabric.errors import ConfigError, FabricError
from fabric.links.rail_link import TCP, missing

EXIT_REFUSED = 2


def main(argv: list[str] | None = None) -> int:
    """Run keeper and daemon until stopped; returns the exit status (2: refused, the reason is on stderr)."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parse(arguments)
        keeper = _prepare(options, arguments)
    except FabricError as error:
        print(f"fabricd: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return keeper.run()


def _prepare(options: Options, arguments: list[str]) -> Keeper:
    check_exposure(options)
    _raise_descriptor_limit()
    lock = prepare_state(options.state)
    items = {"lock": (b"", lock)}
    for rail, (sock, link) in enumerate(listen_on(*usable_listens(options))):
        items[f"listen/tcp/{rail}" if rail else "listen/tcp"] = (_link_record(link), sock.detach())
    items["listen/unix"] = (b"", listen_unix(options.socket).detach())
    # The incarnation of the node is the keeper's: it outlives every daemon under it.
    items["node"] = (_node_record(next_incarnation(options.state), os.getpid()), -1)
    return Keeper(
        KeeperOptions(
            daemon_argv=[sys.executable, "-m", "fabric.controlplane.daemon", *arguments],
            env=dict(os.environ),
            unlink=[options.socket, options.socket + ".ctl"],
            items=items,
        )
    )


def usable_listens(options: Options) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the addresses to listen on and their links; those of a link that is not here are left out, and told."""
    used: tuple[list[tuple[str, int]], list[str]] = ([], [])
    for address, link in zip(options.listens, options.listen_links, strict=True):
        if why := missing(link):
            where = f"{address[0]}:{address[1]}"
            print(f"fabricd: --listen {link}:{where} is left out: {why}", file=sys.stderr)
            continue
        used[0].append(address)
        used[1].append(link)
    return used


def check_exposure(options: Options) -> None:
    """Refuse to listen beyond loopback, or to join there, without a secret file; check that a secret can be read."""
    for key, address in (
        *(("--listen", each) for each in options.listens),
        ("--join", options.join),
    ):
        if address is not None and options.secret_file is None and not _is_loopback(address[0]):
            raise ConfigError(
                f"{key} {address[0]}:{address[1]} is not loopback: nodes must prove a shared secret there,"
                " give --secret-file",
                key=key,
            )
    if options.listen is not None or options.join is not None:
        read_secret(options.secret_file)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("localhost", "::1")


def _link_record(link: str) -> bytes:
    """Encode {"link": …} as msgpack; nothing for tcp, as keepers of older builds have it."""
    text = link.encode()
    return b"\x81\xa4link\xda" + len(text).to_bytes(2, "big") + text if link != TCP else b""


def _node_record(incarnation: int, pid: int) -> bytes:
    """Encode {"incarnation": …, "keeper": …} as msgpack; the keeper stays free of third parties."""
    return (
        b"\x82\xabincarnation\xcf"
        + incarnation.to_bytes(8, "big")
        + b"\xa6keeper\xce"
        + pid.to_bytes(4, "big")
    )


def _raise_descriptor_limit() -> None:
    """Lanes, arenas and ports are descriptors: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 17) if hard != resource.RLIM_INFINITY else 1 << 17
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
