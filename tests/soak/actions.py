"""What the soak does in one step: each action changes or harms something, and returns what it did in words.

Every choice is drawn from the rig's seeded generator, so a seed repeats the choices (not the machine's timing).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from fabric import errors
from tests.integration.kill_nodes import wait_for
from tests.integration.test_link_cut import cut_connections
from tests.soak.processes import Actor
from tests.soak.rig import ACTORS_MAX, ACTORS_MIN, HERE, Rig

PLUGIN = HERE / "soak_plugin.py"
MODULE = HERE / "soak_module.py"
SETTLE_S = (0.2, 1.0)
APPLY_S = 20.0

YAML = """
version: 1
plugins: [{plugin}]
channels:
  into: {{type: soak.part, pattern: queue, delivery: at_least_once, class: token}}
  outof: {{type: soak.part, pattern: queue, delivery: at_least_once, class: token}}
  turned: {{type: soak.part, pattern: stream, delivery: at_least_once, class: token, transforms: [{transforms}]}}
modules:
  relay: {{class: "{module}:Relay", node: {node}, channels: {{inn: into, out: outof}}}}
"""


def spec(transforms: str, node: str) -> str:
    """Return the fabric.yaml of one state of the soak."""
    return YAML.format(plugin=PLUGIN, module=MODULE, transforms=transforms, node=node)


# ------------------------------------------------------------------ actors come and go
def add(rig: Rig) -> str:
    """Start a producer or consumer of some channel on some node; channels with one half only come first."""
    if len(rig.actors) >= ACTORS_MAX:
        return leave(rig)
    halves = [(c, role) for c in rig.channels for role in c.roles if role]
    there = Counter((a.channel.name, a.role) for a in rig.actors)
    lacking = [
        (c, role)
        for c, role in halves
        if there[c.name, role] < (c.answerers if role == c.roles[1] else 1)
        and any(there[c.name, other] for other in c.roles)
    ]
    among = lacking or halves
    channel, role = rig.chance.choices(among, [c.share for c, _ in among])[0]
    node = rig.chance.choice(sorted(rig.nodes))
    hold = rig.chance.choice([0.0, 0.02, 0.5])
    actor = rig.add(role, node, channel, hold_s=hold, pause_s=rig.chance.choice([0.001, 0.01]))
    return f"{actor.name} on {node} for {channel.name}"


def pick(rig: Rig) -> Actor | None:
    return rig.chance.choice(rig.actors) if rig.actors else None


def leave(rig: Rig) -> str:
    """SIGTERM: an actor finishes and leaves."""
    actor = pick(rig)
    if actor is None:
        return "nobody to leave"
    rig.take_away(actor, signal.SIGTERM)
    return f"{actor.name} left"


def kill(rig: Rig) -> str:
    """kill -9 of an actor."""
    actor = pick(rig)
    if actor is None:
        return "nobody to kill"
    rig.take_away(actor, signal.SIGKILL)
    return f"{actor.name} killed"


def stop(rig: Rig) -> str:
    """SIGSTOP of an actor, from less than the time to be suspect to more than the lease; then SIGCONT."""
    actor, seconds = pick(rig), rig.chance.choice([0.3, 1.5, 4.0])
    if actor is None:
        return "nobody to stop"
    started = time.monotonic()
    actor.popen.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    actor.popen.send_signal(signal.SIGCONT)
    actor.stops.append((started, time.monotonic()))
    return f"{actor.name} stopped for {seconds:g} s"


# ------------------------------------------------------------------ nodes and what they run
def daemon_of(rig: Rig, name: str) -> int:
    """Return the process id of a node's daemon; waits while its keeper replaces it."""
    found: list[int] = []

    def is_there() -> bool:
        with contextlib.suppress(errors.FabricError):
            found.append(rig.nodes[name].daemon_pid)
        return bool(found)

    wait_for(f"the daemon of {name}", is_there, 20.0)
    return found[-1]


def kill_daemon(rig: Rig) -> str:
    """kill -9 of a daemon; its keeper starts the next."""
    name = rig.chance.choice(sorted(rig.nodes))
    rig.nodes[name].kill_daemon()
    wait_joined(rig)
    return f"daemon of {name} killed"


def stop_daemon(rig: Rig) -> str:
    """SIGSTOP of a daemon for less than its lease, then SIGCONT.

    Two in a row can leave its keeper without a sign for the whole lease: it is then replaced meanwhile.
    """
    name, seconds = rig.chance.choice(sorted(rig.nodes)), rig.chance.choice([0.3, 1.5])
    started = time.monotonic()
    with contextlib.suppress(psutil.NoSuchProcess):
        daemon = psutil.Process(daemon_of(rig, name))
        daemon.suspend()
        time.sleep(seconds)
        daemon.resume()
    for actor in rig.everybody():  # what they asked the daemon meanwhile had to wait
        actor.stops.append((started, time.monotonic()))
    wait_joined(rig)
    return f"daemon of {name} stopped for {seconds:g} s"


def kill_keeper(rig: Rig) -> str:
    """kill -9 of a keeper, which takes its node along; it is away for less or more than its lease."""
    name, away_s = rig.chance.choice(sorted(rig.nodes)), rig.chance.choice([0.0, 1.0, 4.0])
    rig.kill_node(name, away_s)
    wait_joined(rig)
    return f"keeper of {name} killed, its node was away for {away_s:g} s"


