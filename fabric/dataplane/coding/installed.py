"""The codecs that may run inside a process: installed ones, by the name they are registered under. Any thread."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from fabric.abc.transform import EXPORT_ATTRIBUTE, TransformExport
from fabric.errors import PluginError

GROUP = "fabric.transforms"
_known: dict[str, TransformExport] = {}
_lock = threading.Lock()


def edge_codec(name: str) -> TransformExport:
    """Return an installed codec of tensors that may run at the edge; imported at its first use.

    Raises
    ------
    PluginError
        None is registered under that name, it cannot be imported, or it may run in a stage host only.
    """
    with _lock:
        if name not in _known:
            _known[name] = _load(name)
        return _known[name]


def require(channel: str, codecs: Iterable[Mapping[str, Any]]) -> None:
    """Raise `PluginError`, naming channel and codec, unless every codec of a channel is here."""
    for codec in codecs:
        try:
            edge_codec(codec["name"])
        except PluginError as error:
            raise PluginError(f"channel {channel!r}: {error.message}", **error.context) from error


def _load(name: str) -> TransformExport:
    points = [p for p in importlib.metadata.entry_points(group=GROUP) if p.name == name]
    if not points:
        raise PluginError(
            f"no codec {name!r} is installed in this environment; install its package here, too", codec=name
        )  # fmt: skip
    try:
        export = getattr(points[0].load(), EXPORT_ATTRIBUTE, None)
    except Exception as error:
        raise PluginError(
            f"codec {name!r} ({points[0].value}) cannot be imported: {type(error).__name__}: {error}",
            codec=name,
        ) from error
    if not isinstance(export, TransformExport) or not export.is_tensor_codec:
        raise PluginError(
            f"{name!r} ({points[0].value}) is no codec of tensors: it runs in a stage host only",
            codec=name,
        )
    if export.tier == "stage":
        raise PluginError(
            f"codec {name!r} is declared for stage hosts; one that passes fabricctl plugin test may say tier='edge'",
            codec=name,
        )
    return export
