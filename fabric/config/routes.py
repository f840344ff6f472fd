"""A channel's routing policy and its parameters: one text, `name` or `name {json}`, that is compared and carried whole.

Pure. The built-in policies, which senders run natively, are named here with what each may be given; what a policy in
Python takes, its own ``__init__`` says when it is made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from fabric import limits
from fabric.config.reader import clip, did_you_mean

_NAME: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{limits.NAME_BYTES_MAX - 1}}}")


class RouteSpec(msgspec.Struct, frozen=True):
    """A policy by name, with the parameters that a channel gives it."""

    name: str
    params: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The one text of these values; keys are sorted, so equal ones are equal texts."""
        if not self.params:
            return self.name
        return f"{self.name} {json.dumps(self.params, sort_keys=True, separators=(',', ':'))}"

    @property
    def is_built_in(self) -> bool:
        """Whether senders run it natively."""
        return self.name in BUILT_IN


def parse(text: str) -> RouteSpec:
    """Read a policy's text.

    Raises
    ------
    ValueError
        Says what is wrong with it.
    """
    name, _, rest = text.partition(" ")
    if len(text.encode(errors="replace")) > limits.ROUTE_BYTES_MAX:
        raise ValueError(f"it is longer than ROUTE_BYTES_MAX ({limits.ROUTE_BYTES_MAX} bytes)")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{clip(name)!r} is no name of a policy")
    try:
        params = json.loads(rest) if rest else {}
    except (ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise ValueError("what follows the name is no JSON object of parameters")
    return RouteSpec(name, params)


def name_of(text: str | None) -> str:
    """Return the name in a policy's text; empty where there is none."""
    return (text or "").partition(" ")[0]


def text_of(route: str | Mapping[str, Any] | None) -> str | None:
    """Return the text of what a caller gave: a name, or a mapping with ``name`` and parameters.

    Raises
    ------
    ValueError
        A mapping without a name, or with values that are no plain ones.
    """
    if route is None or isinstance(route, str):
        return route
    params = dict(route)
    name = params.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("a route with parameters needs a name: {name: weighted, weights: {...}}")
    try:
        return RouteSpec(name, params).text
    except TypeError as error:
        raise ValueError(
            f"parameters are plain values (numbers, texts, lists, maps): {error}"
        ) from error


def problems(route: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, what to do) of a policy's text on a channel of this pattern."""
    try:
        spec = parse(route)
    except ValueError as error:
        yield (
            f"the route {clip(route)!r}: {error}",
            "Write it as a name, or {name: …} with parameters",
        )
        return
    if (spec.name == "broadcast") != (pattern == "broadcast"):
        yield (
            f"route {spec.name} on pattern {pattern}",
            "On pattern broadcast every receiver gets every message: use both, or neither",
        )
    if not spec.is_built_in:
        return
    known = BUILT_IN[spec.name]
    for key, value in spec.params.items():
        if key not in known:
            takes = ", ".join(known) or "none"
            yield (
                f"route {spec.name} has no parameter {clip(key)!r}{did_you_mean(key, known).rstrip('?')}",
                f"It takes: {takes}",
            )
        elif wrong := known[key](value):
            yield f"route {spec.name}, {key}: {wrong}", "See docs/guides/routing-policy.md"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _load_factor(value: object) -> str:
    is_factor = _is_number(value) and 1.0 < float(value) <= 100.0  # type: ignore[arg-type]
    return "" if is_factor else f"{value!r:.40} is no number above 1 and up to 100"


def _weights(value: object) -> str:
    if not isinstance(value, dict) or not value:
        return "expected a map of module names to weights"
    for name, weight in value.items():
        if not (_is_number(weight) and 0 <= weight <= 1e6):
            return f"the weight of {clip(str(name))!r} is {weight!r:.40}, not 0 to 1000000"
    if not any(value.values()):
        return "every weight is 0: nothing could be sent"
    return ""


def _spill(value: object) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 20
    return "" if is_count else f"{value!r:.40} is no count of messages from 1 to {1 << 20}"


def _order(value: object) -> str:
    is_list = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return "" if is_list else "expected a list of module names, the first to serve first"


#: what senders run natively, and the parameters of each with their checks
BUILT_IN: Final[Mapping[str, Mapping[str, Callable[[object], str]]]] = {
    "round_robin": {},
    "least_outstanding": {},
    "hash_key": {"load_factor": _load_factor},
    "weighted": {"weights": _weights},
    "locality": {"spill": _spill},
    "failover": {"order": _order},
    "deadline": {},
    "broadcast": {},
}
