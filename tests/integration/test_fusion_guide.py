"""The package of docs/guides/fusion.md, installed as anybody's, found by its entry points, does what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fabric
from tests.integration.kill_nodes import Cluster

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "examples" / "packages" / "caption_fusion"
GUIDE = ROOT / "docs" / "guides" / "fusion.md"
MORE = """
channels:
  raw: {type: caption.raw, pattern: queue, delivery: at_least_once, class: embedding}
modules:
  encoder: {class: "caption_fusion.encoder:Encoder"}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package and its metadata, as pip leaves it in site-packages."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "caption_fusion"
    shutil.copytree(PACKAGE, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    return folder


@pytest.fixture(scope="module")
def node(installed):
    """A node to which nothing but the installed package is known."""
    short = Path("/tmp") / f"fab-guide-{os.getpid()}"
    short.mkdir()
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(installed)
    cluster = Cluster(short)
    try:
        made = cluster.node("a")
        text = re.search(r"```yaml\n(.*?)```", GUIDE.read_text(), re.S)[1]
        channels, modules = MORE.split("modules:")
        text = text.replace("channels:\n", channels.lstrip(), 1) + "modules:" + modules
        made.call("apply", text)
        yield made
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        cluster.close()
        shutil.rmtree(short)


@pytest.fixture
def types(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    import caption_fusion
    from caption_fusion import encoder

    return caption_fusion, encoder.Raw


def test_pictures_meet_their_captions_and_are_encoded_once(node, types):
    package, raw = types
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with fabric.attach("user", node.socket) as port:
        pictures, captions = port.sender("raw", raw), port.sender("captions", package.Caption)
        pairs = port.receiver("pairs", package.Pair)
        for n in range(3):
            pictures.send(raw(f"r{n}", pixels), deadline=20)
            captions.send(package.Caption(f"r{n}", f"caption {n}"), key=f"r{n}", deadline=20)
        for n in range(3):
            with pairs.receive(timeout=20) as pair:
                assert (pair.request, pair.text) == (f"r{n}", f"caption {n}")
                assert pair.rows.tolist() == [[1.5], [5.5], [9.5]]
                pair.ack()
        assert (port.cache.stat()["misses"], port.cache.stat()["hits"]) == (1, 2)
        captions.send(package.Caption("alone", "no picture"), deadline=20)
        with pairs.receive(timeout=20) as pair:
            assert (pair.request, pair.rows) == ("alone", None)
            pair.ack()
    (row,) = [r for r in node.call("ls", "plugin") if r["name"] == "captioned"]
    assert (row["join"]["fused"], row["join"]["partial"]) == (3, 1)


def test_the_guide_shows_what_the_package_has():
    sources = "".join(path.read_text() for path in (PACKAGE / "src").rglob("*.py"))
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S):
        assert block in sources
