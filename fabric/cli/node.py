"""`fabricctl up`, `down` and `status`: one node's life."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fabric import errors, limits, units
from fabric.cli import places, processes
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output, Socket, connect
from fabric.cli.output import Format, emit, pairs

DAEMON = (sys.executable, "-m", "fabric.controlplane.main")
PAUSE_S = 0.05  # between two looks at a node that starts
LOG_TAIL_LINES = 15
STOP_S = 5.0  # for a node that did not come up, before it is killed

_TEXT = Optional[str]  # noqa: UP045 - typer reads the annotation at run time
Name = Annotated[str, typer.Option("--name", help="Name of the node.")]
State = Annotated[
    _TEXT, typer.Option("--state", help="Folder for registry and logs.", show_default=False)
]
Listen = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--listen",
        help="HOST:PORT for other nodes; again for each further rail. 0.0.0.0:PORT: every interface.",
        show_default=False,
    ),
]
Join = Annotated[
    _TEXT, typer.Option("--join", help="HOST:PORT of a node to join.", show_default=False)
]
Links = Annotated[
    _TEXT,
    typer.Option(
        "--links", help="Links to other nodes, the preferred first: ucx,tcp.", show_default=False
    ),
]
Checksums = Annotated[
    _TEXT,
    typer.Option(
        "--checksums",
        help="off: payloads between nodes rely on the network's, where both nodes say so.",
        show_default=False,
    ),
]
Congestion = Annotated[
    _TEXT,
    typer.Option(
        "--tcp-congestion",
        help="auto, system, or the congestion control of tcp links.",
        show_default=False,
    ),
]
Secret = Annotated[
    _TEXT, typer.Option("--secret-file", help="Shared secret of the nodes.", show_default=False)
]

Metrics = Annotated[
    _TEXT,
    typer.Option(
        "--metrics", help="HOST:PORT on loopback for Prometheus, or off.", show_default=False
    ),
]


def up(
    name: Name = places.DEFAULT_NODE,
    socket: Socket = None,
    state: State = None,
    listen: Listen = None,
    join: Join = None,
    secret_file: Secret = None,
    links: Links = None,
    checksums: Checksums = None,
    tcp_congestion: Congestion = None,
    metrics: Metrics = None,
) -> None:
    """Start a node in the background and wait until it serves."""
    _check_name(name)
    _check_secret(secret_file)
    socket_path = os.path.abspath(socket or places.default_socket(name))
    folder = Path(state).absolute() if state else places.default_state(name)
    if _already_up(socket_path, name):
        return
    _make_folders(Path(socket_path).parent, folder)
    log = places.daemon_log(folder)
    command = [*DAEMON, "--name", name, "--socket", socket_path]
    command += ["--state", str(folder)]
    for address in listen or ():
        command += ["--listen", address]
    given = {
        "--join": join,
        "--secret-file": secret_file,
        "--links": links,
        "--checksums": checksums,
        "--tcp-congestion": tcp_congestion,
        "--metrics": metrics,
    }
    for flag, value in given.items():
        command += [flag, value] if value else []
    sys.stdout.write(f"starting node {name}; its log: {log}\n")
    sys.stdout.flush()
    offset = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        _await_serving(process, socket_path, name, log, offset)
    except KeyboardInterrupt:
        processes.end(process, STOP_S)  # it is in a session of its own, where Ctrl-C does not reach
        raise
    with failing(f"node {name} started but does not answer"), connect(socket_path) as client:
        answer = client.status()
    sys.stdout.write(_summary(answer, socket_path) + "\n")


def _check_secret(path: str | None) -> None:
    """Refuse a secret that is not there, also where nobody else is to be met yet."""
    if path and not os.access(path, os.R_OK):
        raise Failure(
            "cannot start the node",
            f"--secret-file {path}: no such file, or not readable",
            "make one that only you can read, the same on all nodes: head -c 32 /dev/urandom | base64 > FILE",
        )


def _check_name(name: str) -> None:
    """Refuse a name that is no folder's before anything is made."""
    if not 0 < len(name.encode()) <= limits.NAME_BYTES_MAX or "/" in name or name in (".", ".."):
        raise Failure(
            f"cannot start node {name!r}",
            f"a name has 1 to {limits.NAME_BYTES_MAX} bytes, without '/'",
            "choose another with --name",
        )


def _already_up(socket_path: str, name: str) -> bool:
    with connect(socket_path, deadline_s=5.0) as client:
        if not client.is_serving():
            return False
        with failing(f"cannot start node {name}"):
            running = client.status()
    if running.get("node") != name:
        raise Failure(
            f"cannot start node {name}",
            f"node {running.get('node')} serves on {socket_path} (pid {running.get('pid')})",
            "give --socket another path, or end that node: fabricctl down --socket " + socket_path,
        )
    sys.stdout.write(f"node {name} is up already\n{_summary(running, socket_path)}\n")
    return True


