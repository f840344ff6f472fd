"""The routing seam: who gets a message. Asked once per flow (or key), never per message.

A policy is pure: no IO, no clock, no waiting; it sees frozen values and returns targets of the list
it was given. It runs in a stage host; the daemon's fallback decides when it does not answer in time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fabric.abc.transform import EXPORT_ATTRIBUTE
from fabric.abc.transform_checks import (
    broken,
    check_callable,
    check_constructible,
    check_method,
)
from fabric.errors import ContractError


@dataclass(frozen=True, slots=True)
class Header:
    """The message that asks for a target."""

    channel: str
    key: bytes | None = None
    klass: str = "token"  #: control, token, embedding or bulk
    size: int = 0  #: payload bytes
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """One receiver that could get it."""

    flow: int
    endpoint: int
    node: str = ""
    module: str = ""
    outstanding: int = 0  #: messages sent to it that have not ended


Decision = Target | Sequence[Target]
Policy = Callable[[Header, Sequence[Target]], Decision]


@dataclass(frozen=True, slots=True)
class RouteExport:
    """A declared policy, as the loader finds it; `factory()` returns the callable."""

    name: str
    factory: Callable[[], Policy]


T = TypeVar("T")


def route(name: str) -> Callable[[T], T]:
    """Declare a function ``(header, targets)``, or a class with ``select(header, targets)``, as a policy.

    Parameters
    ----------
    name : str
        What a channel's ``route:`` names; unique on the node.

    Returns
    -------
    decorator
        Returns what it decorates, unchanged.

    Raises
    ------
    ContractError
        At decoration: wrong number of parameters, async, or a class without ``select``.

    Notes
    -----
    The policy returns one of `targets`, or a sequence of them in order of preference. A class is made
    once per load and may keep state between calls; calls never overlap.
    """

    def declare(policy: T) -> T:
        if not isinstance(name, str) or not name:
            raise broken("route", str(name), "has no name", "give @fabric.route a name")
        setattr(policy, EXPORT_ATTRIBUTE, RouteExport(name, _factory(name, policy)))
        return policy

    return declare


def _factory(name: str, policy: Any) -> Callable[[], Policy]:
    if not inspect.isclass(policy):
        if not callable(policy):
            fix = "decorate a function (header, targets) or a class with select"
            raise broken("route", name, "is not callable", fix)
        check_callable("route", name, policy, 2, "def policy(header, targets)")
        return lambda: policy
    check_method("route", name, policy, "select", ("header", "targets"))
    check_constructible("route", name, policy)

    factory: Any = policy

    def make() -> Policy:
        select: Policy = factory().select
        return select

    return make


def decide(name: str, policy: Policy, header: Header, targets: Sequence[Target]) -> list[Target]:
    """Ask `policy` and return its targets in order of preference, checked.

    Raises
    ------
    ContractError
        The answer is empty or names a target that was not offered.
    """
    answer = policy(header, targets)
    chosen = [answer] if isinstance(answer, Target) else list(answer or ())
    offered = set(targets)
    if not chosen or any(not isinstance(t, Target) or t not in offered for t in chosen):
        fix = "return one of the given targets, or a non-empty list of them"
        raise broken("route", name, f"answered {answer!r:.80}", fix)
    return chosen


__all__ = [
    "ContractError",
    "Decision",
    "Header",
    "Policy",
    "RouteExport",
    "Target",
    "decide",
    "route",
]
