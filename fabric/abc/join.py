"""The join seam: what makes one message of several that belong together, and the decorator that declares it.

No IO and no wire knowledge here. A join runs in a supervised host of its own (`fabric.worker.join_host`), on one
thread, so an instance never sees two `fuse` calls at once. The contract is checked when the class is decorated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

from fabric import limits
from fabric.abc.transform import EXPORT_ATTRIBUTE
from fabric.abc.transform_checks import broken, check_constructible, check_method
from fabric.errors import ContractError

Late = Literal["wait", "partial", "drop"]
Overflow = Literal["drop_oldest", "drop_newest"]

JOIN_GROUP = "fabric.joins"  #: entry points of installed joins
JOIN_PREFIX = "join"  #: ``join:NAME`` as a module's class stands for an installed join
OUTPUT = "output"  #: the name of a join's output end; no input may have it


@dataclass(frozen=True, slots=True)
class JoinRules:
    """When a request is complete, and what becomes of one that is not.

    Attributes
    ----------
    window_s : float
        How long the first part of a request waits for the others.
    late : {"wait", "partial", "drop"}
        What the end of the window does to a request that lacks a part.
    partial : tuple of str
        Inputs that may be missing from what is put out.
    deadline_s : float
        With ``late="wait"``: the longest that a request is held; then it goes partial where it may, else it is dropped.
    max_entries : int
        Requests that wait at once.
    max_bytes : int
        Payload bytes of their parts together.
    overflow : {"drop_oldest", "drop_newest"}
        Which request ends as dropped(overflow) when either is exceeded.
    """

    window_s: float = 0.1
    late: Late = "drop"
    partial: tuple[str, ...] = ()
    deadline_s: float = limits.DEFAULT_DEADLINE_S
    max_entries: int = 1024
    max_bytes: int = 256 << 20
    overflow: Overflow = "drop_oldest"


@dataclass(frozen=True, slots=True)
class JoinContext:
    """What `fuse` knows besides the parts."""

    join: str  #: its name in fabric.yaml
    key: bytes  #: of the request; the output has it, too
    now_ns: int  #: CLOCK_MONOTONIC at the start of the call
    missing: tuple[str, ...] = ()  #: inputs that did not come; their parts are None
    config: Mapping[str, Any] | None = None  #: the join's `config` of fabric.yaml


class Join(Protocol):
    """What a decorated class offers; where it has ``open(config)``, that is called once, before the first request."""

    def fuse(self, parts: Mapping[str, Any], ctx: JoinContext) -> Any:
        """Return one message of type `produces`, or `Drop(reason)`.

        Parameters
        ----------
        parts : mapping
            Input name → the message that came, a view that is valid during the call; None for one that is missing.
        """


@dataclass(frozen=True, slots=True)
class JoinExport:
    """A declared join, as the loader finds it on the class.

    `by` names the field of each input that says its request; "" is the key of the message's header.
    """

    name: str
    inputs: Mapping[str, type]
    produces: type
    by: Mapping[str, str]
    rules: JoinRules
    factory: Callable[[], Join]


C = TypeVar("C", bound=type)


def join(
    name: str,
    *,
    inputs: Mapping[str, type],
    produces: type,
    by: str | Mapping[str, str] = "",
    window_s: float = 0.1,
    late: Late = "drop",
    partial: tuple[str, ...] = (),
    deadline_s: float = limits.DEFAULT_DEADLINE_S,
    max_entries: int = 1024,
    max_bytes: int = 256 << 20,
    overflow: Overflow = "drop_oldest",
) -> Callable[[C], C]:
    """Declare a class with ``fuse(parts, ctx)`` as a join: messages of several channels that become one.

    Parameters
    ----------
    name : str
        What listings show, and the name of its entry point in the group ``fabric.joins``.
    inputs : mapping
        Input name → message type; 2 to `limits.JOIN_INPUTS_MAX`. ``fabric.yaml`` gives each a channel.
    produces : type
        Message type put out, with the key of the request.
    by : str or mapping, optional
        Field that says which request a message belongs to (for all inputs, or by input); default: the message's key.
        Within `limits.JOIN_REMEMBERED_MAX` requests, a key stands for one request.
    window_s, late, partial, deadline_s, max_entries, max_bytes, overflow
        See `JoinRules`; ``fabric.yaml`` may say otherwise for each use.

    Raises
    ------
    ContractError
        At decoration, naming what to change.

    Notes
    -----
    The class is made without arguments, once per host.
    """

    def declare(cls: C) -> C:
        rules = JoinRules(
            window_s, late, tuple(partial), deadline_s, max_entries, max_bytes, overflow
        )
        fields = dict(by) if isinstance(by, Mapping) else dict.fromkeys(inputs, by)
        export = JoinExport(name, dict(inputs), produces, fields, rules, cls)
        _check(export, cls)
        setattr(cls, EXPORT_ATTRIBUTE, export)
        return cls

    return declare


def _check(export: JoinExport, cls: type) -> None:
    if not isinstance(export.name, str) or not export.name:
        raise broken("join", str(export.name), "has no name", "give @fabric.join a name")
    check_method("join", export.name, cls, "fuse", ("parts", "ctx"))
    _check_inputs(export)
    for role, declared in (("produces", export.produces), *export.inputs.items()):
        if not hasattr(declared, "__fabric_type__"):
            found = getattr(declared, "__name__", repr(declared))
            fix = "decorate it with @fabric.message"
            raise broken("join", export.name, f"{role} {found}, not a message type", fix)
    _check_key(export)
    check_rules(export.name, export.rules, tuple(export.inputs))
    check_constructible("join", export.name, cls)


def _check_inputs(export: JoinExport) -> None:
    names, most = tuple(export.inputs), limits.JOIN_INPUTS_MAX
    if not 2 <= len(names) <= most:
        fix = f"give 2 to {most}; for one input write a transform"
        raise broken("join", export.name, f"has {len(names)} inputs", fix)
    for name in names:
        if not name.isidentifier() or name == OUTPUT:
            fix = f"use a Python name other than {OUTPUT!r}"
            raise broken("join", export.name, f"calls an input {name!r}", fix)


def _check_key(export: JoinExport) -> None:
    for name, field in export.by.items():
        if name not in export.inputs:
            fix = f"use {', '.join(export.inputs)}"
            raise broken("join", export.name, f"has by={name!r}, which is no input", fix)
        declared = vars(export.inputs[name])["__fabric_type__"].schema.fields
        known = [f.name for f in declared if "tensor" not in f.type]
        if field and field not in known:
            fix = (
                f"use one of {', '.join(known) or 'none'}, or leave `by` out for the message's key"
            )
            raise broken("join", export.name, f"finds no scalar {field!r} in input {name!r}", fix)


def check_rules(name: str, rules: JoinRules, inputs: tuple[str, ...]) -> None:
    """Raise `ContractError` when rules cannot hold for the inputs; each message names the fix."""
    for key, value, most in (
        ("window_s", rules.window_s, limits.DEADLINE_S_MAX),
        ("deadline_s", rules.deadline_s, limits.DEADLINE_S_MAX),
        ("max_entries", rules.max_entries, limits.JOIN_ENTRIES_MAX),
        ("max_bytes", rules.max_bytes, limits.JOIN_BYTES_MAX),
    ):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= most:
            raise broken("join", name, f"has {key}={value!r}", f"give more than 0, at most {most}")
    for key, word, known in (
        ("late", rules.late, get_args(Late)),
        ("overflow", rules.overflow, get_args(Overflow)),
    ):
        if word not in known:
            raise broken("join", name, f"has {key}={word!r}", f"use {', '.join(known)}")
    unknown = [p for p in rules.partial if p not in inputs]
    if unknown or len(set(rules.partial)) == len(inputs):
        found = f"has partial={tuple(rules.partial)!r}"
        fix = f"name inputs that may be missing, not all of {', '.join(inputs)}"
        raise broken("join", name, found, fix)
    if rules.late == "partial" and not rules.partial:
        fix = "name the inputs that may be missing in `partial`, or use late='wait' or 'drop'"
        raise broken("join", name, "goes partial, and no input may be missing", fix)
    if rules.late == "wait" and rules.deadline_s < rules.window_s:
        fix = "give a deadline_s of at least window_s"
        raise broken("join", name, "waits for less than its window", fix)


def rules_from(
    name: str, base: JoinRules, given: Mapping[str, Any], inputs: tuple[str, ...]
) -> JoinRules:
    """Return rules with what a use of the join says otherwise, checked.

    Raises
    ------
    ContractError
        A key or value that cannot hold.
    """
    known = JoinRules.__dataclass_fields__
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ContractError(
            f"join {name!r}: there is no rule {unknown[0]!r}: use {', '.join(known)}"
        )
    values = {key: getattr(base, key) for key in known} | dict(given)
    rules = JoinRules(**{**values, "partial": tuple(values["partial"])})
    check_rules(name, rules, inputs)
    return rules
