"""Turn YAML nodes into checked values, remembering where each one stood.

A *decoder* is a function of (reader, node, path) that returns a value or `INVALID` after it has
noted a problem; the reader goes on, so one run reports every mistake. Only YAML's safe tags are
resolved; anchors are followed within `limits.CONFIG_NODES_MAX` visits, so a file cannot explode.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from fabric import limits, units

SHOWN_CHARACTERS = 40  # of a foreign text, in a message
_PATH_CHARACTERS = 200


class _Invalid:
    """What a decoder returns after it noted a problem."""


INVALID = _Invalid()
Decoder = Callable[["Reader", yaml.Node, str], Any]


class Field(NamedTuple):
    """A key of a mapping: how its value is read, and whether it may be left out."""

    decode: Decoder
    required: bool = False


class Mistake(NamedTuple):
    """One thing wrong with the file, as printed."""

    line: int
    column: int
    path: str
    text: str


def clip(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Return a text as it is quoted in a message: shortened, unprintable characters escaped."""
    short = text if len(text) <= characters else text[: characters - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known word, else an empty string."""
    if len(found) > limits.NAME_BYTES_MAX:
        return ""
    near = difflib.get_close_matches(found, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


class Reader:
    """Collects mistakes and positions while decoders walk one document."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.partial: dict[str, dict[str, Any]] = {}  #: of a record with mistakes, what is well
        self.positions: dict[str, tuple[int, int]] = {}
        self._visits = 0
        self._plain = yaml.constructor.SafeConstructor()

    def note(self, node: yaml.Node, path: str, text: str) -> _Invalid:
        """Note a mistake at a node and return `INVALID`."""
        mark = node.start_mark
        shown = path if len(path) <= _PATH_CHARACTERS else path[: _PATH_CHARACTERS - 3] + "..."
        self.mistakes.append(Mistake(mark.line + 1, mark.column + 1, shown, text))
        return INVALID

    def visit(self, node: yaml.Node, path: str) -> None:
        """Remember where a path stands; refuse a document whose anchors multiply."""
        self._visits += 1
        if self._visits > limits.CONFIG_NODES_MAX:
            raise TooManyNodes(node)
        self.positions.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))

    def scalar(self, node: yaml.Node) -> Any:
        """Return the plain value of a scalar node, or `INVALID` for anything else."""
        if not isinstance(node, yaml.ScalarNode):
            return INVALID
        try:
            return self._plain.construct_object(node, deep=True)
        except (yaml.constructor.ConstructorError, ValueError):
            return INVALID


class TooManyNodes(Exception):
    """The document, anchors followed, has more nodes than allowed."""

    def __init__(self, node: yaml.Node) -> None:
        super().__init__("too many nodes")
        self.node = node


def found(reader: Reader, node: yaml.Node) -> str:
    """Say in a few words what stands at a node."""
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        return f"the tag {clip(node.tag)}"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    value = reader.scalar(node)
    if value is None:
        return "nothing"
    kind = {bool: "the boolean", int: "the number", float: "the number"}.get(type(value), "")
    shown = clip(node.value)
    return f"{kind} {shown}" if kind else f"'{shown}'"


def _below(path: str, key: str) -> str:
    """Return the path of a key; a key longer than any name may be is shortened."""
    return f"{path}.{clip(key, limits.NAME_BYTES_MAX)}".lstrip(".")


def is_mapping(node: yaml.Node) -> bool:
    """Tell whether a node is a mapping of YAML's own kind, not one with a foreign tag."""
    return isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map"


def is_list(node: yaml.Node) -> bool:
    """Tell whether a node is a list of YAML's own kind, not one with a foreign tag."""
    return isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq"


def items(
    reader: Reader, node: yaml.Node, path: str, what: str
) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """Return (key, key node, value node) of a mapping, noting keys that are no text or repeat."""
    if reader.scalar(node) is None:
        return []
    if not is_mapping(node):
        reader.note(node, path, f"expected {what}, found {found(reader, node)}")
        return []
    seen: dict[str, yaml.Node] = {}
    rows = []
    for key_node, value_node in node.value:
        key = reader.scalar(key_node)
        if not isinstance(key, str):
            reader.note(key_node, path, f"expected a text as key, found {found(reader, key_node)}")
        elif key in seen:
            first = seen[key].start_mark.line + 1
            reader.note(
                key_node,
                _below(path, key),
                f"the key '{clip(key)}' stands twice (first in line {first})",
            )
        else:
            seen[key] = key_node
            rows.append((key, key_node, value_node))
    return rows


def record(fields: Mapping[str, Field], what: str) -> Decoder:
    """Decode a mapping with fixed keys into a dict; unknown and missing keys are mistakes.

    With a mistake inside, the record is `INVALID`; what is well of it stands in `Reader.partial` under its path.
    """

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        before = len(reader.mistakes)
        values: dict[str, Any] = {}
        for key, key_node, value_node in items(reader, node, path, what):
            inner = _below(path, key).lstrip(".")
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

    return decode


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
            inner = _below(path, key)
            if not pattern.fullmatch(key):
                expected = f"expected a name ({pattern.pattern}), found '{clip(key)}'"
                reader.note(key_node, inner, expected)
                continue
            reader.visit(key_node, inner)
            value = decode_value(reader, value_node, inner)
            if value is not INVALID:
                values[key] = value
        return values

    return decode


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

    return decode


def text(expected: str, pattern: re.Pattern[str]) -> Decoder:
    """Decode a text that must match a pattern; `expected` describes it with an example."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        return reader.note(node, path, f"expected {expected}, found {found(reader, node)}")

    return decode


def optional(decode_value: Decoder) -> Decoder:
    """Decode null as None, anything else as given."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        return None if reader.scalar(node) is None else decode_value(reader, node, path)

    return decode


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

    return decode


def integer(low: int, high: int) -> Decoder:
    """Decode a whole number within bounds, both allowed."""

    def decode(reader: Reader, node: yaml.Node, path: str) -> Any:
        value = reader.scalar(node)
        if type(value) is int and low <= value <= high:
            return value
        return reader.note(
            node, path, f"expected a whole number from {low} to {high}, found {found(reader, node)}"
        )

    return decode


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

    return decode


def boolean(reader: Reader, node: yaml.Node, path: str) -> Any:
    """Decode true or false."""
    value = reader.scalar(node)
    if isinstance(value, bool):
        return value
    return reader.note(node, path, f"expected true or false, found {found(reader, node)}")


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

    return decode


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

    return decode


def plain(reader: Reader, node: yaml.Node, path: str) -> Any:
    """Decode any YAML value of safe types with text keys (a module's own configuration)."""
    reader.visit(node, path)
    if is_mapping(node):
        return {
            key: plain(reader, value_node, _below(path, key))
            for key, _, value_node in items(reader, node, path, "a mapping")
        }
    if is_list(node):
        return [plain(reader, item, f"{path}[{index}]") for index, item in enumerate(node.value)]
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
