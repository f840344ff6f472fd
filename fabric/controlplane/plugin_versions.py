"""The versions of the plugins of a node: rows (in the keeper with the plugin) and texts (in the state folder).

A version is what was loaded under a name, whatever loaded it: a call, a plan, a promotion, a rollback. The oldest goes
when there are more than `limits.PLUGIN_VERSIONS_MAX`. A version without text is an installed package or a module.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

from fabric import errors, limits
from fabric.controlplane.context import Context
from fabric.controlplane.plugins import Plugin


def digest_of(source: str) -> str:
    """Return the SHA-256 of a plugin's text."""
    return hashlib.sha256(source.encode()).hexdigest()


class PluginVersions:
    """Texts in the state folder. Belongs to the daemon's loop."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, plugin: Plugin, path: str, source: str, how: str, of: int = 0) -> None:
        """Note that a plugin has this text from now on; the same text again is no new version.

        Parameters
        ----------
        how : str
            What loaded it, for the history.
        of : int
            The version that this one is again, after a rollback.
        """
        digest = digest_of(source) if source else ""
        last = plugin.versions[-1] if plugin.versions else None
        if last is not None and not of and digest and last["digest"] == digest:
            return
        if source:
            self._write(plugin.name, digest, source)
        row = {
            "number": last["number"] + 1 if last is not None else 1,
            "digest": digest,
            "path": path,
            "how": how,
            "of": of,
            "when_s": time.time(),  # wall time, for the history
        }
        plugin.versions = [*plugin.versions, row][-limits.PLUGIN_VERSIONS_MAX :]
        self._drop_unused(plugin)

    def before(self, plugin: Plugin, number: int | None) -> tuple[dict[str, Any], str]:
        """Return the version to go back to and its text: the named one, else the one before the present.

        Raises
        ------
        ConfigError
            It is not kept, or there is none before.
        PluginError
            It has no text: its code is a package's.
        """
        rows = plugin.versions
        present = rows[-1]["of"] or rows[-1]["number"] if rows else 0
        if number is None:
            wanted = [row for row in rows if row["number"] < present and not row["of"]]
        else:
            wanted = [row for row in rows if row["number"] == number]
        if not wanted:
            known = ", ".join(str(row["number"]) for row in rows) or "none"
            raise errors.ConfigError(
                f"plugin {plugin.name!r} has no version {number or f'before {present}'}"
                f" (kept: {known}); see fabricctl plugin show {plugin.name}",
                plugin=plugin.name,
            )
        row = wanted[-1]
        if not row["digest"]:
            raise errors.PluginError(
                f"version {row['number']} of {plugin.name!r} is an installed package's code: install that package's"
                f" earlier version, then fabricctl plugin reload {plugin.name}",
                plugin=plugin.name,
            )
        return row, self._read(plugin.name, row["digest"])

    def forget(self, name: str) -> None:
        """Remove the texts of a plugin, and what its stage hosts left for each other."""
        shutil.rmtree(self._of(name), ignore_errors=True)
        for end in ("hand", "deaths"):
            (self._context.state_dir / "plugins" / f"{name}.{end}").unlink(missing_ok=True)

    def _of(self, name: str) -> Path:
        return self._context.state_dir / "plugins" / f"{name}.versions"

    def _write(self, name: str, digest: str, source: str) -> None:
        folder = self._of(name)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / digest).write_text(source)
        except OSError as error:
            raise errors.StorageError(
                f"the text of plugin {name!r} cannot be kept in {folder}: {error.strerror or error};"
                " free some space or make the folder writable, then load it again",
                path=str(folder),
            ) from error

    def _read(self, name: str, digest: str) -> str:
        path = self._of(name) / digest
        try:
            text = path.read_text()
        except OSError as error:
            raise errors.StorageError(
                f"the text of plugin {name!r} is not in {path}: {error.strerror or error}; load its file again",
                path=str(path),
            ) from error
        if digest_of(text) != digest:
            raise errors.StorageError(
                f"{path} is not the text that was loaded: load the plugin's file again",
                path=str(path),
            )
        return text

    def _drop_unused(self, plugin: Plugin) -> None:
        used = {row["digest"] for row in plugin.versions}
        folder = self._of(plugin.name)
        for text in folder.iterdir() if folder.is_dir() else ():
            if text.name not in used:
                text.unlink(missing_ok=True)
