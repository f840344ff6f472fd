"""Files that are wrong in every way: each mistake has line and column, texts stay short, nothing takes long."""

import sys
import time

import pytest

from fabric import config, errors, limits
from fabric.cli.main import run

CLASS = "version: 1\nmodules: {m: {class: 'a:b', "


def refusal(text):
    with pytest.raises(errors.ConfigError) as caught:
        config.parse(text, source="f.yaml")
    return caught.value


def test_mistakes_of_form_and_broken_rules_come_together_in_the_order_of_the_file():
    error = refusal(
        "version: 1\n"
        "channels:\n"
        "  a: {type: t, pattern: broadcast, delivery: at_least_once}\n"  # a rule
        "  b: {tpye: t, reply: u, credit: {messages: many}}\n"  # a key, a missing key, a rule, a number
        "  c: {type: t, pattern: steam, overflow: drop_oldest, delivery: at_least_once}\n"  # a word; no rule on a guess
        "modules:\n"
        "  m: {class: 'a:b', restart: {backoff_s: [5, 1]}}\n"  # a rule
    )
    found = [(m["line"], m["path"]) for m in error.context["mistakes"]]
    assert found == [
        (3, "channels.a.delivery"),
        (4, "channels.b"),
        (4, "channels.b.tpye"),
        (4, "channels.b.reply"),
        (4, "channels.b.credit.messages"),
        (5, "channels.c.pattern"),
        (7, "modules.m.restart.backoff_s"),
    ]
    assert "did you mean 'type'?" in error.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nchannels:\n\tkv: {type: t}\n", "f.yaml:3:1: not valid YAML: a tab stands where only spaces may"),
        ("", "f.yaml:1:1: the file is empty"),
        ("# nothing\n", "f.yaml:1:1: the file is empty"),
        ("version: 1\nplugins: [a\x00b]\n", "f.yaml:2:12: not valid YAML: the character U+0000 is not allowed"),
        (f"{CLASS}config: {{x: .nan}}}}}}\n", "m.config.x: expected a finite number, found the number .nan"),
        (f"{CLASS}config: {{x: -.inf}}}}}}\n", "m.config.x: expected a finite number, found the number -.inf"),
        (f"{CLASS}restart: {{backoff_s: [.nan, 1]}}}}}}\n", "expected a number of seconds"),
        (f"{CLASS}replicas: .inf}}}}\n", "expected a whole number from 1 to 64, found the number .inf"),
        (f"{CLASS}replicas: {'9' * 5000}}}}}\n", "expected a whole number from 1 to 64"),
        ("version: 1\nchannels: {kv: {type: t, deadline: 5}}\n",
         "f.yaml:2:36: channels.kv.deadline: expected a duration with its unit such as 5s, 250ms or 2min, "
         "from 1.0 ms to 24 h 0 min, found the number 5"),
        ("version: 1\nchannels: {kv: {type: t, deadline: 0s}}\n", "found '0s'"),
        ("version: 1\nchannels: {kv: {type: t, deadline: 5 weeks}}\n", "found '5 weeks'"),
        ("version: 1\nchannels: {kv: {type: t, pattern: gather}}\n", "use pattern: scatter"),
        ("version: 1\nversion: 1\n", "f.yaml:2:1: version: the key 'version' stands twice (first in line 1)"),
        (f"{CLASS}config: &x {{a: *x}}}}}}\n", "f.yaml: nested too deeply, or an anchor that contains itself"),
        ("version: 1\nchannels: *none\n", "f.yaml:2:11: not valid YAML: found undefined alias"),
        ("version: 1\n---\nversion: 1\n", "f.yaml:2:1: not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_file_says_where_and_what(text, said):
    assert said in refusal(text).message


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        f"version: 1\n{LONG}: 1\n",
        f"version: 1\nchannels: {{{LONG}: {{type: t}}}}\n",
        f"version: 1\nchannels: {{kv: {{type: {LONG}}}}}\n",
        f"version: 1\nchannels: {{kv: {{type: t, {LONG}: 1}}}}\n",
        f"version: 1\nchannels: {{kv: {{type: t, pattern: {LONG}}}}}\n",
        f"version: 1\nchannels: {{kv: {{type: t, deadline: {LONG}}}}}\n",
        f"version: 1\nmodules: {{m: {{class: {LONG}}}}}\n",
        f"version: !{LONG} 1\n",
        f"version: *{LONG}\n",
        f"version: '{LONG}\n",
        LONG,
    ],
    ids=range(11),
)
def test_a_text_of_a_million_characters_is_refused_in_a_short_one(text):
    error = refusal(text)
    assert len(error.message) < 1500
    assert len(str(error.context["mistakes"])) < 3000


@pytest.mark.deadline(60)
def test_a_file_that_is_all_brackets_costs_bounded_time():
    began = time.monotonic()
    error = refusal("version: 1\nplugins:\n" + "- {}\n" * (limits.CONFIG_BYTES_MAX // 6))
    assert f"more than {limits.CONFIG_NODES_MAX} values" in error.message
    assert time.monotonic() - began < 30


HOSTILE = {
    "latin": b"version: 1\nplugins: [a\xe9]\n",
    "utf16": "version: 1".encode("utf-16"),
    "empty": b"",
    "nul": b"\0" * 100,
    "tab": b"version:\t1\n\t- x",
    "binary": bytes(range(256)) * 4,
    "tag": b"version: !!python/object/apply:os.abort []",
    "deep": b"[" * 100_000,
    "yes": b"yes",
    "huge": b"a" * (limits.CONFIG_BYTES_MAX + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("verb", ["validate", "apply"])
def test_no_file_makes_fabricctl_print_a_traceback(name, verb, tmp_path, monkeypatch, capsys):
    file = tmp_path / "f.yaml"
    file.write_bytes(HOSTILE[name])
    monkeypatch.setattr(
        sys, "argv", ["fabricctl", verb, str(file), "--socket", str(tmp_path / "s")]
    )
    assert run() == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err + printed.out
    assert "\n  do:  " in printed.err


def test_bytes_that_are_no_text_have_line_and_column(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_bytes(HOSTILE["latin"])
    with pytest.raises(
        errors.ConfigError, match=r"f.yaml:2:12: not UTF-8 text \(byte 0xe9\): save it as UTF-8"
    ):
        config.load(file)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfversion: 1\n")
    assert config.load(file).version == 1
