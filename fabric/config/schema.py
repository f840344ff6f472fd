"""The shape of `fabric.yaml`, as a table, and the two ways in: `load` a file, `parse` a text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fabric import limits
from fabric.config import reader as r
from fabric.config.spec import (
    CLASSES,
    DELIVERIES,
    OVERFLOWS,
    PATTERNS,
    ChannelSpec,
    CreditSpec,
    FabricSpec,
    ModuleSpec,
    PluginSpec,
    RestartSpec,
)
from fabric.errors import ConfigError

_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{limits.NAME_BYTES_MAX - 1}}}")
_PATH = re.compile(r"[^\0]{1,4096}")
_CLASS_PATH = re.compile(r"[^\0:]{1,4096}:[A-Za-z_][A-Za-z0-9_.]*")

_name = r.text("a name such as least_outstanding", _NAME)

_credit = r.record(
    {
        "messages": r.Field(r.integer(1, limits.OUTSTANDING_PER_ENDPOINT)),
        "bytes": r.Field(r.size_bytes(1, limits.MESSAGE_BYTES_MAX * 64)),
    },
    "credit",
)
CHANNEL_KEYS = {
    "type": r.Field(r.text("a message type name such as kv.layer", _NAME), required=True),
    "reply": r.Field(r.optional(r.text("a message type name such as kv.answer", _NAME))),
    "pattern": r.Field(r.choice(PATTERNS)),
    "delivery": r.Field(r.choice(DELIVERIES)),
    "overflow": r.Field(r.choice(OVERFLOWS)),
    "class": r.Field(r.choice(CLASSES)),
    "route": r.Field(r.optional(_name)),
    "transforms": r.Field(
        r.sequence(_name, "a list of transforms", limits.TRANSFORMS_PER_CHANNEL_MAX)
    ),
    "idempotent": r.Field(r.boolean),
    "credit": r.Field(_credit),
}
_channel = r.record(CHANNEL_KEYS, "a channel")
_restart = r.record(
    {
        "backoff_s": r.Field(
            r.sequence(r.number(0.01, 3600.0, "seconds"), "two numbers: [first, longest]", 2)
        )
    },
    "restart",
)
_module = r.record(
    {
        "class": r.Field(
            r.text(
                "a class such as 'fabric_modules.prefill:Prefill' or 'file.py:Class'", _CLASS_PATH
            ),
            required=True,
        ),
        "node": r.Field(r.optional(_name)),
        "replicas": r.Field(r.integer(1, limits.REPLICAS_MAX)),
        "config": r.Field(r.plain),
        "channels": r.Field(
            r.named(_name, "a mapping of fields to channels", _NAME, limits.FIELDS_PER_TYPE_MAX)
        ),
        "restart": r.Field(_restart),
    },
    "a module",
)
_document = r.record(
    {
        "version": r.Field(r.integer(1, 1), required=True),
        "plugins": r.Field(
            r.sequence(
                r.text("a path of a plugin file", _PATH), "a list of files", limits.PLUGINS_MAX
            )
        ),
        "channels": r.Field(
            r.named(_channel, "a mapping of names to channels", _NAME, limits.CHANNELS_MAX)
        ),
        "modules": r.Field(
            r.named(_module, "a mapping of names to modules", _NAME, limits.MODULES_MAX)
        ),
    },
    "the document (version, plugins, channels, modules)",
)


def load(path: str | os.PathLike[str]) -> FabricSpec:
    """Read a `fabric.yaml`.

    Relative plugin files and module files are looked for beside the file, then in the working directory.

    Raises
    ------
    ConfigError
        The file cannot be read, or anything in it is not understood (every mistake, with line and column).
    """
    file = Path(path)
    try:
        if file.stat().st_size > limits.CONFIG_BYTES_MAX:
            raise ConfigError(
                f"{file} is larger than {limits.CONFIG_BYTES_MAX} bytes: split it, or check that it is the right file",
                file=str(file),
            )
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror or error}. Check the path and its permissions",
            file=str(file),
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8", file=str(file)
        ) from error
    return parse(content, source=str(file), search=(str(file.resolve().parent), os.getcwd()))


def parse(content: str, *, source: str = "fabric.yaml", search: Sequence[str] = ()) -> FabricSpec:
    """Read the text of a `fabric.yaml`.

    Parameters
    ----------
    content : str
        YAML; only its safe tags are understood.
    source : str
        What to call the text in messages.
    search : sequence of str
        Folders in which relative files are looked for, in order; a file found becomes absolute.

    Raises
    ------
    ConfigError
        Names every mistake: file, line, column, expected and found. `context["mistakes"]` has them as data.
    """
    reader = r.Reader()
    try:
        values = _decode(reader, content, source)
    except RecursionError as error:
        raise ConfigError(
            f"{source}: nested too deeply, or an anchor that contains itself", file=source
        ) from error
    if reader.mistakes:
        _refuse(reader.mistakes, source)
    return _build(values, source, reader.positions, search)


def _decode(reader: r.Reader, content: str, source: str) -> Any:
    if len(content) > limits.CONFIG_BYTES_MAX:
        raise ConfigError(f"{source} is longer than {limits.CONFIG_BYTES_MAX} bytes", file=source)
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        if root is None:
            raise ConfigError(f"{source} is empty: write at least 'version: 1'", file=source)
        return _document(reader, root, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        problem = "; ".join(part for part in (error.context, error.problem) if part)
        return _refuse([r.Mistake(line, column, "", f"not valid YAML: {problem}")], source)
    except yaml.YAMLError as error:
        return _refuse([r.Mistake(0, 0, "", f"not valid YAML: {error}")], source)
    except r.TooManyNodes as error:
        reader.note(
            error.node,
            "",
            f"more than {limits.CONFIG_NODES_MAX} values (anchors followed): make it smaller",
        )
        return None


def _refuse(mistakes: Sequence[r.Mistake], source: str) -> Any:
    shown = [
        f"{source}:{m.line}:{m.column}: {m.path + ': ' if m.path else ''}{m.text}"
        for m in mistakes[: limits.CONFIG_PROBLEMS_MAX]
    ]
    if len(mistakes) > len(shown):
        shown.append(f"... and {len(mistakes) - len(shown)} more")
    rows = [m._asdict() for m in mistakes[: limits.CONFIG_PROBLEMS_MAX]]
    raise ConfigError("\n".join(shown), file=source, mistakes=rows)


def _build(
    values: dict[str, Any],
    source: str,
    positions: dict[str, tuple[int, int]],
    search: Sequence[str],
) -> FabricSpec:
    plugins = tuple(PluginSpec(path=_found(path, search)) for path in values.get("plugins", ()))
    channels = {
        name: _channel_spec(name, fields) for name, fields in values.get("channels", {}).items()
    }
    modules = {
        name: _module_spec(name, fields, search)
        for name, fields in values.get("modules", {}).items()
    }
    return FabricSpec(
        version=values["version"],
        plugins=plugins,
        channels=channels,
        modules=modules,
        source=source,
        positions=positions,
    )


def _channel_spec(name: str, fields: dict[str, Any]) -> ChannelSpec:
    given = dict(fields)
    if "class" in given:
        given["klass"] = given.pop("class")
    if "credit" in given:
        given["credit"] = CreditSpec(**given["credit"])
    return ChannelSpec(name=name, **given)


def _module_spec(name: str, fields: dict[str, Any], search: Sequence[str]) -> ModuleSpec:
    given = dict(fields)
    where, _, attribute = given.pop("class").rpartition(":")
    given["class_path"] = f"{_found(where, search) if where.endswith('.py') else where}:{attribute}"
    given["config"] = given.get("config") or {}
    if "restart" in given:
        given["restart"] = RestartSpec(**given["restart"])
    return ModuleSpec(name=name, **given)


def _found(path: str, search: Sequence[str]) -> str:
    """Return the absolute path of the first folder that holds the file, else the path as written."""
    for folder in search:
        candidate = os.path.abspath(os.path.join(folder, path))
        if os.path.exists(candidate):
            return candidate
    return path
