"""Limits agree on both sides of the language border and are used; every error can be met."""

from __future__ import annotations

import inspect
import re

import pytest
from source import ROOT, native_files, python_files

from fabric import errors, limits

pytestmark = pytest.mark.promise("P8")

LAYOUT = ROOT / "fabric/native/core/layout.hpp"
CONSTANT = re.compile(r"inline constexpr u(?:8|16|32|64) k(\w+) = ([^;]+);")
# Magic numbers of segments are not limits.
MAGIC = re.compile(r"^(Lane|State|Segment|Doorbell)Magic$")


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def layout_limits() -> dict[str, int]:
    """Value of each constant of layout.hpp; products of literals are the only expressions there."""
    found: dict[str, int] = {}
    for name, text in CONSTANT.findall(LAYOUT.read_text()):
        if MAGIC.match(name):
            continue
        value = 1
        for factor in text.replace("'", "").split("*"):
            value *= int(factor.strip().rstrip("uUlL"), 0)
        found[snake(name)] = value
    return found


def test_layout_limits_equal_python_limits() -> None:
    native = layout_limits()
    assert len(native) >= 10, "the pattern no longer finds the constants"
    assert native == {name: getattr(limits, name, None) for name in native}


def test_every_limit_is_used() -> None:
    names = [name for name in vars(limits) if name.isupper()]
    mirrored = set(layout_limits())
    text = "\n".join(
        path.read_text()
        for path in python_files("fabric", "plugins", "routes", "modules", "tests")
        if path.name not in {"limits.py", "test_limits_and_errors.py"}
    )
    unused = [
        name for name in names if name not in mirrored and not re.search(rf"\b{name}\b", text)
    ]
    assert not unused


def error_classes() -> list[str]:
    return [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == "fabric.errors"
        and value is not errors.FabricError
    ]


def test_every_error_is_raised_somewhere() -> None:
    sources = [
        path.read_text()
        for path in (*python_files("fabric"), *native_files())
        if path.name != "errors.py" or "bind" in path.parts
    ]
    text = "\n".join(sources)
    tree = (ROOT / "fabric/errors.py").read_text()
    # A class that others derive from is met through them.
    parents = set(re.findall(r"class \w+\(([\w, ]+)\)", tree))
    never = [
        name
        for name in error_classes()
        if not re.search(rf"\b{name}\b", text) and name not in parents
    ]
    assert not never


def test_every_error_is_met_by_a_test() -> None:
    text = "\n".join(path.read_text() for path in python_files("tests") if "tidy" not in path.parts)
    parents = set(re.findall(r"class \w+\((\w+)", (ROOT / "fabric/errors.py").read_text()))
    unmet = [
        name
        for name in error_classes()
        if not re.search(rf"\b{name}\b", text) and name not in parents
    ]
    assert not unmet, "no test names them"
