"""What a receiver does with messages of other versions of its type: asks once what they are, then reads them.

Every record says by the low bits of a fingerprint what type it is of; nothing is decoded as something that it is not.
Thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fabric.errors import ConfigError, PeerProtocolError, TypeMismatchError
from fabric.messages import MessageType, Schema
from fabric.messages.convert import make_convert

if TYPE_CHECKING:
    from fabric.dataplane.client import Port
    from fabric.messages.codec import Decode


class Versions:
    """Decodes the messages of one receiving end; `known` are schemas that others were seen to use there."""

    def __init__(self, port: Port, channel: str, type_: MessageType, known: Iterable[str]) -> None:
        self._port = port
        self._channel = channel
        self._type = type_
        self._own = type_.schema.type_id
        self._schemas = {s.type_id: s for s in map(Schema.parse, known)}
        self._decoders: dict[int, Decode] = {self._own: type_.decode}

    def decode(self, native: Any, source: Any) -> Any:
        """Return the view of a native message, whichever version it is of.

        Raises
        ------
        PeerProtocolError
            The message is of a type that this one does not read, or its bytes are not what it says.
        """
        decoder = self._decoders.get(native.type)
        return (decoder or self._learn(native.type))(native, source)

    def _learn(self, type_id: int) -> Decode:
        try:
            decoder = make_convert(self.schema_of(type_id), self._type)
        except (TypeMismatchError, ConfigError) as error:
            raise PeerProtocolError(
                f"channel {self._channel!r}: a message came that is no {self._type.schema.label}: {error.message}",
                **error.context,
            ) from error
        self._decoders[type_id] = decoder
        return decoder

    def schema_of(self, type_id: int) -> Schema:
        """Return the type of this channel with a fingerprint; `ConfigError` where there is none."""
        return self._schemas.get(type_id) or self._ask(type_id)

    def _ask(self, type_id: int) -> Schema:
        answer, _ = self._port.request("schema", {"channel": self._channel, "type": type_id})
        return Schema.parse(answer["schema"])
