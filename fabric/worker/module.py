"""What the author of a module writes: a class with typed channel ends and handlers.

A module runs in its own process (`fabric.worker.host`). Its `In`/`Out`/`Serve`/`Call` annotations name its
channels; the host binds them, calls `start`, reports ready, and then calls `on_<field>` for each message of an
`In` or `Serve` field (one thread per field, so handlers of different fields may overlap) and `run` if there is one.
"""

from __future__ import annotations

import threading
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from fabric.errors import ContractError

M = TypeVar("M")
R = TypeVar("R")


class _Bound:
    """A channel field once the host has bound it; everything else is the endpoint's own interface."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self.endpoint, name)


class In(_Bound, Generic[M]):
    """Receiving end of a channel of `M`; the same calls as `fabric.Receiver`."""

    def __iter__(self) -> Iterator[M]:
        return iter(self.endpoint)


class Out(_Bound, Generic[M]):
    """Sending end of a channel of `M`; the same calls as `fabric.Sender`."""


class Serve(_Bound, Generic[M, R]):
    """Answers requests of `M` with `R`; the same calls as `fabric.Responder`."""


class Call(_Bound, Generic[M, R]):
    """Sends requests of `M`, answered by `R`; the same calls as `fabric.Requester`."""


@dataclass(frozen=True, slots=True)
class Field:
    """One channel field of a module class."""

    name: str
    kind: type[_Bound]
    types: tuple[type, ...]


class Module:
    """Base of every module.

    Attributes
    ----------
    name : str
        Name of this replica in the fabric.
    config : Mapping
        The `config` of `fabric.yaml`.
    port : fabric.Port
        This process's attachment, for channels that are not fields.
    stopping : threading.Event
        Set when the module should finish; `run` must return soon after.
    manual_ack : frozenset of str
        `In` fields whose handler acknowledges by itself. All others are acknowledged when the handler
        returns, and refused (`nack`) when it raises.

    Examples
    --------
    >>> class Upper(Module):
    ...     def on_text(self, message):
    ...         self.loud.send(Text(message.text.upper()))
    """

    manual_ack: ClassVar[frozenset[str]] = frozenset()

    name: str
    config: Mapping[str, Any]
    port: Any
    stopping: threading.Event

    def start(self) -> None:
        """Prepare to work (load weights, open files); channels are bound, messages wait. May be async."""

    def drain(self) -> None:
        """Finish accepted work, after the handlers, within the grace of the stop. May be async."""

    def snapshot(self) -> bytes | None:
        """Return state that the next incarnation should get, or None. Called after `drain`."""
        return None

    def restore(self, state: bytes) -> None:
        """Take over what the previous incarnation's `snapshot` returned. Called before `start`."""


def fields_of(cls: type[Module]) -> tuple[Field, ...]:
    """List the channel fields of a module class, in order of declaration.

    Raises
    ------
    ContractError
        An annotation cannot be resolved, or a field lacks its message type.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise ContractError(
            f"module {cls.__name__}: annotation names {error.name!r}, which its file does not define"
        ) from error
    found = []
    for name, hint in hints.items():
        kind = typing.get_origin(hint) or hint
        if not (isinstance(kind, type) and issubclass(kind, _Bound)):
            continue
        types = typing.get_args(hint)
        expected = 2 if kind in (Serve, Call) else 1
        if len(types) != expected:
            raise ContractError(
                f"module {cls.__name__}: field {name} needs {expected} message type(s), "
                f"such as {name}: fabric.{kind.__name__}[MyMessage]"
            )
        found.append(Field(name, kind, types))
    _check_handlers(cls, {field.name: field for field in found})
    return tuple(found)


def _check_handlers(cls: type[Module], fields: dict[str, Field]) -> None:
    for name in dir(cls):
        if not name.startswith("on_") or not callable(getattr(cls, name)):
            continue
        field = fields.get(name[3:])
        if field is None or field.kind not in (In, Serve):
            raise ContractError(
                f"module {cls.__name__}: handler {name} belongs to no In or Serve field; "
                f"fields: {', '.join(fields) or 'none'}"
            )
    for name in cls.manual_ack - fields.keys():
        raise ContractError(f"module {cls.__name__}: manual_ack names {name!r}, which is no field")
