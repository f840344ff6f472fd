"""The two ends of a channel of plain bytes: any buffer goes in, views or bytes come out; no Python runs between."""

from __future__ import annotations

from typing import Any

from fabric import _native
from fabric.dataplane.direct_ends import DirectReceiver, DirectSender
from fabric.dataplane.loans import Lending, refuse_beyond_limit
from fabric.dataplane.sender import as_key
from fabric.errors import TypeMismatchError
from fabric.messages.raw import BYTES, TAG

_native.BytesMessage.__fabric_type__ = BYTES  # type: ignore[attr-defined]  # may be sent on as it is


class BytesSender(DirectSender[Any]):
    """Sends any contiguous buffer on a channel of bytes; every call of `fabric.Sender`; `loan` is by size."""

    def loan(  # type: ignore[override]
        self, size: int, *, key: str | bytes | None = None, deadline: float | None = None
    ) -> Lending:
        """Write `size` bytes in place, through the writable memoryview that is given; leaving the block sends them.

        Raises
        ------
        TypeMismatchError, LoanLimitError, DeadlineExceeded, ClosedError
        """
        return Lending(self, lambda: BytesLoan(self.native, size), as_key(key), deadline)


class BytesLoan:
    """A slot being written as plain bytes."""

    def __init__(self, sender: Any, size: int) -> None:
        if type(size) is not int or size < 1:
            raise TypeMismatchError(f"a loan of {size!r:.100} bytes: give a size of 1 or more")
        refuse_beyond_limit(size)
        self.native = sender.loan([size])
        self.draft: memoryview = self.native.tensor(0)

    def encode(self) -> tuple[bytes, list[Any]]:
        """Return (meta, buffers)."""
        return TAG, [self.draft]


class BytesReceiver(_native.BytesReceivingEnd, DirectReceiver[Any]):
    """Receives from a channel of bytes: views by `receive`, plain bytes by `receive_bytes`."""
