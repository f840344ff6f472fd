"""Load one plugin: a file's text, or an entry point, into its decorated exports.

A file becomes a module of a private name, so two plugins may both be called `upper.py`. Every failure
is a typed error that names file and line. Runs in a stage host only: the daemon never imports a plugin.
"""

from __future__ import annotations

import importlib.abc
import importlib.metadata
import importlib.util
import itertools
import linecache
import sys
import traceback
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fabric import limits
from fabric.abc.route import RouteExport
from fabric.abc.transform import EXPORT_ATTRIBUTE, TransformExport
from fabric.errors import CapacityError, ContractError, FabricError, PluginError

GROUPS: Final = ("fabric.messages", "fabric.routes", "fabric.transforms")
_PREFIX: Final = "_fabric_plugin_"
_numbers = itertools.count(1)


@dataclass(slots=True)
class Plugin:
    """What a plugin offers; `module_name` is empty for one loaded from entry points."""

    name: str
    path: str
    module_name: str = ""
    transforms: dict[str, TransformExport] = field(default_factory=dict)
    routes: dict[str, RouteExport] = field(default_factory=dict)
    messages: dict[str, type] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.transforms) + len(self.routes) + len(self.messages)


def load_source(name: str, path: str, source: str) -> Plugin:
    """Run the text of a plugin file and collect what it decorates.

    Parameters
    ----------
    name : str
        The plugin's name, for errors and logs.
    path : str
        Where the text came from; shown in tracebacks, not read.
    source : str
        Python text, at most `limits.PLUGIN_SOURCE_BYTES_MAX` bytes.

    Raises
    ------
    PluginError
        Syntax error, failing import, or anything raised by the file: ``file:line`` is in the message.
    ContractError
        A declaration that cannot hold, or a file that declares nothing.
    CapacityError
        The file, or its number of exports, is over the limit.
    """
    size_bytes = len(source.encode())
    if size_bytes > limits.PLUGIN_SOURCE_BYTES_MAX:
        raise CapacityError(
            f"plugin {name!r} has {size_bytes} bytes, PLUGIN_SOURCE_BYTES_MAX is "
            f"{limits.PLUGIN_SOURCE_BYTES_MAX}: split it",
            limit="PLUGIN_SOURCE_BYTES_MAX",
        )
    module = _run(name, path, source)
    own = (v for v in vars(module).values() if getattr(v, "__module__", None) == module.__name__)
    plugin = _collect(Plugin(name, path, module.__name__), own)
    if not len(plugin):
        raise ContractError(
            f"plugin {name!r} ({path}) declares nothing: decorate a class with @fabric.transform, "
            "a function with @fabric.route or a class with @fabric.message",
            plugin=name,
            file=path,
        )
    return plugin


def load_file(path: str | Path, name: str | None = None) -> Plugin:
    """Read `path` and `load_source` it; the plugin's name is the file's stem unless given."""
    file = Path(path)
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"cannot read plugin {file}: {error}", file=str(file)) from error
    return load_source(name or file.stem, str(file), source)


def load_entry_point(name: str) -> Plugin:
    """Load the installed transform, route or message type registered under `name`.

    Raises
    ------
    PluginError
        No group has that name (what is registered is listed), or loading it failed.
    """
    registered = [e for group in GROUPS for e in importlib.metadata.entry_points(group=group)]
    matching = [e for e in registered if e.name == name]
    if not matching:
        known = ", ".join(sorted({e.name for e in registered})) or "none"
        raise PluginError(
            f"no installed plugin is called {name!r} (installed: {known}): install it or give a file",
            plugin=name,
        )
    plugin = Plugin(name, matching[0].value)
    for entry in matching:
        try:
            _collect(plugin, [entry.load()])
        except FabricError:
            raise
        except Exception as error:
            raise _failure(name, entry.value, error) from error
    if not len(plugin):
        raise ContractError(
            f"entry point {name!r} ({plugin.path}) is not decorated: use @fabric.transform, "
            "@fabric.route or @fabric.message",
            plugin=name,
        )
    return plugin


