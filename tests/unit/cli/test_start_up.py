"""fabricctl starts fast, and its help is complete."""

import subprocess
import sys

import pytest

VERBS = ["up", "down", "status", "doctor", "topology", "apply", "validate", "audit"]
GROUPS = ["node", "module", "channel", "plugin"]
SUBVERBS = [
    (kind, verb)
    for kind, verbs in {
        "node": "ls show", "module": "ls show logs stop", "channel": "ls show send echo", "plugin": "ls show load logs",
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
