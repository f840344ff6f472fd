from typing import Any

import pytest

from fabric.abc.transform import AnyMessage, transform
from fabric.abc.transform_checks import make
from fabric.errors import ContractError


class Text:
    __fabric_type__ = object()


class Other:
    __fabric_type__ = object()


class Works:
    def apply(self, batch, ctx):
        return batch


def declare(base=Works, **options):
    options.setdefault("accepts", Text)
    return transform("t", **options)(type("Plugin", (base,), {})).__fabric_export__


def test_export_carries_what_was_declared():
    export = declare(produces=Other, max_expansion=2, on_error="drop")
    assert (export.accepts, export.produces) == (Text, Other)
    assert (export.max_expansion, export.on_error, export.kind) == (2, "drop", "map")


def test_produces_is_accepts_when_left_out():
    assert declare().produces is Text


def test_transform_of_any_type_is_a_tap():
    export = declare(accepts=AnyMessage)
    assert (export.kind, export.produces) == ("tap", AnyMessage)


def test_class_with_revert_is_a_codec():
    class Codec(Works):
        def revert(self, batch, ctx): ...

    assert declare(Codec, produces=Other, on_error="bypass").kind == "codec"


class NoApply: ...


class OneArgument:
    def apply(self, batch): ...


class Asynchronous:
    async def apply(self, batch, ctx): ...


class NeedsArgument(Works):
    def __init__(self, level): ...


@pytest.mark.parametrize(
    ("base", "options", "fix"),
    [
        (NoApply, {}, r"add `def apply\(self, batch, ctx\)`"),
        (OneArgument, {}, "write it as"),
        (Asynchronous, {}, "write it as"),
        (NeedsArgument, {}, "give every parameter of __init__ a default"),
        (Works, {"kind": "codec"}, r"add `def revert\(self, batch, ctx\)`"),
        (Works, {"kind": "blend"}, "use map, tap, codec or join"),
        (Works, {"max_expansion": 0}, "above 0"),
        (Works, {"max_expansion": float("nan")}, "above 0"),
        (Works, {"max_expansion": "2"}, "above 0"),
        (Works, {"on_error": "ignore"}, "use on_error="),
        (Works, {"accepts": int}, "decorate it with @fabric.message"),
        (Works, {"produces": int}, "decorate it with @fabric.message"),
        (Works, {"accepts": AnyMessage, "produces": Text}, "declare both"),
        (Works, {"produces": Other, "on_error": "bypass"}, "produce the accepted type"),
    ],
)
def test_broken_declaration_is_refused_naming_the_fix(base, options, fix):
    with pytest.raises(ContractError, match=fix):
        declare(base, **options)


def test_transform_without_a_name_is_refused():
    with pytest.raises(ContractError, match="has no name"):
        transform("", accepts=Text)(Works)


class Halves:
    def __init__(self, dtype: str = "f32", *, group: int = 128) -> None:
        if group < 1:
            raise ValueError(f"group is {group}")
        self.dtype, self.group = dtype, group

    def encode(self, array: Any, ctx: Any) -> Any: ...
    def decode(self, parts: Any, ctx: Any) -> Any: ...


def test_a_class_that_encodes_tensors_is_a_codec_that_may_run_at_the_edge() -> None:
    made = transform("halves", tier="edge", lossless=False, error_bound=0.01, dtypes=["f32"])(
        type("Halves", (Halves,), {})
    )
    export = made.__fabric_export__
    assert (export.kind, export.is_tensor_codec, export.tier) == ("codec", True, "edge")
    assert export.parameters == ("dtype", "group")


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"tier": "moon"}, "use stage, edge or native"),
        ({"error_bound": 0.1}, "lossless=False"),
        ({"accepts": Text, "produces": Text}, "leave accepts out"),
        ({"time_budget_ms": 0}, "give it above 0"),
    ],
)
def test_a_codec_declared_wrongly_is_refused_naming_the_fix(
    options: dict[str, Any], fix: str
) -> None:
    with pytest.raises(ContractError, match=fix):
        transform("halves", **options)(type("Halves", (Halves,), {}))


def test_only_a_codec_of_tensors_may_leave_the_stage_host() -> None:
    with pytest.raises(ContractError, match="a stage host runs it"):
        transform("late", accepts=Text, tier="edge")(Works)


def test_parameters_are_given_by_name_and_a_wrong_one_is_named() -> None:
    export = transform("halves")(type("Halves", (Halves,), {})).__fabric_export__
    assert make(export, {"group": 64}).group == 64
    with pytest.raises(ContractError, match="did you mean 'group'"):
        make(export, {"gruop": 64})
    with pytest.raises(ContractError, match=r"group is 0.*\(group=0\)"):
        make(export, {"group": 0})
