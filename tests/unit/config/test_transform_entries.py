"""Entries of `transforms`: a name, or a mapping with when, where and parameters."""

from __future__ import annotations

import pytest

from fabric.config import parse
from fabric.config.spec import TransformSettings
from fabric.errors import ConfigError

FILE = "version: 1\nchannels:\n  kv:\n    type: kv.layer\n    transforms: {}\n"


def test_an_entry_says_when_where_and_parameters():
    text = FILE.format("[tap, {name: quantize, when: always, where: always, code: i8, group: 64}]")
    channel = parse(text).channels["kv"]
    assert channel.transforms == ("tap", "quantize")
    assert channel.settings == {
        "quantize": TransformSettings(
            when="always", where="always", parameters={"code": "i8", "group": 64}
        )
    }


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("[{when: pays}]", "the key 'name' is missing in a transform"),
        ("[{name: c, when: sometimes}]", "kv.transforms[0].when"),
        ("[{name: c, where: here}]", "kv.transforms[0].where"),
        ("[{name: c, 'no name': 1}]", "'no name' is no parameter name"),
        ("[{name: c, level: .nan}]", "expected a finite number"),
        ("[[c]]", "a name such as"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(entries, said):
    with pytest.raises(ConfigError) as refused:
        parse(FILE.format(entries))
    assert said in refused.value.message and "fabric.yaml:5:" in refused.value.message
