"""Rules that a linter does not know: names, sizes, banned calls, who may include what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from source import CODE, ROOT, native_files, python_files, short, tree

PYTHON_LINES_MAX = 500
CPP_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
BANNED_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [
        (ast.unparse(node.func), node)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
    ]


def test_files_stay_small() -> None:
    long = [
        f"{short(path)}: {count} lines (at most {limit})"
        for files, limit in (
            (python_files(*CODE), PYTHON_LINES_MAX),
            (native_files(), CPP_LINES_MAX),
        )
        for path in files
        if (count := len(path.read_text().splitlines())) > limit
    ]
    assert not long


def test_functions_stay_small() -> None:
    long = [
        f"{short(path)}:{node.lineno} {node.name}: {size} lines"
        for path in python_files("fabric", "plugins", "routes", "modules")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - body_start(node) + 1) > FUNCTION_LINES_MAX
    ]
    assert not long


def body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """First line after the docstring: prose does not count against the limit."""
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1:
        return node.body[1].lineno
    return first.lineno


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    paths = [
        p for folder in CODE for p in (ROOT / folder).rglob("*") if "__pycache__" not in p.parts
    ]
    assert not [short(p) for p in paths if p.stem in BANNED_NAMES]


def test_fabric_prints_only_from_the_command_line() -> None:
    """Elsewhere a line goes to a named stream or to the log. A host process's standard output is its log."""
    speaks = {"fabric/worker/stage_host.py", "fabric/worker/host.py"}
    wrong = [
        f"{short(path)}:{node.lineno}"
        for path in python_files("fabric")
        if path.relative_to(ROOT).parts[:2] != ("fabric", "cli") and short(path) not in speaks
        for name, node in calls(path)
        if name == "print" and "file" not in {word.arg for word in node.keywords}
    ]
    assert not wrong


def test_no_except_is_bare() -> None:
    wrong = [
        f"{short(path)}:{node.lineno}"
        for path in python_files(*CODE)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not wrong


def test_nothing_executes_what_it_read() -> None:
    """No eval, exec, yaml.load, os.system or shell=True. A stage host runs plugin files through importlib."""
    banned = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
    wrong = []
    for path in python_files("fabric", "plugins", "routes", "modules", "bench", "examples"):
        for name, node in calls(path):
            words = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            if (
                name in banned
                or words.get("shell") == "True"
                or words.get("weights_only") == "False"
            ):
                wrong.append(f"{short(path)}:{node.lineno} {name}")
    assert not wrong


def test_decisions_and_deadlines_read_the_monotonic_clock() -> None:
    """Wall time is for logs and incarnations alone; each other use says so on its line."""
    wrong = []
    for path in python_files("fabric"):
        if path.name == "logs.py":
            continue
        lines = path.read_text().splitlines()
        for name, node in calls(path):
            if name in {"time.time", "datetime.now"} and "wall" not in lines[node.lineno - 1]:
                wrong.append(f"{short(path)}:{node.lineno} {name}")
    assert not wrong


def test_type_ignores_name_their_code() -> None:
    wrong = [
        f"{short(path)}:{number}"
        for path in python_files("fabric", "plugins", "routes", "modules", "bench")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*type:\s*ignore(?!\[)", line)
    ]
    assert not wrong


def test_no_todo_without_an_end() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    wrong = [
        f"{short(path)}:{number} {line.strip()}"
        for path in (*python_files(*CODE), *native_files())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(re.search(rf"\b{mark}\b", line) for mark in marks)
    ]
    assert not wrong


def test_only_bindings_know_python() -> None:
    wrong = [
        short(path)
        for path in native_files()
        if "bind" not in path.parts
        and re.search(r'#include\s*[<"](nanobind/|Python\.h)', path.read_text())
    ]
    assert not wrong


def test_only_the_ucx_link_knows_ucx() -> None:
    wrong = [
        short(path)
        for path in native_files()
        if path.name != "ucx_endpoint.cpp"
        and re.search(r'#include\s*[<"]uc[pst]/', path.read_text())
    ]
    assert not wrong


def test_every_package_says_it_is_typed() -> None:
    roots = ("fabric", "plugins/fabric_plugins", "routes/fabric_routes", "modules/fabric_modules")
    assert not [root for root in roots if not (ROOT / root / "py.typed").exists()]


def test_every_python_folder_is_a_package() -> None:
    folders = {path.parent for path in python_files("fabric", "plugins", "routes", "modules")} - {
        ROOT / name for name in ("plugins", "routes", "modules")
    }
    wrong = [short(f) for f in sorted(folders) if not (f / "__init__.py").exists()]
    assert not wrong
