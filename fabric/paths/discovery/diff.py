"""What differs between two topologies of one machine, an earlier and a later one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fabric.paths.discovery import rates
from fabric.paths.discovery.model import Device, Link, Rail, Topology


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that appeared (`+`), went (`-`) or changed (`~`).

    Attributes
    ----------
    subject : str
        A device's id; a link as ``nvlink gpu:… → gpu:…``; ``rail eth0``.
    field : str
        Of a change: what of it; else empty.
    """

    sign: str
    subject: str
    field: str = ""
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        if self.sign != "~":
            return f"{self.sign} {self.subject}"
        return (
            f"~ {self.subject}: {self.field} {self.before or 'unknown'} → {self.after or 'unknown'}"
        )


def differences(before: Topology, after: Topology) -> list[Difference]:
    """Return what differs: devices, then links, then rails, in the order of the topologies.

    Names of the sources and notes are not compared.
    """
    found: list[Difference] = []
    for ours, theirs in (
        (_devices(before), _devices(after)),
        (_links(before), _links(after)),
        (_rails(before), _rails(after)),
    ):
        found += _compare(ours, theirs)
    return found


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    for subject, value in before.items():
        if subject not in after:
            yield Difference("-", subject)
        else:
            yield from _changes(subject, value, after[subject])
    for subject in after:
        if subject not in before:
            yield Difference("+", subject)


def _changes(subject: str, before: Any, after: Any) -> Iterator[Difference]:
    for field in fields(before):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if one == other:
            continue
        if isinstance(one, Mapping):
            for key in sorted(one.keys() | other.keys()):
                if one.get(key) != other.get(key):
                    yield Difference("~", subject, key, one.get(key, ""), other.get(key, ""))
        else:
            yield Difference(
                "~", subject, field.name, _text(field.name, one), _text(field.name, other)
            )


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "rate":
        return rates.text(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _devices(topology: Topology) -> dict[str, Device]:
    return dict(topology.by_id)


def _links(topology: Topology) -> dict[str, Link]:
    found: dict[str, Link] = {}
    for link in topology.links:
        subject = wanted = f"{link.kind} {link.source} → {link.target}"
        number = 1
        while subject in found:
            number += 1
            subject = f"{wanted} #{number}"
        found[subject] = link
    return found


def _rails(topology: Topology) -> dict[str, Rail]:
    return {f"rail {rail.interface}": rail for rail in topology.rails}
