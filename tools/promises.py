"""Make the README's table of promises and docs/PROMISES.md from the tests that are marked with them.

``python tools/promises.py`` says whether both are current (exit status 1 if not); ``--write`` writes them. A test shows
a promise by ``@pytest.mark.promise("P1", …)`` on itself or its class, or by the module's ``pytestmark``. The words and
what is missing stand in docs/promises.toml.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "docs" / "promises.toml"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "PROMISES.md"
BEGIN, END = "<!-- promises: begin -->\n", "<!-- promises: end -->\n"
FILES_SHOWN = 3  # in the README, per promise; the page has all

Test = tuple[str, str]  # path from the root, name


def promises_of(node: ast.expr) -> Iterator[str]:
    """Yield the promises that a mark names: a call ``pytest.mark.promise("P1")``, or a list with such calls."""
    if isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from promises_of(element)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
        yield from (
            a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
        )


def tests_of(path: Path) -> Iterator[tuple[str, Test]]:
    """Yield (promise, test) for every mark of a test file."""
    name = str(path.relative_to(ROOT))

    def of_body(
        body: list[ast.stmt], inherited: set[str], prefix: str
    ) -> Iterator[tuple[str, Test]]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            shown = inherited | {p for d in node.decorator_list for p in promises_of(d)}
            if isinstance(node, ast.ClassDef):
                yield from of_body(node.body, shown, f"{prefix}{node.name}::")
            elif node.name.startswith("test_"):
                yield from ((promise, (name, prefix + node.name)) for promise in sorted(shown))

    tree = ast.parse(path.read_text(), str(path))
    whole = {
        promise
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for promise in promises_of(node.value)
    }
    yield from of_body(tree.body, whole, "")


def collect(folder: Path = ROOT / "tests") -> dict[str, list[Test]]:
    """Return the tests of every promise, in the order of paths."""
    found: dict[str, list[Test]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for promise, test in tests_of(path):
            found.setdefault(promise, []).append(test)
    return found


def table(words: dict[str, dict[str, str]], tests: dict[str, list[Test]]) -> str:
    """Return the README's rows: the files with most of the tests, how many there are, what is missing."""
    rows = ["| | promise | shown by | not yet |", "|---|---|---|---|"]
    for promise, about in words.items():
        mine = tests.get(promise, [])
        files = [name for name, _ in Counter(path for path, _ in mine).most_common(FILES_SHOWN)]
        shown = ", ".join(f"`{name}`" for name in files)
        count = (
            f"[{len(mine)} tests](docs/PROMISES.md#{promise.lower()}): {shown}"
            if mine
            else "no test"
        )
        rows.append(f"| {promise} | {about['text']} | {count} | {about.get('gap', '')} |")
    return "\n".join(rows) + "\n"


def page(words: dict[str, dict[str, str]], tests: dict[str, list[Test]]) -> str:
    """Return docs/PROMISES.md: every test of every promise."""
    lines = [
        "# The promises and their tests",
        "",
        "Made by `tools/promises.py --write` from the marks in the tests.",
    ]
    for promise, about in words.items():
        lines += ["", f"## {promise}", "", about["text"] + ".", ""]
        lines += [f"Not yet: {about['gap']}.", ""] if about.get("gap") else []
        by_file: dict[str, list[str]] = {}
        for path, name in tests.get(promise, []):
            by_file.setdefault(path, []).append(name)
        for path, names in by_file.items():
            lines += [
                f"- `{path}`",
                *(f"  - {name.removeprefix('test_').replace('_', ' ')}" for name in names),
            ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Check or write; returns the exit status."""
    words = tomllib.loads(WORDS.read_text())
    tests = collect()
    unknown = sorted(set(tests) - set(words))
    if unknown:
        sys.exit(f"no promise is called {', '.join(unknown)}: see {WORDS.relative_to(ROOT)}")
    readme = README.read_text()
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = {
        README: before + BEGIN + "\n" + table(words, tests) + "\n" + END + after,
        PAGE: page(words, tests),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--write" in arguments:
        for path in stale:
            path.write_text(wanted[path])
        return 0
    for path in stale:
        sys.stderr.write(
            f"{path.relative_to(ROOT)} is not what the tests say: run tools/promises.py --write\n"
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
