"""What a message says decides: the first rule whose fields match names the modules that may have it.

A decision holds for messages that are equal in the fields that rules look at, so most messages cost a table look-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fabric.abc.route import Header, Target, route
from fabric_routes.hashing import hash_of, weight

_REPLICA = re.compile(r"(.+)-\d+")


@route("content")
class Content:
    """Rules in order; a message that none matches, or whose modules are away, may go to every target.

    Parameters
    ----------
    rules : sequence of mapping
        ``{when: {field: value, …}, to: module or [modules]}``; a value that is a list matches any of its items.

    Notes
    -----
    Among the targets that a rule names, the key decides (highest random weight), or without one the load.
    """

    def __init__(self, rules: Sequence[Mapping[str, Any]] = ()) -> None:
        self._rules = [_rule(number, rule) for number, rule in enumerate(rules, 1)]
        self.reads = tuple(dict.fromkeys(name for when, _ in self._rules for name in when))

    def select(self, header: Header, targets: Sequence[Target]) -> Sequence[Target]:
        """Return the targets that may have the message, the best first."""
        for when, to in self._rules:
            if all(header.fields.get(name) in values for name, values in when.items()):
                named = [t for t in targets if t.module in to or _base(t.module) in to]
                if named:
                    return _ranked(header, named)
        return _ranked(header, targets)


def _rule(number: int, rule: Mapping[str, Any]) -> tuple[dict[str, list[Any]], list[str]]:
    if set(rule) != {"when", "to"} or not isinstance(rule["when"], Mapping) or not rule["when"]:
        raise ValueError(f"rule {number} is not {{when: {{field: value}}, to: module}}")
    to = rule["to"]
    when = {name: v if isinstance(v, list) else [v] for name, v in rule["when"].items()}
    return when, list(to) if isinstance(to, list) else [str(to)]


def _base(module: str) -> str:
    found = _REPLICA.fullmatch(module)
    return found[1] if found else module


def _ranked(header: Header, targets: Sequence[Target]) -> Sequence[Target]:
    if header.key is None:
        return sorted(targets, key=lambda t: (t.busy, t.endpoint))
    key = hash_of(header.key)
    return sorted(targets, key=lambda t: weight(key, t.endpoint), reverse=True)
