"""What a sender does with the codec of its channel; a sender of a channel without one pays a look at None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fabric.dataplane.deadlines import left_s

if TYPE_CHECKING:
    from fabric.dataplane.client import Port
    from fabric.dataplane.coding.measure import Sample
    from fabric.dataplane.coding.sending import SenderCoder


class CodecCalls:
    """Mixed into `Sender`."""

    endpoint: int
    _port: Port
    _coder: SenderCoder | None = None  #: of a channel with a codec at its ends
    _codecs: list[dict[str, Any]] = []
    _sample: Sample | None = None  #: copies what is sent, while somebody measures
    path_rates: dict[int, float] = {}

    def set_codecs(self, codecs: Sequence[dict[str, Any]] | None) -> None:
        """Encode with another codec from the next message on; the same one goes on with what it knows."""
        wanted = list(codecs or ())
        if wanted != self._codecs:
            from fabric.dataplane.coding.sending import coder_for

            self._coder = coder_for(self, wanted)  # type: ignore[arg-type]  # it is a Sender
            self._codecs = wanted

    def coded(
        self, meta: bytes, tensors: list[Any], expires_ns: int = 0
    ) -> tuple[bytes, list[Any]]:
        """Return what travels of an encoded message: an envelope, or the message itself where no codec acts."""
        coder, sample = self._coder, self._sample
        if sample is not None:
            sample.take(meta, tensors)
        if coder is None:
            return meta, tensors
        left = left_s(expires_ns) if expires_ns else math.inf
        return coder.code(meta, tensors, left) or (meta, tensors)

    @property
    def has_codec(self) -> bool:
        """Whether a codec may change what travels, or what travels is being copied."""
        return self._coder is not None or self._sample is not None

    def set_sample(self, sample: Sample | None) -> None:
        """Copy what is sent from now on, or no more."""
        self._sample = sample

    def explain_codec(self, rows: list[dict[str, Any]]) -> None:
        """Add what the codec decided of late, and why."""
        if self._coder is not None:
            rows.append({"endpoint": self.endpoint, **self._coder.explain()})

    def flows_known(self) -> list[dict[str, Any]]:
        """Return the open flows, as the daemon pushed them."""
        return self._port.flows_of(self.endpoint)

    def set_path_rates(self, rates: dict[int, float]) -> None:
        """Take the present rate (bytes/s) of the path to each node."""
        self.path_rates = rates
