"""The two ends of a channel of plain bytes: any buffer goes in, views or bytes come out; no Python runs between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fabric import _native, limits
from fabric.dataplane.deadlines import absolute_ns
from fabric.dataplane.direct_ends import DirectReceiver, DirectSender
from fabric.dataplane.naming import Named
from fabric.dataplane.sender import as_key
from fabric.errors import ClosedError, LoanLimitError, TypeMismatchError
from fabric.messages.raw import BYTES, TAG

_native.BytesMessage.__fabric_type__ = BYTES  # type: ignore[attr-defined]  # may be sent on as it is


class BytesSender(DirectSender[Any]):
    """Sends any contiguous buffer on a channel of bytes; every call of `fabric.Sender`; `loan` is by size."""

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


class BytesReceiver(_native.BytesReceivingEnd, DirectReceiver[Any]):
    """Receives from a channel of bytes: views by `receive`, plain bytes by `receive_bytes`."""
