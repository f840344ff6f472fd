"""What `fabricd` is started with, and the refusals that come before anything is touched."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from fabric import limits
from fabric.controlplane.listening import address_of, addresses_of, links_of
from fabric.errors import BusyError, ConfigError
from fabric.paths.choice import BETWEEN_NODES, available_links, offered_links
from fabric.units import parse_bytes

SECRET_BYTES_MIN = 8
METRICS_DEFAULT = ("127.0.0.1", 0)
LOOPBACK = ("localhost", "::1")


@dataclass(frozen=True)
class Options:
    """Command line of `fabricd`, checked for form."""

    name: str
    socket: str
    state: Path
    listen: tuple[str, int] | None
    join: tuple[str, int] | None
    secret_file: Path | None
    log_level: str = "info"
    arena_bytes: int = limits.ARENA_BYTES_PER_TENANT_MAX
    links: tuple[str, ...] = ()  #: between nodes, in the operator's order; empty: all that work
    checksums: bool = True  #: over payloads between nodes; off where both ends of a link say so
    metrics: tuple[str, int] | None = METRICS_DEFAULT  #: where Prometheus reads; None: nowhere
    tcp_congestion: str = "auto"  #: as `links.congestion.choose` takes it
    more_listen: tuple[tuple[str, int], ...] = ()  #: further rails; a port of 0 is the first's
    listen_links: tuple[str, ...] = ()  #: of each address to listen on: tcp, ucx, ucx+TRANSPORTS
    cache_bytes: int = limits.CACHE_BYTES  #: of encoder outputs, for each user

    @property
    def listens(self) -> tuple[tuple[str, int], ...]:
        """Return every address to listen on, the first rail's first."""
        return (self.listen, *self.more_listen) if self.listen is not None else ()


def default_socket(name: str) -> str:
    """Return `$XDG_RUNTIME_DIR/fabricd/NAME.sock`, or below `/tmp/fabricd-UID`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = f"{runtime}/fabricd" if runtime else f"/tmp/fabricd-{os.getuid()}"
    return f"{folder}/{name}.sock"


def default_state(name: str) -> Path:
    """Return `$XDG_STATE_HOME/fabricd/NAME`, or below `~/.local/state`."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "fabricd" / name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fabricd", description="The fabric daemon of one node (keeper and daemon)."
    )
    parser.add_argument("--name", default="a", help="name of this node in the cluster (default: a)")
    parser.add_argument(
        "--socket", help="attach socket; the control API is beside it, with .ctl added"
    )
    parser.add_argument("--state", type=Path, help="state directory: registry, counters, logs")
    parser.add_argument(
        "--listen",
        metavar="[LINK:]HOST:PORT",
        action="append",
        default=[],
        help="where other nodes connect (default: nowhere); again for each further rail, with or without a port;"
        " 0.0.0.0:PORT is every usable interface; ucx:HOST:PORT is a rail of UCX, ucx+shm:… one of these transports",
    )
    parser.add_argument(
        "--join",
        metavar="HOST:PORT",
        help="the first node of the cluster; without it this is the first",
    )
    parser.add_argument(
        "--secret-file", type=Path, help="file with the cluster's shared secret (0600)"
    )
    parser.add_argument(
        "--links",
        metavar="NAME[,NAME]",
        help="links to use between nodes, the preferred first (default: all that work here)",
    )
    parser.add_argument(
        "--checksums",
        default="on",
        choices=("on", "off"),
        help="over payloads between nodes; off, where both nodes of a link say so, leaves them to the network's own",
    )
    parser.add_argument(
        "--tcp-congestion",
        metavar="auto|system|NAME",
        default="auto",
        help="of tcp links; auto: the system's, but one without pacing to a node on this machine",
    )
    _add_memory(parser)
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error")
    )
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT|off",
        default=f"{METRICS_DEFAULT[0]}:{METRICS_DEFAULT[1]}",
        help="where Prometheus reads /metrics, on loopback; port 0 takes a free one (fabricctl status says which)",
    )
    return parser


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arena-bytes",
        metavar="SIZE",
        default=str(limits.ARENA_BYTES_PER_TENANT_MAX),
        help="memory for the messages of one user on this node, such as 8GiB",
    )
    parser.add_argument(
        "--cache-bytes",
        metavar="SIZE",
        default=str(limits.CACHE_BYTES),
        help="memory for the cache of encoder outputs of one user; taken as it fills",
    )


def parse(argv: list[str] | None = None) -> Options:
    """Read the command line; raises `ConfigError` on a bad address."""
    args = _parser().parse_args(argv)
    if not args.name or len(args.name.encode()) > limits.NAME_BYTES_MAX or "/" in args.name:
        raise ConfigError(
            f"--name {args.name!r}: use 1 to {limits.NAME_BYTES_MAX} bytes without '/'",
            key="--name",
        )
    listens = addresses_of(args.listen)
    path = args.socket or os.environ.get("FABRIC_SOCKET") or default_socket(args.name)
    return Options(
        args.name,
        os.path.abspath(path),
        (args.state or default_state(args.name)).absolute(),
        listens[0] if listens else None,
        _address("--join", args.join),
        args.secret_file.absolute() if args.secret_file else None,
        args.log_level,
        _arena_bytes(args.arena_bytes),
        _links(args.links),
        args.checksums == "on",
        _metrics(args.metrics),
        _congestion(args.tcp_congestion),
        listens[1:],
        links_of(args.listen),
        _cache_bytes(args.cache_bytes),
    )


def _congestion(wanted: str) -> str:
    if wanted in ("auto", "system"):
        return wanted
    from fabric.links import congestion

    return congestion.check(wanted)


