"""What `plugin new` writes works, and `plugin test` tells a plugin that keeps its contract from one that does not."""

import json
import subprocess
import sys

import pytest

from fabric.testing import plugin_kit

BROKEN = """
import os
import fabric

@fabric.message("kit.text")
class Text:
    text: str
    data: fabric.Tensor["n", "f32"]

@fabric.transform("{name}", accepts=Text, {options})
class It:
    seen = 0
    def apply(self, batch, ctx):
        {body}
"""
CASES = {
    "grows": ("", "return [Text(m.text * 9999, m.data) for m in batch]", "allows"),
    "remembers": (
        "",
        "self.seen += 1; return [Text(str(self.seen), m.data) for m in batch]",
        "pure",
    ),
    "wrong_type": ("", "return [m.text for m in batch]", "returned str"),
    "slow": ("time_budget_ms=1", "import time; time.sleep(0.02); return batch", "took"),
    "exits": ("", "os._exit(3)", "exit status 3"),
    "crashes": ("", "os.kill(os.getpid(), 11)", "SIGSEGV"),
}


def check(path):
    return plugin_kit.check(str(path))


def broken(rows):
    return [row for row in rows if row["verdict"] == "broken"]


def test_what_new_writes_passes_its_own_test_and_the_kit(fabricctl, tmp_path):
    for kind in ("message", "route", "transform", "codec", "join", "module"):
        assert fabricctl("plugin", "new", kind, f"my_{kind}", "--in", str(tmp_path)).status == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = check(tmp_path / "my_codec.py")
    assert not broken(rows) and {"revert gives back what apply was given", "kill -9 and again"} <= {
        row["check"] for row in rows
    }


def test_new_overwrites_nothing_and_takes_no_name_that_python_refuses(fabricctl, tmp_path):
    assert fabricctl("plugin", "new", "route", "mine", "--in", str(tmp_path)).status == 0
    again = fabricctl("plugin", "new", "route", "mine", "--in", str(tmp_path))
    assert again.status == 1 and "mine.py exists" in again.err
    assert fabricctl("plugin", "new", "route", "no-name", "--in", str(tmp_path)).status == 1


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_kit_says_what_a_plugin_breaks(tmp_path, name):
    options, body, said = CASES[name]
    file = tmp_path / f"{name}.py"
    file.write_text(BROKEN.format(name=name, options=options, body=body))
    found = broken(check(file))
    assert found and any(said in f"{row['check']} {row['detail']}" for row in found), json.dumps(
        found
    )
