"""The values that `fabric.yaml` becomes: frozen, comparable, serialisable with msgspec.

Field names are those of the file, except `class`, a Python keyword: `klass` in a channel,
`class_path` in a module. `msgspec.to_builtins` gives the names of the file back.
"""

from __future__ import annotations

from typing import Any

import msgspec

PATTERNS = ("stream", "queue", "broadcast", "request", "scatter")
DELIVERIES = ("at_most_once", "at_least_once")
OVERFLOWS = ("block", "drop_oldest", "drop_newest", "reject")
CLASSES = ("control", "token", "embedding", "bulk")
WHENS = ("pays", "always", "never")
WHERES = ("remote", "always")


class CreditSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one receiver lets be outstanding towards it: a count of messages and of payload bytes."""

    messages: int = 256
    bytes: int = 64 * 1024 * 1024


class RestartSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a lost module comes back: first and longest pause in seconds, doubling between."""

    backoff_s: tuple[float, float] = (0.2, 5.0)


class PluginSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin file to be loaded into a stage host; the path is absolute when the file was found."""

    path: str


class TransformSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry of `transforms` says beside the name: of a codec when and where it acts, and parameters.

    `when`: a codec acts where it is measured to pay, always, or never; `where`: between nodes, or within one, too.
    """

    when: str = "pays"
    where: str = "remote"
    parameters: dict[str, Any] = {}


class ChannelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One channel. `type` and `reply` are message type names; `reply` serves `request` and `scatter` only.

    `deadline_s` is what a send on it may take when the call names none; None leaves `limits.DEFAULT_DEADLINE_S`.
    `settings` are of those of its transforms that the file says more of than the name.
    `weight` is its part of a peer that several channels send large messages to: 3 gets thrice what 1 gets.
    """

    name: str
    type: str
    reply: str | None = None
    pattern: str = "stream"
    delivery: str = "at_most_once"
    overflow: str = "block"
    klass: str = msgspec.field(default="token", name="class")
    route: str | None = None
    transforms: tuple[str, ...] = ()
    settings: dict[str, TransformSettings] = {}
    idempotent: bool = False
    credit: CreditSpec = CreditSpec()
    deadline_s: float | None = msgspec.field(default=None, name="deadline")
    weight: int = 1


class ModuleSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One module. `channels` maps its fields to channels; a field left out has the field's name.

    `class_path` is ``package.module:Class`` or ``file.py:Class``; `node` None leaves the choice to
    the daemon that the file is applied on.
    """

    name: str
    class_path: str = msgspec.field(name="class")
    node: str | None = None
    replicas: int = 1
    config: dict[str, Any] = {}
    channels: dict[str, str] = {}
    restart: RestartSpec = RestartSpec()


class FabricSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A whole `fabric.yaml`.

    `positions` maps a key's path (``channels.kv.overflow``) to its 1-based (line, column), so that
    later refusals can name the place too; compare the channels and modules, not whole specs.
    """

    version: int
    plugins: tuple[PluginSpec, ...] = ()
    channels: dict[str, ChannelSpec] = {}
    modules: dict[str, ModuleSpec] = {}
    source: str = "fabric.yaml"
    positions: dict[str, tuple[int, int]] = {}

    def position(self, path: str) -> tuple[int, int] | None:
        """Return line and column of a key's path, or of the nearest parent that has one."""
        probe = path
        while probe and probe not in self.positions:
            probe = probe.rpartition(".")[0]
        return self.positions.get(probe)

    def place(self, path: str) -> str:
        """Name the file, line and column of a key's path, or of the nearest parent that has one."""
        found = self.position(path)
        return f"{self.source}:{found[0]}:{found[1]}" if found else self.source