def load_named(name: str, where: str = "") -> Plugin:
    """Load what is installed: the entry point `name`, else the module `where` (``package.module``) or `name`.

    What of it was imported before is imported anew, so that a newer version on disk is what runs.

    Raises
    ------
    PluginError, ContractError
        As for `load_entry_point`; neither is there.
    """
    module_name = where or name
    importlib.invalidate_caches()
    if any(
        e.name == name for group in GROUPS for e in importlib.metadata.entry_points(group=group)
    ):
        for group in GROUPS:
            for entry in importlib.metadata.entry_points(group=group, name=name):
                forget_modules(entry.module)
        return load_entry_point(name)
    forget_modules(module_name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or "\0"):
            raise _failure(name, module_name, error) from error
        return load_entry_point(name)  # which says what is installed
    except Exception as error:
        raise _failure(name, module_name, error) from error
    own = (v for v in vars(module).values() if _is_of(v, module_name))
    plugin = _collect(Plugin(name, module_name), own)
    if not len(plugin):
        raise ContractError(
            f"module {module_name!r} declares nothing: decorate a class with @fabric.transform, "
            "a function with @fabric.route or a class with @fabric.message",
            plugin=name,
        )
    return plugin


def forget_modules(module_name: str) -> None:
    """Have the package of a module imported anew next time; the fabric's own are never dropped."""
    top = module_name.partition(".")[0]
    if top == "fabric" or not top:
        return
    for known in [m for m in sys.modules if m == top or m.startswith(f"{top}.")]:
        del sys.modules[known]


def _is_of(value: Any, module_name: str) -> bool:
    """Tell whether something was made in a module or in a part of its package."""
    made_in = str(getattr(value, "__module__", ""))
    return made_in == module_name or made_in.startswith(f"{module_name}.")


def unload(plugin: Plugin) -> None:
    """Forget the plugin's private module; objects in use live on."""
    sys.modules.pop(plugin.module_name, None)


class _TextLoader(importlib.abc.ExecutionLoader):
    """Runs text that is already here, under the file name it came from."""

    def __init__(self, path: str, source: str) -> None:
        self._path = path
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_source(self, fullname: str) -> str:
        return self._source


def _run(name: str, path: str, source: str) -> types.ModuleType:
    module_name = f"{_PREFIX}{next(_numbers)}"
    spec = importlib.util.spec_from_loader(module_name, _TextLoader(path, source))
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {name!r} has no loader", plugin=name)
    module = importlib.util.module_from_spec(spec)
    # Tracebacks show the lines that ran, even where the file has changed or is on another machine.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    sys.modules[module_name] = module  # type hints are resolved through here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(module_name, None)
        raise _failure(name, path, error) from error
    return module


def _failure(name: str, path: str, error: Exception) -> PluginError:
    """Return the typed error for what a plugin raised while it was loaded, with file:line."""
    line = _line_of(path, error)
    where = f"{path}:{line}" if line else path
    context: dict[str, Any] = {"plugin": name, "file": path, "line": line}
    if isinstance(error, FabricError):
        context = {**error.context, **context}
        return_type = type(error) if isinstance(error, PluginError) else ContractError
        return return_type(f"{where}: {error.message}", **context)
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        what += f": install {error.name!r} into this environment"
    return PluginError(f"{where}: plugin {name!r} cannot be loaded: {what}", **context)


def _line_of(path: str, error: Exception) -> int:
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 0
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 0 for f in reversed(frames) if f.filename == path), 0)


def _collect(plugin: Plugin, values: Iterable[Any]) -> Plugin:
    for value in _unique(values):
        export = value.__dict__.get(EXPORT_ATTRIBUTE) if hasattr(value, "__dict__") else None
        if isinstance(export, TransformExport):
            _add(plugin, plugin.transforms, export.name, export)
        elif isinstance(export, RouteExport):
            _add(plugin, plugin.routes, export.name, export)
        elif isinstance(value, type) and "__fabric_type__" in vars(value):
            _add(plugin, plugin.messages, vars(value)["__fabric_type__"].schema.name, value)
    return plugin


def _unique(values: Iterable[Any]) -> Iterator[Any]:
    """One value may stand under two names of a module."""
    seen: set[int] = set()
    for value in values:
        if id(value) not in seen:
            seen.add(id(value))
            yield value


def _add(plugin: Plugin, exports: dict[str, Any], name: str, export: Any) -> None:
    if name in exports:
        raise ContractError(
            f"plugin {plugin.name!r} declares {name!r} twice: rename one", plugin=plugin.name
        )
    if len(plugin) >= limits.EXPORTS_PER_PLUGIN_MAX:
        raise CapacityError(
            f"plugin {plugin.name!r} declares more than EXPORTS_PER_PLUGIN_MAX "
            f"({limits.EXPORTS_PER_PLUGIN_MAX}) things: split it",
            limit="EXPORTS_PER_PLUGIN_MAX",
        )
    exports[name] = export
