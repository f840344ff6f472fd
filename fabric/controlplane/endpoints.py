"""Local endpoints: opened and closed by processes, kept for a restarted daemon, reported to the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from fabric import errors, limits, steps
from fabric.controlplane.context import Context
from fabric.controlplane.ports import Port
from fabric.controlplane.view_change import ViewChange
from fabric.messages.schema import Schema
from fabric.registry.records import ChannelRecord, EndpointRecord, View

ROLES: dict[str, Literal["sender", "receiver"]] = {
    "sender": "sender",
    "requester": "sender",
    "receiver": "receiver",
    "responder": "receiver",
}


class EndpointTable:
    """The endpoints of this node's ports, by id."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._endpoints: dict[int, EndpointRecord] = {}
        self._withdrawn: set[int] = set()  # open here, and not to be sent to any more
        self.transform_of: Callable[[Port, str, int, str], str] = (
            lambda port, channel, stage, role: ""
        )
        self.generation_of: Callable[[Port], int] = lambda port: 0

    def all(self) -> list[EndpointRecord]:
        """Return every endpoint, oldest first."""
        return list(self._endpoints.values())

    def published(self) -> list[EndpointRecord]:
        """Return what other nodes may know: every endpoint that was not withdrawn."""
        return [e for e in self._endpoints.values() if e.endpoint not in self._withdrawn]

    def withdraw(self, endpoints: Iterable[int]) -> None:
        """Let nobody begin to send to these; what is under way still ends."""
        self._withdrawn |= set(endpoints)

    def get(self, endpoint: int) -> EndpointRecord | None:
        """Return an endpoint by id, or by the id of its reply half."""
        found = self._endpoints.get(endpoint)
        if found is None:
            found = next(
                (e for e in self._endpoints.values() if e.reply_endpoint == endpoint), None
            )
        return found

    def of(self, port: int) -> list[EndpointRecord]:
        """Return the endpoints of a port."""
        return [e for e in self._endpoints.values() if e.port == port]

    def add(self, port: Port, channel: ChannelRecord, fields: dict[str, Any]) -> EndpointRecord:
        """Make an endpoint for an `open`, after the channel's types were confirmed."""
        role = fields["role"]
        self._check(port, channel, role)
        both_ways = role in ("requester", "responder")
        stage = int(fields.get("stage") or 0)
        transform = fields.get("transform") or ""
        if "stage" in fields and not transform:
            transform = self.transform_of(port, channel.name, stage, role)
        record = EndpointRecord(
            endpoint=self._context.take_endpoint(),
            channel=channel.number,
            role=ROLES[role],
            node=self._context.number,
            incarnation=self._context.incarnation,
            port=port.port,
            port_name=port.name,
            reply_endpoint=self._context.take_endpoint() if both_ways else 0,
            stage=stage,
            transform=transform,
            generation=self.generation_of(port) if transform else 0,
            messages=channel.messages or int(fields.get("messages") or limits.CREDIT_MESSAGES),
            bytes=channel.bytes or int(fields.get("bytes") or limits.CREDIT_BYTES),
            type=_type_id(fields.get("schema") or channel.schema),
            reply_type=_type_id(fields.get("reply_schema") or ""),
        )
        self._endpoints[record.endpoint] = record
        if sends := record.endpoint if record.role == "sender" else record.reply_endpoint:
            port.senders.append(sends)
            self._context.keeper.put(f"port/{port.port}/record", port.record())
        self._context.keeper.put(f"endpoint/{record.endpoint}", msgspec.to_builtins(record))
        steps.at("attach.open.kept")
        return record

    def take_credit(self, view: View, change: ViewChange) -> None:
        """Grant new flows what the channels say now; flows that are open keep what they were granted."""
        channels = {c.number: c for c in change.among(view.channels)}
        for record in change.ends_among(self._endpoints.values()):
            channel = channels.get(record.channel)
            if channel is None:
                continue
            credit = (channel.messages or record.messages, channel.bytes or record.bytes)
            if credit != (record.messages, record.bytes):
                self._endpoints[record.endpoint] = changed = msgspec.structs.replace(
                    record, messages=credit[0], bytes=credit[1]
                )
                self._context.keeper.put(
                    f"endpoint/{changed.endpoint}", msgspec.to_builtins(changed)
                )

    def remove(self, record: EndpointRecord) -> None:
        """Forget an endpoint."""
        self._endpoints.pop(record.endpoint, None)
        self._withdrawn.discard(record.endpoint)
        self._context.keeper.drop(f"endpoint/{record.endpoint}")
        steps.at("attach.close.kept")

    def restore(self, items: dict[str, tuple[dict[str, Any], int]]) -> None:
        """Take back what the keeper held."""
        for key, (value, _) in items.items():
            if key.startswith("endpoint/"):
                record = msgspec.convert(value, EndpointRecord)
                self._endpoints[record.endpoint] = record

    def _check(self, port: Port, channel: ChannelRecord, role: str) -> None:
        if role not in ROLES:
            raise errors.ConfigError(
                f"unknown role {role!r}; use one of {', '.join(ROLES)}", role=role
            )
        answers = channel.pattern in ("request", "scatter")
        if (role in ("requester", "responder")) != answers:
            fit = "requester or responder" if answers else "sender or receiver"
            raise errors.ConfigError(
                f"channel {channel.name!r} has pattern {channel.pattern}: open it as {fit}, not {role}",
                channel=channel.name,
                pattern=channel.pattern,
                role=role,
            )
        mine = self.of(port.port)
        if len(mine) >= limits.ENDPOINTS_PER_PORT_MAX // 2:
            raise errors.CapacityError(
                f"{port.name} has {len(mine)} endpoints, half of ENDPOINTS_PER_PORT_MAX is the most",
                limit="ENDPOINTS_PER_PORT_MAX",
            )
        if port.kind != "stage" and any(
            e.channel == channel.number and e.role != ROLES[role] for e in mine
        ):
            raise errors.ConfigError(
                f"port {port.name!r} already holds the other end of channel {channel.name!r};"
                " attach a second port for this end",
                channel=channel.name,
            )


