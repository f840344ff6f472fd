"""fabricctl starts fast, and its help is complete."""

import subprocess
import sys

import pytest

VERBS = [
    "up",
    "down",
    "status",
    "doctor",
    "topology",
    "plan",
    "apply",
    "diff",
    "rollback",
    "history",
]
VERBS += ["validate", "audit", "events", "metrics"]
GROUPS = ["node", "module", "channel", "plugin", "type", "path", "bench"]
SUBVERBS = [
    (kind, verb)
    for kind, verbs in {
        "node": "ls show", "module": "ls show logs stop drain scale add",
        "channel": "ls show send echo", "plugin": "ls show load logs reload canary promote rollback unload debug",
        "bench": "edge path",
        "type": "ls show diff compat export",
        "path": "ls show why probe pin unpin",
    }.items()
    for verb in verbs.split()
]  # fmt: skip
HEAVY = ("grpc", "google.protobuf", "rich", "yaml", "numpy", "torch", "fabric._native")


def test_help_names_every_verb_and_loads_nothing_heavy():
    program = (
        "import sys; sys.argv = ['fabricctl', '--help']\n"
        "from fabric.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.splitlines()[-1] == "LOADED"
    for verb in VERBS + GROUPS:
        assert f"\n  {verb} " in result.stdout


@pytest.mark.parametrize("verb", [(verb,) for verb in VERBS] + SUBVERBS, ids=" ".join)
def test_every_verb_explains_itself(fabricctl, verb):
    result = fabricctl(*verb, "--help")
    assert result.status == 0
    assert "--socket" in result.out


@pytest.mark.parametrize("moment", ["import", "end"])
def test_an_interrupt_before_or_after_the_work_prints_no_traceback(moment):
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    program = (
        "import sys, threading; sys.argv = ['fabricctl', '--help']\n"
        "from fabric.cli.main import main\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'typer': {interrupt}\n"
        f"if {moment!r} == 'import': sys.meta_path.insert(0, Interrupts())\n"
        "else:\n"
        f"    def late(): {interrupt}\n"
        "    threading._register_atexit(late)\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert result.stderr == ""
    assert result.returncode == (130 if moment == "import" else 0)
