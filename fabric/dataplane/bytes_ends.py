"""The two ends of a channel of plain bytes: their calls go straight to the native core.

`_native.SendingEnd` and `_native.ReceivingEnd` stand first among the bases, so that ``send`` and ``receive`` run no
Python. What they cannot do themselves they leave to the methods of the general ends, which do the same with more words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from fabric import _native, limits
from fabric.dataplane.deadlines import DEFAULT_NS, absolute_ns
from fabric.dataplane.naming import Named, name_channel
from fabric.dataplane.receiver import Receiver
from fabric.dataplane.sender import Sender, as_key
from fabric.errors import ClosedError, EndOfChannel, FabricError, LoanLimitError, TypeMismatchError
from fabric.messages.raw import BYTES, TAG

_native.BytesMessage.__fabric_type__ = BYTES  # type: ignore[attr-defined]  # may be sent on as it is
_ITERATE_S: Final = 1.0  # iteration looks this often whether the port was closed


class BytesSender(_native.SendingEnd, Sender[Any]):
    """Sends any contiguous buffer on a channel of bytes; every call of `fabric.Sender`, `loan` excepted."""

    def __init__(
        self, port: Any, channel: str, type_: Any, native: Any, answer: dict[str, Any]
    ) -> None:
        Sender.__init__(self, port, channel, type_, native, answer)
        self._bind(native, DEFAULT_NS, limits.DEADLINE_S_MAX)
        self._set_direct(not self.has_policy and self.deadline_s is None)

    def set_route(self, route: str | None) -> None:
        """Let another policy choose from the next message on."""
        Sender.set_route(self, route)
        self._set_direct(not self.has_policy and self.deadline_s is None)

    @contextmanager
    def loan(  # type: ignore[override]
        self, size: int, *, key: str | bytes | None = None, deadline: float | None = None
    ) -> Iterator[memoryview]:
        """Write `size` bytes in place, through the writable buffer that is given; leaving the block sends them.

        Raises
        ------
        TypeMismatchError, LoanLimitError, DeadlineExceeded, ClosedError
        """
        if type(size) is not int or size < 1:
            raise TypeMismatchError(f"a loan of {size!r:.100} bytes: give a size of 1 or more")
        if size > limits.SEGMENT_BYTES_MAX:
            raise LoanLimitError(
                f"a loan of {size} bytes, SEGMENT_BYTES_MAX is {limits.SEGMENT_BYTES_MAX}",
                limit="SEGMENT_BYTES_MAX",
            )
        deadline = self.deadline_s if deadline is None else deadline
        deadline_ns, key_bytes = absolute_ns(deadline), as_key(key)
        loan = self._take(size, deadline_ns)
        try:
            data = loan.tensor(0)
            yield data
            flow = self.choose(data, key_bytes, TAG, [data]) if self.has_policy else 0
            expires_ns = deadline_ns if deadline is not None else 0
            with Named(self.channel):
                self.native.send_loan(
                    loan, TAG, key_bytes, deadline_ns, flow=flow, expires_ns=expires_ns
                )
        except BaseException:
            loan.discard()
            raise

    def _take(self, size: int, deadline_ns: int) -> Any:
        if self.is_closed:
            raise ClosedError(f"the sender of {self.channel!r} was closed")
        while True:
            try:
                with Named(self.channel):
                    return self.native.loan([size])
            except self.need_segment as need:
                self.provide(need, deadline_ns)

    # ---- for the native base

    _send = Sender.send
    _send_many = Sender.send_many

    def name_error(self, error: FabricError) -> None:
        """Let an error of a native call name the channel."""
        name_channel(error, self.channel)


class BytesReceiver(_native.ReceivingEnd, Receiver[Any]):
    """Receives from a channel of bytes: views by `receive`, plain bytes by `receive_bytes`."""

    def __init__(
        self, port: Any, channel: str, type_: Any, native: Any, answer: dict[str, Any]
    ) -> None:
        Receiver.__init__(self, port, channel, type_, native, answer)
        self._bind(native, DEFAULT_NS, limits.DEADLINE_S_MAX)

    def __next__(self) -> Any:
        while True:
            if self.is_closed or self._port.is_closed:
                raise StopIteration
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

    # ---- for the native base

    _receive = Receiver.receive
    _receive_many = Receiver.receive_many

    def name_error(self, error: FabricError) -> None:
        """Let an error of a native call name the channel."""
        name_channel(error, self.channel)
