"""A topology as JSON, both ways; what `fabricctl topology -o json` prints below ``machine``. Pure."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec

from fabric import limits
from fabric.paths.discovery import model
from fabric.paths.discovery.model import Topology
from fabric.paths.discovery.xml_source import Refused

FORMAT = "fabric.topology"
VERSION = 1
#: What a reader asks for stays, even where it says nothing.
_NEEDED = frozenset(
    field.name
    for kind in vars(model).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
)


def to_json(topology: Topology) -> dict[str, Any]:
    """Return the topology as plain values; what is not known is left out."""
    values = _without_nothing(msgspec.to_builtins(topology))
    return {"format": FORMAT, "version": VERSION, **values}


def from_json(values: Any) -> Topology:
    """Return the topology of plain values: a dump, or an object with one below ``machine``.

    Raises
    ------
    ValueError
        It is no dump, of another version, or one of its values is of the wrong type; names the place.
    """
    if isinstance(values, dict) and isinstance(values.get("machine"), dict):
        values = values["machine"]
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError('no dump of a topology: "format" is not "fabric.topology"')
    if values.get("version") != VERSION:
        raise ValueError(f"a dump of version {values.get('version')!r}; {VERSION} is known")
    try:
        found = msgspec.convert(values, Topology)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    _check(found)
    return found


def _check(topology: Topology) -> None:
    """Refuse what would make a tree without end, or a link to nowhere."""
    count = len(topology.devices) + len(topology.links)
    if count > limits.TOPOLOGY_ELEMENTS_MAX:
        raise ValueError(f"{count} devices and links; at most {limits.TOPOLOGY_ELEMENTS_MAX}")
    seen: set[str] = set()
    for device in topology.devices:
        if device.id in seen:
            raise ValueError(f"the device {device.id!r} is there twice")
        if device.parent is not None and device.parent not in topology.by_id:
            raise ValueError(f"{device.id!r} hangs below {device.parent!r}, which is not there")
        seen.add(device.id)
    for device in topology.devices:
        above, steps = device.parent, 0
        while above is not None:
            above, steps = topology.by_id[above].parent, steps + 1
            if steps > limits.TOPOLOGY_DEPTH_MAX:
                raise ValueError(f"{device.id!r} hangs below itself, or too deep")
    for link in topology.links:
        for end in (link.source, link.target):
            if end not in topology.by_id:
                raise ValueError(f"a link leads to {end!r}, which is not there")


def parse(data: bytes) -> Topology:
    """Return the topology in the bytes of a JSON dump.

    Raises
    ------
    Refused
        It is not JSON, or no dump; has the line and the reason.
    """
    if len(data) > limits.TOPOLOGY_FILE_BYTES_MAX:
        raise Refused(1, f"{len(data)} bytes; a topology may have {limits.TOPOLOGY_FILE_BYTES_MAX}")
    try:
        return from_json(json.loads(data))
    except json.JSONDecodeError as error:
        raise Refused(error.lineno, f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(1, str(error) or "nested too deep") from error


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            # What a source says stays as it says it, empty texts as well.
            key: item if key == "attributes" else _without_nothing(item)
            for key, item in value.items()
            if item not in (None, "") or key in _NEEDED
        }
    if isinstance(value, (list, tuple)):
        return [_without_nothing(item) for item in value]
    return value
