"""The receiving end of a channel.

Thread-safe; messages come as views that hold their slot until released or collected (see `fabric.messages.view`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fabric import limits
from fabric.dataplane.deadlines import DEFAULT_NS, absolute_ns, monotonic_ns
from fabric.dataplane.naming import name_channel
from fabric.dataplane.versions import Versions
from fabric.errors import (
    ClosedError,
    ConfigError,
    EndOfChannel,
    FabricError,
    PeerProtocolError,
    TypeMismatchError,
)
from fabric.messages import MessageType
from fabric.messages.envelope import is_envelope
from fabric.messages.raw import BYTES
from fabric.messages.view import refuse

if TYPE_CHECKING:
    from fabric.dataplane.client import Port
    from fabric.dataplane.coding.restore import Restorer

M = TypeVar("M")
CORRUPTED: Final = 11  # layout.hpp Reason::corrupted
_ITERATE_NS: Final = 1_000_000_000  # iteration looks this often whether the port was closed


class Receiver(Generic[M]):
    """Receives messages of one type from one channel; made by `Port.receiver`.

    Iterating waits for messages until the endpoint or the port is closed, in waits of bounded length.
    """

    def __init__(
        self, port: Port, channel: str, type_: MessageType, native: Any, answer: dict[str, Any]
    ) -> None:
        self._port = port
        self.channel = channel
        self.type = type_
        self.native = native
        self.endpoint: int = answer["endpoint"]
        self.delivery: str = answer.get("delivery", "at_most_once")
        known = answer.get("schemas", ())
        self._versions = Versions(port, channel, type_, known)
        self._decode = type_.decode if type_ is BYTES else self._versions.decode
        self._native_receive = native.receive
        self._hands_back = answer["delivery"] == "at_least_once"
        self.need_segment: type[Exception] = port.need_segment
        self._restorer: Restorer | None = None  #: made with the first encoded message
        if answer.get("codecs"):
            from fabric.dataplane.coding.installed import require

            require(channel, answer["codecs"])
        self.is_closed = False

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message, or None when none came within `timeout` seconds (default 30; 0 looks only).

        Returns
        -------
        M or None
            A view: ``ack()``, ``nack()``, ``release()``, ``header``, ``as_torch(field)``; usable with ``with``, which
            releases it.

        Raises
        ------
        ClosedError
            This endpoint or its port was closed.
        PeerProtocolError
            The bytes are not a message of this type; it ended as failed(corrupted).
        """
        deadline_ns = monotonic_ns() + DEFAULT_NS if timeout is None else absolute_ns(timeout)
        try:
            native = self._native_receive(deadline_ns)
        except FabricError as error:
            name_channel(error, self.channel)
            raise
        if native is None:
            return None
        try:
            return self._decode(native, self)
        except (self.need_segment, PeerProtocolError):
            return self.decode(native)  # says what is wrong with it, or maps what it lies in

    def receive_many(self, count: int, timeout: float | None = None) -> list[Any]:
        """Return up to `count` messages: waits for the first, takes what else is there; [] at the timeout."""
        natives = self.take_many(count, absolute_ns(timeout))
        return [self.decode(native) for native in natives]

    def take_many(self, count: int, deadline_ns: int) -> list[Any]:
        """Return up to `count` native messages; see `receive_many`."""
        if type(count) is not int or not 1 <= count <= limits.HELD_PER_PORT:
            raise ConfigError(
                f"channel {self.channel!r}: receive_many of {count!r:.100} messages: give 1 to {limits.HELD_PER_PORT}",
                limit="HELD_PER_PORT",
            )
        try:
            found: list[Any] = self.native.receive_many(count, deadline_ns)
        except FabricError as error:
            name_channel(error, self.channel)
            raise
        return found

    def receive_into(self, timeout: float | None = None, **targets: Any) -> Any:
        """Receive one message and copy tensors into your memory, once, checked before and after.

        Parameters
        ----------
        **targets
            Tensor field → writable C-contiguous buffer (numpy array, torch tensor on the host) of at least its size;
            of a list of tensors, a list of these.

        Returns
        -------
        M or None
            The message; its scalars stay, its slot is given back. It is yours to `ack`.

        Raises
        ------
        StaleHandleError
            The slot was reused while it was copied: the targets hold no valid data.
        """
        self.check_targets(targets)
        message = self.receive(timeout)
        if message is not None:
            self.copy_out(message, targets)
        return message

    def pending(self) -> int:
        """Return how many messages wait here."""
        return int(self.native.pending())

    def close(self) -> None:
        """Close this end; waiting calls get `ClosedError`. Idempotent.

        What is queued here and was not handed over goes to another consumer (``at_least_once``) or ends as
        failed(closed). Messages that were handed over may still be acknowledged for `limits.CLOSE_S`, then they go to
        another consumer, too; their views stay readable until released.
        """
        if not self.is_closed:
            self.is_closed = True
            self.native.close(hand_back=self._hands_back)
            self._port.closed_endpoint(self.endpoint)

    def decode(self, native: Any) -> Any:
        """Return the view of a native message; one that is no message of this type ends as failed(corrupted)."""
        while True:
            try:
                return self._decode(native, self)
            except self.need_segment as need:  # many scalars travel in a slot, too
                self.provide(need)
            except PeerProtocolError:
                if is_envelope(native.meta):
                    return self._restore(native)
                refuse(native, CORRUPTED)
                native.release()
                raise

    def _restore(self, native: Any) -> Any:
        """Return the view of a message that was encoded on its way; one that does not decode ends as failed."""
        if self._restorer is None:
            from fabric.dataplane.coding.restore import Restorer

            self._restorer = Restorer(self.channel, schema_of=self._versions.schema_of)
        try:
            return self._restorer.restore(native, self)
        except FabricError:
            refuse(native, CORRUPTED)
            native.release()
            raise

    def check_targets(self, targets: dict[str, Any]) -> None:
        """Raise `TypeMismatchError` for what is no tensor field."""
        unknown = set(targets) - {field.name for field in self.type.tensors}
        if unknown:
            raise TypeMismatchError(
                f"channel {self.channel!r}: {self.type.schema.label} has no tensor field {', '.join(sorted(unknown))}"
            )

    def copy_out(self, message: Any, targets: dict[str, Any]) -> None:
        """Copy tensors of a received message into memory of the caller's, and give its slot back."""
        for field, target in targets.items():
            if isinstance(target, (list, tuple)):
                for item, each in enumerate(target):
                    message.copy_into(field, _writable(each), item)
            else:
                message.copy_into(field, _writable(target))
        message.release()

    def provide(self, need: Exception) -> None:
        """Map the segment that a view's tensor lies in."""
        self._port.provide(need)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        native = None
        while native is None:
            if self.is_closed or self._port.is_closed:
                raise StopIteration
            try:
                native = self.native.receive(monotonic_ns() + _ITERATE_NS)
            except EndOfChannel as end:
                raise StopIteration from end
            except ClosedError as closed:
                if self.is_closed or self._port.is_closed:
                    raise StopIteration from closed
                raise
        return self.decode(native)

    def __enter__(self) -> Receiver[M]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _writable(target: Any) -> Any:
    """Return something that takes bytes; torch tensors go through numpy."""
    if type(target).__module__.partition(".")[0] == "torch":
        from fabric.messages.tensor import to_array

        return to_array(target)[1]
    return target
