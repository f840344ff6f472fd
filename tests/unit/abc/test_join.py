"""What a declared join may be; each refusal names the fix."""

from __future__ import annotations

import pytest

import fabric
from fabric.abc import join as abc_join
from fabric.abc.join import JoinRules, rules_from
from fabric.abc.transform import EXPORT_ATTRIBUTE
from fabric.config import joins as config_joins
from fabric.config.schema import parse
from fabric.errors import ConfigError, ContractError


@fabric.message("decl.left")
class Left:
    request: str
    rows: fabric.Tensor["n", "f32"]


@fabric.message("decl.right")
class Right:
    request: str
    other: int


def declare(cls=None, **given):
    body = {"fuse": lambda self, parts, ctx: None}
    fields = {"inputs": {"left": Left, "right": Right}, "produces": Left, **given}
    return fabric.join("decl", **fields)(cls or type("Declared", (), body))


def test_a_declaration_is_found_on_the_class():
    export = getattr(declare(by="request", window_s=2.0), EXPORT_ATTRIBUTE)
    assert export.by == {"left": "request", "right": "request"}
    assert export.rules == JoinRules(window_s=2.0)
    mixed = getattr(declare(by={"left": "request", "right": "other"}), EXPORT_ATTRIBUTE)
    assert mixed.by["right"] == "other"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inputs": {"left": Left}}, "has 1 inputs: give 2 to 32"),
        ({"inputs": {"left": Left, "output": Right}}, "calls an input 'output'"),
        ({"inputs": {"left": Left, "a-b": Right}}, "calls an input 'a-b'"),
        ({"inputs": {"left": Left, "right": int}}, "right int, not a message type"),
        ({"produces": str}, "produces str, not a message type"),
        ({"by": "rows"}, "finds no scalar 'rows' in input 'left': use one of request"),
        ({"by": {"middle": "request"}}, "which is no input"),
        ({"window_s": 0}, "has window_s=0: give more than 0"),
        ({"max_entries": 5000}, "at most 4096"),
        ({"late": "never"}, "use wait, partial, drop"),
        ({"overflow": "block"}, "use drop_oldest, drop_newest"),
        ({"late": "partial"}, "no input may be missing"),
        ({"partial": ("left", "right")}, "not all of left, right"),
        ({"partial": ("middle",)}, "name inputs that may be missing"),
        ({"late": "wait", "window_s": 2.0, "deadline_s": 1.0}, "a deadline_s of at least window_s"),
        ({"cls": type("Empty", (), {})}, "has no method fuse"),
    ],
)
def test_a_join_that_cannot_be_is_refused_when_it_is_declared(given, said):
    with pytest.raises(ContractError) as refused:
        declare(**given)
    assert said in str(refused.value)


def test_a_use_may_say_other_rules_and_they_are_checked():
    inputs = ("left", "right")
    rules = rules_from("decl", JoinRules(), {"late": "partial", "partial": ["left"]}, inputs)
    assert (rules.late, rules.partial) == ("partial", ("left",))
    with pytest.raises(ContractError, match="no rule 'windw'"):
        rules_from("decl", JoinRules(), {"windw": 1}, inputs)
    with pytest.raises(ContractError, match="no input may be missing"):
        rules_from("decl", JoinRules(), {"late": "partial"}, inputs)


def test_the_words_of_files_and_of_classes_agree():
    assert (config_joins.OUTPUT, config_joins.JOIN_PREFIX) == (
        abc_join.OUTPUT,
        abc_join.JOIN_PREFIX,
    )
    assert set(config_joins.RULES.values()) == set(JoinRules.__dataclass_fields__)


TEXT = """
version: 1
modules: {m: {class: "a:B"}}
joins:
  seen:
    use: fuse
    inputs: {left: a, right: b}
    output: c
    window: 50ms
    partial: [left]
    max_bytes: 1MiB
    config: {mode: add}
"""


def test_a_join_of_a_file_becomes_a_module_with_its_places():
    spec = parse(TEXT)
    module = spec.modules["seen"]
    assert module.class_path == "join:fuse"
    assert module.channels == {"left": "a", "right": "b", "output": "c"}
    assert module.config["rules"] == {"window_s": 0.05, "partial": ["left"], "max_bytes": 1 << 20}
    assert module.config["config"] == {"mode": "add"}
    assert spec.position("modules.seen.channels.right") == spec.position("joins.seen.inputs.right")
    assert spec.position("modules.seen.channels.output") == spec.position("joins.seen.output")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seen:", "m:"), "joins.m: a module is called 'm', too"),
        (("output: c", "outputs: c"), "did you mean 'output'?"),
        (("use: fuse", "use: 5"), "expected an installed join such as fuse"),
        (("window: 50ms", "window: 50"), "expected a duration"),
    ],
)
def test_a_mistake_in_a_join_is_named_with_its_place(change, said):
    with pytest.raises(ConfigError) as refused:
        parse(TEXT.replace(*change))
    assert said in str(refused.value) and "fabric.yaml:" in str(refused.value)
