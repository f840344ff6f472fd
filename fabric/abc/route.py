"""The routing seam: who gets a message.

A policy is pure: no IO, no clock, no waiting; it sees frozen values and returns targets of the list it was given; what
it remembers between calls is its own. It runs in a stage host and is asked once per flow (a key of a sender) or once
per batch; where it raises, answers nonsense or nothing, the fallback that it declares decides. The built-in policies
(`fabric.config.routes.BUILT_IN`) run natively in the sender; what is written of them in Python says the same.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from fabric.abc.transform import EXPORT_ATTRIBUTE
from fabric.abc.transform_checks import (
    broken,
    check_callable,
    check_constructible,
    check_method,
    parameters_of,
)
from fabric.config.reader import did_you_mean
from fabric.config.routes import BUILT_IN
from fabric.errors import ContractError

Per = Literal["flow", "batch"]


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
    outstanding: int = 0  #: messages that the asking sender sent to it and that have not ended
    load: int = 0  #: the same of the other senders, as the daemon last counted
    service_us: float = 0.0  #: what it takes for one message, measured; 0: not known
    distance: int = 0  #: 0 on the sender's node, 1 on another
    is_suspect: bool = False  #: it gives no sign of life; asked for only when all are

    @property
    def busy(self) -> int:
        """Messages under way to it, whoever sent them."""
        return self.outstanding + self.load


Decision = Target | Sequence[Target]
Policy = Callable[[Header, Sequence[Target]], Decision]


@dataclass(frozen=True, slots=True)
class RouteExport:
    """A declared policy, as the loader finds it; `factory(**parameters)` returns the callable."""

    name: str
    factory: Callable[..., Policy]
    per: Per = "flow"
    fallback: str = "least_outstanding"
    reads: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


T = TypeVar("T")


def route(
    name: str, *, per: Per = "flow", fallback: str = "least_outstanding", reads: Sequence[str] = ()
) -> Callable[[T], T]:
    """Declare a function ``(header, targets)``, or a class with ``select(header, targets)``, as a policy.

    Parameters
    ----------
    name : str
        What a channel's ``route:`` names; unique on the node.
    per : {"flow", "batch"}
        ``flow``: asked once for a key of a sender (messages without a key are one flow); the answer holds until the
        channel's generation changes, the target goes, or `limits.ROUTE_PIN_TTL_S` is over. ``batch``: asked for every
        message, those of one `send_many` in one call.
    fallback : str
        The built-in policy that decides where this one raises, answers nonsense, or does not answer.
    reads : sequence of str
        Fields of the message that an answer depends on, beside the key: what was decided holds for messages that are
        equal in them.

    Returns
    -------
    decorator
        Returns what it decorates, unchanged.

    Raises
    ------
    ContractError
        At decoration: wrong number of parameters, async, a class without ``select``, an unknown `per` or `fallback`.

    Notes
    -----
    The policy returns one of `targets`, or a sequence of them in order of preference. A class is made once per load
    and channel, with the channel's parameters (``route: {name: …, parameter: …}``) as keyword arguments, and may keep
    state between calls; calls never overlap.
    """

    def declare(policy: T) -> T:
        if not isinstance(name, str) or not name:
            raise broken("route", str(name), "has no name", "give @fabric.route a name")
        _check_words(name, per, fallback)
        factory = _factory(name, policy)
        takes = parameters_of(policy) if inspect.isclass(policy) else ()
        export = RouteExport(name, factory, per, fallback, tuple(reads), takes)
        setattr(policy, EXPORT_ATTRIBUTE, export)
        return policy

    return declare


def _check_words(name: str, per: str, fallback: str) -> None:
    if per not in get_args(Per):
        raise broken("route", name, f"has per={per!r}", f"use one of {', '.join(get_args(Per))}")
    natives = [known for known in BUILT_IN if known != "broadcast"]
    if fallback not in natives:
        hint = did_you_mean(str(fallback), natives)
        raise broken(
            "route", name, f"has fallback={fallback!r}{hint.rstrip('?')}",
            f"use a built-in policy: {', '.join(natives)}",
        )  # fmt: skip


def _factory(name: str, policy: Any) -> Callable[..., Policy]:
    if not inspect.isclass(policy):
        if not callable(policy):
            fix = "decorate a function (header, targets) or a class with select"
            raise broken("route", name, "is not callable", fix)
        check_callable("route", name, policy, 2, "def policy(header, targets)")
        return lambda: policy
    check_method("route", name, policy, "select", ("header", "targets"))
    check_constructible("route", name, policy)

    factory: Any = policy

    def make(**parameters: Any) -> Policy:
        select: Policy = factory(**parameters).select
        return select

    return make


def make_policy(export: RouteExport, parameters: Mapping[str, Any]) -> Policy:
    """Make a policy with what a channel gives it.

    Raises
    ------
    ContractError
        A parameter that it does not have, or a value that its ``__init__`` refuses.
    """
    for key in parameters:
        if key not in export.parameters:
            hint = did_you_mean(key, export.parameters).rstrip("?")
            takes = ", ".join(export.parameters) or "none"
            raise broken(
                "route", export.name, f"has no parameter {key!r}{hint}", f"it takes: {takes}"
            )
    try:
        return export.factory(**parameters)
    except (TypeError, ValueError) as error:
        fix = "see what its __init__ takes"
        raise broken("route", export.name, f"cannot be made: {error}", fix) from error


def decide(name: str, policy: Policy, header: Header, targets: Sequence[Target]) -> list[Target]:
    """Ask `policy` and return its targets in order of preference, checked.

    Raises
    ------
    ContractError
        The answer is empty or names a target that was not offered.
    """
    answer = policy(header, targets)
    if isinstance(answer, Target):
        chosen = [answer]
    else:
        is_list = isinstance(answer, Iterable)
        chosen = (
            list(itertools.islice(answer, len(targets) + 1)) if is_list else []
        )  # it may be endless
    offered = {target.flow: target for target in targets}
    if not chosen or any(not isinstance(t, Target) or offered.get(t.flow) != t for t in chosen):
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
    "make_policy",
    "route",
]
