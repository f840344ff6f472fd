"""The one place where `FabricError` becomes a gRPC status, and a gRPC failure a `FabricError`."""

from __future__ import annotations

from typing import Any

import grpc
import msgspec

from fabric import errors, limits

ERROR_KEY = "fabric-error-bin"
DETAIL_CHARACTERS_MAX = 512  # the status text is percent-encoded into the same 8 KiB as the detail

_CODES: dict[type[errors.FabricError], grpc.StatusCode] = {
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TypeMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ClosedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BrokenError: grpc.StatusCode.UNAVAILABLE,
    errors.BusyError: grpc.StatusCode.ABORTED,
    errors.StaleHandleError: grpc.StatusCode.ABORTED,
    errors.CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.WouldBlock: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CancelledRequestError: grpc.StatusCode.CANCELLED,
    errors.PluginError: grpc.StatusCode.FAILED_PRECONDITION,
}


def status_of(error: errors.FabricError) -> grpc.StatusCode:
    """Return the gRPC status code of an error's class, or of its nearest ancestor; INTERNAL by default."""
    for cls in type(error).__mro__:
        if cls in _CODES:
            return _CODES[cls]
    return grpc.StatusCode.INTERNAL


def to_trailer(error: BaseException) -> tuple[str, bytes]:
    """Return the trailing metadata entry that carries an error whole, its context left out when too large."""
    fields = errors.to_wire(error)
    encoded = msgspec.msgpack.encode(fields)
    if len(encoded) > limits.CONTROL_ERROR_BYTES_MAX * 3 // 4:
        encoded = msgspec.msgpack.encode(
            {**fields, "context": {"context_left_out_bytes": len(encoded)}}
        )
    return ERROR_KEY, encoded


def from_rpc(error: grpc.RpcError, verb: str, path: str, deadline_s: float) -> errors.FabricError:
    """Return the error that a failed call stands for.

    Parameters
    ----------
    error : grpc.RpcError
        As raised by the generated client.
    verb : str
        What was asked, for messages.
    path : str
        The control socket, for messages.
    deadline_s : float
        How long the call was allowed to take.
    """
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_KEY:
            return _decode(value)
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        # gRPC repeats the address in every layer of its text; the last layer is the system's reason.
        reason = details.rpartition("error: ")[2]
        return errors.BrokenError(
            f"no daemon answers on {path}: {reason}", socket=path, unreachable=True
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(
            f"the daemon on {path} did not finish {verb} within {deadline_s:g} s",
            verb=verb,
            socket=path,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.ConfigError(
            f"the daemon on {path} does not know {verb}: it is of another version", verb=verb
        )
    if code is grpc.StatusCode.CANCELLED:
        return errors.CancelledRequestError(f"{verb} was cancelled: {details}", verb=verb)
    return errors.InternalError(f"{verb} failed in the daemon ({code.name}): {details}", verb=verb)


def _decode(value: bytes) -> errors.FabricError:
    try:
        return errors.from_wire(msgspec.msgpack.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return errors.PeerProtocolError(
            f"the daemon sent an error that cannot be read: {value[:64]!r}"
        )
