"""The transform seam: what changes messages in flight, and the decorator that declares it.

No IO and no wire knowledge here. A transform runs in a stage host (`fabric.worker.stage_host`), on
one thread per channel it serves, so an instance never sees two `apply` calls at once. A codec of single
tensors (`encode`, `decode`; values in `fabric.abc.tensor_codec`) may run at the edge, inside a module.
The contract is checked when the class is decorated (`transform_checks`): a plugin that loads keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

OnError = Literal["fail", "bypass", "drop"]
Kind = Literal["map", "tap", "codec", "join"]
Tier = Literal["stage", "edge", "native"]

EXPORT_ATTRIBUTE = "__fabric_export__"
TIME_BUDGET_MS = 1000.0  #: for one call, unless a transform declares another
MEMORY_BUDGET_BYTES = 1 << 30  #: beyond the messages, unless a transform declares another


class AnyMessage:
    """Stands for every message type in ``accepts``: messages come and go as they are.

    A transform that accepts it may look at a message, drop it or defer it, and passes it on unchanged.
    """


@dataclass(frozen=True, slots=True)
class Drop:
    """Result for one input: end it as dropped (``transform_drop``); `reason` goes to the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Defer:
    """Result for one input: not yet. It is given again, before newer ones, after `after_s` seconds.

    Later messages of the same key wait behind it, so the order of a key holds. An input deferred
    past its deadline (30 s where it has none) ends by the transform's ``on_error``.
    """

    after_s: float = 0.01


class MessageHeader(Protocol):
    """What travels with one message beside its fields; `fabric.messages.MessageHeader` is one."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def sequence(self) -> int: ...
    @property
    def redelivered(self) -> bool: ...
    @property
    def expires_ns(self) -> int:
        """Absolute CLOCK_MONOTONIC, 0 = none."""

    @property
    def payload_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TransformContext:
    """What `apply` knows besides the messages; `headers[i]` belongs to `batch[i]`."""

    plugin: str
    transform: str
    channel: str
    now_ns: int  #: CLOCK_MONOTONIC at the start of the call
    headers: Sequence[MessageHeader] = field(default_factory=tuple)


class Transform(Protocol):
    """What a decorated class offers; codecs also have ``revert(batch, ctx)``."""

    def apply(self, batch: list[Any], ctx: TransformContext) -> Any:
        """Return one result per input, in order.

        A result is a message of type `produces`, a list of them (one input, many outputs), `Drop` or
        `Defer`. A single `Drop` or `Defer` instead of the list holds for the whole batch. When it raises,
        each input of the batch is given again alone, so that one bad message fails no other.
        """


@dataclass(frozen=True, slots=True)
class TransformExport:
    """A declared transform, as the loader finds it on the class; `factory(**parameters)` makes an instance."""

    name: str
    accepts: type
    produces: type
    max_expansion: float
    on_error: OnError
    kind: Kind
    factory: Callable[..., Any]
    pure: bool = True  #: equal inputs give equal outputs
    time_budget_ms: float = TIME_BUDGET_MS
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES
    tier: Tier = "stage"  #: the closest to the sender that it may run at
    lossless: bool = True  #: of a codec: what comes back is what was given, bit for bit
    error_bound: float | None = None  #: of a lossy codec; see `transform`
    dtypes: tuple[str, ...] = ()  #: of a tensor codec: what it encodes; empty = any
    is_tensor_codec: bool = (
        False  #: has ``encode``/``decode`` of single tensors instead of ``apply``
    )
    guards: bool = False  #: of a codec: it acts for what it does, not for bytes; see `transform`
    parameters: tuple[str, ...] = ()  #: what ``transforms: [{name: …, key: value}]`` may set


C = TypeVar("C", bound=type)


def transform(
    name: str,
    *,
    accepts: type = AnyMessage,
    produces: type | None = None,
    max_expansion: float = 1.0,
    on_error: OnError = "fail",
    kind: Kind | None = None,
    pure: bool = True,
    time_budget_ms: float = TIME_BUDGET_MS,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    tier: Tier = "stage",
    lossless: bool = True,
    error_bound: float | None = None,
    dtypes: Sequence[str] = (),
    guards: bool = False,
) -> Callable[[C], C]:
    """Declare a class as an in-flight transform.

    Parameters
    ----------
    name : str
        What ``transforms:`` lists and ``fabricctl plugin ls`` show; unique on the node.
    accepts : type
        Message type (`@fabric.message`) taken in; default: any type, passed on unchanged.
    produces : type, optional
        Message type given out; default: `accepts`.
    max_expansion : float
        Upper bound of output bytes per input byte (> 0). Exceeding it is a transform error.
    on_error : {"fail", "bypass", "drop"}
        What happens to an input whose `apply` raised: it ends as failed, goes on unchanged, or is
        dropped. ``bypass`` of a map needs ``produces`` equal to ``accepts``.
    kind : {"map", "tap", "codec", "join"}, optional
        Default: ``codec`` if the class has ``revert`` or ``decode``, ``tap`` if any type is accepted, else ``map``.
    pure : bool
        Equal inputs give equal outputs, whatever came before.
    time_budget_ms, memory_budget_bytes : float, int
        What one call may take, and what an instance may hold beyond the messages it was given.
    tier : {"stage", "edge", "native"}
        Where it may run: in a stage host; also inside the module, at its port; natively. The last two are for
        what has passed the conformance kit, and for codecs of tensors only.
    lossless : bool
        Of a codec: decoding gives back the same bits.
    error_bound : float, optional
        Of a lossy codec: largest ``norm(x - x') / norm(x)`` of a tensor (Frobenius), declared and checked by the kit.
    dtypes : sequence of str
        Of a tensor codec: names (``bf16``, ``f32``, …) of what it encodes; other tensors travel raw. Default: any.
    guards : bool
        Of a tensor codec: it is there for what it does and not to save bytes (encryption, a checksum), so that
        ``when: pays`` means ``always``.

    Raises
    ------
    ContractError
        At decoration, naming what to change.

    Notes
    -----
    The class is made once per channel it serves, with the parameters that the channel's ``transforms:`` entry gives
    (each needs a default in ``__init__``); a reload makes it anew.
    """

    def declare(cls: C) -> C:
        from fabric.abc.transform_checks import check_transform, infer_kind, parameters_of

        export = TransformExport(
            name=name,
            accepts=accepts,
            produces=accepts if produces is None else produces,
            max_expansion=max_expansion,
            on_error=on_error,
            kind=kind or infer_kind(cls, accepts),
            factory=cls,
            pure=pure,
            time_budget_ms=time_budget_ms,
            memory_budget_bytes=memory_budget_bytes,
            tier=tier,
            lossless=lossless,
            error_bound=error_bound,
            dtypes=tuple(dtypes),
            guards=guards,
            is_tensor_codec=callable(getattr(cls, "encode", None)),
            parameters=parameters_of(cls),
        )
        check_transform(export, cls)
        setattr(cls, EXPORT_ATTRIBUTE, export)
        return cls

    return declare
