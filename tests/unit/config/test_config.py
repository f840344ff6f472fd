"""fabric.yaml: what is read, and that every mistake names its place."""

import msgspec
import pytest

from fabric import config, errors, limits

WHOLE = """\
version: 1
plugins: [upper.py]
channels:
  prompts: {type: llm.prompt, pattern: queue, delivery: at_least_once, class: token, route: least_outstanding,
            transforms: [upper], credit: {messages: 16, bytes: 64MiB}}
  kv: {type: kv.layer}
modules:
  prefill: {class: "fabric_modules.prefill:Prefill", node: a, replicas: 2,
            config: {model: smollm2, deep: [1, {x: 2.5}]}, channels: {prompts: prompts, out: kv},
            restart: {backoff_s: [0.2, 5]}}
"""


def refusal(text):
    with pytest.raises(errors.ConfigError) as caught:
        config.parse(text, source="f.yaml")
    return caught.value


def problems(channel):
    spec = config.parse(f"version: 1\nchannels:\n  c: {channel}\n", source="f.yaml")
    return [(problem.where, problem.severity) for problem in config.validate(spec)]


def test_a_whole_file_becomes_frozen_values():
    spec = config.parse(WHOLE)
    prompts, module = spec.channels["prompts"], spec.modules["prefill"]
    assert (prompts.name, prompts.klass, prompts.route) == ("prompts", "token", "least_outstanding")
    assert prompts.transforms == ("upper",)
    assert prompts.credit == config.CreditSpec(messages=16, bytes=64 * 1024 * 1024)
    assert module.class_path == "fabric_modules.prefill:Prefill"
    assert module.config == {"model": "smollm2", "deep": [1, {"x": 2.5}]}
    assert module.channels == {"prompts": "prompts", "out": "kv"}
    assert (module.node, module.replicas, module.restart.backoff_s) == ("a", 2, (0.2, 5.0))
    assert config.validate(spec) == []
    with pytest.raises(AttributeError):
        prompts.pattern = "stream"


def test_what_is_left_out_has_the_defaults_of_the_design():
    channel = config.parse(WHOLE).channels["kv"]
    assert (channel.pattern, channel.delivery, channel.overflow) == (
        "stream",
        "at_most_once",
        "block",
    )
    assert channel.credit == config.CreditSpec(
        messages=limits.CREDIT_MESSAGES, bytes=limits.CREDIT_BYTES
    )


def test_a_spec_survives_json_and_keeps_the_names_of_the_file():
    spec = config.parse(WHOLE)
    text = msgspec.json.encode(spec)
    assert msgspec.json.decode(text, type=config.FabricSpec) == spec
    assert msgspec.json.decode(text)["channels"]["kv"]["class"] == "token"


