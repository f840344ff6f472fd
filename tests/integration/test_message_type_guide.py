"""docs/guides/message-type.md: its package is installed as a third party's, and every line of it runs on a node."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.integration.kill_nodes import Cluster

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "message-type.md"
PACKAGE = ROOT / "examples" / "packages" / "speech_types"
PIP = [
    sys.executable,
    "-m",
    "pip",
    "install",
    "-q",
    "--no-deps",
    "--no-build-isolation",
    "--target",
]


@pytest.fixture(scope="module")
def installed():
    """A node, and a folder with the package that this process and its children import from."""
    with (
        tempfile.TemporaryDirectory(prefix="fab-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        site, source = Path(folder) / "site", Path(folder) / "source"
        shutil.copytree(PACKAGE, source)  # a build leaves files beside its source
        subprocess.run([*PIP, str(site), str(source)], check=True, timeout=60)
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        monkeypatch.syspath_prepend(str(site))
        cluster = Cluster(Path(folder))
        try:
            monkeypatch.setenv("FABRIC_SOCKET", cluster.node().socket)
            yield
        finally:
            cluster.close()


def run_command(line, expected):
    words = shlex.split(line, comments=True)
    assert words[0] == "fabricctl"
    done = subprocess.run(
        [sys.executable, "-m", "fabric.cli.main", *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    wanted = int(match[1]) if (match := re.search(r"# exit status (\d)", line)) else 0
    assert done.returncode == wanted, (line, done.stdout, done.stderr)
    for each in expected:
        assert " ".join(each.split()) in " ".join(done.stdout.split()), (line, done.stdout)


def test_every_line_of_the_guide_runs(installed):
    text, names, commands = GUIDE.read_text(), {"__name__": "guide"}, 0
    for block in re.finditer(r"```(python|console)\n(.*?)```", text, re.S):
        if block[1] == "python":
            lines = "\n" * text[: block.start(2)].count("\n")
            exec(compile(lines + block[2], str(GUIDE), "exec"), names)
            continue
        for command in re.split(r"(?m)^\$ ", block[2])[1:]:
            line, *expected = command.rstrip().split("\n")
            run_command(line, expected)
            commands += 1
    assert commands == 6


def test_the_fields_of_the_guides_example_are_the_packages(installed):
    """What the page says of the package is so."""
    from speech_types import Segment
    from speech_types.first import Segment as First

    from fabric.messages import message_type
    from fabric.messages.evolution import unreadable
    from fabric.messages.installed import installed_types

    assert unreadable(message_type(First).schema, message_type(Segment).schema) is None
    found = {place: type_.schema.label for place, type_ in installed_types()}
    assert found["speech-types segment"] == "speech.segment@2"
    assert found["speech-types segment-1"] == "speech.segment@1"
