"""Load plugins in a process of their own and say what they export: for a plan, before anything is touched.

`run` is the daemon's side; `python -m fabric.worker.plugin_check` the other, JSON in and out. What a file does there
(hang, exit, allocate) ends with this process, at the latest after `limits.VERIFY_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import sys
from typing import Any

from fabric import errors, limits

_SLACK_S = 2.0  # the process ends itself first


async def run(
    plugins: list[dict[str, str]], installed: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the exports of each plugin by its name, of files given as text and of installed ones.

    Parameters
    ----------
    plugins : list of dict
        ``{name, path, source}``.
    installed : list of str
        Names under which transforms or policies are registered.

    Raises
    ------
    PluginError, ContractError, CapacityError
        What loading says; the first one.
    """
    if not plugins and not installed:
        return {}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fabric.worker.plugin_check",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    question = json.dumps({"plugins": plugins, "installed": installed}).encode()
    try:
        async with asyncio.timeout(limits.VERIFY_S + _SLACK_S):
            out, trouble = await process.communicate(question)
    except TimeoutError:
        out, trouble = b"", b"it did not finish"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    names = ", ".join([p["name"] for p in plugins] + installed)
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError as error:
        last = trouble.decode(errors="replace").strip().splitlines()[-1:] or ["it ended silently"]
        raise errors.PluginError(
            f"plugins {names} could not be loaded within {limits.VERIFY_S:g} s: {last[0]}",
            plugins=names,
        ) from error
    if "error" in answer:
        raise errors.from_wire(answer["error"])
    found: dict[str, list[dict[str, Any]]] = answer["exports"]
    return found


def check(question: dict[str, Any]) -> dict[str, Any]:
    """Load everything that is asked about; returns exports or the first error, as plain values."""
    from fabric.worker import plugin_loader
    from fabric.worker.stage_host import exports_of

    exports: dict[str, Any] = {}
    try:
        for plugin in question["plugins"]:
            loaded = plugin_loader.load_source(plugin["name"], plugin["path"], plugin["source"])
            exports[plugin["name"]] = exports_of(loaded)
        for name in question["installed"]:
            exports[name] = exports_of(plugin_loader.load_entry_point(name))
    except errors.FabricError as error:
        return {"error": error.to_wire()}
    return {"exports": exports}


def main() -> int:
    """Answer one question from standard input."""
    signal.alarm(int(limits.VERIFY_S))
    question = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):  # a plugin may print; the answer is ours alone
        answer = check(question)
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
