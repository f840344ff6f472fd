"""What a module class says of itself, asked in a process of its own; a hostile file spoils nothing."""

import os
import time
from pathlib import Path

import pytest

from fabric.config.ends import End, ends_from
from fabric.controlplane.describer import Describer
from fabric.worker import describe

GOOD = """\
import fabric

@fabric.message("t.x", version=1)
class X:
    n: int

class Both(fabric.Module):
    inn: fabric.In[X]
    out: fabric.Out[X]
    ask: fabric.Call[X, X]
    def on_inn(self, message): ...
"""


def written(folder: Path, text: str, name: str = "m.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:Both"


def test_a_class_names_its_fields_kinds_and_types(tmp_path):
    path = written(tmp_path, "print('hello')\n" + GOOD)
    ends = ends_from(describe.run([path]))[path]
    assert ends.ends == (
        End("inn", "in", ("t.x",)),
        End("out", "out", ("t.x",)),
        End("ask", "call", ("t.x", "t.x")),
    )
    assert ends.file == str(tmp_path / "m.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('broken ' * 10_000)", "RuntimeError: broken"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("import os; os._exit(7)", "ended with 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9"),
        ("Both = 3", "is not a subclass of fabric.Module"),
        ("def", "SyntaxError"),
        (GOOD.replace("inn: fabric.In[X]", "inn: fabric.In"), "needs 1 message type"),
    ],
)
def test_a_class_that_cannot_be_had_says_why(tmp_path, text, said):
    path = written(tmp_path, text)
    (ends,) = ends_from(describe.run([path])).values()
    assert said in ends.error
    assert len(ends.error) < 1000


def test_a_bad_class_leaves_the_others_their_answer(tmp_path):
    good, bad = written(tmp_path, GOOD), written(tmp_path, "1/0", "b.py")
    found = ends_from(describe.run([good, bad, "no.such.package:C"]))
    assert found[good].ends
    assert "ZeroDivisionError" in found[bad].error
    assert "No module named" in found["no.such.package:C"].error


def test_a_class_that_does_not_come_to_an_end_is_given_up_at_the_deadline(tmp_path):
    mark = tmp_path / "pid"
    path = written(
        tmp_path,
        f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n",
    )
    began = time.monotonic()
    (answer,) = describe.run([path], deadline_s=2.0).values()
    assert time.monotonic() - began < 10
    assert answer == {"error": "importing it took longer than 2 s"}
    with pytest.raises(ProcessLookupError):  # and no process stays behind
        os.kill(int(mark.read_text()), 0)


def test_what_an_import_leaves_running_holds_nothing_up_and_is_ended(tmp_path):
    mark = tmp_path / "pid"
    path = written(
        tmp_path,
        "import subprocess, sys\n"
        "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(mark)!r}, 'w').write(str(left.pid))\n" + GOOD,
    )
    began = time.monotonic()
    assert "ends" in describe.run([path])[path]
    assert time.monotonic() - began < 15
    deadline = time.monotonic() + 5
    while Path(f"/proc/{mark.read_text()}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{mark.read_text()}/stat").read_text().split()[2] == "Z":
            break  # ended; its new parent has not looked yet
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{mark.read_text()}").exists()


async def test_a_class_is_asked_again_when_its_file_changed(tmp_path, monkeypatch):
    asked = []
    real = describe.run
    monkeypatch.setattr(describe, "run", lambda paths: asked.append(list(paths)) or real(paths))
    path, describer = written(tmp_path, GOOD), Describer()
    first = await describer.describe([path, path])
    assert (await describer.describe([path])) == first
    written(tmp_path, GOOD.replace("out: fabric.Out[X]", "exit: fabric.Out[X]"))
    changed = await describer.describe([path])
    assert [end.name for end in changed[path].ends] == ["inn", "exit", "ask"]
    assert asked == [[path], [], [path]]