def open_answer(record: EndpointRecord, channel: ChannelRecord) -> dict[str, Any]:
    """Return what an `open` is answered with; pattern, delivery and class by name."""
    # A stage acknowledges what it took, so that drops and failures in it reach the ledger by their reason.
    is_inlet = bool(record.transform) and record.role == "receiver"
    delivery = "at_least_once" if is_inlet else channel.delivery
    answer = {
        "endpoint": record.endpoint,
        "channel": channel.number,
        "type": channel.type,
        "pattern": channel.pattern,
        "delivery": delivery,
        # A stage waits: what is dropped or refused is so at the ends of the channel.
        "overflow": "block" if record.transform else channel.overflow,
        "klass": channel.klass,
        "route": channel.route,
        "deadline_s": channel.deadline_s,
        "schema": channel.schema,
        "reply_schema": channel.reply_schema,
    }
    if channel.schemas or channel.reply_schemas:
        answer["schemas"] = [*channel.schemas, *channel.reply_schemas]
    if channel.codecs:
        answer["codecs"] = plain_codecs(channel)
    if record.reply_endpoint:
        answer["reply_endpoint"] = record.reply_endpoint
    return answer


def schema_answer(channels: Iterable[ChannelRecord], name: str, type_id: int) -> dict[str, str]:
    """Return the schema of a type that is used on a channel; a message of it came to an end that has another.

    Raises
    ------
    ConfigError
        No end of that channel is known to use it.
    """
    channel = next((c for c in channels if c.name == name), None)
    if channel is not None:
        texts = (channel.schema, channel.reply_schema, *channel.schemas, *channel.reply_schemas)
        for text in texts:
            if text and _type_id(text) == type_id:
                return {"schema": text}
    raise errors.ConfigError(
        f"type {type_id:08x} is not known on channel {name!r}: its sender has closed long ago, or a transform made it",
        channel=name,
        type=type_id,
    )


def _type_id(schema: str) -> int:
    return Schema.parse(schema).type_id if schema else 0


def plain_codecs(channel: ChannelRecord) -> list[dict[str, Any]]:
    """Return the codecs of a channel as its ends are told of them."""
    return [msgspec.to_builtins(codec) for codec in channel.codecs]
