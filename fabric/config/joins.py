"""The `joins` of a `fabric.yaml`: how one is read, and the module that it is run as. Pure.

A join is a supervised process like a module: its inputs and its `output` are the module's channel fields, and what the
file says of its rules goes along as configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fabric import limits
from fabric.config import decoders as d
from fabric.config.spec import ModuleSpec, RestartSpec

# As in `fabric.abc.join`, which stands above this package.
JOIN_PREFIX = "join"
OUTPUT = "output"

_USE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[^\0:]{1,4096}:[A-Za-z_][A-Za-z0-9_.]*")
_SECONDS = d.duration(0.001, limits.DEADLINE_S_MAX)

#: key of the file → rule of `fabric.abc.join.JoinRules`
RULES = {
    "window": "window_s",
    "deadline": "deadline_s",
    "late": "late",
    "partial": "partial",
    "max_entries": "max_entries",
    "max_bytes": "max_bytes",
    "overflow": "overflow",
}


def decoder(name: re.Pattern[str], restart: d.Decoder) -> d.Decoder:
    """Return how one join is read; `name` is what names of nodes, inputs and channels look like."""
    word = d.text("a name such as prompts", name)
    fields = {
        "use": d.Field(
            d.text("an installed join such as fuse, or a class such as 'file.py:Class'", _USE),
            required=True,
        ),
        "inputs": d.Field(
            d.named(word, "a mapping of inputs to channels", name, limits.JOIN_INPUTS_MAX),
            required=True,
        ),
        OUTPUT: d.Field(word, required=True),
        "node": d.Field(d.optional(word)),
        "window": d.Field(_SECONDS),
        "deadline": d.Field(_SECONDS),
        "late": d.Field(d.choice(("wait", "partial", "drop"))),
        "partial": d.Field(d.sequence(word, "a list of inputs", limits.JOIN_INPUTS_MAX)),
        "max_entries": d.Field(d.integer(1, limits.JOIN_ENTRIES_MAX)),
        "max_bytes": d.Field(d.size_bytes(1, limits.JOIN_BYTES_MAX)),
        "overflow": d.Field(d.choice(("drop_oldest", "drop_newest"))),
        "config": d.Field(d.plain),
        "restart": d.Field(restart),
    }
    return d.record(fields, "a join")


def module_of(name: str, fields: dict[str, Any], found: Callable[[str], str]) -> ModuleSpec:
    """Return the module that runs a join; `found` gives the path of a file named in the document."""
    where, _, attribute = fields["use"].rpartition(":")
    rules = {rule: fields[key] for key, rule in RULES.items() if key in fields}
    if "partial" in rules:
        rules["partial"] = list(rules["partial"])
    given: dict[str, Any] = (
        {"restart": RestartSpec(**fields["restart"])} if "restart" in fields else {}
    )
    return ModuleSpec(
        name=name,
        class_path=f"{found(where) if where.endswith('.py') else where or JOIN_PREFIX}:{attribute}",
        node=fields.get("node"),
        config={"rules": rules, "config": fields.get("config") or {}},
        channels={**fields["inputs"], OUTPUT: fields[OUTPUT]},
        **given,
    )


def places(positions: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return positions with those of each join under the paths of its module, where later refusals look."""
    more = {}
    for path, place in positions.items():
        head, _, rest = path.partition(".")
        name, _, key = rest.partition(".")
        if head == "joins" and name:
            inner = {"use": "class", OUTPUT: f"channels.{OUTPUT}"}.get(key, key)
            more[f"modules.{name}.{inner.replace('inputs', 'channels', 1)}".rstrip(".")] = place
    return {**positions, **more}