def test_files_are_looked_for_in_the_search_folders_in_order(tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    for folder in (near, far):
        folder.mkdir()
        (folder / "m.py").touch()
    (far / "upper.py").touch()
    text = "version: 1\nplugins: [upper.py, nowhere.py]\nmodules: {m: {class: 'm.py:Thing'}}\n"
    spec = config.parse(text, search=[str(near), str(far)])
    assert [plugin.path for plugin in spec.plugins] == [str(far / "upper.py"), "nowhere.py"]
    assert spec.modules["m"].class_path == f"{near / 'm.py'}:Thing"


def test_load_reads_a_file_and_looks_beside_it(tmp_path):
    (tmp_path / "upper.py").touch()
    file = tmp_path / "f.yaml"
    file.write_text("version: 1\nplugins: [upper.py]\n")
    assert config.load(file).plugins[0].path == str(tmp_path / "upper.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nchanels: {}\n", "f.yaml:2:1: chanels: unknown key 'chanels' in the document "
         "(version, plugins, channels, modules, joins); did you mean 'channels'?"),
        ("version: 2\n", "f.yaml:1:10: version: expected 1, found the number 2"),
        ("channels: {}\n", "the key 'version' is missing"),
        ("version: 1\nchannels:\n  kv: {type: t, pattern: steam}\n", "f.yaml:3:26: channels.kv.pattern: "
         "expected one of stream, queue, broadcast, request, scatter, found 'steam'; did you mean 'stream'?"),
        ("version: 1\nchannels: {kv: {}}\n", "f.yaml:2:16: channels.kv: the key 'type' is missing in a channel"),
        ("version: 1\nchannels: {kv: {type: t, credit: {bytes: 64MiC}}}\n", "such as 64MiB, found '64MiC'"),
        ("version: 1\nchannels: {kv: {type: t, credit: {messages: 0}}}\n", "from 1 to 2048, found the number 0"),
        ("version: 1\nchannels: {kv: {type: t, credit: {messages: yes}}}\n", "found the boolean yes"),
        ("version: 1\nchannels: {'a b': {type: t}}\n", "f.yaml:2:12: channels.a b: expected a name"),
        ("version: 1\nchannels: {kv: {type: t}, kv: {type: u}}\n", "the key 'kv' stands twice (first in line 2)"),
        ("version: 1\nchannels: {kv: {type: t, transforms: upper}}\n", "expected a list of transforms, found 'upper'"),
        ("version: 1\nchannels: {1: {type: t}}\n", "expected a text as key, found the number 1"),
        ("version: 1\nmodules: {m: {class: Prefill}}\n", "'file.py:Class', found 'Prefill'"),
        ("version: 1\nmodules: {m: {class: 'a:b', replicas: 0}}\n", "whole number from 1 to 64, found the number 0"),
        ("version: 1\nmodules: {m: {class: 'a:b', config: {when: 2024-01-01}}}\n", "m.config.when: expected text"),
        ("version: 1\nplugins: [a, [b]]\n", "f.yaml:2:14: plugins[1]: expected a path of a plugin file, found a list"),
        ("- version: 1\n", "f.yaml:1:1: expected the document (version, plugins, channels, modules, joins), found a"),
        ("version: 1\nchannels: {kv: {type: t\n", "not valid YAML"),
        ("\tversion: 1", "not valid YAML"),
        ("version: \x01", "not valid YAML"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_place_expected_and_found(text, said):
    assert said in refusal(text).message


def test_every_mistake_of_a_file_is_reported_at_once():
    error = refusal(
        "version: 1\nchannels:\n  a: {type: 1}\n  b: {type: t, class: bluk}\nmodules: []\n"
    )
    assert [mistake["line"] for mistake in error.context["mistakes"]] == [3, 4, 5]
    assert len(error.message.splitlines()) == 3


def test_mistakes_beyond_the_limit_are_counted_not_printed():
    rows = "".join(f"  c{index}: {{}}\n" for index in range(limits.CONFIG_PROBLEMS_MAX + 3))
    lines = refusal(f"version: 1\nchannels:\n{rows}").message.splitlines()
    assert len(lines) == limits.CONFIG_PROBLEMS_MAX + 1
    assert lines[-1] == "... and 3 more"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir ['MARK']",
        "!!python/name:os.system ''",
        "!foreign {x: 1}",
        "!!set {x}",
    ],
)
def test_a_foreign_tag_is_refused_and_nothing_is_made(tmp_path, value):
    mark = tmp_path / "made"
    text = f"version: 1\nmodules: {{m: {{class: 'a:b', config: {{x: {value.replace('MARK', str(mark))}}}}}}}\n"
    assert "modules.m.config.x: expected text" in refusal(text).message
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    ["&a [*a]", "version: 1\nmodules: {m: {class: 'a:b', config: &x {y: *x}}}", "[" * 50_000],
)
def test_a_document_without_a_bottom_is_refused(text):
    assert isinstance(refusal(text), errors.ConfigError)


def test_anchors_that_multiply_are_refused_before_memory_is_spent():
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = "version: 1\nmodules:\n  m:\n    class: 'a:b'\n    config:\n" + "".join(
        f"      {line}\n" for line in lines
    )
    assert f"more than {limits.CONFIG_NODES_MAX} values" in refusal(text).message


@pytest.mark.parametrize("size", [limits.CONFIG_BYTES_MAX, limits.CONFIG_BYTES_MAX + 1])
def test_a_file_up_to_the_limit_is_read_and_a_larger_one_refused(tmp_path, size):
    file = tmp_path / "f.yaml"
    file.write_bytes(b"version: 1\n#".ljust(size, b"x"))
    if size <= limits.CONFIG_BYTES_MAX:
        assert config.load(file).version == 1
    else:
        with pytest.raises(errors.ConfigError, match="is larger than"):
            config.load(file)


@pytest.mark.parametrize("count", [limits.CHANNELS_MAX, limits.CHANNELS_MAX + 1])
def test_as_many_channels_as_allowed_are_read_and_one_more_refused(count):
    text = "version: 1\nchannels:\n" + "".join(
        f"  c{index}: {{type: t}}\n" for index in range(count)
    )
    if count <= limits.CHANNELS_MAX:
        assert len(config.parse(text).channels) == count
    else:
        assert f"at most {limits.CHANNELS_MAX} entries" in refusal(text).message


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(errors.ConfigError, match="No such file"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "latin").write_bytes(b"version: 1 # \xe9")
    with pytest.raises(errors.ConfigError, match="not UTF-8 text"):
        config.load(tmp_path / "latin")
    with pytest.raises(errors.ConfigError, match="cannot read"):
        config.load(tmp_path)


def test_a_module_on_an_undeclared_channel_is_a_warning_with_the_nearest_name():
    text = "version: 1\nchannels: {prompts: {type: t}}\nmodules: {m: {class: 'a:b', channels: {inn: prompt}}}\n"
    (problem,) = config.validate(config.parse(text))
    assert problem.severity == "warning"
    assert "did you mean 'prompts'?" in problem.what


@pytest.mark.parametrize(
    ("backoff", "is_legal"), [("[0.2, 5]", True), ("[5, 0.2]", False), ("[1]", False)]
)
def test_a_back_off_is_first_then_longest(backoff, is_legal):
    spec = config.parse(
        f"version: 1\nmodules: {{m: {{class: 'a:b', restart: {{backoff_s: {backoff}}}}}}}\n"
    )
    assert (config.validate(spec) == []) is is_legal
