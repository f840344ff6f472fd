"""Ends of a channel whose calls go straight to the native core.

`_native.SendingEnd` and `_native.ReceivingEnd` stand first among the bases, so that ``send`` and ``receive`` run no
Python but a message type's own encoder and decoder. What they cannot do themselves they leave to the methods of the
general ends, which do the same in more steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from fabric import _native, limits
from fabric.dataplane.deadlines import DEFAULT_NS
from fabric.dataplane.naming import name_channel
from fabric.dataplane.receiver import Receiver
from fabric.dataplane.sender import Sender
from fabric.errors import ClosedError, EndOfChannel, FabricError
from fabric.messages import MessageType

M = TypeVar("M")
_ITERATE_S: Final = 1.0  # iteration looks this often whether the port was closed


class DirectSender(_native.SendingEnd, Sender[M]):
    """A `fabric.Sender` whose unremarkable sends run natively."""

    def __init__(
        self, port: Any, channel: str, type_: MessageType, native: Any, answer: dict[str, Any]
    ) -> None:
        Sender.__init__(self, port, channel, type_, native, answer)
        encode, plan = type_.native_encode, type_.native_plan
        self._bind(native, encode, plan, DEFAULT_NS, limits.DEADLINE_S_MAX)
        self._look_whether_direct()

    def set_route(self, route: str | None, rows: Iterable[Sequence[Any]] = ()) -> None:
        """Let another policy choose from the next message on; pins of the one before are forgotten."""
        Sender.set_route(self, route, rows)
        self._look_whether_direct()

    def set_asks(self) -> None:
        """The way of asking is known now: what depends on a message's fields is looked up in Python."""
        self._look_whether_direct()

    def set_codecs(self, codecs: Sequence[dict[str, Any]] | None) -> None:
        """Encode with another codec from the next message on."""
        Sender.set_codecs(self, codecs)
        self._look_whether_direct()

    def set_sample(self, sample: Any) -> None:
        """Copy what is sent from now on, or no more."""
        Sender.set_sample(self, sample)
        self._look_whether_direct()

    def look_at_flows(self) -> None:
        """Send natively again while no receiver is where a codec acts."""
        self._look_whether_direct()

    def _look_whether_direct(self) -> None:
        self._set_asks(self.has_policy)
        is_plain = not self._reads and self.deadline_s is None
        is_coded = self._coder is not None and not self._coder.is_idle()
        self._set_direct(is_plain and not is_coded and self._sample is None)

    # ---- for the native base

    _send = Sender.send
    _send_many = Sender.send_many

    def name_error(self, error: FabricError) -> None:
        """Let an error of a native call name the channel."""
        name_channel(error, self.channel)


class DirectReceiver(_native.ReceivingEnd, Receiver[M]):
    """A `fabric.Receiver` whose unremarkable messages are received natively."""

    def __init__(
        self, port: Any, channel: str, type_: MessageType, native: Any, answer: dict[str, Any]
    ) -> None:
        Receiver.__init__(self, port, channel, type_, native, answer)
        type_.read_natively(_native.TensorField)
        unpack, plan = type_.native_unpack, type_.native_decode
        self._bind(native, unpack, plan, DEFAULT_NS, limits.DEADLINE_S_MAX, type_.schema.type_id)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                message = self.receive(_ITERATE_S)
            except EndOfChannel as end:
                raise StopIteration from end
            except ClosedError as closed:
                if self.is_closed or self._port.is_closed:
                    raise StopIteration from closed
                raise
            if message is not None:
                return message
            if self.is_closed or self._port.is_closed:
                raise StopIteration

    # ---- for the native base

    _receive = Receiver.receive
    _receive_many = Receiver.receive_many

    def name_error(self, error: FabricError) -> None:
        """Let an error of a native call name the channel."""
        name_channel(error, self.channel)
