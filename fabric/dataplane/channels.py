"""Declaring channels and opening their ends: the part of `Port` that asks the daemon for endpoints."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast, overload

from fabric import errors, limits
from fabric.config.routes import text_of
from fabric.dataplane.receiver import Receiver
from fabric.dataplane.requester import Requester
from fabric.dataplane.responder import Responder
from fabric.dataplane.scatter import Scatterer
from fabric.dataplane.sender import Sender
from fabric.messages import MessageType, Schema, class_from_schema, message_type

if TYPE_CHECKING:
    from fabric.dataplane.bytes_ends import BytesReceiver, BytesSender
    from fabric.dataplane.client import Port
    from fabric.dataplane.connection import ControlConnection

M = TypeVar("M")
R = TypeVar("R")
E = TypeVar("E")
Plain: TypeAlias = bytes  # a name that no parameter hides

PATTERNS: Final = {"stream": 0, "queue": 1, "broadcast": 2, "request": 3, "reply": 4, "scatter": 3}
DELIVERIES: Final = ("at_most_once", "at_least_once")
CLASSES: Final = ("control", "token", "embedding", "bulk")
OVERFLOWS: Final = ("block", "drop_oldest", "drop_newest", "reject")  # layout.hpp Overflow


def _overflow(answer: dict[str, Any]) -> int:
    """Return the overflow policy of an `open`, for the native call.

    An end of a stage waits: what fills up behind it is felt by the channel's own sender, whose policy decides. Only the
    last hop drops, at its user's receiver.
    """
    overflow = answer.get("overflow", "block")
    is_inlet = (
        answer["delivery"] == "at_least_once"
    )  # a stage's, where a policy that drops is declared
    if overflow == "reject" and answer.get("stage") is not None:
        overflow = "block"
    return OVERFLOWS.index("block" if is_inlet and overflow.startswith("drop_") else overflow)


def _way_back(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what the reply half of an `open` is opened with.

    A reply is for one requester only: what is lost with it must not go to another, whatever the requests' delivery.
    """
    return {
        **answer, "endpoint": answer["reply_endpoint"], "pattern": "reply", "route": None,
        "delivery": "at_most_once", "overflow": "block",
    }  # fmt: skip


def _ends(found: MessageType) -> tuple[type[Sender[Any]], type[Receiver[Any]]]:
    """Return the classes of the ends for a type: plain bytes have their own. They need the native core."""
    if found is message_type(bytes):
        from fabric.dataplane.bytes_ends import BytesReceiver, BytesSender

        return BytesSender, BytesReceiver
    from fabric.dataplane.direct_ends import DirectReceiver, DirectSender

    return DirectSender, DirectReceiver


