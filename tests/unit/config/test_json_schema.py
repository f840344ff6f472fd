"""The published JSON Schema: current, true of every example, and refusing what the reader refuses."""

import itertools
from pathlib import Path

import fastjsonschema
import pytest
import yaml

from fabric import config, errors
from fabric.config import json_schema

ROOT = Path(__file__).parents[3]
FILES = sorted(
    p for folder in ("examples", "tests", "bench") for p in (ROOT / folder).rglob("*.y*ml")
)
accept = fastjsonschema.compile(json_schema.json_schema())


def is_accepted(text: str) -> bool:
    try:
        accept(yaml.safe_load(text))
    except fastjsonschema.JsonSchemaException:
        return False
    return True


def is_read(text: str) -> bool:
    try:
        return not [p for p in config.validate(config.parse(text)) if p.severity == "error"]
    except errors.ConfigError:
        return False


def test_the_published_schema_is_the_one_that_the_readers_give():
    assert (ROOT / "docs" / "fabric.schema.json").read_text() == json_schema.text(), (
        "write it again: python tools/check_generated.py --write"
    )


def test_every_file_of_the_repository_is_accepted():
    assert {file.name for file in FILES} >= {"channels.yaml", "disaggregated.yaml"}
    for file in FILES:
        accept(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    ("pattern", "delivery", "overflow", "idempotent"),
    [*itertools.product(config.PATTERNS, config.DELIVERIES, config.OVERFLOWS, (False, True))],
)
def test_a_combination_is_accepted_exactly_when_the_rules_accept_it(
    pattern, delivery, overflow, idempotent
):
    text = (
        f"version: 1\nchannels:\n  c: {{type: t, pattern: {pattern}, delivery: {delivery}, "
        f"overflow: {overflow}, idempotent: {str(idempotent).lower()}}}\n"
    )
    assert is_accepted(text) is is_read(text)


@pytest.mark.parametrize(
    "keys",
    ["", "reply: u", "transforms: [x]", "reply: u, pattern: scatter", "transforms: [x], pattern: queue",
     "transforms: [x], pattern: broadcast", "delivery: at_least_once, overflow: drop_oldest", "deadline: 5s",
     "deadline: 1.5 min", "deadline: null", "credit: {messages: 4, bytes: 64MiB}", "route: r, class: bulk",
     "weight: 3", "weight: null"],
)  # fmt: skip
def test_what_is_left_out_has_its_default_in_the_schema_too(keys):
    text = f"version: 1\nchannels: {{c: {{type: t{keys and ', '}{keys}}}}}\n"
    assert is_accepted(text) is is_read(text)


@pytest.mark.parametrize(
    "text",
    [
        "version: 2\n", "version: '1'\n", "channels: {}\n", "[]\n", "version: 1\nchanels: {}\n",
        "version: 1\nchannels: {c: {}}\n", "version: 1\nchannels: {c: {type: 1}}\n",
        "version: 1\nchannels: {c: {type: t, pattern: gather}}\n", "version: 1\nchannels: {'a b': {type: t}}\n",
        "version: 1\nchannels: {c: {type: t, credit: {bytes: 64MiC}}}\n",
        "version: 1\nchannels: {c: {type: t, credit: {messages: 0}}}\n",
        "version: 1\nchannels: {c: {type: t, deadline: 5}}\n", "version: 1\nchannels: {c: {type: t, deadline: soon}}\n",
        "version: 1\nchannels: {c: {type: t, transforms: up}}\n", "version: 1\nplugins: [[b]]\n",
        "version: 1\nmodules: {m: {class: Prefill}}\n", "version: 1\nmodules: {m: {class: 'a:b', replicas: 0}}\n",
        "version: 1\nmodules: {m: {class: 'a:b', restart: {backoff_s: [a]}}}\n",
    ],
)  # fmt: skip
def test_what_the_reader_refuses_the_schema_refuses(text):
    assert not is_read(text)
    assert not is_accepted(text)
