"""Every example of docs/messages.md runs, in its order, as a reader would run it."""

import re
import threading
from pathlib import Path

from fabric import errors
from fabric.testing.local import LocalFabric
from tests.unit.dataplane.waiting import until

GUIDE = Path(__file__).parents[3] / "docs" / "messages.md"


def serve_in_background(responder, handler):
    def serve():
        try:
            responder.serve(handler)
        except errors.FabricError:
            return  # its port was closed

    threading.Thread(target=serve, daemon=True).start()


def test_examples_of_the_guide_run(monkeypatch):
    with LocalFabric() as node:
        monkeypatch.setenv("FABRIC_SOCKET", node.path)
        names = {
            "__name__": "guide",
            "serve_in_background": serve_in_background,
            "wait_for_flows": lambda end, count: until(lambda: len(end.stats()["flows"]) == count),
            "wait_for_targets": lambda end, count: until(lambda: len(end.targets()) == count),
        }
        text = GUIDE.read_text()
        blocks = list(re.finditer(r"```python\n(.*?)```", text, re.S))
        assert len(blocks) > 8
        for block in blocks:
            line = text[: block.start(1)].count("\n")
            code = compile("\n" * line + block[1], str(GUIDE), "exec")
            exec(code, names)
