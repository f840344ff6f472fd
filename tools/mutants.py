"""Show that tests can fail: apply each patch of tests/mutants in a copy, and expect its tests to notice.

``python tools/mutants.py [NAME …]``; without names, all. A patch begins with lines ``Expect: TEST-ID``: each of those
tests must pass in the copy as it is and fail with the patch. Exit status 1 when a mutant survives, or when a
patch no longer applies. The copy lies in build/mutants; the working tree is never touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "mutants" / "tree"
PATCHES = ROOT / "tests" / "mutants"
TEST_S = 300.0
BUILD_S = 600.0

# Runs at interpreter start in the copy: the editable install would otherwise answer with the working tree.
SITECUSTOMIZE = """\
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
"""


@dataclass(frozen=True)
class Mutant:
    """One patch and the tests that must notice it."""

    path: Path
    tests: tuple[str, ...]
    is_native: bool

    @property
    def name(self) -> str:
        """File name without its ending."""
        return self.path.stem


def load(path: Path) -> Mutant:
    """Read a patch file.

    Raises
    ------
    SystemExit
        It names no test.
    """
    text = path.read_text()
    tests = tuple(re.findall(r"^Expect: (\S+)$", text, re.M))
    if not tests:
        sys.exit(f"{path}: no line 'Expect: TEST-ID'")
    return Mutant(path, tests, "+++ b/fabric/native/" in text)


def copy_tree() -> None:
    """Lay the working tree's files into the copy; unchanged ones keep their times, so builds stay incremental."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    names = {
        name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()
    }
    for name in sorted(names):
        source, target = ROOT / name, COPY / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            shutil.copymode(source, target)
    for path in sorted(COPY.rglob("*")):
        name = str(path.relative_to(COPY))
        if path.is_file() and name not in names and path.suffix in {".py", ".cpp", ".hpp"}:
            path.unlink()
    (COPY / "sitecustomize.py").write_text(SITECUSTOMIZE)


def build() -> None:
    """Build the extension of the copy beside its Python files.

    Raises
    ------
    SystemExit
        It does not compile.
    """
    folder = COPY.parent / "native"
    tools = ROOT / ".venv" / "bin"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"],
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout.strip()  # fmt: skip
    configure = ["cmake", "-S", str(COPY / "fabric/native"), "-B", str(folder), "-G", "Ninja"]
    configure += ["-DSKBUILD=ON", f"-Dnanobind_DIR={nanobind}", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", str(folder)]):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for built in (
        *folder.glob("_native*.so"),
        *folder.glob("_ucx*.so"),
    ):  # the second where there is UCX
        shutil.copyfile(built, COPY / "fabric" / f"{built.name.partition('.')[0]}{suffix}")


def passes(tests: Sequence[str], *, show: bool = False) -> bool:
    """Run the tests in the copy; whether all passed. A skip counts as a failure to run."""
    path = os.pathsep.join(str(COPY / part) for part in ("", "plugins", "routes", "modules"))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    if not show:  # one failure is enough
        command.append("-x")
    try:
        done = subprocess.run(
            command,
            cwd=COPY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        sys.exit(
            f"pytest could not run {' '.join(tests)}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
    if re.search(r"\d+ skipped", done.stdout):
        sys.exit(f"skipped, so nothing is shown: {' '.join(tests)}\n{done.stdout[-1000:]}")
    if show and done.returncode != 0:
        print(done.stdout[-6000:])
    return done.returncode == 0


def patch(mutant: Mutant, *, reverse: bool) -> bool:
    """Apply or take back a patch in the copy."""
    command = ["git", "apply", str(mutant.path)]
    if reverse:
        command.append("--reverse")
    # The ceiling keeps git from taking the copy for a folder of the repository around it.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(COPY.parent)}
    return (
        subprocess.run(command, cwd=COPY, env=environment, check=False, timeout=30).returncode == 0
    )


def survives(mutant: Mutant, *, is_built_mutated: bool) -> str:
    """Return why this mutant shows nothing, or an empty string when every test noticed it.

    The extension stays built with a native mutant's patch; `is_built_mutated` says that the last one's is in it.
    """
    if not patch(mutant, reverse=False):
        return "the patch no longer applies"
    try:
        if mutant.is_native or is_built_mutated:
            build()
        unnoticed = [test for test in mutant.tests if passes([test])]
    finally:
        patch(mutant, reverse=True)
    return f"not noticed by {', '.join(unnoticed)}" if unnoticed else ""


def lock_copy() -> TextIO:
    """Wait for another run: there is one copy."""
    COPY.parent.mkdir(parents=True, exist_ok=True)
    lock = (COPY.parent / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def main(names: Sequence[str]) -> int:
    """Try the named mutants."""
    paths = sorted(PATCHES.glob("*.patch"))
    mutants = [load(path) for path in paths if not names or path.stem in names]
    unknown = set(names) - {path.stem for path in paths}
    if unknown or not mutants:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown)) or '(none at all)'} in {PATCHES}")
    lock = lock_copy()  # held until this process ends
    copy_tree()
    build()
    wanted = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"{len(mutants)} mutants; first the {len(wanted)} tests as they are")
    if not passes(wanted, show=True):
        sys.exit("a test fails without any mutant: nothing can be shown")
    failed, is_built_mutated = 0, False
    for mutant in sorted(mutants, key=lambda mutant: not mutant.is_native):
        reason = survives(mutant, is_built_mutated=is_built_mutated)
        is_built_mutated = mutant.is_native
        failed += bool(reason)
        print(f"{'SURVIVED' if reason else 'noticed '} {mutant.name} {reason}", flush=True)
    print(f"{len(mutants) - failed} passed, {failed} failed")
    lock.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
