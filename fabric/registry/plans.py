"""Plans: what `fabric.yaml` asked for at each generation, as frozen canonical values.

A plan is `applying` from its intent until its channels are switched, `switched` until every node has what it asks for,
then `committed`; or `rolled_back`, with the reason. Whoever finds one of the first two after a restart rolls it back.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from fabric import errors, limits
from fabric.config import ChannelSpec, ModuleSpec
from fabric.registry.records import ChannelRecord

Outcome = Literal["applying", "switched", "committed", "rolled_back"]


class PluginPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin of a plan with its whole text, so that an earlier plan can be applied when the file has changed."""

    name: str
    path: str
    source: str
    node: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One generation.

    `channels` and `modules` are those of the file, the node of each module filled in. `before` are the records of the
    channels that it changes, as they were; `records` as they become; `added` and `removed` channel names.
    `by` is uid@node, `when_s` wall-clock seconds, `note` what made it when that was no file.
    """

    generation: int = 0
    outcome: Outcome = "applying"
    by: str = ""
    when_s: float = 0.0
    source: str = ""
    note: str = ""
    why: str = ""
    plugins: tuple[PluginPlan, ...] = ()
    channels: tuple[ChannelSpec, ...] = ()
    modules: tuple[ModuleSpec, ...] = ()
    before: tuple[ChannelRecord, ...] = ()
    records: tuple[ChannelRecord, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return one line of the history."""
        return {
            "generation": self.generation,
            "outcome": self.outcome.replace("_", " "),
            "by": self.by,
            "when_s": self.when_s,
            "source": self.source,
            "note": self.note or None,
            "why": self.why or None,
            "plugins": len(self.plugins),
            "channels": len(self.channels),
            "modules": len(self.modules),
        }


def check_size(plan: Plan) -> bytes:
    """Return a plan as it is stored; `CapacityError` above `limits.PLAN_BYTES_MAX`."""
    data = msgspec.msgpack.encode(plan)
    if len(data) > limits.PLAN_BYTES_MAX:
        raise errors.CapacityError(
            f"the plan has {len(data)} bytes with the text of its plugins, PLAN_BYTES_MAX is"
            f" {limits.PLAN_BYTES_MAX}: install large plugins as packages instead of files",
            limit="PLAN_BYTES_MAX",
        )
    return data
