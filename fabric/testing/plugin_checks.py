"""What the conformance kit checks of a plugin, inside the child process of `fabric.testing.plugin_kit`.

A check is a function that returns nothing, or raises `Broken` with what was found.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fabric.abc.route import Header, RouteExport, Target, decide
from fabric.abc.tensor_codec import TensorContext
from fabric.abc.transform import AnyMessage, Defer, Drop, TransformContext, TransformExport
from fabric.errors import FabricError
from fabric.messages import MessageHeader, message, message_type
from fabric.testing.plugin_kit import BROKEN, HELD, LEFT_OUT, row
from fabric.testing.random_messages import SHAPES, RandomMessages
from fabric.worker import plugin_loader
from fabric.worker.canary_child import Copy
from fabric.worker.stage_bounds import bound_memory
from fabric.worker.stage_canary import encoded

Say = Callable[[dict[str, Any]], None]
BATCH = 16


class Broken(Exception):
    """What a check found."""


@message("fabric.kit.any")
class AnyKind:
    """Given to transforms that take any type."""

    text: str
    number: int
    data: bytes = b""


def run(target: str, seed: int, say: Say) -> None:
    """Load a plugin and check everything that it declares."""
    say({"under_way": "loading"})
    try:
        plugin = (
            plugin_loader.load_file(target)
            if target.endswith(".py") or Path(target).exists()
            else plugin_loader.load_named(target, target)
        )
    except FabricError as error:
        say(row(target, "loads", BROKEN, str(error)))
        return
    say(row(plugin.name, "loads", HELD))
    for name, cls in plugin.messages.items():
        _do(say, f"message {name}", "round trip", partial(_message, cls, seed))
    for name, route in plugin.routes.items():
        _do(say, f"route {name}", "chooses a target, the same each time", partial(_route, route))
    for export in plugin.transforms.values():
        _transform(export, seed, say)


def _do(say: Say, subject: str, name: str, check: Callable[[], Any]) -> Any:
    say({"under_way": subject})
    try:
        found = check()
    except Broken as broken:
        say(row(subject, name, BROKEN, str(broken)))
    except Exception as error:
        say(row(subject, name, BROKEN, f"raised {type(error).__name__}: {error}"))
    else:
        say(row(subject, name, HELD))
        return found
    return None


# ---- message types and policies
def _message(cls: type, seed: int) -> None:
    type_ = message_type(cls)
    for shape in SHAPES:
        value = RandomMessages(cls, seed).make(shape)
        meta, tensors = type_.encode(value)
        again = _received(cls, value)
        if encoded(*type_.encode(again)) != encoded(meta, tensors):
            raise Broken(f"{shape}: what was decoded encodes otherwise")


def _route(export: RouteExport) -> None:
    targets = [
        Target(flow=n + 1, endpoint=n + 10, node="a", module=f"m-{n}", outstanding=n)
        for n in range(3)
    ]
    for key in (None, b"", b"7", b"1234"):
        header = Header("kit", key, "token", 64, {})
        first, second = (decide(export.name, export.factory(), header, targets) for _ in range(2))
        if [t.flow for t in first] != [t.flow for t in second]:
            raise Broken(f"key {key!r}: two answers to one question")


# ---- transforms
def _transform(export: TransformExport, seed: int, say: Say) -> None:
    subject = f"transform {export.name}"
    if export.is_tensor_codec:
        _do(say, subject, "round trip of tensors", lambda: _tensor_codec(export, seed))
        return
    made = _do(say, subject, "is made without arguments", export.factory)
    if made is None:
        return
    bound_memory(export.memory_budget_bytes)
    inputs = list(_inputs(export, seed))
    digest = _do(say, subject, "types and expansion bound", lambda: _bound(export, made, inputs))
    if digest is not None and export.pure:
        say({"digest": digest, "subject": subject})
        _do(say, subject, "pure", lambda: _pure(export, inputs, digest))
    elif not export.pure:
        say(row(subject, "pure", LEFT_OUT, "declared pure=False"))
    if export.kind == "codec":
        _do(say, subject, "revert gives back what apply was given", lambda: _revert(export, inputs))
    _do(say, subject, f"time budget of {export.time_budget_ms:g} ms", lambda: _time(export, inputs))
    _do(say, subject, "goes on after an exception", lambda: _exception(export, inputs))


def _inputs(export: TransformExport, seed: int) -> Iterator[tuple[str, Any]]:
    cls = AnyKind if export.accepts is AnyMessage else export.accepts
    for shape in SHAPES:
        for number in range(4 if shape == "random" else 1):
            value = RandomMessages(cls, seed + number).make(shape)
            yield shape, _received(cls, value)


def _received(cls: type, value: Any) -> Any:
    """Return a message as a stage host has it: a view of encoded bytes, its arrays read-only."""
    type_ = message_type(cls)
    meta, *tensors = encoded(*_contiguous(type_.encode(value)))
    return type_.decode(Copy(meta, tensors), None)


def _contiguous(pair: tuple[bytes, Sequence[Any]]) -> tuple[bytes, list[Any]]:
    meta, tensors = pair
    return meta, [np.ascontiguousarray(t) if hasattr(t, "dtype") else t for t in tensors]


def _context(export: TransformExport, count: int) -> TransformContext:
    headers = tuple(MessageHeader(b"kit", n + 1, 1, 1, False, 0, 64, 0) for n in range(count))
    return TransformContext("kit", export.name, "kit", time.monotonic_ns(), headers)


def _apply(export: TransformExport, made: Any, batch: list[Any], verb: str = "apply") -> list[Any]:
    answer = getattr(made, verb)(list(batch), _context(export, len(batch)))
    if isinstance(answer, Drop | Defer):
        return [answer] * len(batch)
    if not isinstance(answer, list | tuple) or len(answer) != len(batch):
        raise Broken(
            f"{verb} returned {answer!r:.60} for {len(batch)} messages: one result for each"
        )
    return list(answer)


def _bound(export: TransformExport, made: Any, inputs: list[tuple[str, Any]]) -> str:
    """Check types and sizes of what comes out; returns a digest of it all."""
    from fabric import limits

    digest = hashlib.sha256()
    for shape, value in inputs:
        (result,) = _apply(export, made, [value])
        given = _size(value, value)
        outputs = _messages(result)
        for output in outputs:
            wanted = type(value) if export.produces is AnyMessage else export.produces
            if not isinstance(output, wanted):
                raise Broken(
                    f"{shape}: returned {type(output).__name__}, declares {wanted.__name__}"
                )
            digest.update(b"".join(_bytes_of(output)))
        found = sum(_size(output, value) for output in outputs)
        bound = given * export.max_expansion + limits.TRANSFORM_SLACK_BYTES * len(outputs)
        if found > bound:
            raise Broken(
                f"{shape}: {found} bytes out of {given}, max_expansion={export.max_expansion:g} allows {int(bound)}"
            )
    return digest.hexdigest()


def _messages(result: Any) -> list[Any]:
    if isinstance(result, Drop | Defer):
        return []
    return list(result) if isinstance(result, list | tuple) else [result]


def _bytes_of(value: Any) -> list[bytes]:
    return encoded(*_contiguous(message_type(type(value)).encode(value)))


def _size(value: Any, given: Any) -> int:
    return sum(map(len, _bytes_of(value)))


def _pure(export: TransformExport, inputs: list[tuple[str, Any]], digest: str) -> None:
    before = [_bytes_of(value) for _, value in inputs]
    made = export.factory()
    if {_bound(export, made, inputs), _bound(export, made, inputs)} != {digest}:
        raise Broken("the same messages again come out otherwise: is it meant, declare pure=False")
    if [_bytes_of(value) for _, value in inputs] != before:
        raise Broken("it changes what it was given")


def _revert(export: TransformExport, inputs: list[tuple[str, Any]]) -> None:
    made = export.factory()
    for shape, value in inputs:
        (coded,) = _apply(export, made, [value])
        if isinstance(coded, Drop | Defer):
            continue
        sent = _received(type(coded), coded)
        (back,) = _apply(export, made, [sent], "revert")
        if export.lossless:
            if _bytes_of(back) != _bytes_of(value):
                raise Broken(f"{shape}: what comes back has other bytes than what was given")
        else:
            _close(export, shape, value, back)


def _close(export: TransformExport, shape: str, value: Any, back: Any) -> None:
    bound = export.error_bound
    for field in message_type(type(value)).tensors:
        was, now = (np.asarray(getattr(v, field.name), np.float64) for v in (value, back))
        _within(f"{shape}: {field.name}", was, now, bound)


def _within(where: str, was: Any, now: Any, bound: float | None) -> None:
    if was.shape != now.shape:
        raise Broken(f"{where} had shape {list(was.shape)}, comes back as {list(now.shape)}")
    scale = float(np.linalg.norm(was))
    error = float(np.linalg.norm(was - now)) / scale if scale else 0.0
    if bound is not None and error > bound:
        raise Broken(f"{where}: error {error:.3g}, error_bound is {bound:g}")


def _tensor_codec(export: TransformExport, seed: int) -> None:
    made = export.factory()
    rng = np.random.default_rng(seed)
    for dtype in export.dtypes or ("f32", "u8"):
        for shape in ((0, 4), (1, 1), (7, 3), (64, 128), (1 << 12, 64)):
            array = _bits(rng, dtype, shape)
            context = TensorContext("kit", "x", dtype, shape, ("rows", "dim"))
            found = made.encode(array, context)
            if found is None:
                continue
            parts = [np.frombuffer(bytes(memoryview(p).cast("B")), np.uint8) if np.asarray(p).size else np.empty(0, np.uint8) for p in found.parts]  # noqa: E501 # fmt: skip
            back = made.decode(
                parts, TensorContext("kit", "x", dtype, shape, ("rows", "dim"), found.info)
            )
            if export.lossless and (back.dtype != array.dtype or not np.array_equal(back, array)):
                raise Broken(f"{dtype} {list(shape)}: other bits come back")


def _bits(rng: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    floats = rng.standard_normal(shape).astype(np.float32)
    if dtype == "f32":
        return floats
    if dtype == "f16":
        return floats.astype(np.float16)
    if dtype == "bf16":
        return (floats.view(np.uint32) >> 16).astype(np.uint16)
    kinds = {"i8": np.int8, "i32": np.int32, "i64": np.int64, "bool": np.bool_}
    return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(kinds.get(dtype, np.uint8))


def _time(export: TransformExport, inputs: list[tuple[str, Any]]) -> None:
    made = export.factory()
    batch = [value for shape, value in inputs if shape != "huge"][:BATCH]
    _apply(export, made, batch)  # the first call may import and compile
    began_ns = time.perf_counter_ns()
    _apply(export, made, batch)
    took_ms = (time.perf_counter_ns() - began_ns) / 1e6
    if took_ms > export.time_budget_ms:
        raise Broken(f"{len(batch)} messages took {took_ms:.1f} ms")


def _exception(export: TransformExport, inputs: list[tuple[str, Any]]) -> None:
    """A message that makes it raise must not change what it does with the next."""
    made = export.factory()
    try:
        made.apply([object()], _context(export, 1))
    except Exception as error:
        del error  # as it should: it was given nonsense
    if export.pure and _bound(export, made, inputs) != _bound(export, export.factory(), inputs):
        raise Broken("after an exception it decides otherwise")
