"""Ask a daemon through its control API: blocking calls, plain dicts, `FabricError`s.

One client for fabricctl, scripts and tests; safe from several threads. It never starts a daemon.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

os.environ.setdefault(
    "GRPC_VERBOSITY", "ERROR"
)  # read once by the library; its notices are not for our users

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fabric import errors, limits
from fabric.controlplane.api import convert, status
from fabric.controlplane.api.path_client import PathClient
from fabric.controlplane.api.v1 import control_pb2 as pb
from fabric.controlplane.api.v1 import control_pb2_grpc as pb_grpc


class ControlClient(PathClient):
    """Calls of one daemon.

    Parameters
    ----------
    path : str
        The control socket (the attach socket's path with ``.ctl``).
    deadline_s : float
        How long a call may take before `DeadlineExceeded`; apply, rollback and plugin_load at least
        `limits.APPLY_S`.
    """

    def __init__(self, path: str, *, deadline_s: float = limits.CONTROL_S) -> None:
        self.path = path
        self.deadline_s = deadline_s
        self._channel = grpc.insecure_channel(
            f"unix:{path}",
            options=(
                ("grpc.max_receive_message_length", limits.CONTROL_MESSAGE_BYTES_MAX),
                ("grpc.max_metadata_size", 4 * limits.CONTROL_ERROR_BYTES_MAX),
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self._stub: Any = pb_grpc.ControlStub(self._channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._channel.close()

    def is_serving(self) -> bool:
        """Ask the health service once; False when nothing answers or it says anything but SERVING."""
        try:
            answer = self._health.Check(
                health_pb2.HealthCheckRequest(service="fabric.v1.Control"), timeout=1.0
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def status(self) -> dict[str, Any]:
        """Return the daemon's identity, processes, places and counts."""
        return self._call("Status", pb.StatusRequest())

    def topology(self) -> dict[str, Any]:
        """Return nodes, links, ports and channels with endpoints and flows."""
        return self._call("Topology", pb.TopologyRequest())

    def ls(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of a listing: node, module, channel or plugin."""
        rows: list[dict[str, Any]] = self._call("List", pb.ListRequest(kind=kind))["rows"]
        return rows

    def show(self, kind: str, name: str) -> dict[str, Any]:
        """Return everything about one node, module, channel or plugin.

        Raises
        ------
        ConfigError
            Nothing of that kind has the name.
        """
        row: dict[str, Any] = self._call("Show", pb.ShowRequest(kind=kind, name=name)).get(
            "row", {}
        )
        return row

    def validate(
        self, text: str, *, source: str = "fabric.yaml", search: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the problems of a `fabric.yaml` against this node, without changing anything."""
        return self._call("Validate", pb.SpecRequest(text=text, source=source, search=search))

    def plan(
        self, text: str, *, source: str = "fabric.yaml", search: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return what `apply` would change, and the generation that it would change. Raises like `apply`."""
        return self._call("Plan", pb.SpecRequest(text=text, source=source, search=search))

    def diff(
        self,
        old: int | None = None,
        new: int | None = None,
        *,
        text: str | None = None,
        source: str = "fabric.yaml",
        search: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the changes between two generations, or between one and a `fabric.yaml`.

        Raises
        ------
        ConfigError
            A generation is not kept.
        """
        spec = None if text is None else pb.SpecRequest(text=text, source=source, search=search)
        return self._call("Diff", pb.DiffRequest(old=old, new=new, spec=spec))

    def rollback(self, generation: int | None = None) -> dict[str, Any]:
        """Apply an earlier generation (the last good one by default) as a new one. Raises like `apply`."""
        return self._call("Rollback", pb.RollbackRequest(generation=generation), limits.APPLY_S)

    def history(self) -> dict[str, Any]:
        """Return the generations that are kept, newest first, and which are live."""
        return self._call("History", pb.HistoryRequest())

    def apply(
        self, text: str, *, source: str = "fabric.yaml", search: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Make a `fabric.yaml` so; return the generation and the changes.

        Raises
        ------
        ConfigError
            It has a problem, and nothing was changed.
        BusyError
            Somebody else applies a plan; named.
        FabricError
            Something failed on the way, and the last good generation is in force again; both are named.
        """
        request = pb.SpecRequest(text=text, source=source, search=search)
        return self._call("Apply", request, limits.APPLY_S)

    def plugin_load(
        self, path: str, source: str, *, channel: str | None = None, kind: str | None = None
    ) -> dict[str, Any]:
        """Load a plugin file's text into a stage host; with `channel`, put it to work there."""
        request = pb.PluginLoadRequest(path=path, source=source, channel=channel, kind=kind)
        return self._call("PluginLoad", request, limits.APPLY_S)

    def plugin_change(self, verb: str, name: str, **fields: Any) -> dict[str, Any]:
        """Reload, canary, promote, rollback, unload, debug or undebug a plugin; return its row afterwards.

        Parameters
        ----------
        **fields
            `path` and `source` of new code (reload, canary), `seconds` and `messages` (canary), `version` (rollback).
        """
        request = pb.PluginChangeRequest(verb=verb, name=name, **fields)
        row: dict[str, Any] = self._call("PluginChange", request, limits.APPLY_S)["row"]
        return row

    def plugin_logs(self, name: str, lines: int = 100) -> list[str]:
        """Return the last lines that a plugin's stage host wrote."""
        return list(self._call("PluginLogs", pb.LogsRequest(name=name, lines=lines))["lines"])

    def module_logs(self, name: str, lines: int = 100) -> list[str]:
        """Return the last lines that a module wrote."""
        return list(self._call("ModuleLogs", pb.LogsRequest(name=name, lines=lines))["lines"])

    def module_stop(self, name: str) -> dict[str, Any]:
        """Drain and stop a module."""
        return self._call("ModuleStop", pb.ModuleStopRequest(name=name))

    def module_drain(self, name: str, grace_s: float) -> dict[str, Any]:
        """Let a replica (or all of a module) finish what it holds and leave for good."""
        return self._call("ModuleDrain", pb.ModuleDrainRequest(name=name, grace_s=grace_s))

    def module_scale(self, name: str, replicas: int) -> dict[str, Any]:
        """Run so many replicas of a module, until an apply changes it."""
        return self._call("ModuleScale", pb.ModuleScaleRequest(name=name, replicas=replicas))

    def module_add(
        self, text: str, *, source: str = "module add", search: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Start the modules of a text like `fabric.yaml` beside those that run."""
        return self._call("ModuleAdd", pb.SpecRequest(text=text, source=source, search=search))

    def audit(self) -> dict[str, Any]:
        """Compare the ledgers with what is in flight."""
        return self._call("Audit", pb.AuditRequest())

    def bench_edge(
        self, source: str, target: str, *, seconds: float, size_bytes: int, memory_bytes: int
    ) -> dict[str, Any]:
        """Measure what the edge between two nodes, or within one, delivers now.

        Parameters
        ----------
        source, target : str
            Names of nodes; the same for the lane within one.
        seconds, size_bytes, memory_bytes
            The budget: time of measuring, payload on the edge, memory on each node.

        Returns
        -------
        dict
            ``steps`` (figures, or ``left_out``), ``path``, ``load``, ``used``.

        Raises
        ------
        ConfigError
            There is no such node, or the budget is outside its bounds.
        PathBrokenError, PeerLostError, DeadlineExceeded, CapacityError
            A node is suspect, the edge has no path, an end or a node died, or could not start.

        Notes
        -----
        A call that is given up (Ctrl-C, the death of this process) takes everything it had started away.
        """
        request = pb.BenchEdgeRequest(
            source=source,
            target=target,
            seconds=seconds,
            size_bytes=size_bytes,
            memory_bytes=memory_bytes,
        )
        at_least_s = seconds + 2 * limits.BENCH_START_S + limits.CONTROL_S
        return self._call("BenchEdge", request, at_least_s)

    def events(
        self,
        *,
        drops: bool = False,
        reason: str = "",
        channel: str = "",
        since: float = 0.0,
        after: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Return events of all nodes, oldest first, and the `next` to give as `after` to get only later ones.

        Parameters
        ----------
        drops : bool
            Only those of messages that were dropped or failed.
        reason, channel : str
            Only of this reason, of this channel; empty: all.
        since : float
            Seconds since 1970.
        after : mapping, optional
            Node → number of the last event that was seen.
        """
        request = pb.EventsRequest(
            drops=drops, reason=reason, channel=channel, since=since, after=dict(after or {})
        )
        return self._call("Events", request)

    def metrics(self) -> str:
        """Return the node's metrics in Prometheus' text format."""
        return str(self._call("Metrics", pb.MetricsRequest())["text"])

    def down(self) -> dict[str, Any]:
        """Ask the node to stop; return the processes that will end."""
        return self._call("Down", pb.DownRequest())

    def _call(self, method: str, request: Message, at_least_s: float = 0.0) -> dict[str, Any]:
        deadline_s = max(self.deadline_s, at_least_s)  # what waits for modules takes its time
        try:
            reply = getattr(self._stub, method)(request, timeout=deadline_s)
        except grpc.RpcError as error:
            raise status.from_rpc(error, _verb(method), self.path, deadline_s) from error
        return convert.from_message(reply)


def _verb(method: str) -> str:
    return "".join(
        f"_{letter.lower()}" if letter.isupper() else letter for letter in method
    ).lstrip("_")


def is_unreachable(error: errors.FabricError) -> bool:
    """Tell whether an error means that no daemon answered, rather than that a daemon refused."""
    return bool(error.context.get("unreachable"))
