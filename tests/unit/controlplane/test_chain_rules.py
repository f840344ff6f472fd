"""Chains are negotiated when applied: what fits becomes hops and codecs, the rest is refused by name, with a fix."""

from __future__ import annotations

from typing import Any

import pytest

import fabric
from fabric.config import ChannelSpec
from fabric.config.spec import TransformSettings
from fabric.controlplane.chain_rules import negotiate
from fabric.errors import ConfigError, TypeMismatchError
from fabric.messages import message_type


def schema(dtypes: str) -> str:
    class Layer:
        layer: int
        k: fabric.Tensor["tokens dim", dtypes]

    return message_type(fabric.message("kv.layer")(Layer)).schema.text


BF16, F32 = schema("bf16"), schema("f32")


def codec(**more: Any) -> dict[str, Any]:
    return {"tensor_codec": True, "tier": "edge", "dtypes": ["bf16", "f32"], **more}


EXPORTS: dict[str, dict[str, Any]] = {
    "tap": {"accepts": "any", "produces": "any", "plugin": "tap"},
    "pack": {"accepts": "kv.layer@1", "produces": "kv.small@1", "plugin": "pack"},
    "open": {"accepts": "kv.small@1", "produces": "kv.layer@1", "plugin": "open"},
    "wide": {"accepts": "kv.wide@1", "produces": "kv.wide@1", "plugin": "w", "accepts_schema": F32},
    "grow": {"accepts": "any", "produces": "any", "plugin": "g", "max_expansion": 100.0},
    "shrink": codec(parameters=["level"], plugin="s"),
    "other": codec(plugin="o"),
    "ints": codec(dtypes=["i64"], plugin="i"),
    "slow": codec(tier="stage", plugin="t"),
}


def spec(*transforms: str, **settings: TransformSettings) -> ChannelSpec:
    return ChannelSpec(name="kv", type="kv.layer", transforms=transforms, settings=settings)


def test_codecs_become_ends_and_the_rest_hops_in_order():
    settings = TransformSettings(when="always", parameters={"level": 3})
    chain = negotiate(spec("tap", "shrink", "pack", shrink=settings), EXPORTS, BF16)
    assert chain.transforms == ("tap", "pack") and chain.delivers == "kv.small"
    found = chain.codecs[0]
    assert (found.name, found.when, found.index) == ("shrink", "always", 1)
    assert found.parameters == {"level": 3}


@pytest.mark.parametrize(
    ("transforms", "error", "said"),
    [
        (("lost",), ConfigError, "no transform 'lost'"),
        (("shrnk",), ConfigError, "did you mean 'shrink'"),
        (("open",), TypeMismatchError, "'open' accepts kv.small.*insert 'pack' before 'open'"),
        (("wide",), TypeMismatchError, "insert cast: bf16 → f32 before 'wide'"),
        (("ints",), TypeMismatchError, "'ints' encodes i64, kv.layer has bf16; insert cast: bf16 → i64"),
        (("shrink", "other"), ConfigError, "'other' follows the codec 'shrink'"),
        (("slow",), ConfigError, "codec 'slow'.*tier='edge'"),
        (("grow", "grow2"), ConfigError, "'grow2' a message may grow 10000 times"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_naming_the_culprit(transforms, error, said):
    exports = {**EXPORTS, "grow2": {**EXPORTS["grow"], "plugin": "g2"}}
    with pytest.raises(error, match=said) as refused:
        negotiate(spec(*transforms), exports, BF16)
    assert refused.value.context["channel"] == "kv"
    assert refused.value.context["transform"] == transforms[-1]


def test_a_parameter_that_a_transform_has_not_is_named():
    with pytest.raises(
        ConfigError, match="'shrink' has no parameter 'levle'; did you mean 'level'"
    ):
        wrong = TransformSettings(parameters={"levle": 3})
        negotiate(spec("shrink", shrink=wrong), EXPORTS)
    with pytest.raises(ConfigError, match="'tap' is no codec of tensors"):
        negotiate(spec("tap", tap=TransformSettings(when="always")), EXPORTS)


def test_without_the_schema_dtypes_are_left_to_the_ends():
    assert negotiate(spec("ints"), EXPORTS).codecs[0].name == "ints"
