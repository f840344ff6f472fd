"""What the tests of generations apply: plugins that leave their version in a message, and files that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.kill_nodes import Node

PLUGIN = """
import fabric

VERSION = {version!r}

@fabric.message("kill.part")
class Part:
    stream: str
    number: int
    data: fabric.Tensor["n", "f32"]

def mark(name, batch):
    return [Part(f"{{part.stream}} {{name}}.{{VERSION}}", part.number, part.data) for part in batch]
"""
TRANSFORM = """
@fabric.transform({name!r}, accepts=Part, produces=Part, max_expansion=2.0)
class {title}:
    def apply(self, batch, ctx):
        return mark({name!r}, batch)
"""
MODULE = """
import fabric

@fabric.message("kill.part")
class Part:
    stream: str
    number: int
    data: fabric.Tensor["n", "f32"]

class Worker(fabric.Module):
    {field}: fabric.{end}[Part]

    def start(self):
        {start}

    def on_{field}(self, message):
        pass
"""


def write_plugin(folder: Path, version: str, *names: str) -> Path:
    """Write a plugin called as its first transform; its transforms add ` NAME.VERSION` to `stream`."""
    path = folder / f"{names[0]}.py"
    parts = [TRANSFORM.format(name=name, title=name.title()) for name in names]
    path.write_text(PLUGIN.format(version=version) + "".join(parts))
    return path


def write_module(folder: Path, name: str, field: str = "live", start: str = "pass") -> Path:
    """Write a module that receives `field` and does `start` when it starts."""
    path = folder / f"{name}.py"
    path.write_text(MODULE.format(field=field, end="In", start=start))
    return path


def channel(transforms: tuple[str, ...] = (), **more: Any) -> str:
    """Return one channel of a file, in flow style."""
    fields = {"type": "kill.part", "pattern": "stream", "delivery": "at_least_once", **more}
    text = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return f"{{{text}, transforms: [{', '.join(transforms)}]}}"


def spec(
    channels: dict[str, str], plugins: tuple[Path, ...] = (), modules: dict[str, str] | None = None
) -> str:
    """Return a whole file."""
    lines = ["version: 1", f"plugins: [{', '.join(str(p) for p in plugins)}]", "channels:"]
    lines += [f"  {name}: {text}" for name, text in channels.items()] or ["  {}"]
    if modules:
        lines += ["modules:", *(f"  {name}: {text}" for name, text in modules.items())]
    return "\n".join(lines).replace("channels:\n  {}", "channels: {}") + "\n"


def apply(node: Node, text: str, deadline_s: float = 40.0) -> dict[str, Any]:
    """Apply a file; returns the answer."""
    with node.control() as control:
        control.deadline_s = deadline_s
        return control.apply(text)


def outcomes(node: Node) -> list[tuple[int, str]]:
    """Return the history, newest first, as (generation, outcome)."""
    return [(int(r["generation"]), r["outcome"]) for r in node.call("history")["rows"]]


def row(node: Node, kind: str, name: str) -> dict[str, Any] | None:
    """Return one row of a listing."""
    return next((r for r in node.call("ls", kind) if r["name"] == name), None)
