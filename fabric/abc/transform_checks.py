"""What a declared transform must keep, checked when it is decorated and when parameters are given to it. Pure."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from fabric.abc.transform import AnyMessage, Kind, OnError, Tier, TransformExport
from fabric.errors import ContractError


def infer_kind(cls: type, accepts: type) -> Kind:
    """Return the kind that a class without a declared one has."""
    if callable(getattr(cls, "revert", None)) or callable(getattr(cls, "decode", None)):
        return "codec"
    return "tap" if accepts is AnyMessage else "map"


def check_transform(export: TransformExport, cls: type) -> None:
    """Raise `ContractError` when a declaration cannot hold; each message names the fix."""
    if not isinstance(export.name, str) or not export.name:
        raise broken("transform", str(export.name), "has no name", "give @fabric.transform a name")
    if export.kind not in get_args(Kind):
        fix = "use map, tap, codec or join"
        raise broken("transform", export.name, f"has kind {export.kind!r}", fix)
    _check_calls(export, cls)
    _check_tier(export)
    _check_budgets(export)
    if export.on_error not in get_args(OnError):
        fix = "use on_error='fail', 'bypass' or 'drop'"
        raise broken("transform", export.name, f"has on_error={export.on_error!r}", fix)
    _check_expansion(export)
    _check_types(export)
    check_constructible("transform", export.name, cls)


def _check_calls(export: TransformExport, cls: type) -> None:
    if export.is_tensor_codec:
        check_method("codec", export.name, cls, "encode", ("array", "ctx"))
        check_method("codec", export.name, cls, "decode", ("parts", "ctx"))
        return
    check_method("transform", export.name, cls, "apply", ("batch", "ctx"))
    if export.kind == "codec":
        check_method("codec", export.name, cls, "revert", ("batch", "ctx"))
        if export.accepts is AnyMessage:
            fix = "declare accepts and produces, or write encode and decode of single tensors"
            raise broken("codec", export.name, "changes messages of any type", fix)


def _check_tier(export: TransformExport) -> None:
    if export.tier not in get_args(Tier):
        raise broken(
            "transform", export.name, f"has tier {export.tier!r}", "use stage, edge or native"
        )
    if export.tier != "stage" and not export.is_tensor_codec:
        fix = "leave tier out: a stage host runs it, or write a codec with encode(array, ctx)"
        raise broken("transform", export.name, f"cannot run at tier {export.tier!r}", fix)
    if export.is_tensor_codec and export.accepts is not AnyMessage:
        fix = "leave accepts out: a codec of tensors serves every type with tensors of its dtypes"
        raise broken("codec", export.name, "has encode and a declared type", fix)
    if export.error_bound is not None and (export.lossless or not export.error_bound > 0):
        fix = "give lossless=False and a bound above 0, or no bound"
        raise broken("codec", export.name, f"has error_bound={export.error_bound!r}", fix)


def _check_budgets(export: TransformExport) -> None:
    for what, value in (
        ("time_budget_ms", export.time_budget_ms),
        ("memory_budget_bytes", export.memory_budget_bytes),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
            raise broken("transform", export.name, f"has {what}={value!r}", "give it above 0")


def _check_expansion(export: TransformExport) -> None:
    bound = export.max_expansion
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < 1e6:
        fix = "give the bound of output bytes per input byte, above 0 and below 1e6"
        raise broken("transform", export.name, f"has max_expansion={bound!r}", fix)


def _check_types(export: TransformExport) -> None:
    for role, declared in (("accepts", export.accepts), ("produces", export.produces)):
        if declared is not AnyMessage and not hasattr(declared, "__fabric_type__"):
            fix = f"decorate it with @fabric.message, or leave {role} out for any type"
            found = getattr(declared, "__name__", repr(declared))
            raise broken("transform", export.name, f"{role} {found}, not a message type", fix)
    same = export.produces is export.accepts
    if AnyMessage in (export.accepts, export.produces) and not same:
        fix = "declare both accepts and produces, or neither"
        raise broken("transform", export.name, "mixes any type with a declared one", fix)
    if export.on_error == "bypass" and export.kind != "codec" and not same:
        fix = "use on_error='fail' or 'drop', or produce the accepted type"
        raise broken(
            "transform", export.name, "cannot bypass: it produces another type than it accepts", fix
        )


def check_method(what: str, name: str, owner: Any, method: str, parameters: Sequence[str]) -> None:
    """Raise `ContractError` unless `owner.method(self, *parameters)` can be called, synchronously."""
    signature_text = f"def {method}(self, {', '.join(parameters)})"
    function = inspect.getattr_static(owner, method, None)
    if function is None or not callable(getattr(owner, method)):
        raise broken(what, name, f"has no method {method}", f"add `{signature_text}`")
    check_callable(what, name, getattr(owner, method), 1 + len(parameters), signature_text)


def check_callable(what: str, name: str, function: Any, count: int, wanted: str) -> None:
    """Raise `ContractError` unless `function` is synchronous and takes `count` positional arguments."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise broken(what, name, f"{function.__name__} is async", f"write it as `{wanted}`")
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        found = f"{function.__name__}{inspect.signature(function)} does not take {count} arguments"
        raise broken(what, name, found, f"write it as `{wanted}`") from None


def check_constructible(what: str, name: str, cls: type) -> None:
    """Raise `ContractError` unless `cls()` can be called."""
    try:
        inspect.signature(cls).bind()
    except TypeError:
        fix = "give every parameter of __init__ a default"
        raise broken(what, name, f"{cls.__name__} needs arguments to be made", fix) from None


def parameters_of(cls: type) -> tuple[str, ...]:
    """Return the names that `cls` takes when it is made."""
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in signature.parameters.values() if p.kind in named)


def make(export: TransformExport, parameters: Mapping[str, Any] | None = None) -> Any:
    """Make an instance with what a channel gives it.

    Raises
    ------
    ContractError
        A parameter that it does not have (the nearest it has is named), or a value that its ``__init__`` refuses.
    """
    given = dict(parameters or {})
    unknown = [name for name in given if name not in export.parameters]
    if unknown:
        near = get_close_matches(unknown[0], export.parameters, n=1)
        has = ", ".join(export.parameters) or "none"
        fix = f"did you mean {near[0]!r}?" if near else f"it has: {has}"
        raise broken("transform", export.name, f"has no parameter {unknown[0]!r}", fix)
    try:
        return export.factory(**given)
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        fix = f"give other values than ({shown})" if shown else "repair its __init__"
        raise broken("transform", export.name, f"cannot be made: {error}", fix) from error


def bound(export: TransformExport, parameters: Mapping[str, Any]) -> TransformExport:
    """Return a declaration whose instances are made with what a channel gives them; see `make`."""
    if not parameters:
        return export
    return dataclasses.replace(export, factory=lambda: make(export, parameters))


def broken(what: str, name: str, found: str, fix: str) -> ContractError:
    """Return the error for a contract not kept: what, found, and the one thing to do."""
    return ContractError(f"{what} {name!r} {found}: {fix}", **_context(what, name, fix))


def _context(what: str, name: str, fix: str) -> Mapping[str, Any]:
    return {"kind": what, "name": name, "fix": fix}
