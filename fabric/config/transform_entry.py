"""One entry of a channel's `transforms`: a name, or a mapping of a name, when and where it acts, and parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from fabric import limits
from fabric.config import decoders as d
from fabric.config import reader as r
from fabric.config.spec import WHENS, WHERES, TransformSettings

_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def entry(name: d.Decoder) -> d.Decoder:
    """Return the decoder of one entry: a name as text, or a `dict` with at least ``name``."""
    known = {"when": d.choice(WHENS), "where": d.choice(WHERES)}

    def decode(reader: r.Reader, node: yaml.Node, path: str) -> Any:
        if not r.is_mapping(node):
            return name(reader, node, path)
        values: dict[str, Any] = {}
        for key, key_node, value_node in r.items(reader, node, path, "a transform"):
            inner = r.below(path, key)
            reader.visit(key_node, inner)
            if key == "name":
                values[key] = name(reader, value_node, inner)
            elif not _PARAMETER.fullmatch(key):
                values[key] = reader.note(key_node, inner, f"'{r.clip(key)}' is no parameter name")
            else:
                values[key] = known.get(key, d.plain)(reader, value_node, inner)
        if "name" not in values:
            return reader.note(node, path, "the key 'name' is missing in a transform")
        if len(values) > limits.TRANSFORM_PARAMETERS_MAX:
            most = f"at most {limits.TRANSFORM_PARAMETERS_MAX} parameters are allowed"
            return reader.note(node, path, most)
        return r.INVALID if r.INVALID in values.values() else values

    schema = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": name.schema, **{key: value.schema for key, value in known.items()}},
        "additionalProperties": True,
    }
    return d.Decoder(decode, {"anyOf": [name.schema, schema]})


def split(entries: Any) -> tuple[tuple[str, ...], dict[str, TransformSettings]]:
    """Return the names of decoded entries in order, and the settings of those given as mappings."""
    names: list[str] = []
    settings: dict[str, TransformSettings] = {}
    for each in entries:
        if isinstance(each, str):
            names.append(each)
            continue
        names.append(each["name"])
        settings[each["name"]] = settings_of(each)
    return tuple(names), settings


def settings_of(plain: Mapping[str, Any]) -> TransformSettings:
    """Return the settings of one mapping."""
    own = {key: plain[key] for key in ("when", "where") if key in plain}
    rest = {key: value for key, value in plain.items() if key not in ("name", "when", "where")}
    return TransformSettings(parameters=rest, **own)