def _arena_bytes(text: str) -> int:
    try:
        found = parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--arena-bytes {text!r}: {error}", key="--arena-bytes") from error
    if not limits.SEGMENT_BYTES_MIN <= found <= limits.ARENA_BYTES_PER_TENANT_MAX:
        raise ConfigError(
            f"--arena-bytes {text!r}: use {limits.SEGMENT_BYTES_MIN} (SEGMENT_BYTES_MIN) to"
            f" {limits.ARENA_BYTES_PER_TENANT_MAX} (ARENA_BYTES_PER_TENANT_MAX) bytes",
            key="--arena-bytes",
        )
    return found


def _cache_bytes(text: str) -> int:
    try:
        found = parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--cache-bytes {text!r}: {error}", key="--cache-bytes") from error
    low, high = limits.CACHE_BYTES_RANGE
    if not low <= found <= high:
        raise ConfigError(
            f"--cache-bytes {text!r}: use {low} to {high} bytes (CACHE_BYTES_RANGE)",
            key="--cache-bytes",
        )
    return found


def _links(text: str | None) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    unknown = [name for name in wanted if name not in BETWEEN_NODES]
    if unknown:
        raise ConfigError(
            f"--links {text!r}: there is no link {unknown[0]!r} between nodes; use {' or '.join(BETWEEN_NODES)}",
            key="--links",
            found=text,
        )
    if wanted and not offered_links(wanted):
        raise ConfigError(
            f"--links {text!r}: none of them works here (this installation has {', '.join(available_links())}); "
            "add tcp to the list, or install what is missing",
            key="--links",
            found=text,
        )
    return wanted


def _metrics(text: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    address = _address("--metrics", text)
    if address is None or not (address[0].startswith("127.") or address[0].strip("[]") in LOOPBACK):
        raise ConfigError(
            f"--metrics {text!r}: metrics are served on loopback only, for example 127.0.0.1:9464, or off;"
            " put a proxy that asks for a password in front to read them from elsewhere",
            key="--metrics",
            found=text,
        )
    return address[0].strip("[]"), address[1]


def _address(key: str, text: str | None) -> tuple[str, int] | None:
    return address_of(key, text) if text else None


def prepare_state(path: Path) -> int:
    """Make the state directory and lock it; returns the lock's descriptor.

    Raises
    ------
    ConfigError
        It cannot be made or written (the reason is named).
    BusyError
        Another fabricd holds it.
    """
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        why = {
            errno.EROFS: "is on a read-only file system",
            errno.EACCES: "is not writable",
            errno.ENOTDIR: "is not a directory",
            errno.EEXIST: "is not a directory",
            errno.ENOSPC: "has no space left",
        }.get(error.errno or 0, str(error))
        raise ConfigError(
            f"the state directory {path} {why}; choose another with --state", path=str(path)
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise BusyError(
            f"the state directory {path} is in use by fabricd {holder}; stop it or choose another with --state",
            path=str(path),
            pid=holder,
        ) from error
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        raise ConfigError(
            f"the state directory {path} does not take a write: {error.strerror}; free some space there,"
            " or choose another with --state",
            path=str(path),
        ) from error
    return fd


def listen_unix(path: str) -> socket.socket:
    """Listen on the attach socket, only for its owner (0600); a stale one of a dead daemon is replaced.

    Raises
    ------
    ConfigError
        The path is too long, not a socket, or its folder cannot be written.
    BusyError
        A live daemon serves there.
    """
    size = max(len(os.fsencode(path)), len(os.fsencode(path + ".ctl")))
    if size > limits.SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"the socket path {path} (with .ctl) has {size} bytes, the system allows {limits.SOCKET_PATH_BYTES_MAX}:"
            " choose a shorter one with --socket",
            path=path,
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _claim(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        why = {
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "the folder is not writable",
        }
        reason = why.get(error.errno or 0, str(error))
        raise ConfigError(
            f"cannot listen on {path}: {reason}; choose another with --socket", path=path
        ) from error
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.listen(128)
    return sock


def _claim(path: str) -> None:
    folder = os.path.dirname(path)
    os.umask(0o077)
    os.makedirs(folder, exist_ok=True)
    os.umask(0o177)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} exists and is not a socket: remove it or choose another --socket", path=path
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(limits.CLOSE_S)
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise BusyError(
        f"a live daemon serves on {path}: stop it (fabricctl down) or choose another --socket",
        path=path,
    )


def read_secret(path: Path | None) -> bytes:
    """Return the cluster's secret; without a file the one that this user's nodes on this machine share.

    Raises
    ------
    ConfigError
        It is missing, shorter than 16 bytes, or readable by others.
    """
    path = path or _own_secret()
    try:
        found = path.stat()
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the secret file {path}: {error}", path=str(path)) from error
    if found.st_mode & 0o077 or found.st_uid not in (os.getuid(), 0):
        raise ConfigError(
            f"the secret file {path} can be read by others: chmod 600 {path}", path=str(path)
        )
    if len(secret) < SECRET_BYTES_MIN:
        raise ConfigError(
            f"the secret in {path} has {len(secret)} bytes, at least {SECRET_BYTES_MIN} are needed",
            path=str(path),
        )
    return secret


def _own_secret() -> Path:
    """Return this user's secret file beside the default socket, made at first use."""
    folder = Path(default_socket("a")).parent
    path = folder / "secret"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise ConfigError(
                f"{folder} belongs to another user; set XDG_RUNTIME_DIR or give --secret-file"
            )
        draft = folder / f"secret.{os.getpid()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, secrets.token_hex(32).encode())
        os.close(fd)
        with contextlib.suppress(
            FileExistsError
        ):  # the first one stays: two nodes may start at once
            os.link(draft, path)
        draft.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot keep a secret in {folder}: {error}; give --secret-file", path=str(path)
        ) from error
    return path
