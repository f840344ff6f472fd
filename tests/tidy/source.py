"""The project's own files, and what they import, as the tidy tests see them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("fabric", "plugins", "routes", "modules")
CODE = (*PACKAGES, "tests", "bench", "examples", "tools")


def is_generated(path: Path) -> bool:
    return "_pb2" in path.name or path.name == "_native.pyi"


def python_files(*folders: str) -> Iterator[Path]:
    """Every hand-written Python file below the folders, sorted."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not is_generated(path):
                yield path


def native_files() -> Iterator[Path]:
    for pattern in ("*.cpp", "*.hpp"):
        yield from sorted((ROOT / "fabric/native").rglob(pattern))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_type_checking(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of what a file imports at run time, with lines; type-checking blocks are left out."""
    pending: list[ast.AST] = [tree(path)]
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and is_type_checking(node):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
