import pytest

from fabric.abc.transform import AnyMessage, transform
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
        (Works, {"kind": "join"}, "use map, tap or codec"),
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
