"""Walk YAML nodes, remembering where each one stood and what is wrong with it.

Only YAML's safe tags are resolved; anchors are followed within `limits.CONFIG_NODES_MAX` visits, so a file cannot
explode. What a value must look like: `fabric.config.decoders`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from fabric import limits

SHOWN_CHARACTERS = 40  # of a foreign text, in a message
_PATH_CHARACTERS = 200


class Invalid:
    """What a decoder returns after it noted a problem."""


INVALID = Invalid()


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

    def note(self, node: yaml.Node, path: str, text: str) -> Invalid:
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


def below(path: str, key: str) -> str:
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
                below(path, key),
                f"the key '{clip(key)}' stands twice (first in line {first})",
            )
        else:
            seen[key] = key_node
            rows.append((key, key_node, value_node))
    return rows
