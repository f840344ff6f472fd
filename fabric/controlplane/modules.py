"""The supervised processes of a node, modules and stage hosts: their lives, tokens, logs.

`fabric.worker.supervisor` decides, the keeper executes, this keeps both together. Everything about a process is in the
keeper under `process/<tag>`, so a restarted daemon goes on supervising what kept running.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fabric import errors, limits, steps
from fabric.config import ModuleSpec
from fabric.controlplane.context import Context
from fabric.controlplane.keeper_client import Loaded
from fabric.controlplane.logs import tail
from fabric.controlplane.ports import Port, PortTable
from fabric.worker.supervisor import Act, Event, Life, State, begin, next_state

log = logging.getLogger("fabricd.modules")


@dataclass(eq=False)
class Process:
    """One supervised process. `kind`: module, stage or probe; `about`: the module's spec or the plugin's record."""

    tag: str
    kind: str
    name: str
    argv: list[str]
    env: dict[str, str]
    token: str
    about: dict[str, Any] = field(default_factory=dict)
    life: Life = field(default_factory=Life)
    pid: int = 0
    port: int = 0
    is_held: bool = False  #: somebody runs it by hand, under a debugger; none is started here
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class ModuleTable:
    """Belongs to the daemon's loop. `on_ready(process)` is called each time a process says it is ready."""

    def __init__(self, context: Context, ports: PortTable) -> None:
        self._context = context
        self._ports = ports
        self._processes: dict[str, Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_ready: Callable[[Process], None] = lambda process: None

    def all(self, kind: str) -> list[Process]:
        """Return the processes of a kind by name."""
        return sorted((p for p in self._processes.values() if p.kind == kind), key=lambda p: p.name)

    def find(self, kind: str, name: str) -> Process | None:
        """Return a process by kind and name."""
        return self._processes.get(f"{kind}-{name}")

    def owner_of(self, token: str) -> tuple[str, str] | None:
        """Return kind and tag of the process a token was given to."""
        for process in self._processes.values():
            if secrets.compare_digest(process.token, token):
                return process.kind, process.tag
        return None

    # ---------------------------------------------------------------- verbs
    def start_module(self, spec: ModuleSpec, name: str) -> Process:
        """Start (and from now on supervise) one replica of a module."""
        env = {
            "FABRIC_MODULE": spec.class_path,
            "FABRIC_MODULE_NAME": name,
            "FABRIC_MODULE_CONFIG": json.dumps(spec.config),
            "FABRIC_MODULE_CHANNELS": json.dumps(spec.channels),
        }
        argv = [sys.executable, "-m", "fabric.worker.host"]
        about = msgspec.to_builtins(spec)
        return self._add("module", name, argv, env, about, spec.restart.backoff_s)

    def start_probe(self, name: str, class_path: str, config: dict[str, Any]) -> Process:
        """Start one end of a measurement: a module of no plan. Who asked for it ends it, also when it fails."""
        env = {
            "FABRIC_MODULE": class_path,
            "FABRIC_MODULE_NAME": name,
            "FABRIC_MODULE_CONFIG": json.dumps(config),
        }
        argv = [sys.executable, "-m", "fabric.worker.host"]
        pause_s = limits.BENCH_START_S  # it is taken away before it could come back
        return self._add("probe", name, argv, env, {"name": name}, (pause_s, pause_s))

    def start_stage_host(self, name: str, about: dict[str, Any]) -> Process:
        """Start the stage host of one plugin."""
        argv = [sys.executable, "-m", "fabric.worker.stage_host"]
        guard = self._context.state_dir / "plugins" / f"{name}.hand"
        env = {"FABRIC_MODULE_NAME": name, "FABRIC_STAGE_GUARD": str(guard)}
        return self._add("stage", name, argv, env, about, (0.1, 5.0))

    async def stop(self, process: Process, grace_s: float = limits.DRAIN_S) -> None:
        """Ask a process to leave, end it after the grace, forget it."""
        self._step(process, Event.STOP, grace_s)
        try:
            async with asyncio.timeout(grace_s + 5.0):
                while process.life.state is not State.STOPPED:
                    process.ended.clear()
                    await process.ended.wait()
        except TimeoutError:
            self._context.events.add("process does not end", process=process.tag, pid=process.pid)
            return
        # Else another who waited was first, and began it anew.
        if self._processes.get(process.tag) is process:
            del self._processes[process.tag]
            self._context.keeper.drop(f"process/{process.tag}")

    async def hold(self, process: Process) -> dict[str, str]:
        """End a process and start none until `give_back`; returns the environment to run it by hand with."""
        process.is_held = True
        if process.pid:
            self._context.keeper.kill(process.tag, signal.SIGTERM)
            async with asyncio.timeout(limits.DRAIN_S):
                while process.pid:
                    process.ended.clear()
                    await process.ended.wait()
        self.keep(process)
        return {**process.env, **self._attachment(process)}

    def give_back(self, process: Process) -> None:
        """Start (and supervise) a held process again."""
        if process.is_held:
            process.is_held = False
            process.life, act = begin(process.life, self._now())
            self.keep(process)
            self._act(process, act, 0.0)

    def is_held(self, port: Port) -> bool:
        """Tell whether a port is of a process that somebody runs by hand."""
        process = self._processes.get(port.owner) if port.owner else None
        return process is not None and process.is_held

    async def stop_all(self, grace_s: float) -> None:
        """Stop everything, stage hosts last; bounded."""
        for kinds in (("probe", "module"), ("stage",)):
            leaving = [p for kind in kinds for p in self.all(kind)]
            await asyncio.gather(*(self.stop(p, grace_s) for p in leaving))

    async def restore(self, loaded: Loaded) -> None:
        """Go on supervising what the keeper still runs; what ended meanwhile comes back as after any exit."""
        for key, (value, _) in loaded.items.items():
            if key.startswith("process/"):
                self._take_back(value, loaded)

    def log_path(self, kind: str, name: str) -> Path:
        """Return where the output of a process goes."""
        return (
            self._context.state_dir
            / "logs"
            / f"{f'plugin-{name}' if kind == 'stage' else name}.log"
        )

    def log_lines(self, kind: str, name: str, lines: int) -> list[str]:
        """Return the last lines a process printed; `ConfigError` for a name never seen."""
        path = self.log_path(kind, name)
        if self.find(kind, name) is None and not path.exists():
            raise unknown_name(
                "module" if kind == "module" else "plugin", name, [p.name for p in self.all(kind)]
            )
        return tail(path, lines)

    # ---------------------------------------------------------------- events
    def on_exit(self, tag: str, pid: int, code: int) -> None:
        """The keeper reaped a process."""
        process = self._processes.get(tag)
        if process is None or (process.pid and pid != process.pid):
            return
        process.pid = 0
        process.ready.clear()
        if process.life.state is not State.STOPPING:
            self._context.events.add("process ended unasked", process=tag, pid=pid, code=code)
        self._step(process, Event.EXITED)
        process.ended.set()

    def on_reported(self, port: Port, what: str) -> None:
        """A supervised process attached, is ready, or resumed."""
        process = self._processes.get(port.owner) if port.owner else None
        if process is None:
            return
        if what == "attached":
            process.port = port.port
            self._step(process, Event.ATTACHED)
        elif what == "ready":
            self._step(process, Event.READY)
            process.ready.set()
            self.on_ready(process)

    def on_port_gone(self, port: Port) -> None:
        """A supervised process lost its port (its exit comes from the keeper)."""
        process = self._processes.get(port.owner) if port.owner else None
        if process is not None and process.port == port.port:
            process.port = 0
            process.ready.clear()
            self.give_back(process)

    # ---------------------------------------------------------------- machine
    def _add(
        self,
        kind: str,
        name: str,
        argv: list[str],
        env: dict[str, str],
        about: dict[str, Any],
        backoff_s: tuple[float, float],
    ) -> Process:
        tag = f"{kind}-{name}"
        if tag in self._processes:
            raise errors.BusyError(f"{kind} {name!r} runs already", process=tag)
        if len(self._processes) >= limits.MODULES_MAX:
            raise errors.CapacityError(
                f"MODULES_MAX ({limits.MODULES_MAX}) processes run", limit="MODULES_MAX"
            )
        if "/" in name or name.startswith("."):
            raise errors.ConfigError(
                f"{kind} name {name!r}: use letters, digits, . _ -", key="name"
            )
        process = Process(tag, kind, name, argv, env, secrets.token_hex(16), about)
        process.life = Life(first_s=backoff_s[0], longest_s=backoff_s[1])
        self._processes[tag] = process
        process.life, _ = begin(process.life, self._now())
        self.keep(process)
        steps.at("process.kept")
        self._act(process, Act.SPAWN, 0.0)
        return process

    def _step(self, process: Process, event: Event, grace_s: float = limits.DRAIN_S) -> None:
        if process.is_held and event is Event.TIME:
            return
        before = process.life.state
        process.life, act = next_state(process.life, event, self._now(), grace_s)
        if process.life.state is not before:
            log.info("process", extra={"tag": process.tag, "state": process.life.state.value})
            if process.life.state is State.STOPPED:
                process.ended.set()
        self.keep(process)
        self._act(process, act, grace_s)

    def _act(self, process: Process, act: Act, grace_s: float) -> None:
        if process.timer is not None:
            process.timer.cancel()
            process.timer = None
        if process.life.at_s:
            loop = asyncio.get_running_loop()
            process.timer = loop.call_at(process.life.at_s, self._step, process, Event.TIME)
        if act is Act.SPAWN:
            self._background(self._spawn(process))
        elif act is Act.ASK_TO_STOP:
            self._background(self._ask_to_stop(process, grace_s))
        elif act is Act.KILL:
            self._context.keeper.kill(process.tag, signal.SIGKILL)

    async def _spawn(self, process: Process) -> None:
        env = {
            **os.environ,
            **process.env,
            **self._attachment(process),
            "PYTHONUNBUFFERED": "1",
        }
        path = self.log_path(process.kind, process.name)
        try:
            process.pid = await self._context.keeper.spawn(
                process.tag, process.argv, env, str(path)
            )
        except (errors.FabricError, TimeoutError) as error:
            self._context.events.add("process not started", process=process.tag, reason=str(error))
            self._step(process, Event.EXITED)
            return
        steps.at("process.spawned")
        self._step(process, Event.SPAWNED)

    def _attachment(self, process: Process) -> dict[str, str]:
        return {"FABRIC_SOCKET": self._context.socket_path, "FABRIC_MODULE_TOKEN": process.token}

    async def _ask_to_stop(self, process: Process, grace_s: float) -> None:
        port = self._ports.get(process.port)
        try:
            if port is None or not port.is_alive or port.connection is None:
                raise errors.PeerLostError("not attached")
            await port.push("stop", {"grace_s": grace_s})
        except errors.FabricError:
            self._context.keeper.kill(process.tag, signal.SIGTERM)

    def _take_back(self, value: dict[str, Any], loaded: Loaded) -> None:
        life = value.pop("life")
        process = Process(**value)
        process.life = Life(**{**life, "state": State(life["state"])})
        self._processes[process.tag] = process
        pid = loaded.children.get(process.tag, 0)
        port = next((p for p in self._ports if p.owner == process.tag and p.is_alive), None)
        process.pid = pid
        process.port = port.port if port else 0
        if process.life.state is State.READY and pid:
            process.ready.set()
        if process.is_held:
            return
        if pid == 0 and process.life.state not in (State.WAITING, State.STOPPED):
            self._step(process, Event.EXITED)
        else:
            self._act(process, Act.NONE, 0.0)

    def keep(self, process: Process) -> None:
        """Write a process's record to the keeper."""
        life = process.life
        plain = {name: getattr(life, name) for name in Life.__dataclass_fields__}
        plain["state"] = life.state.value
        value = {
            key: getattr(process, key)
            for key in ("tag", "kind", "name", "argv", "env", "token", "about", "pid", "is_held")
        }
        self._context.keeper.put(f"process/{process.tag}", {**value, "life": plain})

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def unknown_name(kind: str, name: str, known: list[str]) -> errors.ConfigError:
    """Return the error for a name that does not exist, with the nearest one that does."""
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"known: {', '.join(sorted(known)[:10]) or 'none'}"
    )
    return errors.ConfigError(f"there is no {kind} {name!r}; {hint}", kind=kind, name_asked=name)
