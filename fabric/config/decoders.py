"""Turn YAML nodes into checked values.

A *decoder* reads (reader, node, path) and returns a value, or `INVALID` after it has noted a problem; the reader
goes on, so one run reports every mistake. Each says itself as JSON Schema, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import yaml

from fabric import limits, units
from fabric.config.reader import (
    INVALID,
    Reader,
    below,
    clip,
    did_you_mean,
    found,
    is_list,
    is_mapping,
    items,
)
from fabric.config.routes import text_of

Decode = Callable[["Reader", yaml.Node, str], Any]


class Decoder(NamedTuple):
    """How one value is read, and the same said as JSON Schema (what it cannot say is left to `read`)."""

    read: Decode
    schema: dict[str, Any]

    def __call__(self, reader: Reader, node: yaml.Node, path: str) -> Any:
        """Return the value of a node, or `INVALID` after noting what is wrong with it."""
        return self.read(reader, node, path)


class Field(NamedTuple):
    """A key of a mapping: how its value is read, and whether it may be left out."""

    decode: Decoder
    required: bool = False


def record(fields: Mapping[str, Field], what: str) -> Decoder:
    """Decode a mapping with fixed keys into a dict; unknown and missing keys are mistakes.

    With a mistake inside, the record is `INVALID`; what is well of it stands in `Reader.partial` under its path.
    """

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        before = len(reader.mistakes)
        values: dict[str, Any] = {}
        for key, key_node, value_node in items(reader, node, path, what):
            inner = below(path, key).lstrip(".")
            if key not in fields:
                hint = did_you_mean(key, fields) or f"; known keys: {', '.join(fields)}"
                reader.note(key_node, inner, f"unknown key '{clip(key)}' in {what}{hint}")
                continue
            reader.visit(key_node, inner)
            values[key] = fields[key].decode(reader, value_node, inner)
        if is_mapping(node) or reader.scalar(node) is None:
            for key, field in fields.items():
                if field.required and key not in values:
                    reader.note(node, path, f"the key '{key}' is missing in {what}")
        if len(reader.mistakes) == before:
            return values
        reader.partial[path] = {k: v for k, v in values.items() if v is not INVALID}
        return INVALID

    return Decoder(decode, _record_schema(fields))


def _record_schema(fields: Mapping[str, Field]) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: field.decode.schema for key, field in fields.items()},
    }
    required = [key for key, field in fields.items() if field.required]
    return {**schema, "required": required} if required else schema


def _whole(pattern: re.Pattern[str]) -> str:
    """Return a pattern that JSON Schema, which searches, takes for the whole text."""
    return f"^(?:{pattern.pattern})$"


def named(decode_value: Decoder, what: str, pattern: re.Pattern[str], count_max: int) -> Decoder:
    """Decode a mapping of names to values; names must match `pattern`, at most `count_max` of them."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        rows = items(reader, node, path, what)
        if len(rows) > count_max:
            return reader.note(
                node, path, f"at most {count_max} entries are allowed, found {len(rows)}"
            )
        values: dict[str, Any] = {}
        for key, key_node, value_node in rows:
            inner = below(path, key)
            if not pattern.fullmatch(key):
                expected = f"expected a name ({pattern.pattern}), found '{clip(key)}'"
                reader.note(key_node, inner, expected)
                continue
            reader.visit(key_node, inner)
            value = decode_value(reader, value_node, inner)
            if value is not INVALID:
                values[key] = value
        return values

    return Decoder(
        decode,
        {
            "type": ["object", "null"],
            "maxProperties": count_max,
            "propertyNames": {"pattern": _whole(pattern)},
            "additionalProperties": decode_value.schema,
        },
    )


def sequence(decode_item: Decoder, what: str, count_max: int) -> Decoder:
    """Decode a list into a tuple."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        if reader.scalar(node) is None:
            return ()
        if not is_list(node):
            return reader.note(node, path, f"expected {what}, found {found(reader, node)}")
        if len(node.value) > count_max:
            return reader.note(
                node, path, f"at most {count_max} entries are allowed, found {len(node.value)}"
            )
        values = []
        for index, item in enumerate(node.value):
            inner = f"{path}[{index}]"
            reader.visit(item, inner)
            values.append(decode_item(reader, item, inner))
        return INVALID if INVALID in values else tuple(values)

    return Decoder(
        decode,
        {
            "type": ["array", "null"],
            "maxItems": count_max,
            "items": decode_item.schema,
        },
    )


def text(expected: str, pattern: re.Pattern[str]) -> Decoder:
    """Decode a text that must match a pattern; `expected` describes it with an example."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        return reader.note(node, path, f"expected {expected}, found {found(reader, node)}")

    return Decoder(decode, {"type": "string", "pattern": _whole(pattern)})


