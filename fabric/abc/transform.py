"""The transform seam: what changes messages in flight, and the decorator that declares it.

No IO and no wire knowledge here. A transform runs in a stage host (`fabric.worker.stage_host`), on
one thread per channel it serves, so an instance never sees two `apply` calls at once.
The contract is checked when the class is decorated: a plugin that loads keeps it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args

from fabric.errors import ContractError

OnError = Literal["fail", "bypass", "drop"]
Kind = Literal["map", "tap", "codec"]

EXPORT_ATTRIBUTE = "__fabric_export__"


class AnyMessage:
    """Stands for every message type in ``accepts``: messages come and go as they are.

    A transform that accepts it may look at a message, drop it or defer it, and passes it on unchanged.
    """


@dataclass(frozen=True, slots=True)
class Drop:
    """Result for one input: end it as dropped (``transform_drop``); `reason` goes to the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Defer:
    """Result for one input: not yet. It is given again, before newer ones, after `after_s` seconds.

    Later messages of the same key wait behind it, so the order of a key holds. An input deferred
    past its deadline (30 s where it has none) ends by the transform's ``on_error``.
    """

    after_s: float = 0.01


class MessageHeader(Protocol):
    """What travels with one message beside its fields; `fabric.messages.MessageHeader` is one."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def sequence(self) -> int: ...
    @property
    def redelivered(self) -> bool: ...
    @property
    def expires_ns(self) -> int:
        """Absolute CLOCK_MONOTONIC, 0 = none."""

    @property
    def payload_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TransformContext:
    """What `apply` knows besides the messages; `headers[i]` belongs to `batch[i]`."""

    plugin: str
    transform: str
    channel: str
    now_ns: int  #: CLOCK_MONOTONIC at the start of the call
    headers: Sequence[MessageHeader] = field(default_factory=tuple)


class Transform(Protocol):
    """What a decorated class offers; codecs also have ``revert(batch, ctx)``."""

    def apply(self, batch: list[Any], ctx: TransformContext) -> Any:
        """Return one result per input, in order.

        A result is a message of type `produces`, a list of them (one input, many outputs), `Drop` or
        `Defer`. A single `Drop` or `Defer` instead of the list holds for the whole batch. When it raises,
        each input of the batch is given again alone, so that one bad message fails no other.
        """


@dataclass(frozen=True, slots=True)
class TransformExport:
    """A declared transform, as the loader finds it on the class."""

    name: str
    accepts: type
    produces: type
    max_expansion: float
    on_error: OnError
    kind: Kind
    factory: Callable[[], Transform]


C = TypeVar("C", bound=type)


def transform(
    name: str,
    *,
    accepts: type = AnyMessage,
    produces: type | None = None,
    max_expansion: float = 1.0,
    on_error: OnError = "fail",
    kind: Kind | None = None,
) -> Callable[[C], C]:
    """Declare a class as an in-flight transform.

    Parameters
    ----------
    name : str
        What ``transforms:`` lists and ``fabricctl plugin ls`` show; unique on the node.
    accepts : type
        Message type (`@fabric.message`) taken in; default: any type, passed on unchanged.
    produces : type, optional
        Message type given out; default: `accepts`.
    max_expansion : float
        Upper bound of output bytes per input byte (> 0). Exceeding it is a transform error.
    on_error : {"fail", "bypass", "drop"}
        What happens to an input whose `apply` raised: it ends as failed, goes on unchanged, or is
        dropped. ``bypass`` of a map needs ``produces`` equal to ``accepts``.
    kind : {"map", "tap", "codec"}, optional
        Default: ``codec`` if the class has ``revert``, ``tap`` if any type is accepted, else ``map``.

    Raises
    ------
    ContractError
        At decoration, naming what to change.

    Notes
    -----
    The class is made without arguments, once per channel it serves; a reload makes it anew.
    """

    def declare(cls: C) -> C:
        export = TransformExport(
            name=name,
            accepts=accepts,
            produces=accepts if produces is None else produces,
            max_expansion=max_expansion,
            on_error=on_error,
            kind=kind or infer_kind(cls, accepts),
            factory=cls,
        )
        check_transform(export, cls)
        setattr(cls, EXPORT_ATTRIBUTE, export)
        return cls

    return declare


def infer_kind(cls: type, accepts: type) -> Kind:
    """Return the kind that a class without a declared one has."""
    if callable(getattr(cls, "revert", None)):
        return "codec"
    return "tap" if accepts is AnyMessage else "map"


def check_transform(export: TransformExport, cls: type) -> None:
    """Raise `ContractError` when a declaration cannot hold; each message names the fix."""
    if not isinstance(export.name, str) or not export.name:
        raise broken("transform", str(export.name), "has no name", "give @fabric.transform a name")
    check_method("transform", export.name, cls, "apply", ("batch", "ctx"))
    if export.kind not in get_args(Kind):
        raise broken("transform", export.name, f"has kind {export.kind!r}", "use map, tap or codec")
    if export.kind == "codec":
        check_method("codec", export.name, cls, "revert", ("batch", "ctx"))
    if export.on_error not in get_args(OnError):
        fix = "use on_error='fail', 'bypass' or 'drop'"
        raise broken("transform", export.name, f"has on_error={export.on_error!r}", fix)
    _check_expansion(export)
    _check_types(export)
    check_constructible("transform", export.name, cls)


def _check_expansion(export: TransformExport) -> None:
    bound = export.max_expansion
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < 1e6:
        fix = "give the bound of output bytes per input byte, above 0 and below 1e6"
        raise broken("transform", export.name, f"has max_expansion={bound!r}", fix)


def _check_types(export: TransformExport) -> None:
    for role, declared in (("accepts", export.accepts), ("produces", export.produces)):
        if declared is not AnyMessage and not hasattr(declared, "__fabric_type__"):
            fix = f"decorate it with @fabric.message, or leave {role} out for any type"
            found = getattr(declared, "__name__", repr(declared))
            raise broken("transform", export.name, f"{role} {found}, not a message type", fix)
    same = export.produces is export.accepts
    if AnyMessage in (export.accepts, export.produces) and not same:
        fix = "declare both accepts and produces, or neither"
        raise broken("transform", export.name, "mixes any type with a declared one", fix)
    if export.on_error == "bypass" and export.kind != "codec" and not same:
        fix = "use on_error='fail' or 'drop', or produce the accepted type"
        raise broken(
            "transform", export.name, "cannot bypass: it produces another type than it accepts", fix
        )


def check_method(what: str, name: str, owner: Any, method: str, parameters: Sequence[str]) -> None:
    """Raise `ContractError` unless `owner.method(self, *parameters)` can be called, synchronously."""
    signature_text = f"def {method}(self, {', '.join(parameters)})"
    function = inspect.getattr_static(owner, method, None)
    if function is None or not callable(getattr(owner, method)):
        raise broken(what, name, f"has no method {method}", f"add `{signature_text}`")
    check_callable(what, name, getattr(owner, method), 1 + len(parameters), signature_text)


def check_callable(what: str, name: str, function: Any, count: int, wanted: str) -> None:
    """Raise `ContractError` unless `function` is synchronous and takes `count` positional arguments."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise broken(what, name, f"{function.__name__} is async", f"write it as `{wanted}`")
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        found = f"{function.__name__}{inspect.signature(function)} does not take {count} arguments"
        raise broken(what, name, found, f"write it as `{wanted}`") from None


def check_constructible(what: str, name: str, cls: type) -> None:
    """Raise `ContractError` unless `cls()` can be called."""
    try:
        inspect.signature(cls).bind()
    except TypeError:
        fix = "give every parameter of __init__ a default"
        raise broken(what, name, f"{cls.__name__} needs arguments to be made", fix) from None


def broken(what: str, name: str, found: str, fix: str) -> ContractError:
    """Return the error for a contract not kept: what, found, and the one thing to do."""
    return ContractError(f"{what} {name!r} {found}: {fix}", **_context(what, name, fix))


def _context(what: str, name: str, fix: str) -> Mapping[str, Any]:
    return {"kind": what, "name": name, "fix": fix}
