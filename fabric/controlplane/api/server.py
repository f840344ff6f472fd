"""Serve `fabric.v1` on a unix socket, beside gRPC's health and reflection services.

Runs in the daemon's event loop. It decides nothing: every call is one call of `Control`, which
answers plain dicts. The socket is only for its owner (0600).
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fabric import config, errors, limits
from fabric.config.rules import line
from fabric.controlplane.api.answer import Answer, answer
from fabric.controlplane.api.path_server import PathServicer, PathsLike
from fabric.controlplane.api.v1 import control_pb2 as pb
from fabric.controlplane.api.v1 import control_pb2_grpc as pb_grpc
from fabric.worker.probe_plan import Budget

SERVICE = pb.DESCRIPTOR.services_by_name["Control"].full_name


class ControlLike(PathsLike, Protocol):
    """What the API needs of the daemon (`fabric.controlplane.control.Control`, or a fake)."""

    async def status(self) -> Answer: ...
    async def topology(self) -> Answer: ...
    async def ls(self, kind: str) -> list[dict[str, Any]]: ...
    async def show(self, kind: str, name: str) -> Answer: ...
    async def validate(self, spec: config.FabricSpec) -> Answer: ...
    async def plan(self, spec: config.FabricSpec) -> Answer: ...
    async def apply(self, spec: config.FabricSpec) -> Answer: ...
    async def diff(
        self, old: int | None = None, new: int | None = None, spec: config.FabricSpec | None = None
    ) -> Answer: ...
    async def rollback(self, generation: int | None = None) -> Answer: ...
    async def history(self) -> Answer: ...
    async def plugin_load(
        self, path: str, source: str, channel: str | None = None, kind: str | None = None
    ) -> Answer: ...
    async def plugin_change(self, verb: str, name: str, **fields: Any) -> Answer: ...
    async def plugin_logs(self, name: str, lines: int) -> Answer: ...
    async def module_logs(self, name: str, lines: int) -> Answer: ...
    async def module_stop(self, name: str) -> Answer: ...
    async def module_drain(self, name: str, grace_s: float) -> Answer: ...
    async def module_scale(self, name: str, replicas: int) -> Answer: ...
    async def module_add(self, spec: config.FabricSpec) -> Answer: ...
    async def audit(self) -> Answer: ...
    async def bench_edge(self, source: str, target: str, budget: Budget) -> Answer: ...
    async def events(self, **query: Any) -> Answer: ...
    async def metrics(self) -> Answer: ...
    async def down(self) -> Answer: ...


class ControlServicer(PathServicer, pb_grpc.ControlServicer):
    """Each method: request fields → `Control` → reply fields, with errors mapped by `status`."""

    def __init__(self, control: ControlLike) -> None:
        self._control = control
        self._paths = control

    async def Status(self, request: pb.StatusRequest, context: Any) -> Message:
        return await answer(context, pb.StatusReply, self._control.status)

    async def Topology(self, request: pb.TopologyRequest, context: Any) -> Message:
        return await answer(context, pb.TopologyReply, self._control.topology)

    async def List(self, request: pb.ListRequest, context: Any) -> Message:
        async def rows() -> Answer:
            return {"rows": await self._control.ls(request.kind)}

        return await answer(context, pb.ListReply, rows)

    async def Show(self, request: pb.ShowRequest, context: Any) -> Message:
        async def row() -> Answer:
            return {"row": await self._control.show(request.kind, request.name)}

        return await answer(context, pb.ShowReply, row)

    async def Validate(self, request: pb.SpecRequest, context: Any) -> Message:
        async def check() -> Answer:
            spec, problems = await asyncio.to_thread(_read, request)
            found = dict(await self._control.validate(spec))
            return {**found, "problems": _merge(problems, found.get("problems"))}

        return await answer(context, pb.ValidateReply, check)

    async def Plan(self, request: pb.SpecRequest, context: Any) -> Message:
        async def plan() -> Answer:
            spec, problems = await _read_legal(request)
            found = dict(await self._control.plan(spec))
            return {**found, "problems": _merge(problems, found.get("problems"))}

        return await answer(context, pb.ApplyReply, plan)

    async def Diff(self, request: pb.DiffRequest, context: Any) -> Message:
        async def diff() -> Answer:
            spec = (await _read_legal(request.spec))[0] if request.HasField("spec") else None
            old = request.old if request.HasField("old") else None
            new = request.new if request.HasField("new") else None
            return await self._control.diff(old, new, spec)

        return await answer(context, pb.ApplyReply, diff)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> Message:
        async def rollback() -> Answer:
            return await self._control.rollback(
                request.generation if request.HasField("generation") else None
            )

        return await answer(context, pb.ApplyReply, rollback)

    async def History(self, request: pb.HistoryRequest, context: Any) -> Message:
        return await answer(context, pb.HistoryReply, self._control.history)

    async def Apply(self, request: pb.SpecRequest, context: Any) -> Message:
        async def apply() -> Answer:
            spec, problems = await _read_legal(request)
            found = dict(await self._control.apply(spec))
            return {**found, "problems": _merge(problems, found.get("problems"))}

        return await answer(context, pb.ApplyReply, apply)

    async def PluginLoad(self, request: pb.PluginLoadRequest, context: Any) -> Message:
        async def load() -> Answer:
            channel = request.channel if request.HasField("channel") else None
            kind = request.kind if request.HasField("kind") else None
            return await self._control.plugin_load(
                request.path, request.source, channel=channel, kind=kind
            )

        return await answer(context, pb.PluginLoadReply, load)

    async def PluginChange(self, request: pb.PluginChangeRequest, context: Any) -> Message:
        async def change() -> Answer:
            names = ("path", "source", "seconds", "messages", "version")
            fields = {name: getattr(request, name) for name in names if request.HasField(name)}
            return {"row": await self._control.plugin_change(request.verb, request.name, **fields)}

        return await answer(context, pb.PluginChangeReply, change)

    async def PluginLogs(self, request: pb.LogsRequest, context: Any) -> Message:
        async def logs() -> Answer:
            return await self._control.plugin_logs(request.name, _lines(request))

        return await answer(context, pb.LogsReply, logs)

    async def ModuleLogs(self, request: pb.LogsRequest, context: Any) -> Message:
        async def logs() -> Answer:
            return await self._control.module_logs(request.name, _lines(request))

        return await answer(context, pb.LogsReply, logs)

    async def ModuleStop(self, request: pb.ModuleStopRequest, context: Any) -> Message:
        async def stop() -> Answer:
            return await self._control.module_stop(request.name)

        return await answer(context, pb.ModuleStopReply, stop)

    async def ModuleDrain(self, request: pb.ModuleDrainRequest, context: Any) -> Message:
        async def drain() -> Answer:
            return await self._control.module_drain(request.name, request.grace_s)

        return await answer(context, pb.ModuleStopReply, drain)

    async def ModuleScale(self, request: pb.ModuleScaleRequest, context: Any) -> Message:
        async def scale() -> Answer:
            return await self._control.module_scale(request.name, request.replicas)

        return await answer(context, pb.ModuleStopReply, scale)

    async def ModuleAdd(self, request: pb.SpecRequest, context: Any) -> Message:
        async def add() -> Answer:
            return await self._control.module_add(await asyncio.to_thread(_checked, request))

        return await answer(context, pb.ApplyReply, add)

    async def Audit(self, request: pb.AuditRequest, context: Any) -> Message:
        return await answer(context, pb.AuditReply, self._control.audit)

    async def BenchEdge(self, request: pb.BenchEdgeRequest, context: Any) -> Message:
        async def bench() -> Answer:
            budget = Budget(request.seconds, request.size_bytes, request.memory_bytes)
            return await self._control.bench_edge(request.source, request.target, budget)

        return await answer(context, pb.BenchReply, bench)

    async def Events(self, request: pb.EventsRequest, context: Any) -> Message:
        async def find() -> Answer:
            return await self._control.events(
                drops=request.drops,
                reason=request.reason,
                channel=request.channel,
                since=request.since,
                after=dict(request.after),
            )

        return await answer(context, pb.EventsReply, find)

    async def Metrics(self, request: pb.MetricsRequest, context: Any) -> Message:
        return await answer(context, pb.MetricsReply, self._control.metrics)

    async def Down(self, request: pb.DownRequest, context: Any) -> Message:
        return await answer(context, pb.DownReply, self._control.down)


def _read(request: pb.SpecRequest) -> tuple[config.FabricSpec, list[dict[str, Any]]]:
    spec = config.parse(
        request.text, source=request.source or "fabric.yaml", search=tuple(request.search)
    )
    return spec, [problem.to_wire() for problem in config.validate(spec)]


def _refuse(spec: config.FabricSpec, problems: list[dict[str, Any]]) -> None:
    refused = [problem for problem in problems if problem["severity"] == "error"]
    if refused:
        lines = [line(problem) for problem in refused]
        raise errors.ConfigError("\n".join(lines), file=spec.source, problems=refused)


def _checked(request: pb.SpecRequest) -> config.FabricSpec:
    spec, problems = _read(request)
    _refuse(spec, problems)
    return spec


async def _read_legal(
    request: pb.SpecRequest,
) -> tuple[config.FabricSpec, list[dict[str, Any]]]:
    """Read a file and refuse it with every error that the rules find."""
    spec, problems = await asyncio.to_thread(_read, request)
    _refuse(spec, problems)
    return spec, problems


def _merge(first: list[dict[str, Any]], second: Any) -> list[dict[str, Any]]:
    """Return both lists of problems; the daemon may have run the same rules, so repeats are left out."""
    merged = list(first)
    merged += [problem for problem in second or () if problem not in merged]
    return merged


def _lines(request: pb.LogsRequest) -> int:
    return min(request.lines or limits.LOG_LINES_MAX, limits.LOG_LINES_MAX)


class ControlServer:
    """A serving control API; `close` it once."""

    def __init__(self, server: grpc.aio.Server, path: str, checks: Any) -> None:
        self._server = server
        self._checks = checks
        self.path = path

    async def close(self, grace_s: float = 1.0) -> None:
        """Stop: health says NOT_SERVING, calls in progress get `grace_s`, the socket is removed. Idempotent."""
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        Path(self.path).unlink(missing_ok=True)


async def serve(control: ControlLike, path: str) -> ControlServer:
    """Serve a `Control` on a unix socket.

    Parameters
    ----------
    control : ControlLike
        Its coroutines run in this event loop.
    path : str
        Of the socket; at most `limits.SOCKET_PATH_BYTES_MAX` bytes, its folder must exist.

    Returns
    -------
    ControlServer
        Serving; health answers SERVING for ``""`` and ``fabric.v1.Control``.

    Raises
    ------
    ConfigError
        The path is too long or is something else than a socket.
    BusyError
        A live process serves on that path.
    """
    _claim(path)
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", limits.CONTROL_MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", limits.CONTROL_MESSAGE_BYTES_MAX),
            ("grpc.max_metadata_size", 4 * limits.CONTROL_ERROR_BYTES_MAX),
        )
    )
    pb_grpc.add_ControlServicer_to_server(ControlServicer(control), server)  # type: ignore[no-untyped-call]
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    _bind(server, path)
    await server.start()
    for name in ("", SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return ControlServer(server, path, checks)


def _claim(path: str) -> None:
    if len(os.fsencode(path)) > limits.SOCKET_PATH_BYTES_MAX:
        raise errors.ConfigError(
            f"the socket path {path} has {len(os.fsencode(path))} bytes, the system allows"
            f" {limits.SOCKET_PATH_BYTES_MAX}: choose a shorter one with --socket",
            path=path,
        )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise errors.ConfigError(
            f"{path} exists and is not a socket: remove it or choose another --socket", path=path
        )
    if is_answered(path):
        raise errors.BusyError(
            f"another process serves on {path}: choose another --socket or end it", path=path
        )
    os.unlink(path)


def is_answered(path: str) -> bool:
    """Tell whether a process accepts connections on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(limits.CLOSE_S)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _bind(server: grpc.aio.Server, path: str) -> None:
    # The umask makes the socket 0600 from its first instant; chmod alone would leave a gap.
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise errors.ConfigError(
            f"cannot listen on {path}: {error}. Check that its folder exists and is writable",
            path=path,
        ) from error
    finally:
        os.umask(before)
    os.chmod(path, 0o600)
