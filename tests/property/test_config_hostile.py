"""Reading any fabric.yaml gives a spec or a ConfigError, and the control API carries any answer."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from fabric import config, errors
from fabric.config.schema import CHANNEL_KEYS
from fabric.controlplane.api import convert
from fabric.controlplane.api.v1 import control_pb2 as pb

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *("version", "plugins", "channels", "modules", *CHANNEL_KEYS, "messages", "bytes", "node"),
        *("replicas", "config", "restart", "backoff_s", "kv"),
    ]
)
WORDS = st.sampled_from(
    ("stream", "queue", "request", "block", "at_least_once", "token", "64MiB", "kv", "a:b", "1")
)
NEAR_SPECS = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.dictionaries(KEYS, inner, max_size=6) | st.lists(inner, max_size=3),
    max_leaves=30,
)


def read(text: str) -> None:
    try:
        spec = config.parse(text, source="f.yaml")
    except errors.ConfigError as error:
        assert error.message
        return
    for problem in config.validate(spec):
        assert problem.place.startswith("f.yaml")


@given(st.text(alphabet=st.sampled_from("ab: \n-[]{}&*!#'\"|>%@,1.?\t"), max_size=80))
def test_any_text_is_a_spec_or_a_config_error(text: str) -> None:
    read(text)
    read(f"version: 1\n{text}")


@given(NEAR_SPECS)
def test_any_document_of_known_words_is_a_spec_or_a_config_error(value: object) -> None:
    read(yaml.safe_dump(value))
    if isinstance(value, dict):
        read(yaml.safe_dump({**value, "version": 1}))


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_any_answer_crosses_the_api_and_integers_are_never_rounded(
    values: dict[str, object],
) -> None:
    message = convert.to_message(
        {"node": "a", **{k: v for k, v in values.items() if k not in FIELDS}}, pb.StatusReply()
    )
    back = convert.from_message(pb.StatusReply.FromString(message.SerializeToString()))
    for key, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and key not in FIELDS:
            assert int(back[key]) == value


FIELDS = set(pb.StatusReply.DESCRIPTOR.fields_by_name)
