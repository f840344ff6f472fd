"""The shape of `fabric.yaml`, as a table, and the two ways in: `load` a file, `parse` a text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fabric import limits
from fabric.config import decoders as d
from fabric.config import joins, rules, transform_entry
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

DEADLINE_S_MIN = 0.001

_name = d.text("a name such as least_outstanding", _NAME)

_credit = d.record(
    {
        "messages": d.Field(d.integer(1, limits.OUTSTANDING_PER_ENDPOINT)),
        "bytes": d.Field(d.size_bytes(1, limits.MESSAGE_BYTES_MAX * 64)),
    },
    "credit",
)
CHANNEL_KEYS = {
    "type": d.Field(d.text("a message type name such as kv.layer", _NAME), required=True),
    "reply": d.Field(d.optional(d.text("a message type name such as kv.answer", _NAME))),
    "pattern": d.Field(d.choice(PATTERNS, {"gather": rules.GATHER_FIX})),
    "delivery": d.Field(d.choice(DELIVERIES)),
    "overflow": d.Field(d.choice(OVERFLOWS)),
    "class": d.Field(d.choice(CLASSES)),
    "route": d.Field(d.optional(d.route(_name))),
    "transforms": d.Field(
        d.sequence(
            transform_entry.entry(_name), "a list of transforms", limits.TRANSFORMS_PER_CHANNEL_MAX
        )
    ),
    "idempotent": d.Field(d.boolean),
    "credit": d.Field(_credit),
    "deadline": d.Field(d.optional(d.duration(DEADLINE_S_MIN, limits.DEADLINE_S_MAX))),
    "weight": d.Field(d.integer(1, limits.CHANNEL_WEIGHT_MAX)),
}
_JUDGED = ("pattern", "delivery", "overflow", "class", "idempotent", "reply", "transforms")
_channel = d.record(CHANNEL_KEYS, "a channel")
_restart = d.record(
    {
        "backoff_s": d.Field(
            d.sequence(d.number(0.01, 3600.0, "seconds"), "two numbers: [first, longest]", 2)
        )
    },
    "restart",
)
_module = d.record(
    {
        "class": d.Field(
            d.text(
                "a class such as 'fabric_modules.prefill:Prefill' or 'file.py:Class'", _CLASS_PATH
            ),
            required=True,
        ),
        "node": d.Field(d.optional(_name)),
        "replicas": d.Field(d.integer(1, limits.REPLICAS_MAX)),
        "config": d.Field(d.plain),
        "channels": d.Field(
            d.named(_name, "a mapping of fields to channels", _NAME, limits.FIELDS_PER_TYPE_MAX)
        ),
        "restart": d.Field(_restart),
    },
    "a module",
)
DOCUMENT = d.record(
    {
        "version": d.Field(d.integer(1, 1), required=True),
        "plugins": d.Field(
            d.sequence(
                d.text("a path of a plugin file", _PATH), "a list of files", limits.PLUGINS_MAX
            )
        ),
        "channels": d.Field(
            d.named(_channel, "a mapping of names to channels", _NAME, limits.CHANNELS_MAX)
        ),
        "modules": d.Field(
            d.named(_module, "a mapping of names to modules", _NAME, limits.MODULES_MAX)
        ),
        "joins": d.Field(
            d.named(
                joins.decoder(_NAME, _restart),
                "a mapping of names to joins",
                _NAME,
                limits.JOINS_MAX,
            )
        ),
    },
    "the document (version, plugins, channels, modules, joins)",
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
                limit="CONFIG_BYTES_MAX",
            )
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"cannot read {r.clip(str(file), 200)}: {reason or error}. Check the path and its permissions",
            file=r.clip(str(file), 200),
        ) from error
    return parse(
        text_of(data, str(file)),
        source=str(file),
        search=(str(file.resolve().parent), os.getcwd()),
    )


def text_of(data: bytes, source: str) -> str:
    """Decode a file's bytes.

    Raises
    ------
    ConfigError
        They are not UTF-8; names line and column.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        mistake = r.Mistake(
            *_place(before), "", f"not UTF-8 text (byte {data[error.start]:#04x}): save it as UTF-8"
        )
    return _refuse([mistake], source)  # type: ignore[no-any-return]


