"""Every error that the fabric raises, in one tree.

The message says what, on what, the limit or value found, and what to do; `context` carries the same as data.
`to_wire`/`from_wire` move an error over a control connection; an unknown code becomes `BrokenError`.
The native binding raises these classes by name (`Cls(message)`), so the names are part of its contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from fabric import limits


def _unheard(limit: str) -> None:
    """Nobody counts the limits that are reached in this process."""


#: called with the name of a limit each time an error names it; the daemon counts them
on_limit: Callable[[str], None] = _unheard


class EndOfChannel(Exception):
    """The normal end of a channel: no more messages will come. Not a `FabricError`."""


class FabricError(Exception):
    """Root of the tree; never raised itself.

    Parameters
    ----------
    message : str
        What happened, on what, and what to do.
    **context
        The same facts as data (names, limits, values); must be msgpack-encodable to cross a connection whole.
    """

    code: ClassVar[str] = "fabric"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context: dict[str, Any] = context
        if "limit" in context:
            on_limit(str(context["limit"]))

    def to_wire(self) -> dict[str, Any]:
        """Return `{code, message, context}`, bounded by `limits.ERROR_TEXT_BYTES_MAX`."""
        return {
            "code": self.code,
            "message": self.message[: limits.ERROR_TEXT_BYTES_MAX],
            "context": {key: _plain(value) for key, value in self.context.items()},
        }


class ConfigError(FabricError):
    """A bad file, manifest or declaration; names file, key, expected and found."""

    code = "config"


class TypeMismatchError(FabricError):
    """Message or channel types are incompatible; names the field."""

    code = "type_mismatch"


class ClosedError(FabricError):
    """You (or your process) closed it."""

    code = "closed"


class BrokenError(FabricError):
    """It failed under you; `__cause__` is the foreign error."""

    code = "broken"
    retryable = True


class PathBrokenError(BrokenError):
    """Every lane of the path is down."""

    code = "path_broken"


class StorageError(BrokenError):
    """The state directory takes no write (full, read-only, an error of the disk); names path, reason and remedy."""

    code = "storage"


class PeerLostError(BrokenError):
    """The other side died; `context["outcome"]` says `unknown` when it may have acted."""

    code = "peer_lost"


class PeerRestartedError(PeerLostError):
    """The other side came back as another incarnation; both are in the context."""

    code = "peer_restarted"


class RemoteError(FabricError):
    """The responder raised while it served a request; `context["error"]` names its class."""

    code = "remote"


class BusyError(FabricError):
    """A second user of a single-user object, or an address already taken."""

    code = "busy"
    retryable = True


class StaleHandleError(FabricError):
    """Generation, epoch or incarnation does not match."""

    code = "stale_handle"


class CapacityError(FabricError):
    """A limit of `fabric/limits.py` was reached; names the limit and its value."""

    code = "capacity"
    retryable = True


class LoanLimitError(CapacityError):
    """Too many loans are out, or a loan larger than a slot may be."""

    code = "loan_limit"


class CreditExhaustedError(CapacityError):
    """Room that was reserved for this (a reply, a part) is not there."""

    code = "credit_exhausted"


class RejectedError(CapacityError):
    """The receiver has no room, and the channel's overflow policy is `reject`; names what was full."""

    code = "rejected"


class WouldBlock(FabricError):
    """A call that may not wait would have had to."""

    code = "would_block"
    retryable = True


class DeadlineExceeded(FabricError, TimeoutError):
    """The deadline passed; names what was waited for."""

    code = "deadline_exceeded"
    retryable = True


class CancelledRequestError(FabricError):
    """The request was cancelled by its requester; it may or may not have taken effect."""

    code = "cancelled"


class PeerProtocolError(FabricError):
    """The peer broke the wire rules; at most 64 offending bytes are quoted."""

    code = "peer_protocol"


class PluginError(FabricError):
    """A plugin failed; names the plugin."""

    code = "plugin"


class ContractError(PluginError):
    """A plugin breaks its contract at load."""

    code = "contract"


class TransformError(PluginError):
    """A transform raised at run time; names plugin, channel and the policy applied."""

    code = "transform"


class InternalError(FabricError):
    """Our bug; the context carries the state."""

    code = "internal"


def _tree(root: type[FabricError]) -> dict[str, type[FabricError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[FabricError]] = _tree(FabricError)


def to_wire(error: BaseException) -> dict[str, Any]:
    """Return `{code, message, context}` for any exception; a foreign one becomes `internal`."""
    if isinstance(error, FabricError):
        return error.to_wire()
    return InternalError(f"{type(error).__name__}: {error}", error=type(error).__name__).to_wire()


def from_wire(fields: Any) -> FabricError:
    """Rebuild an error from `{code, message, context}`; never raises.

    Returns
    -------
    FabricError
        Of the class that `code` names; `BrokenError` for an unknown code or a malformed report.
    """
    if not isinstance(fields, dict):
        return BrokenError(f"the peer reported an error that is not a map: {str(fields)[:64]!r}")
    message = str(fields.get("message", ""))[: limits.ERROR_TEXT_BYTES_MAX]
    context = fields.get("context")
    named = (
        {str(k): v for k, v in context.items() if k != "message"}
        if isinstance(context, dict)
        else {}
    )
    code = str(fields.get("code", ""))
    cls = BY_CODE.get(code)
    if cls is None or cls is FabricError:
        named["code"] = code
        cls = BrokenError
    return cls(message, **named)


def _plain(value: Any, depth: int = 4) -> Any:
    """Keep what msgpack carries, name the rest."""
    if isinstance(value, (bool, int, float, bytes)) or value is None:
        return value
    if isinstance(value, str):
        return value[: limits.ERROR_TEXT_BYTES_MAX]
    if depth and isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    return str(value)[: limits.ERROR_TEXT_BYTES_MAX]