def cut(rig: Rig) -> str:
    """Shut down the TCP connections between the nodes."""
    name, data_only = rig.chance.choice(sorted(rig.nodes)), rig.chance.random() < 0.5
    count = 0
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        count = cut_connections(daemon_of(rig, name), data_only)
    wait_joined(rig)
    return f"{count} connections of {name} cut{' (data)' if data_only else ''}"


def wait_joined(rig: Rig) -> None:
    """Wait until both nodes are members again in each other's eyes."""

    def joined() -> bool:
        try:
            states = [{r["name"]: r["state"] for r in n.call("ls", "node")} for n in rig.nodes.values()]  # fmt: skip
        except errors.FabricError:
            return False
        return all(set(s) == set(rig.nodes) and len(set(s.values())) == 1 for s in states)

    wait_for("both nodes seeing each other", joined, 20.0)


def harm_child(rig: Rig) -> str:
    """kill -9, SIGTERM or a stop of a module or stage host."""
    how = rig.chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
    kind = rig.chance.choice(["module", "plugin"])
    rows = [r for r in rig.nodes["a"].call("ls", kind) if r.get("pid")]
    if not rows:
        return f"no {kind} to harm"
    row = rig.chance.choice(sorted(rows, key=lambda r: str(r["name"])))
    try:
        process = psutil.Process(int(row["pid"]))
        process.send_signal(how)
        if how == signal.SIGSTOP:
            time.sleep(rig.chance.choice([0.5, 1.5]))
            process.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return f"{kind} {row['name']} was gone"
    return f"{kind} {row['name']} got {how.name}"


# ------------------------------------------------------------------ plans
def apply(rig: Rig) -> str:
    """Apply a plan: with or without the transform, the module here or there."""
    transforms, node = rig.chance.choice(["", "let_pass"]), rig.chance.choice(sorted(rig.nodes))
    try:
        answer = rig.nodes["a"].call("apply", spec(transforms, node))
    except errors.FabricError as error:
        if error.code in ("internal",):
            raise
        return f"apply [{transforms}] with the module on {node} was refused: {error}"
    return f"apply [{transforms}] with the module on {node}: generation {answer['generation']}"


def roll_back(rig: Rig) -> str:
    """Go back to the plan before this one."""
    try:
        answer = rig.nodes["a"].call("rollback")
    except errors.FabricError as error:
        if error.code in ("internal",):
            raise
        return f"rollback was refused: {error}"
    return f"rollback: generation {answer['generation']}"


def scale(rig: Rig) -> str:
    """Run one to three replicas of the module."""
    replicas = rig.chance.choice([1, 2, 3])
    try:
        rig.nodes["a"].call("module_scale", "relay", replicas)
    except errors.FabricError as error:
        if error.code in ("internal",):
            raise
        return f"scale to {replicas} was refused: {error}"
    return f"module scaled to {replicas}"


def restart_daemon(rig: Rig) -> str:
    """SIGTERM to a daemon: it leaves in good order, and its keeper starts the next."""
    name = rig.chance.choice(sorted(rig.nodes))
    node = rig.nodes[name]
    old = daemon_of(rig, name)
    with contextlib.suppress(ProcessLookupError):  # its keeper may be replacing it already
        os.kill(old, signal.SIGTERM)

    def is_new() -> bool:
        try:
            return node.daemon_pid != old
        except errors.FabricError:
            return False

    wait_for("a new daemon from the keeper", is_new, 20.0)
    wait_joined(rig)
    return f"daemon of {name} got SIGTERM"


def go_back(rig: Rig) -> None:
    """Apply the first plan again, so that what nodes hold can be compared."""
    rig.nodes["a"].call("apply", spec("", "a"))
    rig.nodes["a"].call("module_scale", "relay", 1)
    wait_joined(rig)


def nothing(rig: Rig) -> str:
    """Let it run."""
    return "nothing"


Action = Callable[[Rig], str]
ACTIONS: dict[Action, int] = {
    add: 10, leave: 3, kill: 5, stop: 3, kill_daemon: 2, stop_daemon: 1, restart_daemon: 1, cut: 2,
    kill_keeper: 2, harm_child: 2, apply: 2, roll_back: 1, scale: 1, nothing: 1,
}  # fmt: skip


def step(rig: Rig) -> str:
    """Do one action and let it work for a moment."""
    action = rig.chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
    if len(rig.actors) < ACTORS_MIN:
        action = add
    rig.note(f"begin {action.__name__}")
    done = action(rig)
    rig.history[-1] = rig.history[-1].replace("begin ", "") + f": {done}"
    time.sleep(rig.chance.uniform(*SETTLE_S))
    return done


def logs(folder: Path, lines: int = 25) -> str:
    """Return the ends of every log below a folder."""
    parts = []
    for log in sorted([*folder.rglob("log"), *folder.rglob("*.log"), *folder.rglob("*.err")]):
        text = log.read_text(errors="replace").splitlines()[-lines:]
        if text:
            parts.append(f"--- {log}\n" + "\n".join(text))
    return "\n".join(parts)