def optional(decode_value: Decoder) -> Decoder:
    """Decode null as None, anything else as given."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        return None if reader.scalar(node) is None else decode_value(reader, node, path)

    return Decoder(decode, {"anyOf": [{"type": "null"}, decode_value.schema]})


def choice(options: tuple[str, ...], hints: Mapping[str, str] | None = None) -> Decoder:
    """Decode one word of a fixed set; `hints` says of some other words what to do."""
    advice = hints or {}

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if isinstance(value, str) and value in options:
            return value
        hint = did_you_mean(value, options) if isinstance(value, str) else ""
        if isinstance(value, str) and value in advice:
            hint = f"; {advice[value]}"
        return reader.note(
            node, path, f"expected one of {', '.join(options)}, found {found(reader, node)}{hint}"
        )

    return Decoder(decode, {"enum": list(options)})


def integer(low: int, high: int) -> Decoder:
    """Decode a whole number within bounds, both allowed."""
    wanted = str(low) if low == high else f"a whole number from {low} to {high}"

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if type(value) is int and low <= value <= high:
            return value
        return reader.note(node, path, f"expected {wanted}, found {found(reader, node)}")

    return Decoder(decode, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float, unit: str) -> Decoder:
    """Decode a number within bounds, both allowed."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if type(value) in (int, float) and low <= value <= high:
            return float(value)
        return reader.note(
            node,
            path,
            f"expected a number of {unit} from {low:g} to {high:g}, found {found(reader, node)}",
        )

    return Decoder(decode, {"type": "number", "minimum": low, "maximum": high})


def _boolean(reader: Reader, node: yaml.Node, path: str) -> Any:
    """Decode true or false."""
    value = reader.scalar(node)
    if isinstance(value, bool):
        return value
    return reader.note(node, path, f"expected true or false, found {found(reader, node)}")


boolean = Decoder(_boolean, {"type": "boolean"})


def duration(low_s: float, high_s: float) -> Decoder:
    """Decode a duration, a text with its unit such as ``5s``, into seconds."""
    bounds = f"from {units.format_seconds(low_s)} to {units.format_seconds(high_s)}"
    expected = f"expected a duration with its unit such as 5s, 250ms or 2min, {bounds}"

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        try:
            seconds = units.parse_seconds(value) if isinstance(value, str) else math.nan
        except ValueError:
            seconds = math.nan
        if low_s <= seconds <= high_s:
            return seconds
        return reader.note(node, path, f"{expected}, found {found(reader, node)}")

    return Decoder(decode, {"type": "string", "pattern": units.DURATION_PATTERN})


def size_bytes(low: int, high: int) -> Decoder:
    """Decode a size: a whole number of bytes, or a text such as ``64MiB``."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if isinstance(value, str):
            try:
                value = units.parse_bytes(value)
            except ValueError:
                value = None
        if type(value) is int and low <= value <= high:
            return value
        return reader.note(
            node,
            path,
            f"expected a size from {low} to {high} bytes, such as 64MiB, found {found(reader, node)}",
        )

    return Decoder(
        decode,
        {
            "anyOf": [
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "string", "pattern": units.SIZE_PATTERN},
            ]
        },
    )


def _plain(reader: Reader, node: yaml.Node, path: str) -> Any:
    """Decode any YAML value of safe types with text keys (a module's own configuration)."""
    reader.visit(node, path)
    if is_mapping(node):
        return {
            key: _plain(reader, value_node, below(path, key))
            for key, _, value_node in items(reader, node, path, "a mapping")
        }
    if is_list(node):
        return [_plain(reader, item, f"{path}[{index}]") for index, item in enumerate(node.value)]
    value = reader.scalar(node)
    if isinstance(value, float) and not math.isfinite(value):
        return reader.note(node, path, f"expected a finite number, found {found(reader, node)}")
    if isinstance(value, str) and len(value) > limits.STRING_BYTES_MAX:
        return reader.note(node, path, f"a text may have {limits.STRING_BYTES_MAX} characters")
    if value is None or type(value) in (str, int, float, bool):
        return value
    return reader.note(
        node, path, f"expected text, number, boolean, list or mapping, found {found(reader, node)}"
    )


#: a module's own configuration
plain = Decoder(_plain, {})


def route(decode_name: Decoder) -> Decoder:
    """Decode a routing policy, its name or ``{name: …}`` with parameters, into the one text that stands for both."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        if not is_mapping(node):
            return decode_name(reader, node, path)
        before = len(reader.mistakes)
        values: dict[str, Any] = {}
        for key, key_node, value_node in items(reader, node, path, "a route"):
            reader.visit(key_node, below(path, key))
            read = decode_name if key == "name" else plain
            values[key] = read(reader, value_node, below(path, key))
        if "name" not in values:
            reader.note(node, path, "the key 'name' is missing in a route")
        return INVALID if len(reader.mistakes) > before else text_of(values)

    named = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": decode_name.schema},
    }
    return Decoder(decode, {"anyOf": [decode_name.schema, named]})
