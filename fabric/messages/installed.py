"""Message types by place: of installed packages (entry-point group ``fabric.messages``), of a module or of a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from fabric.errors import ConfigError, PluginError
from fabric.messages.declare import MessageType, message_type

GROUP: Final = "fabric.messages"


def installed_types() -> Iterator[tuple[str, MessageType]]:
    """Yield (``distribution entry``, type) of every message type that installed packages register.

    Raises
    ------
    PluginError
        One of them cannot be imported, or is no message type; names package and entry.
    """
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist else entry.value
        try:
            yield f"{package} {entry.name}", message_type(entry.load())
        except Exception as error:
            raise PluginError(
                f"package {package!r}: message type {entry.name!r} ({entry.value}) cannot be loaded: {error}",
                plugin=package,
            ) from error


def class_at(place: str) -> MessageType:
    """Return the type at ``file.py:Class`` or ``package.module:Class``.

    Raises
    ------
    ConfigError
        There is no such file, module or class, or running it failed.
    TypeMismatchError
        The class is no message type.
    """
    module_name, _, name = place.rpartition(":")
    try:
        module = (
            _file(module_name)
            if module_name.endswith(".py")
            else importlib.import_module(module_name)
        )
        found = getattr(module, name)
    except Exception as error:
        raise ConfigError(
            f"no message class at {place!r}: {type(error).__name__}: {error}"
        ) from error
    return message_type(found)


def _file(path: str) -> Any:
    name = f"_fabric_types_{abs(hash(Path(path).resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved through here
    spec.loader.exec_module(module)
    return module