class ChannelCalls:
    """What a port does with channels; `Port` is the only one."""

    native: Any
    connection: ControlConnection
    _lock: threading.RLock
    _endpoints: dict[int, Any]

    def request(
        self, op: str, fields: dict[str, Any], timeout_s: float = limits.CONTROL_CALL_S
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask the daemon."""
        raise NotImplementedError

    @property
    def _port(self) -> Port:
        return cast("Port", self)

    def declare(
        self, channel: str, type: Any, *, reply: Any = None, pattern: str = "stream", delivery: str = "at_most_once",
        overflow: str = "block", klass: str = "token", route: str | Mapping[str, Any] | None = None,
        transforms: Sequence[str | dict[str, Any]] = (),
        idempotent: bool = False, deadline: float | None = None, weight: int = 1,
    ) -> None:  # fmt: skip
        """Declare a channel; the same declaration again is fine, another one is refused naming what differs.

        Parameters
        ----------
        channel : str
            Cluster-wide name.
        type : type
            Message class.
        reply : type, optional
            Message class of replies; makes the pattern ``request``, unless it is ``scatter``.
        pattern : {"stream", "queue", "broadcast", "request", "scatter"}
        delivery : {"at_most_once", "at_least_once"}
        overflow : {"block", "drop_oldest", "drop_newest", "reject"}
            What happens where a receiver has no room; see docs/messages.md for the pairs that are allowed.
        klass : {"control", "token", "embedding", "bulk"}
            Traffic class.
        route : str or mapping, optional
            Routing policy, or ``{"name": …}`` with its parameters; default by pattern.
        transforms : sequence of str or dict
            In-flight transforms, in order. An installed codec is given as ``{"name": "quantize", "when": "pays",
            "where": "remote", …}`` with its parameters.
        idempotent : bool
            The consumer may see a request twice (needed for ``at_least_once`` requests).
        deadline : float, optional
            Seconds that a send or call on this channel may take when it names none.
        weight : int
            1 to `limits.CHANNEL_WEIGHT_MAX`: its part among the channels whose large messages fill the way to a node
            together; 3 gets thrice what 1 gets.

        Raises
        ------
        ConfigError, TypeMismatchError
        """
        fields: dict[str, Any] = {
            "channel": channel, "schema": message_type(type).schema.text,
            "pattern": "request" if reply is not None and pattern != "scatter" else pattern,
            "delivery": delivery, "overflow": overflow,
            "klass": klass, "route": _route_text(route), "transforms": list(transforms), "idempotent": idempotent,
            "deadline_s": deadline, "weight": weight,
        }  # fmt: skip
        if reply is not None:
            fields["reply_schema"] = message_type(reply).schema.text
        self.request("declare", fields)

    @overload
    def sender(
        self,
        channel: str,
        type: type[Plain],
        *,
        stage: int | None = None,
        transform: str | None = None,
    ) -> BytesSender: ...

    @overload
    def sender(
        self,
        channel: str,
        type: type[M] | None = None,
        *,
        stage: int | None = None,
        transform: str | None = None,
    ) -> Sender[M]: ...

    def sender(
        self,
        channel: str,
        type: type[Any] | None = None,
        *,
        stage: int | None = None,
        transform: str | None = None,
    ) -> Sender[Any]:
        """Open the sending end of a channel.

        Parameters
        ----------
        channel : str
        type : type, optional
            Message class; default: made from the channel's schema.
        stage, transform
            Hop of a transformed channel, for stage hosts.

        Raises
        ------
        TypeMismatchError
            The channel carries another type; names the field.
        ConfigError
            The channel is not declared, or has another pattern.
        """
        answer, found = self._open("sender", channel, type, stage=stage, transform=transform)
        answer["stage"] = stage
        native, end = self._native_sender(answer, found), _ends(found)[0]
        return self._keep(answer, end(self._port, channel, found, native, answer))

    @overload
    def receiver(
        self, channel: str, type: type[Plain], *, stage: int | None = None, transform: str | None = None,
        messages: int = limits.CREDIT_MESSAGES, bytes: int = limits.CREDIT_BYTES, delivery: str | None = None,
    ) -> BytesReceiver: ...  # fmt: skip

    @overload
    def receiver(
        self, channel: str, type: type[M] | None = None, *, stage: int | None = None, transform: str | None = None,
        messages: int = limits.CREDIT_MESSAGES, bytes: int = limits.CREDIT_BYTES, delivery: str | None = None,
    ) -> Receiver[M]: ...  # fmt: skip

    def receiver(
        self, channel: str, type: type[Any] | None = None, *, stage: int | None = None, transform: str | None = None,
        messages: int = limits.CREDIT_MESSAGES, bytes: int = limits.CREDIT_BYTES, delivery: str | None = None,
    ) -> Receiver[Any]:  # fmt: skip
        """Open the receiving end of a channel; `messages` and `bytes` are the credit each sender gets.

        `delivery` overrides how this end acknowledges (stage hosts). Raises like `sender`.
        """
        answer, found = self._open(
            "receiver",
            channel,
            type,
            stage=stage,
            transform=transform,
            messages=messages,
            bytes=bytes,
        )
        if delivery is not None:
            answer["delivery"] = delivery
        native, end = self._native_receiver(answer, found), _ends(found)[1]
        return self._keep(answer, end(self._port, channel, found, native, answer))

    def requester(
        self, channel: str, type: type[M], reply: type[R], *, timeout: float = limits.CONTROL_CALL_S
    ) -> Requester[M, R]:
        """Open the asking end of a request channel; the daemon may take `timeout` seconds. Raises like `sender`."""
        return self._asking(channel, type, reply, ("request",), timeout)

    def scatterer(self, channel: str, type: type[M], reply: type[R]) -> Scatterer[M, R]:
        """Open the asking end of a scatter channel: rows of its tensors go to many consumers, answers are gathered.

        Consumers open it with `responder`. Raises like `sender`.
        """
        return Scatterer(self._asking(channel, type, reply, ("scatter",)))

    def _asking(
        self, channel: str, type: type[M], reply: type[R], patterns: tuple[str, ...],
        timeout_s: float = limits.CONTROL_CALL_S,
    ) -> Requester[M, R]:  # fmt: skip
        answer, found = self._open(
            "requester", channel, type, reply, patterns=patterns, timeout_s=timeout_s
        )
        back = _way_back(answer)
        answered = message_type(reply)
        replies: Receiver[R] = Receiver(
            self._port, channel, answered, self._native_receiver(back, answered), back
        )
        sender: Sender[M] = Sender(
            self._port, channel, found, self._native_sender(answer, found), answer
        )
        return self._keep(answer, Requester(self._port, sender, replies))

    def responder(
        self, channel: str, type: type[M], reply: type[R], *, messages: int = limits.CREDIT_MESSAGES,
        bytes: int = limits.CREDIT_BYTES,
    ) -> Responder[M, R]:  # fmt: skip
        """Open the answering end of a request or scatter channel. Raises like `sender`."""
        answer, found = self._open(
            "responder", channel, type, reply, messages=messages, bytes=bytes
        )
        back = _way_back(answer)
        answered = message_type(reply)
        replies: Sender[R] = Sender(
            self._port, channel, answered, self._native_sender(back, answered), back
        )
        requests: Receiver[M] = Receiver(
            self._port, channel, found, self._native_receiver(answer, found), answer
        )
        return self._keep(answer, Responder(self._port, requests, replies))

    def _open(
        self, role: str, channel: str, type: Any, reply: Any = None, *, patterns: tuple[str, ...] = (),
        timeout_s: float = limits.CONTROL_CALL_S, **more: Any,
    ) -> tuple[dict[str, Any], MessageType]:  # fmt: skip
        fields = {
            "role": role,
            "channel": channel,
            **{k: v for k, v in more.items() if v is not None},
        }
        fields["schema"] = message_type(type).schema.text if type is not None else ""
        if reply is not None:
            fields["reply_schema"] = message_type(reply).schema.text
        answer, _ = self.request("open", fields, timeout_s)
        if patterns and answer["pattern"] not in patterns:
            self.connection.post("close", {"endpoint": answer["endpoint"]})
            fit = "scatterer" if answer["pattern"] == "scatter" else "requester"
            raise errors.ConfigError(
                f"channel {channel!r} has pattern {answer['pattern']}: open it as {fit}",
                channel=channel,
            )
        if type is None:
            if not answer.get("schema"):
                self.connection.post("close", {"endpoint": answer["endpoint"]})
                raise errors.TypeMismatchError(
                    f"the type of channel {channel!r} is not known yet; give a message class"
                )
            type = class_from_schema(Schema.parse(answer["schema"]))
        return answer, message_type(type)

    def _native_sender(self, answer: dict[str, Any], type_: MessageType) -> Any:
        return self.native.open_sender(
            answer["endpoint"], answer["channel"], type_.schema.type_id, PATTERNS[answer["pattern"]],
            DELIVERIES.index(answer["delivery"]), CLASSES.index(answer["klass"]), overflow=_overflow(answer),
        )  # fmt: skip

    def _native_receiver(self, answer: dict[str, Any], type_: MessageType) -> Any:
        return self.native.open_receiver(
            answer["endpoint"], answer["channel"], type_.schema.type_id, PATTERNS[answer["pattern"]],
            DELIVERIES.index(answer["delivery"]), overflow=_overflow(answer),
        )  # fmt: skip

    def _keep(self, answer: dict[str, Any], endpoint: E) -> E:
        with self._lock:
            self._endpoints[answer["endpoint"]] = endpoint
        return endpoint


def _route_text(route: str | Mapping[str, Any] | None) -> str | None:
    try:
        return text_of(route)
    except ValueError as error:
        raise errors.ConfigError(f"route {route!r:.100}: {error}") from error