def _place(before: str) -> tuple[int, int]:
    """Return line and column of what follows a text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


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
    if len(content) > limits.CONFIG_BYTES_MAX:
        raise ConfigError(
            f"{source} is longer than {limits.CONFIG_BYTES_MAX} bytes: split it",
            file=source,
            limit="CONFIG_BYTES_MAX",
        )
    try:
        values = DOCUMENT(reader, _compose(content, source), "")
    except RecursionError as error:
        raise ConfigError(
            f"{source}: nested too deeply, or an anchor that contains itself", file=source
        ) from error
    except r.TooManyNodes as error:
        much = f"more than {limits.CONFIG_NODES_MAX} values (anchors followed): make it smaller"
        reader.note(error.node, "", much)
    if reader.mistakes:
        _refuse(_all_mistakes(reader, source), source)
    if twice := values.get("joins", {}).keys() & values.get("modules", {}).keys():
        name = min(twice)
        text = f"a module is called '{r.clip(name)}', too: use another name"
        path = f"joins.{name}"
        _refuse([r.Mistake(*reader.positions[path], path, text)], source)
    return _build(values, source, reader.positions, search)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Composes at most `limits.CONFIG_NODES_MAX` nodes, so that a dense file costs bounded time."""

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        """Compose one node, counted."""
        self._composed += 1
        if self._composed > limits.CONFIG_NODES_MAX:
            mark = self.get_mark()
            raise r.TooManyNodes(yaml.ScalarNode("tag:yaml.org,2002:str", "", mark, mark))
        return super().compose_node(parent, index)


def _compose(content: str, source: str) -> yaml.Node:
    """Return the document's root; raises `ConfigError` naming the place of what is no YAML."""
    try:
        root = yaml.compose(content, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        what = f"not valid YAML: the character U+{ord(str(content)[error.position]):04X} is not allowed"
        return _refuse([r.Mistake(*_place(content[: error.position]), "", what)], source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return _refuse([r.Mistake(line, column, "", _syntax(error))], source)
    if root is None:
        return _refuse(
            [r.Mistake(1, 1, "", "the file is empty: write at least 'version: 1'")], source
        )
    return root


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """Say what is no YAML, and for a tab what to do."""
    if "'\\t'" in str(error.problem):
        return "not valid YAML: a tab stands where only spaces may: indent with spaces"
    problem = "; ".join(r.clip(part, 200) for part in (error.context, error.problem) if part)
    return f"not valid YAML: {problem}"


def _all_mistakes(reader: r.Reader, source: str) -> list[r.Mistake]:
    """Add what the rules say of the parts that could be read, in the order of the file."""
    spec = _partial(reader, source)
    if spec is None:
        return reader.mistakes
    found = list(reader.mistakes)
    for problem in rules.validate(spec):
        if problem.severity == "error":
            line, column = spec.position(problem.where) or (1, 1)
            found.append(r.Mistake(line, column, problem.where, f"{problem.what}. {problem.fix}"))
    return sorted(found, key=lambda mistake: mistake[:2])


def _partial(reader: r.Reader, source: str) -> FabricSpec | None:
    """Return what a document with mistakes says for certain; None when that is nothing."""
    values = dict(reader.partial.get("", {}))
    wrong = {mistake.path for mistake in reader.mistakes}
    for path, fields in reader.partial.items():
        kind, _, name = path.partition(".")
        is_judged = kind == "channels" and name and fields.keys() <= CHANNEL_KEYS.keys()
        if is_judged and not any(f"{path}.{key}" in wrong for key in _JUDGED):
            values.setdefault("channels", {})[name] = {"type": "", **fields}
    return _build({"version": 1, **values}, source, reader.positions, ()) if values else None


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
    } | {
        name: joins.module_of(name, fields, lambda path: _found(path, search))
        for name, fields in values.get("joins", {}).items()
    }
    return FabricSpec(
        version=values["version"],
        plugins=plugins,
        channels=channels,
        modules=modules,
        source=source,
        positions=joins.places(positions),
    )


def _channel_spec(name: str, fields: dict[str, Any]) -> ChannelSpec:
    given = dict(fields)
    if "class" in given:
        given["klass"] = given.pop("class")
    if "credit" in given:
        given["credit"] = CreditSpec(**given["credit"])
    if "transforms" in given:
        given["transforms"], given["settings"] = transform_entry.split(given["transforms"])
    given["deadline_s"] = given.pop("deadline", None)
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
