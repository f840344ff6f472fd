"""The receiving end of a channel.

Thread-safe; messages come as views that hold their slot until released or collected (see `fabric.messages.view`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fabric.dataplane.deadlines import DEFAULT_NS, absolute_ns, monotonic_ns
from fabric.errors import ClosedError, EndOfChannel, PeerProtocolError
from fabric.messages import MessageType

if TYPE_CHECKING:
    from fabric.dataplane.client import Port

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
        self._decode = type_.decode
        self._native_receive = native.receive
        self.need_segment: type[Exception] = port.need_segment
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
        native = self._native_receive(deadline_ns)
        if native is None:
            return None
        try:
            return self._decode(native, self)
        except (self.need_segment, PeerProtocolError):
            return self.decode(native)  # says what is wrong with it, or maps what it lies in

    def receive_many(self, count: int, timeout: float | None = None) -> list[Any]:
        """Return up to `count` messages: waits for the first, takes what else is there; [] at the timeout."""
        natives = self.native.receive_many(count, absolute_ns(timeout))
        return [self.decode(native) for native in natives]

    def receive_into(self, timeout: float | None = None, **targets: Any) -> Any:
        """Receive one message and copy tensors into your memory, once, checked before and after.

        Parameters
        ----------
        **targets
            Tensor field → writable C-contiguous buffer (numpy array, torch tensor on the host) of at least its size.

        Returns
        -------
        M or None
            The message; its scalars stay, its slot is given back. It is yours to `ack`.

        Raises
        ------
        StaleHandleError
            The slot was reused while it was copied: the targets hold no valid data.
        """
        message = self.receive(timeout)
        if message is not None:
            for field, target in targets.items():
                message.copy_into(field, _writable(target))
            message.release()
        return message

    def pending(self) -> int:
        """Return how many messages wait here."""
        return int(self.native.pending())

    def close(self) -> None:
        """Close this end; what is queued ends as failed(closed), waiting calls get `ClosedError`. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self.native.close()
            self._port.closed_endpoint(self.endpoint)

    def decode(self, native: Any) -> Any:
        """Return the view of a native message; one that is no message of this type ends as failed(corrupted)."""
        while True:
            try:
                return self._decode(native, self)
            except self.need_segment as need:  # many scalars travel in a slot, too
                self.provide(need)
            except PeerProtocolError:
                native.nack(CORRUPTED)
                native.release()
                raise

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