def _make_folders(*folders: Path) -> None:
    for folder in (*folders, folders[-1] / "logs"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(
                f"cannot use the folder {folder}",
                error.strerror or str(error),
                "choose others with --socket and --state, or correct its permissions",
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Failure(
                f"cannot use the folder {folder}",
                "it is not writable",
                "choose others with --socket and --state",
            )


def _await_serving(
    process: subprocess.Popen[bytes], socket_path: str, name: str, log: Path, offset: int
) -> None:
    deadline = processes.Deadline(limits.NODE_UP_S)
    while not deadline.has_passed():
        try:
            process.wait(PAUSE_S)  # waits, and notices an early end at once
        except subprocess.TimeoutExpired:
            if _serves(socket_path):
                return
            continue
        raise Failure(
            f"node {name} ended while it started (exit status {process.returncode})",
            _tail(log, offset),
            f"correct what it says and run fabricctl up again (whole log: {log})",
        )
    processes.end(process, STOP_S)
    raise Failure(
        f"node {name} did not serve within {limits.NODE_UP_S:g} s, and was ended",
        _tail(log, offset),
        f"see its log: {log}",
    )


def _serves(socket_path: str) -> bool:
    if not os.path.exists(places.control_socket(socket_path)):
        return False
    with connect(socket_path, deadline_s=1.0) as client:
        return client.is_serving()


def _tail(log: Path, offset: int) -> str:
    """Return the last lines written since `offset`."""
    try:
        with open(log, "rb") as file:
            file.seek(max(offset, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log {log} cannot be read: {error.strerror}"
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "it printed nothing"


def _summary(answer: Mapping[str, Any], socket_path: str) -> str:
    words = [
        f"node {answer.get('node')} {answer.get('state', 'serving')}",
        f"pid {answer.get('pid')}",
    ]
    words += [f"listens on {answer['listen']}"] if answer.get("listen") else []
    trouble = f"\n  {answer['trouble']}" if answer.get("trouble") else ""
    return (
        f"{', '.join(words)}{trouble}\n  socket: {socket_path}"
        f"\n  look around: fabricctl topology --socket {socket_path}"
    )


def status(socket: Socket = None, output: Output = Format.table) -> None:
    """Show a node's identity, processes, places and counts."""
    with failing("cannot show the status"), connect(socket) as client:
        answer = client.status()
    emit(answer, output, lambda: pairs(_readable(answer)))


def _readable(answer: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(answer)
    if isinstance(values.get("uptime_s"), float):
        values["uptime"] = units.format_seconds(values.pop("uptime_s"))
    if isinstance(values.get("memory"), Mapping):
        sizes = values["memory"].items()
        values["memory"] = {
            name.removesuffix("_bytes"): units.format_bytes(size) for name, size in sizes
        }
    if values.get("events"):
        values["events"] = [_timed(event) for event in values["events"]]
    return values


def _timed(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event with its local time of day instead of seconds since 1970."""
    moment = datetime.datetime.fromtimestamp(event["at_s"]).strftime("%Y-%m-%d %H:%M:%S")
    return {"at": moment, **{key: item for key, item in event.items() if key != "at_s"}}


def down(socket: Socket = None) -> None:
    """Stop a node and all it runs, and verify that no process and no socket is left."""
    socket_path = os.path.abspath(socket or places.default_socket())
    with connect(socket_path) as client:
        try:
            before = client.status()
            watched = processes.Watched([before.get("pid"), before.get("keeper_pid")])
            watched.add(client.down().get("pids", ()))
        except errors.FabricError as error:
            if not error.context.get("unreachable"):
                raise
            _refuse_when_kept(socket_path, error)
            sys.stdout.write(f"nothing to stop: {error.message}\n")
            return
    count = len(watched)
    left = watched.wait(limits.NODE_DOWN_S)
    places_left = [
        path for path in (socket_path, places.control_socket(socket_path)) if os.path.exists(path)
    ]
    if left or places_left:
        what = [f"process {pid} ({name})" for pid, name in left] + [
            f"socket {path}" for path in places_left
        ]
        raise Failure(
            f"node {before.get('node')} was told to stop; {len(what)} things are left after {limits.NODE_DOWN_S:g} s",
            ", ".join(what),
            f"see its log {before.get('log') or ''}, then end them by hand: kill PID, rm SOCKET",
        )
    sys.stdout.write(
        f"node {before.get('node')} is down: {count} processes ended, nothing is left\n"
    )


def _refuse_when_kept(socket_path: str, error: errors.FabricError) -> None:
    """Fail when the attach socket is alive though no daemon answers: its keeper is starting one again."""
    if processes.accepts(socket_path):
        raise Failure(
            "cannot stop the node now",
            f"a keeper holds {socket_path}, and its daemon does not answer ({error.message})",
            "wait a moment for the daemon to come back, then run fabricctl down again",
        ) from error
