"""Import direction: lower layers never know the upper ones, and the fabric never knows its plugins."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from source import ROOT, imports, python_files, short, tree

pytestmark = pytest.mark.promise("P10")

# A layer may import the layers before it and itself. `links` … `paths` are peers of one layer that may use one another.
LAYERS: list[set[str]] = [
    {"errors", "limits", "units", "steps", "config", "kernels"},
    {"abc"},
    {"messages"},
    {"telemetry"},
    {"dataplane", "paths", "links", "registry", "worker", "plugins"},
    {"controlplane"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The face of the package and its binding belong to no layer; `testing` is for tests alone.
FACE = {"_native", "aio", "testing"}


def layer_of(path: Path) -> str:
    part = path.relative_to(ROOT / "fabric").parts[0]
    return part.removesuffix(".py")


def test_every_part_of_fabric_has_a_layer() -> None:
    parts = {layer_of(path) for path in python_files("fabric")} - {"__init__", "__main__"}
    assert parts <= set(LEVEL) | FACE, "put it in LAYERS where it may be imported from"


def test_fabric_imports_only_downwards() -> None:
    wrong = []
    for path in python_files("fabric"):
        own = LEVEL.get(layer_of(path))
        if own is None:
            continue
        for name, line in imports(path):
            parts = name.split(".")
            if parts[0] == "fabric" and len(parts) > 1 and LEVEL.get(parts[1], -1) > own:
                wrong.append(f"{short(path)}:{line} imports {name}")
    assert not wrong


def test_fabric_imports_no_plugin_package() -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for path in python_files("fabric")
        for name, line in imports(path)
        if name.split(".")[0] in {"fabric_plugins", "fabric_routes", "fabric_modules"}
    ]
    assert not wrong


def test_only_tests_import_testing() -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for path in python_files("fabric", "plugins", "routes", "modules", "examples")
        if "testing" not in path.parts
        for name, line in imports(path)
        if name.startswith("fabric.testing")
    ]
    assert not wrong


def test_first_party_plugins_use_only_the_public_face() -> None:
    """What a third party cannot reach, our own plugins do not use."""
    private = {"_native", "dataplane", "controlplane", "registry", "paths", "worker"}
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for path in python_files("plugins", "routes")
        for name, line in imports(path)
        if name.startswith("fabric.") and name.split(".")[1] in private
    ]
    assert not wrong


def test_nothing_imports_pickle_or_its_kin() -> None:
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for path in python_files("fabric", "plugins", "routes", "modules", "examples", "bench")
        for name, line in imports(path)
        if name.split(".")[0] in banned
    ]
    assert not wrong


def test_heavy_packages_are_imported_on_use() -> None:
    """Idle memory and start-up time are not spent on a package that this process may never need."""
    heavy = {"torch", "transformers", "safetensors"}
    wrong = []
    for path in python_files("fabric"):
        for node in tree(path).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            wrong += [f"{short(path)}: {n}" for n in names if n.split(".")[0] in heavy]
    assert not wrong
