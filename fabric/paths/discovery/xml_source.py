"""Read XML from outside into a small tree that knows its lines. Nothing is expanded, fetched or unbounded.

A DOCTYPE may name a DTD file (which is never opened); one that declares anything is refused, so no entity can be
defined at all. Size, depth and count are bounded by `fabric/limits.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from fabric import errors, limits


@dataclass(slots=True, eq=False)
class Element:
    """One element: its tag, attributes, text, children, and the line on which it begins."""

    tag: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def get(self, name: str, default: str = "") -> str:
        """Return an attribute, stripped."""
        return self.attributes.get(name, default).strip()

    def number(self, name: str, base: int = 10) -> int | None:
        """Return a whole number, or None where it is absent or empty.

        Raises
        ------
        Refused
            It is something else.
        """
        given = self.get(name)
        if not given:
            return None
        try:
            return int(given, base)
        except ValueError:
            raise Refused(
                self.line, f'{name}="{given[:40]}" of <{self.tag}> is no whole number'
            ) from None

    def named(self, *tags: str) -> Iterator[Element]:
        """Yield the children with one of these tags."""
        return (child for child in self.children if child.tag in tags)


class Refused(Exception):
    """What is wrong, and on which line; `refused` makes the error for users of it."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


def refused(file: str, wrong: Refused) -> errors.ConfigError:
    """Return the error that names file, line and reason."""
    return errors.ConfigError(
        f"{file}:{wrong.line}: {wrong.what}", file=file, line=wrong.line, reason=wrong.what
    )


def parse(data: bytes) -> Element:
    """Return the root element.

    Raises
    ------
    Refused
        It is not XML, declares entities or anything else, or is larger or deeper than the limits allow.
    """
    if len(data) > limits.TOPOLOGY_FILE_BYTES_MAX:
        raise Refused(1, f"{len(data)} bytes; a topology may have {limits.TOPOLOGY_FILE_BYTES_MAX}")
    builder = _Builder()
    try:
        builder.parser.Parse(data, True)
    except expat.ExpatError as error:
        # expat reports what a handler refused as it was raised; this is its own finding
        raise Refused(error.lineno, f"not XML: {expat.ErrorString(error.code)}") from error
    except (LookupError, ValueError) as error:  # an encoding that is unknown, or unfit for expat
        raise Refused(1, f"not XML: {error}") from error
    if builder.root is None:
        raise Refused(1, "there is no element")
    return builder.root


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0
        parser = self.parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._entity

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        self._count += 1
        if self._count > limits.TOPOLOGY_ELEMENTS_MAX:
            raise Refused(line, f"more than {limits.TOPOLOGY_ELEMENTS_MAX} elements")
        if len(self._open) >= limits.TOPOLOGY_DEPTH_MAX:
            raise Refused(
                line, f"elements within elements, deeper than {limits.TOPOLOGY_DEPTH_MAX}"
            )
        element = Element(tag, attributes, line)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, _tag: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        if self._open and text.strip():
            self._open[-1].text += text

    def _doctype(
        self, _name: str, _system: str | None, _public: str | None, has_declarations: bool
    ) -> None:
        if has_declarations:
            raise Refused(
                self.parser.CurrentLineNumber,
                "a DOCTYPE that declares something; only a plain <!DOCTYPE … SYSTEM …> is read",
            )

    def _entity(self, name: str, *_rest: object) -> None:
        raise Refused(self.parser.CurrentLineNumber, f"the entity {name[:40]!r} is declared")
