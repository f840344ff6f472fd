"""The README's map of folders is true, both ways, and its promises name tests that exist."""

from __future__ import annotations

import re

from source import ROOT

README = ROOT / "README.md"
LINES_MAX = 150
# Folders without a row: hidden ones and what a build leaves.
UNMAPPED = {"build", "dist"}


def section(title: str) -> str:
    text = README.read_text()
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"README.md has no section {title!r}"
    return found.group(1)


def test_readme_fits_in_one_reading() -> None:
    """What is folded away is not counted."""
    shown = re.sub(r"<details>.*?</details>", "", README.read_text(), flags=re.S)
    assert len(shown.splitlines()) <= LINES_MAX


def mapped() -> set[str]:
    return set(re.findall(r"^([a-z_.]+(?:/[a-z_.]+)*)/ ", section("Layout"), re.M))


def test_every_folder_of_the_map_exists() -> None:
    assert mapped(), "the map is empty"
    assert not sorted(f for f in mapped() if not (ROOT / f).is_dir())


def test_every_folder_is_on_the_map() -> None:
    real = {
        p.name
        for p in ROOT.iterdir()
        if p.is_dir() and not p.name.startswith(".") and p.name not in UNMAPPED
    }
    inside = {
        f"fabric/{p.name}"
        for p in (ROOT / "fabric").iterdir()
        if p.is_dir() and p.name != "__pycache__" and any(p.glob("*.py"))
    }
    missing = {f for f in real | inside if f not in mapped()}
    assert not sorted(missing)


def test_promises_name_tests_that_exist() -> None:
    rows = re.findall(r"^\| (P\d+) .*$", section("Promises"), re.M)
    assert rows == [f"P{n}" for n in range(1, 11)]
    named = re.findall(r"`(tests/[\w/.]+)`", section("Promises"))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_documents_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README.read_text())
    assert not [link for link in links if not (ROOT / link).exists()]
