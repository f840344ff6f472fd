"""The files that users are shown are valid, and show what they claim to."""

from pathlib import Path

import pytest

from fabric import config
from fabric.config.schema import CHANNEL_KEYS

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_an_example_has_no_problem_and_not_even_a_warning(file):
    assert config.validate(config.load(file)) == []


def test_the_channels_example_finds_its_plugin_and_shows_every_key():
    spec = config.load(EXAMPLES / "channels.yaml")
    shown = {path.split(".")[2] for path in spec.positions if path.count(".") == 2}
    assert spec.plugins[0].path == str(EXAMPLES / "plugins" / "shout.py")
    assert {key.partition("[")[0] for key in shown} == set(CHANNEL_KEYS)
