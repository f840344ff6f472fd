"""Read a topology from a file, whatever it is: NCCL's or hwloc's XML, or an own JSON dump."""

from __future__ import annotations

from pathlib import Path

from fabric import errors, limits
from fabric.paths.discovery import dump, hwloc_xml, nccl_read, xml_source
from fabric.paths.discovery.model import Topology


def load(path: str | Path) -> Topology:
    """Return the topology in a file.

    Raises
    ------
    ConfigError
        The file cannot be read, or is refused; names file, line and reason.
    """
    file = str(path)
    try:
        with open(path, "rb") as stream:
            data = stream.read(limits.TOPOLOGY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise errors.ConfigError(
            f"{file} cannot be read: {error.strerror}", file=file, reason=str(error.strerror)
        ) from error
    name = Path(file).name
    try:
        return parse(data, name)
    except xml_source.Refused as wrong:
        raise xml_source.refused(file, wrong) from wrong


def parse(data: bytes, name: str = "") -> Topology:
    """Return the topology in the bytes of a file.

    Raises
    ------
    Refused
        It is none that is known; has the line and the reason.
    """
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":
        return dump.parse(data)
    if start != b"<":
        raise xml_source.Refused(
            1, "neither XML (NCCL's or hwloc's) nor a JSON dump of fabricctl topology"
        )
    root = xml_source.parse(data)
    stem = name.removesuffix(".xml")
    if root.tag == "topology":
        return hwloc_xml.read(root, stem)
    return nccl_read.read(root, stem)
