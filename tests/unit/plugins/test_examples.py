import importlib.metadata
import re
from pathlib import Path

import numpy as np
import pytest

from fabric.abc.route import Header, Target
from fabric.abc.transform import TransformContext
from fabric.worker.plugin_loader import load_entry_point, load_file, unload

ROOT = Path(__file__).resolve().parents[3]
SHOUT = ROOT / "examples" / "plugins" / "shout.py"


@pytest.fixture
def shout():
    plugin = load_file(SHOUT)
    yield plugin
    unload(plugin)


def test_minimal_plugin_is_under_25_lines():
    assert len(SHOUT.read_text().splitlines()) <= 25


@pytest.mark.parametrize(
    "file", sorted((ROOT / "plugins" / "fabric_plugins").glob("[a-z]*.py")), ids=lambda f: f.stem
)
def test_first_party_plugin_is_short_and_imports_only_the_public_seam(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 250
    imports = re.findall(r"^(?:from|import) (fabric\b[.\w]*)", text, re.MULTILINE)
    public = r"fabric(\.(abc\.\w+|errors|kernels|limits|messages(\.\w+)?))?"
    assert not [name for name in imports if not re.fullmatch(public, name)]


def test_example_transform_does_what_it_says(shout, capsys):
    line = shout.messages["quickstart.line"]
    context = TransformContext("shout", "shout", "lines", 0)
    out = (
        shout.transforms["shout"]
        .factory()
        .apply([line(1, "ab", np.zeros((2, 3), np.uint8))], context)
    )
    assert (out[0].number, out[0].text, out[0].pixels.min()) == (1, "AB", 255)
    assert capsys.readouterr().out == "lines: 1 lines\n"


def test_example_policy_separates_odd_from_even(shout):
    policy = shout.routes["odd_even"].factory()
    targets = [Target(1, 1), Target(2, 2)]
    chosen = [policy(Header("c", key), targets).flow for key in (b"2", b"3", None)]
    assert chosen == [1, 2, 1]


@pytest.mark.parametrize("group", ["fabric.transforms", "fabric.routes"])
def test_every_registered_plugin_loads_under_its_name(group):
    entries = [
        e for e in importlib.metadata.entry_points(group=group) if e.value.startswith("fabric_")
    ]
    assert entries
    for entry in entries:
        plugin = load_entry_point(entry.name)
        assert entry.name in {**plugin.transforms, **plugin.routes}
